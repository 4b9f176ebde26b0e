//! Certificates from public CAs.

use crate::{Config, StoreEngine};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Most CAs (chosen: one, another for the day it fails, and what is on its way in or out).
const CAS_MAX: usize = 4;
/// Longest name of a CA, bytes (chosen: it is part of keys of rows).
const NAME_BYTES_MAX: usize = 32;
/// Most contacts (chosen).
const CONTACTS_MAX: usize = 8;

/// Which limits of a CA are kept below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcmeLimits {
    /// Let's Encrypt's where its directory is one of theirs, else none.
    #[default]
    Directory,
    /// Let's Encrypt's.
    LetsEncrypt,
    /// None: what is ordered is ordered until the CA refuses.
    None,
}

/// Section `[acme]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Acme {
    /// The directory of the CA that is asked first; empty: nobody is asked for certificates.
    pub directory: String,
    /// Its name with us; empty for "first".
    pub name: String,
    /// The profile of its certificates; empty for its default.
    pub profile: String,
    /// Roots (PEM) its own certificate is checked by; empty for those of the system.
    pub ca_file: PathBuf,
    /// The id of an external account binding, if it wants one.
    pub eab_id: String,
    /// The file with the binding's key, base64url as the CA gives it.
    pub eab_key_file: PathBuf,
    /// Which limits of that CA are kept below.
    pub limits: AcmeLimits,
    /// Who is written to about certificates, `mailto:` URLs.
    pub contact: Vec<String>,
    /// The file with the key encryption key; empty for `kek` in the data directory.
    pub kek_file: PathBuf,
    /// How a CA is shown first that a custom domain leads here.
    pub challenge: AcmeChallenge,
    /// Where other edges reach the HTTPS of this one, to see which certificates it shows; left out: the first address of
    /// `listen.https`, unless that is of every interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<SocketAddr>,
    /// Roots (PEM) that visitors trust; empty for those of the system.
    pub visitor_roots: PathBuf,
    /// Other CAs: our own names have a certificate of each, others' names go there when the first one fails.
    pub fallback: Vec<AcmeCa>,
}

/// How a CA is shown that a name leads here. Where one of them is refused the other one is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AcmeChallenge {
    /// A path on port 80.
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// A handshake on port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

/// A CA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AcmeCa {
    /// Its name with us.
    pub name: String,
    /// Its directory.
    pub directory: String,
    /// As [`Acme::profile`].
    pub profile: String,
    /// As [`Acme::ca_file`].
    pub ca_file: PathBuf,
    /// As [`Acme::eab_id`].
    pub eab_id: String,
    /// As [`Acme::eab_key_file`].
    pub eab_key_file: PathBuf,
    /// As [`Acme::limits`].
    pub limits: AcmeLimits,
}

