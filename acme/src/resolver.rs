//! Which certificate answers a handshake: the wildcard of a suffix first, then whole names.

use arc_swap::ArcSwap;
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;

/// Certificates by name. Replaced as a whole, so that a handshake sees one set or the other.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// A domain, lower-case, and the certificate for each single label under it and for itself.
    pub suffixes: Vec<(String, Arc<CertifiedKey>)>,
    /// Whole names, lower-case.
    pub names: HashMap<String, Arc<CertifiedKey>>,
    /// For every other name it covers: what an operator has configured.
    pub fallback: Option<Arc<CertifiedKey>>,
}

/// The resolver rustls asks.
#[derive(Debug, Default)]
pub struct CertResolver {
    current: ArcSwap<Certificates>,
}

impl CertResolver {
    /// With this set.
    #[must_use]
    pub fn new(certificates: Certificates) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::from_pointee(certificates) })
    }

    /// Uses another set from now on. Handshakes under way end with the old one.
    pub fn replace(&self, certificates: Certificates) {
        self.current.store(Arc::new(certificates));
    }

    /// The certificate for a name as rustls gives it (lower-case, without a final dot).
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let wildcard = current.suffixes.iter().find(|(suffix, _)| covers(suffix, name));
        wildcard
            .map(|(_, key)| Arc::clone(key))
            .or_else(|| current.names.get(name).cloned())
            .or_else(|| current.fallback.clone().filter(|key| is_valid_for(key, name)))
    }
}

/// Whether a client that asks for `name` takes this certificate for it (RFC 9525 §6).
fn is_valid_for(key: &CertifiedKey, name: &str) -> bool {
    let (Some(leaf), Ok(name)) = (key.cert.first(), ServerName::try_from(name)) else { return false };
    ParsedCertificate::try_from(leaf).is_ok_and(|leaf| verify_server_name(&leaf, &name).is_ok())
}

/// A wildcard covers exactly one label (RFC 9525 §6.3); ours carry the bare suffix too.
fn covers(suffix: &str, name: &str) -> bool {
    match name.strip_suffix(suffix) {
        Some("") => true,
        Some(label) => label.strip_suffix('.').is_some_and(|label| !label.is_empty() && !label.contains('.')),
        None => false,
    }
}

impl ResolvesServerCert for CertResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_ca::LocalCa;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    fn handshake(resolver: Arc<CertResolver>, ca: &std::path::Path, name: &'static str) -> Result<(), rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let server = server.unwrap().with_no_client_auth().with_cert_resolver(resolver);
        let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from(name).unwrap())?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn a_client_that_trusts_the_local_ca_reaches_one_label_under_the_suffix_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let ca = LocalCa::load_or_create(dir.path()).unwrap();
        let names = ["*.sprites.test".to_owned(), "sprites.test".to_owned()];
        let key = Arc::new(ca.issue(&names).unwrap());
        let resolver =
            CertResolver::new(Certificates { suffixes: vec![("sprites.test".into(), key)], ..Certificates::default() });
        let ca = dir.path().join("ca.pem");
        handshake(Arc::clone(&resolver), &ca, "hello.sprites.test").unwrap();
        handshake(Arc::clone(&resolver), &ca, "sprites.test").unwrap();
        for foreign in ["a.b.sprites.test", "xsprites.test", "example.com"] {
            assert!(handshake(Arc::clone(&resolver), &ca, foreign).is_err(), "{foreign}");
        }
    }

    #[test]
    fn what_is_configured_answers_for_every_name_it_covers_and_for_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let ca = LocalCa::load_or_create(dir.path()).unwrap();
        let key = Arc::new(ca.issue(&["shop.example".into(), "*.wild.example".into()]).unwrap());
        let resolver = CertResolver::new(Certificates { fallback: Some(key), ..Certificates::default() });
        let ca = dir.path().join("ca.pem");
        handshake(Arc::clone(&resolver), &ca, "shop.example").unwrap();
        handshake(Arc::clone(&resolver), &ca, "a.wild.example").unwrap();
        for foreign in ["www.shop.example", "wild.example", "other.example"] {
            assert!(resolver.find(foreign).is_none(), "{foreign}");
        }
    }

    #[test]
    fn the_ca_is_the_same_after_a_restart_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        LocalCa::load_or_create(dir.path()).unwrap();
        let first = std::fs::read(dir.path().join("ca.pem")).unwrap();
        let ca = LocalCa::load_or_create(dir.path()).unwrap();
        assert_eq!(std::fs::read(dir.path().join("ca.pem")).unwrap(), first);
        assert_eq!(std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
        let key = Arc::new(ca.issue(&["*.t.test".into()]).unwrap());
        let resolver =
            CertResolver::new(Certificates { suffixes: vec![("t.test".into(), key)], ..Certificates::default() });
        handshake(resolver, &dir.path().join("ca.pem"), "a.t.test").unwrap();
    }
}
