//! Names of sprites and how they stand in a host name.
//!
//! One label under a configured suffix: `name.suffix`, or `8080--name.suffix` for a
//! declared port. `--` may not stand in a name, so the two forms cannot be confused, and
//! parsing needs no table.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest name, bytes: with a port form, a separator and an organisation's id it must
/// fit the 63 bytes of a DNS label (RFC 1035 §2.3.4).
pub const NAME_BYTES_MAX: usize = 40;

/// Longest suffix, bytes: a label and a dot before it must fit the 253 of a host name.
pub const SUFFIX_BYTES_MAX: usize = 189;

/// Labels that mean something else to clients or to us.
const RESERVED: [&str; 12] =
    ["www", "api", "admin", "auth", "mail", "smtp", "ns1", "ns2", "autodiscover", "autoconfig", "wpad", "localhost"];

/// A checked, lower-case sprite name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpriteName(Arc<str>);

/// Why a text names no sprite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or longer than [`NAME_BYTES_MAX`].
    #[error("a name has 1 to {NAME_BYTES_MAX} characters")]
    Length,
    /// A character other than a–z, 0–9 and `-`.
    #[error("a name has only letters a to z, digits and '-'")]
    Character,
    /// `-` at an end, or two in a row.
    #[error("a name has no '-' at its ends and no '--' in it")]
    Dash,
    /// Digits only, or a label with a meaning of its own.
    #[error("this name is reserved")]
    Reserved,
    /// The host is not one label under one of our suffixes.
    #[error("not a name of ours")]
    Foreign,
    /// The number before `--` is no port.
    #[error("no valid port before '--'")]
    Port,
}

