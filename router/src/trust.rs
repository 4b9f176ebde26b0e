//! Whose certificates are good when we are the client: a store's, an orchestrator's, a
//! webhook's receiver's.

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// No TLS.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read, or is no PEM.
    #[error("ca_file {path}: {source}", path = path.display())]
    CaFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// It holds nothing to trust.
    #[error("ca_file {path}: no certificate (PEM) is in it", path = path.display())]
    NoCertificate {
        /// Which.
        path: PathBuf,
    },
    /// Neither does the system.
    #[error("this machine has no trusted certificates; ca_file can name some")]
    NoRoots,
    /// A certificate that cannot be a root.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Those of `ca_file` alone, or those of the system when it is empty. Reads files, hundreds of them.
///
/// # Errors
/// [`TrustError`].
pub fn roots(ca_file: &Path) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    if ca_file.as_os_str().is_empty() {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the system's certificates cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(TrustError::NoRoots);
        }
    } else {
        let path = || ca_file.to_path_buf();
        let read = CertificateDer::pem_file_iter(ca_file).and_then(|found| found.collect::<Result<Vec<_>, _>>());
        for certificate in read.map_err(|source| TrustError::CaFile { path: path(), source })? {
            roots.add(certificate)?;
        }
        if roots.is_empty() {
            return Err(TrustError::NoCertificate { path: path() });
        }
    }
    Ok(roots)
}

/// TLS that trusts as [`roots`] does: call it once, and not for each request.
///
/// # Errors
/// [`TrustError`].
pub fn trusting(ca_file: &Path) -> Result<TlsConnector, TrustError> {
    let roots = roots(ca_file)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
