//! Who is at the other end of a session: self-signed certificates, pinned by their public key.
//!
//! A second factor beside the WireGuard key, with no certificate authority: a host's pins
//! are in the hosts table, an edge's pins at each host. Names and dates in certificates mean
//! nothing here.

use super::ALPN;
use crate::secret_file::{self, SecretFileError};
use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Name in every certificate; it is not looked at.
const NAME: &str = "session.sprite.invalid";

/// Our certificate and its private key. There is no way to print the key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pin: String,
}

impl Identity {
    /// A new one, kept in memory only.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn generate() -> Result<Self, IdentityError> {
        Self::from_pem(generate_pem()?.as_bytes())
    }

    /// Reads it from a file under the rules of [`crate::keys::PrivateKey::load`], or makes one there.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_generate(path: &Path) -> Result<Self, IdentityError> {
        if !path.try_exists().unwrap_or(true) {
            match secret_file::create(path, generate_pem()?.as_bytes()) {
                // Somebody was faster; theirs is read.
                Ok(()) | Err(SecretFileError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Self::from_pem(&secret_file::read(path)?)
    }

    fn from_pem(pem: &[u8]) -> Result<Self, IdentityError> {
        let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| IdentityError::Malformed)?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| IdentityError::Malformed)?;
        let pin = pin_of(&certificate).map_err(|_| IdentityError::Malformed)?;
        Ok(Self { certificate, key, pin })
    }

    /// SHA-256 of the certificate's public key, hexadecimal: what the other end pins.
    #[must_use]
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// The client side of a session with a host that has one of `pins`.
    pub(super) fn client(&self, pins: &[String]) -> Result<quinn::ClientConfig, IdentityError> {
        let config = self.tls_client(pins, ALPN)?;
        Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?)))
    }

    /// TLS with a server that has one of `pins`, for something else than a session. Whatever name is asked
    /// for is not looked at.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn tls_client(&self, pins: &[String], protocol: &[u8]) -> Result<rustls::ClientConfig, IdentityError> {
        let verifier = Arc::new(Pinned { pins: shared(pins.iter()), provider: provider() });
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.alpn_protocols = vec![protocol.into()];
        config.resumption = rustls::client::Resumption::disabled();
        // One small certificate: nothing to win by compressing it.
        (config.cert_compressors, config.cert_decompressors) = (Vec::new(), Vec::new());
        Ok(config)
    }

    /// TLS with clients that have one of `pins`, whichever those are at the time, for something else than
    /// a session.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn tls_server(&self, pins: &Pins, protocol: &[u8]) -> Result<rustls::ServerConfig, IdentityError> {
        let verifier = Arc::new(Pinned { pins: Arc::clone(pins), provider: provider() });
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.alpn_protocols = vec![protocol.into()];
        config.send_tls13_tickets = 0;
        (config.cert_compressors, config.cert_decompressors) = (Vec::new(), Vec::new());
        Ok(config)
    }

    /// The server side for edges that have one of `pins`, whichever those are at the time.
    pub(super) fn server(&self, pins: &Pins) -> Result<quinn::ServerConfig, IdentityError> {
        let config = self.tls_server(pins, ALPN)?;
        Ok(quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?)))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("pin", &self.pin).finish_non_exhaustive()
    }
}

fn generate_pem() -> Result<Zeroizing<String>, IdentityError> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let key = Zeroizing::new(made.signing_key.serialize_pem());
    // Reserved at once, so that no copy of the key stays behind.
    let certificate = made.cert.pem();
    let mut pem = Zeroizing::new(String::with_capacity(certificate.len() + key.len()));
    pem.push_str(&certificate);
    pem.push_str(&key);
    Ok(pem)
}

/// The pin of the certificate a peer presented in a session.
pub(super) fn pin_of_peer(connection: &quinn::Connection) -> Option<String> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    pin_of(chain.first()?).ok()
}

/// SHA-256 of a certificate's public key, hexadecimal.
///
/// # Errors
/// It is no certificate.
pub fn pin_of(certificate: &CertificateDer<'_>) -> Result<String, Error> {
    let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    Ok(digest(&SHA256, &key).as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Pins that may change while they are in use; lower case.
pub type Pins = Arc<ArcSwap<HashSet<String>>>;

/// These pins, to be shared.
pub fn shared<'a>(pins: impl Iterator<Item = &'a String>) -> Pins {
    Arc::new(ArcSwap::from_pointee(pins.map(|pin| pin.to_ascii_lowercase()).collect()))
}

/// Accepts a certificate whose public key is pinned, whatever else it says.
#[derive(Debug)]
struct Pinned {
    pins: Pins,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        // The pin is public: comparing it need not take constant time.
        match self.pins.load().contains(&pin_of(certificate)?) {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC has no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC has no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// See [`SecretFileError`].
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// Not a certificate and its key in PEM. Says nothing about what was there instead.
    #[error("not a certificate with its private key in PEM")]
    Malformed,
    /// None could be made.
    #[error("making a certificate")]
    Make(#[from] rcgen::Error),
    /// TLS does not take it.
    #[error("TLS refuses the certificate or its key")]
    Tls(#[from] Error),
    /// Cannot happen with the cipher suites compiled in.
    #[error("no cipher suite for QUIC")]
    Suites(#[from] NoInitialCipherSuite),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_keeps_its_pin_in_a_file_and_never_prints_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.pem");
        let first = Identity::load_or_generate(&path).unwrap();
        let second = Identity::load_or_generate(&path).unwrap();
        assert_eq!(first.pin(), second.pin());
        assert_eq!(first.pin().len(), 64);
        assert!(format!("{first:?}").len() < 120);
        assert_ne!(Identity::generate().unwrap().pin(), first.pin());
    }
}
