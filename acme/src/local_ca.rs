//! A CA of this machine's own, for the demo and for development. It is trusted by nobody
//! who was not given `ca.pem`.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// How long the CA lives (chosen: a developer's machine).
const CA_LIFE: Duration = Duration::days(3650);
/// How long a leaf lives; it is issued anew at each start (chosen: what public CAs give).
const LEAF_LIFE: Duration = Duration::days(90);
/// Certificates begin a little earlier, for clocks that are behind.
const BACKDATE: Duration = Duration::hours(1);

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate or key could not be made or understood.
    #[error("{path}: {source}")]
    Certificate {
        /// The file it is, or would be, in.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// The CA: `ca.pem` for everybody, `ca.key` for its owner only.
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    key_path: PathBuf,
}

impl LocalCa {
    /// Loads the CA in `directory`, or makes one.
    ///
    /// # Errors
    /// [`CaError`]. A CA that is there but unreadable is never replaced: clients trust it.
    pub fn load_or_create(directory: &Path) -> Result<Self, CaError> {
        let (cert_path, key_path) = (directory.join("ca.pem"), directory.join("ca.key"));
        let issuer = match std::fs::read_to_string(&key_path) {
            Ok(key) => {
                let key = KeyPair::from_pem(&key).map_err(certificate(&key_path))?;
                // Clients were given this file: without it the key alone is of no use.
                std::fs::metadata(&cert_path).map_err(file(&cert_path))?;
                Issuer::new(ca_params(), key)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(&cert_path, &key_path)?,
            Err(error) => return Err(file(&key_path)(error)),
        };
        Ok(Self { issuer, key_path })
    }

    /// Issues a server certificate with a fresh P-256 key.
    ///
    /// # Errors
    /// [`CaError::Certificate`] for a name no certificate can carry.
    pub fn issue(&self, names: &[String]) -> Result<CertifiedKey, CaError> {
        let failed = certificate(&self.key_path);
        let make = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(names.to_vec())?;
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, names.first().map_or("", String::as_str));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.use_authority_key_identifier_extension = true;
            (params.not_before, params.not_after) = validity(LEAF_LIFE);
            Ok((params.signed_by(&key, &self.issuer)?, key))
        };
        let (leaf, key) = make().map_err(failed)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = any_supported_type(&private).expect("a P-256 key made here is supported");
        Ok(CertifiedKey::new(vec![leaf.der().clone()], signer))
    }
}

fn create(cert_path: &Path, key_path: &Path) -> Result<Issuer<'static, KeyPair>, CaError> {
    let key = KeyPair::generate().map_err(certificate(key_path))?;
    let mut params = ca_params();
    (params.not_before, params.not_after) = validity(CA_LIFE);
    let ca = params.self_signed(&key).map_err(certificate(cert_path))?;
    // The certificate first: a key without one would be taken for a CA at the next start.
    std::fs::write(cert_path, ca.pem()).map_err(file(cert_path))?;
    std::fs::set_permissions(cert_path, Permissions::from_mode(0o644)).map_err(file(cert_path))?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(key_path)
        .and_then(|mut to| to.write_all(key.serialize_pem().as_bytes()))
        .map_err(file(key_path))?;
    Ok(Issuer::new(params, key))
}

/// The same at every start: a leaf names its issuer by these and by the key alone.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "edge-proxy local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn validity(life: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATE, now + life)
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::File { path, source }
}

fn certificate(path: &Path) -> impl FnOnce(rcgen::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Certificate { path, source }
}
