//! Share links: a signed permission to see one port of one sprite until a time.
//!
//! The sprite's host signs (Ed25519), every edge can verify with the public key in the
//! table, and no edge can make one. Another key in the table revokes all that were made.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use router::access::Key;
use router::names::{SpriteName, Target};

/// Query parameter of a link.
pub const PARAMETER: &str = "sprite-share";
/// The cookie a link becomes. The prefix keeps it to this host and to HTTPS (RFC 6265bis §4.1.3.2).
pub const COOKIE: &str = "__Host-sprite-share";
/// Layout of a grant: version, expiry (seconds since 1970, big endian), signature.
const VERSION: u8 = 1;
const GRANT_BYTES: usize = 1 + 8 + 64;

/// Signs a sprite's links.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    /// From the 32 bytes its key is made of.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(Self)
    }

    /// What the table carries.
    #[must_use]
    pub fn public_key(&self) -> Option<Key> {
        self.0.public_key().as_ref().try_into().ok().map(Key)
    }

    /// The secret of a link to `port` (0 for the sprite's own) that ends at `expires`,
    /// seconds since 1970.
    #[must_use]
    pub fn grant(&self, name: &SpriteName, port: u16, expires: u64) -> String {
        let signature = self.0.sign(&signed(name, port, expires));
        let mut grant = Vec::with_capacity(GRANT_BYTES);
        grant.push(VERSION);
        grant.extend_from_slice(&expires.to_be_bytes());
        grant.extend_from_slice(signature.as_ref());
        URL_SAFE_NO_PAD.encode(grant)
    }
}

/// When a grant for this host ends, if it is one and has not ended at `now`.
#[must_use]
pub fn verify(key: Key, target: &Target, grant: &str, now: u64) -> Option<u64> {
    let bytes: [u8; GRANT_BYTES] = URL_SAFE_NO_PAD.decode(grant).ok()?.try_into().ok()?;
    let [VERSION, rest @ ..] = &bytes else { return None };
    let (expires, signature) = rest.split_first_chunk::<8>()?;
    let expires = u64::from_be_bytes(*expires);
    let message = signed(&target.name, target.port.unwrap_or(0), expires);
    UnparsedPublicKey::new(&ED25519, key.0).verify(&message, signature).ok()?;
    (now < expires).then_some(expires)
}

/// A domain-separated message: nothing else that is ever signed with such a key reads like it.
fn signed(name: &SpriteName, port: u16, expires: u64) -> Vec<u8> {
    let mut message = b"edge-proxy share link 1\0".to_vec();
    message.extend_from_slice(name.as_str().as_bytes());
    message.push(0);
    message.extend_from_slice(&port.to_be_bytes());
    message.extend_from_slice(&expires.to_be_bytes());
    message
}

/// Takes the grant out of a query: the grant, and the query without it.
pub(super) fn taken_from(query: &str) -> Option<(&str, String)> {
    let value = |part: &'static str| move |pair: &str| pair.split_once('=').is_some_and(|(name, _)| name == part);
    let is_ours = value(PARAMETER);
    let grant = query.split('&').find(|pair| is_ours(pair))?.split_once('=')?.1;
    let rest: Vec<_> = query.split('&').filter(|pair| !is_ours(pair)).collect();
    Some((grant, rest.join("&")))
}

/// The cookie of a grant. Previews live in frames of other sites, hence `SameSite=None`, and
/// each of those gets its own, hence `Partitioned`.
pub(super) fn cookie(grant: &str, seconds: u64) -> String {
    format!("{COOKIE}={grant}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=None; Partitioned")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str, port: Option<u16>) -> Target {
        Target { name: SpriteName::parse(name).unwrap(), port }
    }

    #[test]
    fn a_grant_is_good_for_its_sprite_port_and_time_only() {
        let signer = Signer::from_seed(&[1; 32]).unwrap();
        let key = signer.public_key().unwrap();
        let name = SpriteName::parse("a").unwrap();
        let grant = signer.grant(&name, 8080, 100);
        let there = target("a", Some(8080));
        assert_eq!(verify(key, &there, &grant, 99), Some(100));
        assert_eq!(verify(key, &there, &grant, 100), None, "it has ended");
        assert_eq!(verify(key, &target("a", None), &grant, 99), None, "another port");
        assert_eq!(verify(key, &target("b", Some(8080)), &grant, 99), None, "another sprite");
        let other = Signer::from_seed(&[2; 32]).unwrap().public_key().unwrap();
        assert_eq!(verify(other, &there, &grant, 99), None, "revoked by another key");
    }

    #[test]
    fn a_changed_grant_and_nonsense_are_refused() {
        let signer = Signer::from_seed(&[1; 32]).unwrap();
        let key = signer.public_key().unwrap();
        let grant = signer.grant(&SpriteName::parse("a").unwrap(), 0, 100);
        let there = target("a", None);
        assert!(verify(key, &there, &grant, 0).is_some());
        let bytes = URL_SAFE_NO_PAD.decode(&grant).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(verify(key, &there, &URL_SAFE_NO_PAD.encode(changed), 0), None, "byte {at}");
        }
        for nonsense in ["", "AAAA", "!", &grant[1..], &format!("{grant}A")] {
            assert_eq!(verify(key, &there, nonsense, 0), None, "{nonsense}");
        }
    }

    #[test]
    fn the_rest_of_a_query_stays_as_it_was() {
        assert_eq!(taken_from("sprite-share=g"), Some(("g", String::new())));
        assert_eq!(taken_from("a=1&sprite-share=g&b=%20&c"), Some(("g", "a=1&b=%20&c".into())));
        assert_eq!(taken_from("a=1&not-sprite-share=g&sprite-share"), None);
    }
}