impl Acme {
    /// Whether anybody is asked.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        !self.directory.is_empty()
    }

    /// All CAs, the first one first; none when nobody is asked.
    #[must_use]
    pub fn cas(&self) -> Vec<AcmeCa> {
        if !self.is_on() {
            return Vec::new();
        }
        let name = if self.name.is_empty() { "first" } else { &self.name };
        let first = AcmeCa {
            name: name.to_owned(),
            directory: self.directory.clone(),
            profile: self.profile.clone(),
            ca_file: self.ca_file.clone(),
            eab_id: self.eab_id.clone(),
            eab_key_file: self.eab_key_file.clone(),
            limits: self.limits,
        };
        std::iter::once(first).chain(self.fallback.iter().cloned()).collect()
    }

    pub(crate) fn check(&self, config: &Config) -> Result<(), (&'static str, String)> {
        if !self.is_on() {
            return match self.fallback.is_empty() {
                true => Ok(()),
                false => Err(("acme.directory", "a fallback is for a CA that is asked first".into())),
            };
        }
        if !config.tls.certificate.as_os_str().is_empty() {
            return Err((
                "acme.directory",
                "certificates come from tls.certificate or from a CA, not from both".into(),
            ));
        }
        if config.dns.listen.is_empty() {
            let why = "a CA proves our wildcards by DNS: dns.listen must say where this machine answers for its zones";
            return Err(("acme.directory", why.into()));
        }
        if config.store.engine == StoreEngine::Corrosion {
            let why = "certificates need a store with compare-and-set, and Corrosion has none; use another engine";
            return Err(("acme.directory", why.into()));
        }
        if !config.fleet.name.is_empty() && self.kek_file.as_os_str().is_empty() {
            let why =
                "machines that share certificates share the key they are sealed under: copy one file to all of them";
            return Err(("acme.kek_file", why.into()));
        }
        let cas = self.cas();
        if cas.len() > CAS_MAX {
            return Err(("acme.fallback", format!("at most {CAS_MAX} CAs in all")));
        }
        for (at, ca) in cas.iter().enumerate() {
            let key = if at == 0 { "acme.directory" } else { "acme.fallback" };
            let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if !(1..=NAME_BYTES_MAX).contains(&ca.name.len()) || !ca.name.bytes().all(fine) {
                return Err((key, format!("name {:?}: 1 to {NAME_BYTES_MAX} small letters, digits or -", ca.name)));
            }
            if cas[..at].iter().any(|other| other.name == ca.name) {
                return Err((key, format!("two CAs are called {:?}", ca.name)));
            }
            if !ca.directory.starts_with("https://") {
                return Err((key, format!("{:?} is no https:// URL", ca.directory)));
            }
            if ca.eab_id.is_empty() != ca.eab_key_file.as_os_str().is_empty() {
                return Err((key, "eab_id and eab_key_file are given together or not at all".into()));
            }
        }
        if self.contact.len() > CONTACTS_MAX || self.contact.iter().any(|contact| !contact.starts_with("mailto:")) {
            return Err(("acme.contact", format!("at most {CONTACTS_MAX}, each \"mailto:…\"")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{AcmeLimits, Config};

    const FINE: &str = "[acme]\ndirectory = \"https://ca.example/dir\"\n";
    const DNS: &str = "[dns]\nlisten = [\"127.0.0.1:5353\"]\nname_servers = [{ name = \"ns.example.net\" }]\naddresses = [\"192.0.2.1\"]\n";

    #[test]
    fn a_ca_is_asked_when_all_it_needs_is_there_and_what_is_missing_is_said() {
        let config = Config::parse(&format!("{DNS}{FINE}"), "f").unwrap();
        assert_eq!(config.acme.cas()[0].name, "first");
        assert!(Config::default().acme.cas().is_empty());
        let fallback =
            "limits = \"letsencrypt\"\n[[acme.fallback]]\nname = \"b\"\ndirectory = \"https://b\"\nlimits = \"none\"\n";
        let limited = Config::parse(&format!("{DNS}{FINE}{fallback}"), "f").unwrap();
        let limits: Vec<_> = limited.acme.cas().iter().map(|ca| ca.limits).collect();
        assert_eq!(limits, [AcmeLimits::LetsEncrypt, AcmeLimits::None]);
        assert_eq!(config.acme.limits, AcmeLimits::Directory);
        for (text, said) in [
            (FINE.to_owned(), "dns.listen"),
            (format!("{DNS}[acme]\ndirectory = \"http://ca.example\"\n"), "no https"),
            (format!("{DNS}{FINE}name = \"A B\"\n"), "small letters"),
            (format!("{DNS}{FINE}eab_id = \"x\"\n"), "eab_key_file"),
            (format!("{DNS}{FINE}contact = [\"ops@example.org\"]\n"), "mailto:"),
            (format!("{DNS}{FINE}[[acme.fallback]]\nname = \"first\"\ndirectory = \"https://b\"\n"), "two CAs"),
            (format!("{DNS}{FINE}[tls]\ncertificate = \"a\"\nkey = \"b\"\n"), "not from both"),
            ("[[acme.fallback]]\nname = \"a\"\ndirectory = \"https://b\"\n".into(), "asked first"),
        ] {
            let error = Config::parse(&text, "f").unwrap_err().to_string();
            assert!(error.contains(said), "{said}: {error}");
        }
    }
}
