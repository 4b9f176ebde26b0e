//! The name of a custom domain, and which names can be none.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest host name, bytes (RFC 1035 §2.3.4, without the dot at its end).
pub const DOMAIN_BYTES_MAX: usize = 253;
/// Longest label, bytes (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;
/// Top-level names that no public DNS gives to anybody (RFC 6761, RFC 6762, RFC 7686, RFC 9476 and
/// ICANN's `internal`); `test`, `example` and `invalid` are for trying things out, which is what they are for.
const NOBODYS: [&str; 6] = ["localhost", "local", "internal", "onion", "alt", "arpa"];

/// A checked host name: A-labels, lower-case, without a dot at its end. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(Arc<str>);

/// Why a text is no custom domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Empty, longer than [`DOMAIN_BYTES_MAX`], or a label of it longer than 63 bytes.
    #[error("a domain has at most {DOMAIN_BYTES_MAX} bytes, and 1 to {LABEL_BYTES_MAX} between its dots")]
    Length,
    /// Something else than a–z, 0–9, `-` and dots: other letters are written as A-labels (`xn--…`).
    #[error("a domain has only letters a to z, digits and '-' between its dots")]
    Character,
    /// `-` at an end of a label.
    #[error("no part of a domain begins or ends with '-'")]
    Dash,
    /// One label, an address, or a name that public DNS gives to nobody.
    #[error("nobody can own this name in public DNS")]
    Nobodys,
}

impl DomainName {
    /// Checks `text`, lower-cases it and takes a dot from its end.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        let name = Self::parse_any(text)?;
        let mut labels = name.0.rsplit('.');
        let top = labels.next().unwrap_or("");
        // No top-level name is made of digits (RFC 3696 §2): such a text is an address.
        if labels.next().is_none() || NOBODYS.contains(&top) || top.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(DomainError::Nobodys);
        }
        Ok(name)
    }

    /// The same without the rule about whose a name can be: for what an operator writes into the
    /// config file, who needs to prove nothing.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse_any(text: &str) -> Result<Self, DomainError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.len() > DOMAIN_BYTES_MAX {
            return Err(DomainError::Length);
        }
        for label in text.split('.') {
            if label.is_empty() || label.len() > LABEL_BYTES_MAX {
                return Err(DomainError::Length);
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
                return Err(DomainError::Character);
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(DomainError::Dash);
            }
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `other` or a name under it.
    #[must_use]
    pub fn is_at_or_under(&self, other: &str) -> bool {
        let at = self.0.len().checked_sub(other.len());
        at.is_some_and(|at| {
            let (label, rest) = (self.0.get(..at), self.0.get(at..));
            rest.is_some_and(|rest| rest.eq_ignore_ascii_case(other))
                && label.is_some_and(|label| label.is_empty() || label.ends_with('.'))
        })
    }
}

impl Borrow<str> for DomainName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for DomainName {
    type Error = DomainError;

    fn try_from(text: String) -> Result<Self, DomainError> {
        Self::parse(&text)
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.as_str().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_domain_is_lower_case_and_has_a_dot_in_it() {
        assert_eq!(DomainName::parse("Shop.Example.COM.").unwrap().as_str(), "shop.example.com");
        assert_eq!(DomainName::parse("xn--bcher-kva.example").unwrap().as_str(), "xn--bcher-kva.example");
        let longest = format!("{}.{}", ["a".repeat(63).as_str(); 3].join("."), "b".repeat(61));
        assert_eq!(longest.len(), DOMAIN_BYTES_MAX);
        assert!(DomainName::parse(&longest).is_ok());
        for (text, error) in [
            ("", DomainError::Length),
            ("a..example", DomainError::Length),
            (".example", DomainError::Length),
            (format!("{longest}b").as_str(), DomainError::Length),
            (format!("{}.example", "a".repeat(64)).as_str(), DomainError::Length),
            ("_x.example", DomainError::Character),
            ("*.example.com", DomainError::Character),
            ("bücher.example", DomainError::Character),
            ("a.example:443", DomainError::Character),
            ("-a.example", DomainError::Dash),
            ("a-.example", DomainError::Dash),
            ("example", DomainError::Nobodys),
            ("192.0.2.1", DomainError::Nobodys),
            ("a.localhost", DomainError::Nobodys),
            ("printer.local", DomainError::Nobodys),
        ] {
            assert_eq!(DomainName::parse(text), Err(error), "{text}");
        }
        assert!(DomainName::parse_any("site.localhost").is_ok());
    }

    #[test]
    fn at_or_under_goes_by_whole_labels() {
        let name = DomainName::parse("a.sprites.dev").unwrap();
        for above in ["a.sprites.dev", "Sprites.dev", "dev"] {
            assert!(name.is_at_or_under(above), "{above}");
        }
        for foreign in ["prites.dev", "x.a.sprites.dev", "b.sprites.dev", ".sprites.dev", "é"] {
            assert!(!name.is_at_or_under(foreign), "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_domain_or_refused_and_what_is_one_stays_one(text in "\\PC{0,60}", like in "[A-Za-z0-9.-]{0,40}") {
            for text in [text, like] {
                if let Ok(name) = DomainName::parse(&text) {
                    prop_assert_eq!(DomainName::parse(name.as_str()), Ok(name));
                }
            }
        }
    }
}
