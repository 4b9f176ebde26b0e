//! Whatever comes from outside, byte for byte: it is refused, and panics nowhere.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

use acme::order::verify;
use acme::resolver::{CertResolver, Certificates, Found};
use acme::seal::Kek;
use acme::tickets::{TicketKey, TicketRing, scope};
use proptest::prelude::*;
use rustls::server::ProducesTickets;
use std::sync::Arc;
use std::time::Duration;

fn ticketer() -> Arc<dyn ProducesTickets> {
    let key = Arc::new(TicketKey::new(7, &[1; 32]).unwrap());
    let ring = TicketRing::new(Duration::from_secs(3600));
    ring.install(Some(Arc::clone(&key)), vec![key]);
    ring.ticketer(scope(&[]))
}

fn resolver() -> Arc<CertResolver> {
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["*.sprites.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key.serialize_der().try_into().unwrap()).unwrap();
    let certificate = rustls::sign::CertifiedKey::new(vec![leaf.der().clone()], key);
    let suffixes = vec![("sprites.test".to_owned(), Arc::new(certificate))];
    CertResolver::new(Certificates { suffixes, ..Certificates::default() })
}

proptest! {
    #[test]
    fn no_ticket_that_we_did_not_make_opens(ticket in prop::collection::vec(any::<u8>(), 0..300), epoch in any::<bool>()) {
        // Every second one names the epoch there is.
        let ticket = if epoch { [&7u64.to_be_bytes()[..], &ticket].concat() } else { ticket };
        prop_assert!(ticketer().decrypt(&ticket).is_none());
    }

    #[test]
    fn whatever_a_client_calls_it_is_looked_for(name in ".{0,80}", below in any::<bool>()) {
        let resolver = resolver();
        let name = if below { format!("{name}.sprites.test") } else { name };
        let found = resolver.look(Some(&name));
        let label = name.strip_suffix('.').unwrap_or(&name).strip_suffix("sprites.test");
        let ours = label.is_some_and(|rest| rest.is_empty() || (rest.len() > 1 && rest.find('.') == Some(rest.len() - 1)));
        prop_assert_eq!(matches!(found, Found::Ready(_)), ours, "{:?}", name);
    }

    #[test]
    fn whatever_a_ca_sends_for_a_chain_is_refused(chain in ".{0,200}", body in "[A-Za-z0-9+/=\n]{0,400}", kind in any::<bool>()) {
        let chain = match kind {
            true => format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"),
            false => chain,
        };
        let names = ["sprites.test".to_owned()];
        prop_assert!(verify::verify(&chain, b"no key", &names, 1_800_000_000).is_err());
        let _ = verify::leaf(&chain);
    }

    #[test]
    fn what_was_not_sealed_does_not_open(sealed in prop::collection::vec(any::<u8>(), 0..200)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
        let kek = Kek::from_file(file.path()).unwrap();
        // With the format and the id of the key there is, so that its tag alone is wrong.
        let mut known = kek.seal("seal/1", 0, b"x").unwrap();
        known.truncate(9);
        known.extend(&sealed);
        prop_assert!(kek.open("seal/1", 0, &sealed).is_err());
        prop_assert!(kek.open("seal/1", 0, &known).is_err());
    }
}
