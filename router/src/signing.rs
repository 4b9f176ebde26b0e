//! Keys that sign what stands in the store (Ed25519, RFC 8032), and whose signatures count.
//!
//! What is signed begins with a word that says what it is, so that no signature of one kind is one of
//! another, and every part of it has its length in front, so that two rows never have the same bytes.

use crate::access::Key;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Most operator keys of a fleet (chosen: the current, the next, and spare ones).
pub const OPERATORS_MAX: usize = 8;

/// The half of a signing key that may be known. Text: 43 characters of base64url, which no WireGuard key is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(Key);

impl PublicKey {
    /// Whether `signature` is this key's, over `message`. About 40 µs (measured).
    #[must_use]
    pub fn signed(&self, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0.0).verify(message, &signature.0).is_ok()
    }

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// It is no key that signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a signing key: expected 32 bytes in base64url, 43 characters")]
pub struct NotAKey;

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| Self(Key(bytes))).ok_or(NotAKey)
    }
}

/// The half that signs. It cannot be printed; its memory is aws-lc's, which wipes it.
#[derive(Clone)]
pub struct SigningKey(Arc<Ed25519KeyPair>);

impl SigningKey {
    /// From the 32 bytes it is made of; `None` when the library refuses them.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(|pair| Self(Arc::new(pair)))
    }

    /// The other half.
    ///
    /// # Panics
    /// Never: an Ed25519 public key has 32 bytes.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(Key(self.0.public_key().as_ref().try_into().expect("32 bytes")))
    }

    /// Its signature over `message`.
    ///
    /// # Panics
    /// Never: an Ed25519 signature has 64 bytes.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).as_ref().try_into().expect("64 bytes"))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.public())
    }
}

/// An Ed25519 signature; base64url in text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    pub(crate) const fn bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", &URL_SAFE_NO_PAD.encode(self.0)[..6])
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("not 64 bytes in base64url"))
    }
}

/// Who signed a whole row, and its signature over all of the row but itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Whose it is.
    pub by: PublicKey,
    /// Over the key of the row and its encoding without a seal.
    pub signature: Signature,
}

impl Seal {
    /// A seal of `key`'s row, encoded without its seal.
    #[must_use]
    pub fn new(key: &str, unsealed: &[u8], by: &SigningKey) -> Self {
        Self { by: by.public(), signature: by.sign(&Message::row(key, unsealed)) }
    }

    /// Whether it is this row's. Whether its key may write the row is another question.
    #[must_use]
    pub fn fits(&self, key: &str, unsealed: &[u8]) -> bool {
        self.by.signed(&Message::row(key, unsealed), &self.signature)
    }
}

/// The bytes of what is signed.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Of one kind; `kind` has its version in it.
    pub(crate) fn new(kind: &str) -> Self {
        let mut message = Self(Vec::with_capacity(256));
        message.part(kind.as_bytes());
        message
    }

    /// A whole row under its key in the store.
    fn row(key: &str, unsealed: &[u8]) -> Vec<u8> {
        let mut message = Self::new("edge-proxy row 1");
        message.part(key.as_bytes());
        message.part(unsealed);
        message.0
    }

    /// A part, its length (32 bits, big endian) in front.
    pub(crate) fn part(&mut self, bytes: &[u8]) {
        // A row has at most 64 KiB.
        self.0.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    /// A number, 64 bits, big endian.
    pub(crate) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// The operators of this fleet, as each machine's config names them. None: signatures are not asked for.
#[derive(Clone, Debug, Default)]
pub struct Operators(Arc<[PublicKey]>);

impl Operators {
    /// These.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self(keys.into_iter().collect())
    }

    /// Whether rows must be signed here.
    #[must_use]
    pub fn demand(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether this key is one of theirs.
    #[must_use]
    pub fn include(&self, key: &PublicKey) -> bool {
        self.0.contains(key)
    }

    /// Whether one of them signed this.
    pub(crate) fn signed(&self, message: &[u8], signature: &Signature) -> bool {
        self.0.iter().any(|key| key.signed(message, signature))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key(number: u8) -> SigningKey {
        SigningKey::from_seed(&[number; 32]).unwrap()
    }

    #[test]
    fn a_signature_is_of_one_key_over_one_message() {
        let signature = key(1).sign(b"a");
        assert!(key(1).public().signed(b"a", &signature));
        assert!(!key(1).public().signed(b"b", &signature));
        assert!(!key(2).public().signed(b"a", &signature));
        let text = serde_json::to_string(&signature).unwrap();
        assert_eq!(serde_json::from_str::<Signature>(&text).unwrap(), signature);
        assert!(serde_json::from_str::<Signature>("\"AAAA\"").is_err());
    }

    #[test]
    fn a_public_key_is_text_and_a_private_one_is_not() {
        let public = key(1).public();
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!("AAAA".parse::<PublicKey>(), Err(NotAKey));
        let wireguard = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(wireguard.parse::<PublicKey>(), Err(NotAKey), "padded: a key of another kind");
        let seed = URL_SAFE_NO_PAD.encode([1; 32]);
        assert!(!format!("{:?}", key(1)).contains(&seed[..6]));
    }

    #[test]
    fn a_seal_is_of_one_row_under_one_key() {
        let seal = Seal::new("host/1", b"{}", &key(1));
        assert!(seal.fits("host/1", b"{}"));
        assert!(!seal.fits("host/2", b"{}") && !seal.fits("host/1", b"{ }"));
        // What one part lends to the next changes the bytes.
        assert_ne!(Message::row("host/1", b"2"), Message::row("host/12", b""));
    }
}
