//! What is wrong with the certificate a visitor was shown. No clock, no socket.

use rustls::client::danger::ServerCertVerifier;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// One thing that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// There is no way to it.
    Unreachable,
    /// The handshake was refused, or made no sense.
    Refused,
    /// It is for other names.
    WrongName,
    /// It is none of the newest.
    WrongGeneration,
    /// It leads to no root that visitors trust.
    Untrusted,
    /// It has ended.
    Expired,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] =
        [Self::Unreachable, Self::Refused, Self::WrongName, Self::WrongGeneration, Self::Untrusted, Self::Expired];

    /// In metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::WrongName => "wrong_name",
            Self::WrongGeneration => "wrong_generation",
            Self::Untrusted => "untrusted",
            Self::Expired => "expired",
        }
    }
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    /// The end of the leaf, seconds since 1970.
    pub(crate) not_after: Option<i64>,
    /// What is wrong.
    pub(crate) faults: BTreeSet<Fault>,
}

/// What is wrong with `chain` when a visitor asks for `name` at `now`, seconds since 1970; `newest` are the leaves that may
/// answer; without roots nobody can say whom visitors trust.
pub(super) fn judge(
    chain: &[CertificateDer<'static>],
    name: &ServerName<'_>,
    newest: &[Vec<u8>],
    roots: Option<&dyn ServerCertVerifier>,
    now: u64,
) -> Judged {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Judged { not_after: None, faults: [Fault::Refused].into() };
    };
    let not_after = acme::validity::not_after(leaf);
    let mut faults = BTreeSet::new();
    if !ParsedCertificate::try_from(leaf).is_ok_and(|leaf| verify_server_name(&leaf, name).is_ok()) {
        faults.insert(Fault::WrongName);
    }
    if !newest.iter().any(|newest| newest.as_slice() == leaf.as_ref()) {
        faults.insert(Fault::WrongGeneration);
    }
    if not_after.is_some_and(|end| end <= i64::try_from(now).unwrap_or(i64::MAX)) {
        faults.insert(Fault::Expired);
    }
    let at = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let said = roots.map(|roots| roots.verify_server_cert(leaf, intermediates, name, &[], at));
    let is_said_already = |error: &Error| {
        use CertificateError as Said;
        let Error::InvalidCertificate(said) = error else { return false };
        matches!(
            said,
            Said::Expired | Said::ExpiredContext { .. } | Said::NotValidForName | Said::NotValidForNameContext { .. }
        )
    };
    if matches!(said, Some(Err(error)) if !is_said_already(&error)) {
        faults.insert(Fault::Untrusted);
    }
    Judged { not_after, faults }
}

#[cfg(test)]
mod tests {
    use super::*;
    use acme::local_ca::LocalCa;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::pki_types::pem::PemObject;
    use std::sync::Arc;

    #[test]
    fn each_fault_is_seen_by_itself() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ca = LocalCa::load_or_create(folder.path()).unwrap();
        let other = LocalCa::load_or_create(elsewhere.path()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.path().join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let chain = |ca: &LocalCa| ca.issue(&["*.sprites.test".to_owned()]).unwrap().cert;
        let (good, foreign) = (chain(&ca), chain(&other));
        let newest = vec![good[0].to_vec(), foreign[0].to_vec()];
        let name = ServerName::try_from("a.sprites.test").unwrap();
        let now = acme::unix_now();
        let faults = |chain: &[CertificateDer<'static>], name: &ServerName<'_>, newest: &[Vec<u8>], now| {
            judge(chain, name, newest, Some(&*roots), now).faults.into_iter().collect::<Vec<_>>()
        };
        let fine = judge(&good, &name, &newest, Some(&*roots), now);
        assert!(fine.faults.is_empty() && fine.not_after.unwrap() > i64::try_from(now).unwrap(), "{fine:?}");
        assert_eq!(faults(&good, &ServerName::try_from("a.other.test").unwrap(), &newest, now), [Fault::WrongName]);
        assert_eq!(faults(&good, &name, &newest[1..], now), [Fault::WrongGeneration]);
        assert_eq!(faults(&foreign, &name, &newest, now), [Fault::Untrusted]);
        assert_eq!(faults(&good, &name, &newest, now + 200 * 24 * 3600), [Fault::Expired]);
        assert_eq!(faults(&[], &name, &newest, now), [Fault::Refused]);
    }
}
