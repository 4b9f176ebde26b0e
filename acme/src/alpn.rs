//! TLS-ALPN-01 (RFC 8737): a certificate that nobody trusts, which says that whoever answers under a name is whom a CA
//! takes it for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use std::sync::Arc;

/// What a CA that looks for it says it speaks (RFC 8737 §6.2).
pub const PROTOCOL: &[u8] = b"acme-tls/1";
/// Bytes of a digest of a key authorization: SHA-256 (RFC 8737 §3).
const DIGEST_BYTES: usize = 32;

/// Why there is no such certificate.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    /// The answer is no digest.
    #[error("the answer is no SHA-256 digest in base64url")]
    Digest,
    /// The name, or the machine's random bytes.
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
    /// The TLS library.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Whether a ClientHello asks for this and for nothing else: a CA does (RFC 8737 §3), a visitor never.
pub fn is_asked<'a>(mut protocols: impl Iterator<Item = &'a [u8]>) -> bool {
    protocols.next() == Some(PROTOCOL) && protocols.next().is_none()
}

/// What one handshake for `name` goes on with, when `answer` is the digest of the key authorization in base64url, as
/// DNS-01 has it. It speaks [`PROTOCOL`] alone, gives no tickets and takes none.
///
/// # Errors
/// [`NotMade`].
pub fn config(name: &str, answer: &str) -> Result<Arc<ServerConfig>, NotMade> {
    let digest = URL_SAFE_NO_PAD.decode(answer).ok().filter(|digest| digest.len() == DIGEST_BYTES);
    let digest = digest.ok_or(NotMade::Digest)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    // Critical, so that nobody takes it for a certificate of the usual kind.
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
    let certificate = params.self_signed(&key)?;
    let signer = any_supported_type(&PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    // Made without a check: rustls reads no certificate with a critical extension that it does not know.
    let certified = CertifiedKey::new(vec![certificate.into()], signer);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    (config.cert_compressors, config.cert_decompressors) = (Vec::new(), Vec::new());
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Challenge, Kind};

    #[test]
    fn it_is_asked_for_alone_or_not_at_all() {
        let asked = |protocols: &[&[u8]]| is_asked(protocols.iter().copied());
        assert!(asked(&[b"acme-tls/1"]));
        let others: [&[&[u8]]; 5] =
            [&[], &[b"h2"], &[b"h2", b"acme-tls/1"], &[b"acme-tls/1", b"h2"], &[b"acme-tls/1", b"acme-tls/1"]];
        for protocols in others {
            assert!(!asked(protocols), "{protocols:?}");
        }
    }

    #[test]
    fn what_is_no_digest_or_no_name_makes_no_certificate() {
        let answer = Challenge::new("shop.example".into(), Kind::TlsAlpn01, "token".into(), "thumb", false).txt;
        let config = config("shop.example", &answer).unwrap();
        assert_eq!((&config.alpn_protocols[..], config.send_tls13_tickets), (&[PROTOCOL.to_vec()][..], 0));
        for wrong in ["", "AAAA", &answer[1..], "not base64 at all, and yet as long as a digest"] {
            assert!(matches!(super::config("shop.example", wrong), Err(NotMade::Digest)), "{wrong}");
        }
        assert!(matches!(super::config("b\u{fc}cher.example", &answer), Err(NotMade::Certificate(_))));
    }
}