impl SpriteName {
    /// Checks `text` and lower-cases it.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > NAME_BYTES_MAX {
            return Err(NameError::Length);
        }
        if !bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(NameError::Character);
        }
        if bytes[0] == b'-' || bytes[bytes.len() - 1] == b'-' || text.contains("--") {
            return Err(NameError::Dash);
        }
        let reserved = RESERVED.iter().any(|word| word.eq_ignore_ascii_case(text));
        if reserved || bytes.iter().all(u8::is_ascii_digit) {
            return Err(NameError::Reserved);
        }
        if !bytes.iter().any(u8::is_ascii_uppercase) {
            return Ok(Self(text.into()));
        }
        // On the stack: a name costs one allocation, whatever its case.
        let mut lower = [0; NAME_BYTES_MAX];
        let lower = &mut lower[..bytes.len()];
        lower.copy_from_slice(bytes);
        lower.make_ascii_lowercase();
        Ok(Self(std::str::from_utf8(lower).expect("checked above: ASCII only").into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for SpriteName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpriteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpriteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for SpriteName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<SpriteName> for String {
    fn from(name: SpriteName) -> Self {
        name.as_str().into()
    }
}

/// A domain under which each label is a sprite. Lower-case, without dots at its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suffix(Box<str>);

impl Suffix {
    /// Checks `text` as a domain name.
    ///
    /// # Errors
    /// [`NameError::Length`] over [`SUFFIX_BYTES_MAX`] bytes,
    /// [`NameError::Character`], [`NameError::Dash`] for an empty label or one with `-` at an end.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > SUFFIX_BYTES_MAX {
            return Err(NameError::Length);
        }
        for label in text.split('.') {
            if label.is_empty() || label.starts_with('-') || label.ends_with('-') {
                return Err(NameError::Dash);
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
                return Err(NameError::Character);
            }
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The domain.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a host name asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The sprite.
    pub name: SpriteName,
    /// The port of the `8080--name` form.
    pub port: Option<u16>,
}

/// Parses `host`, which may be in upper case, end in a dot and carry `:port`.
///
/// # Errors
/// [`NameError`]; nothing about a host is ever remembered here.
pub fn parse_host(host: &str, suffixes: &[Suffix]) -> Result<Target, NameError> {
    let host = without_port(host);
    let label = suffixes.iter().find_map(|suffix| label_under(host, suffix)).ok_or(NameError::Foreign)?;
    match label.split_once("--") {
        None => Ok(Target { name: SpriteName::parse(label)?, port: None }),
        Some((digits, name)) => {
            if digits.is_empty() || digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(NameError::Dash);
            }
            let port = digits.parse().ok().filter(|&port: &u16| port > 0).ok_or(NameError::Port)?;
            Ok(Target { name: SpriteName::parse(name)?, port: Some(port) })
        }
    }
}

fn without_port(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

fn label_under<'a>(host: &'a str, suffix: &Suffix) -> Option<&'a str> {
    let at = host.len().checked_sub(suffix.0.len())?;
    let (label, rest) = (host.get(..at)?, host.get(at..)?);
    let label = label.strip_suffix('.')?;
    (rest.eq_ignore_ascii_case(&suffix.0) && !label.contains('.')).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(host: &str) -> Result<(String, Option<u16>), NameError> {
        let suffixes = [Suffix::parse("sprites.dev").unwrap(), Suffix::parse("Sprites.Localhost").unwrap()];
        parse_host(host, &suffixes).map(|target| (target.name.to_string(), target.port))
    }

    #[test]
    fn a_name_is_one_label_under_a_suffix() {
        let plain = Ok(("my-app1".to_owned(), None));
        assert_eq!(parse("my-app1.sprites.dev"), plain);
        assert_eq!(parse("My-App1.SPRITES.dev.:8443"), plain);
        assert_eq!(parse("my-app1.sprites.localhost:443"), plain);
        assert_eq!(parse("8080--my-app1.sprites.dev"), Ok(("my-app1".to_owned(), Some(8080))));
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        for (host, error) in [
            ("", NameError::Foreign),
            ("sprites.dev", NameError::Foreign),
            (".sprites.dev", NameError::Length),
            ("a.b.sprites.dev", NameError::Foreign),
            ("xsprites.dev", NameError::Foreign),
            ("a.example.com", NameError::Foreign),
            ("[::1]:443", NameError::Foreign),
            ("-a.sprites.dev", NameError::Dash),
            ("a--b.sprites.dev", NameError::Dash),
            ("xn--80ak6aa92e.sprites.dev", NameError::Dash),
            ("123.sprites.dev", NameError::Reserved),
            ("www.sprites.dev", NameError::Reserved),
            ("API.sprites.dev", NameError::Reserved),
            ("_acme-challenge.sprites.dev", NameError::Character),
            ("a b.sprites.dev", NameError::Character),
            ("é.sprites.dev", NameError::Character),
            ("0--a.sprites.dev", NameError::Port),
            ("65536--a.sprites.dev", NameError::Port),
            ("123456--a.sprites.dev", NameError::Dash),
            ("80--.sprites.dev", NameError::Length),
            ("80--a--b.sprites.dev", NameError::Dash),
        ] {
            assert_eq!(parse(host), Err(error), "{host}");
        }
        assert_eq!(SpriteName::parse(&"a".repeat(41)), Err(NameError::Length));
        assert!(SpriteName::parse(&"a".repeat(40)).is_ok());
    }

    #[test]
    fn every_short_text_is_judged_as_the_rules_say() {
        // Independent of the parser: the rules as a sentence, over all texts of up to 5
        // characters of an alphabet that has one of each kind.
        let alphabet = ['a', 'Z', '7', '-', '_', '.', 'é'];
        let mut texts = vec![String::new()];
        for _ in 0..5 {
            let longer = texts.iter().flat_map(|text| alphabet.map(|next| format!("{text}{next}")));
            texts = longer.chain([String::new()]).collect();
            for text in &texts {
                let right = !text.is_empty()
                    && text.chars().all(|char| "aZ7-".contains(char))
                    && text.chars().any(|char| char != '7')
                    && text.split('-').all(|part| !part.is_empty());
                assert_eq!(SpriteName::parse(text).is_ok(), right, "{text:?}");
            }
        }
    }

    #[test]
    fn every_port_number_is_a_port_or_none() {
        for number in 0..=99_999_u32 {
            let wanted = u16::try_from(number).ok().filter(|&port| port > 0);
            let found = parse(&format!("{number}--a.sprites.dev")).ok().and_then(|(_, port)| port);
            assert_eq!(found, wanted, "{number}");
        }
    }

    proptest! {
        #[test]
        fn the_longest_host_a_suffix_allows_is_a_host_name(port in 1_u16.., name in "[a-z][a-z0-9]{39}") {
            let suffix = Suffix::parse(&["a".repeat(63).as_str(); 3].join(".")[..SUFFIX_BYTES_MAX]).unwrap();
            let host = format!("{port}--{name}.{}", suffix.as_str());
            prop_assert!(host.len() <= 253);
            let target = parse_host(&host, &[suffix]).unwrap();
            prop_assert_eq!((target.name.as_str(), target.port), (name.as_str(), Some(port)));
        }

        #[test]
        fn any_text_is_parsed_or_refused(host in "\\PC{0,80}") {
            let _ = parse(&host);
            let _ = parse(&format!("{host}.sprites.dev"));
        }

        #[test]
        fn what_parses_is_lower_case_and_parses_again(label in "[a-zA-Z0-9-]{1,40}") {
            if let Ok(name) = SpriteName::parse(&label) {
                prop_assert_eq!(name.as_str(), label.to_ascii_lowercase());
                prop_assert_eq!(SpriteName::parse(name.as_str()), Ok(name));
            }
        }
    }
}
