//! Whether a chain is what was ordered, before anybody is shown it.

use crate::order::DAY;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::BTreeSet;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A CA's clock may be ahead of ours by so much (chosen: what TLS clients allow as well).
const AHEAD_MAX: u64 = DAY;
/// Certificates of one chain (chosen: a leaf, an intermediate, and what cross-signs it).
const CHAIN_MAX: usize = 8;

/// Why a chain is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It cannot be read.
    #[error("the chain cannot be read: {0}")]
    Unreadable(String),
    /// It is for other names.
    #[error("it is for {has:?}, and {wanted:?} was ordered")]
    Names {
        /// What it is for.
        has: BTreeSet<String>,
        /// What was ordered.
        wanted: BTreeSet<String>,
    },
    /// It is for another key.
    #[error("it is for another key")]
    Key,
    /// It is not valid now.
    #[error("it is valid from {from} to {to} (seconds since 1970), and it is {now}")]
    Time {
        /// Its beginning.
        from: u64,
        /// Its end.
        to: u64,
        /// Now.
        now: u64,
    },
}

/// A chain that fits.
#[derive(Debug)]
pub struct Fit {
    /// For handshakes.
    pub key: CertifiedKey,
    /// Its beginning, seconds since 1970.
    pub not_before: u64,
    /// Its end, seconds since 1970.
    pub not_after: u64,
    /// Its id for renewal information (RFC 9773 §4.1), if it has what that is made of.
    pub ari: Option<String>,
}

/// Reads `chain` (PEM) with the key (PKCS#8) that was made for it, `now` in seconds since 1970; `names` as ordered.
///
/// # Errors
/// [`Unfit`].
pub fn verify(chain: &str, key: &[u8], names: &[String], now: u64) -> Result<Fit, Unfit> {
    let fit = read(chain, key)?;
    let leaf = &fit.key.cert[0];
    let has = names_of(leaf)?;
    let wanted: BTreeSet<_> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    if has != wanted {
        return Err(Unfit::Names { has, wanted });
    }
    if now + AHEAD_MAX < fit.not_before || fit.not_after <= now {
        return Err(Unfit::Time { from: fit.not_before, to: fit.not_after, now });
    }
    Ok(fit)
}

/// Reads a chain that was verified once.
///
/// # Errors
/// [`Unfit::Unreadable`], [`Unfit::Key`].
pub fn read(chain: &str, key: &[u8]) -> Result<Fit, Unfit> {
    let unreadable = |why: &dyn std::fmt::Display| Unfit::Unreadable(why.to_string());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .take(CHAIN_MAX)
        .map(|one| one.map(CertificateDer::into_owned))
        .collect();
    let chain = chain.map_err(|error| unreadable(&error))?;
    let leaf = chain.first().ok_or_else(|| unreadable(&"no certificate is in it"))?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| unreadable(&error))?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let (not_before, not_after) = (seconds(parsed.validity().not_before), seconds(parsed.validity().not_after));
    let ari = instant_acme::CertificateIdentifier::try_from(leaf).ok().map(|id| id.to_string());
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    let signer = any_supported_type(&private).map_err(|error| unreadable(&error))?;
    let key = CertifiedKey::new(chain, signer);
    key.keys_match().map_err(|_| Unfit::Key)?;
    Ok(Fit { key, not_before, not_after, ari })
}

/// The leaf (DER) of a chain (PEM), if there is one.
#[must_use]
pub fn leaf(chain: &str) -> Option<Vec<u8>> {
    CertificateDer::pem_slice_iter(chain.as_bytes()).next()?.ok().map(|leaf| leaf.to_vec())
}

fn names_of(leaf: &CertificateDer<'_>) -> Result<BTreeSet<String>, Unfit> {
    let unreadable = |why: &dyn std::fmt::Display| Unfit::Unreadable(why.to_string());
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| unreadable(&error))?;
    let names = parsed.subject_alternative_name().map_err(|error| unreadable(&error))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Ok(name.to_ascii_lowercase()),
        other => Err(unreadable(&format!("it is for {other:?} too"))),
    };
    names.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn made(names: &[&str], key: &KeyPair) -> String {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        CertificateParams::new(names).unwrap().self_signed(key).unwrap().pem()
    }

    #[test]
    fn a_chain_is_taken_if_it_is_what_was_ordered() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let names = vec!["*.sprites.test".to_owned(), "sprites.test".to_owned()];
        let now = 1_800_000_000;
        let chain = made(&["sprites.test", "*.sprites.test"], &key);
        let fit = verify(&chain, &key.serialize_der(), &names, now).unwrap();
        assert!(fit.not_before < now && now < fit.not_after);
        assert!(matches!(verify(&chain, &other.serialize_der(), &names, now), Err(Unfit::Key)));
        let fewer = made(&["sprites.test"], &key);
        assert!(matches!(verify(&fewer, &key.serialize_der(), &names, now), Err(Unfit::Names { .. })));
        let more = made(&["sprites.test", "*.sprites.test", "bank.test"], &key);
        assert!(matches!(verify(&more, &key.serialize_der(), &names, now), Err(Unfit::Names { .. })));
        let late = verify(&chain, &key.serialize_der(), &names, fit.not_after + 1);
        assert!(matches!(late, Err(Unfit::Time { .. })));
        for nonsense in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "x"] {
            assert!(matches!(verify(nonsense, &key.serialize_der(), &names, now), Err(Unfit::Unreadable(_))));
        }
    }
}
