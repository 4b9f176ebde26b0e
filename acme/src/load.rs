//! A certificate and its key from PEM files.

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};

/// What is wrong with which file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not there, or is no PEM of the expected kind.
    #[error("{path}: no {what} can be read from it: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why not.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The key is of a kind we cannot use, or belongs to another certificate.
    #[error("{path}: {source}")]
    Unusable {
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// Reads a chain and its key, and checks that they belong together.
///
/// # Errors
/// [`LoadError`], which names the file.
pub fn from_files(chain: &Path, key: &Path) -> Result<CertifiedKey, LoadError> {
    let unreadable = |path: &Path, what| {
        let path = path.to_owned();
        move |source| LoadError::Unreadable { path, what, source }
    };
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unreadable(chain, "certificate"))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key, "private key"))?;
    let unusable = |source| LoadError::Unusable { path: key.to_owned(), source };
    let certified = CertifiedKey::new(certificates, any_supported_type(&private).map_err(unusable)?);
    certified.keys_match().map_err(unusable)?;
    Ok(certified)
}
