//! Who may ask for a sprite and who may wake it: making and revoking what opens a private
//! one (tokens, share links), and its wake rules.
//!
//! The table gets hashes and public keys. The seed of a sprite's links stays in this host's
//! store; a token is told once and kept nowhere.

use super::sprites::{self, SpriteError};
use crate::access::share::{PARAMETER, Signer};
use crate::access::token;
use crate::client_certificate::verifier;
use crate::stores::Stores;
use router::access::{Access, Private, TOKENS_MAX};
use router::client_certificate::ClientCertificate;
use router::cors::CorsPolicy;
use router::names::SpriteName;
use router::rows::SpriteRow;
use router::store::EmbeddedStore;
use router::wake::WakeRules;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seeds of share links are stored under this prefix; they are not replicated.
const SEED_PREFIX: &str = "share-seed/";
/// Longest life of a share link (chosen: nobody remembers an older one).
pub const LINK_LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Access for a new private sprite, and the token that opens it.
///
/// # Errors
/// [`SpriteError`].
pub fn private(store: &EmbeddedStore, name: &SpriteName) -> Result<(Access, String), SpriteError> {
    let token = token::generate().map_err(|_| SpriteError::Random)?;
    let signer = signer(store, name, Seed::New)?;
    let private = Private { tokens: vec![token::hash(&token)], share_key: signer.public_key(), cors: None };
    Ok((Access::Private(Arc::new(private)), token))
}

/// Lets anybody ask for it from now on. Tokens and links are gone.
///
/// # Errors
/// [`SpriteError`].
pub async fn make_public(stores: &Stores, name: &SpriteName) -> Result<(), SpriteError> {
    change(stores, name, |row| {
        row.access = Access::Public;
        Ok(())
    })
    .await
}

/// Makes a sprite private; the new token. One that is private keeps its others.
///
/// # Errors
/// [`SpriteError`].
pub async fn make_private(stores: &Stores, name: &SpriteName) -> Result<String, SpriteError> {
    let token = token::generate().map_err(|_| SpriteError::Random)?;
    let share_key = signer(&stores.local, name, Seed::KeptOrNew)?.public_key();
    change(stores, name, |row| {
        let mut private = match &row.access {
            Access::Public => Private { tokens: Vec::new(), share_key, cors: None },
            Access::Private(private) => (**private).clone(),
        };
        if private.tokens.len() >= TOKENS_MAX {
            return Err(SpriteError::Field { field: "tokens", rule: "at most 16; revoke them first" });
        }
        private.tokens.push(token::hash(&token));
        row.access = Access::Private(Arc::new(private));
        Ok(())
    })
    .await?;
    Ok(token)
}

/// Revokes every token of a private sprite; how many there were.
///
/// # Errors
/// [`SpriteError`].
pub async fn revoke_tokens(stores: &Stores, name: &SpriteName) -> Result<usize, SpriteError> {
    let mut revoked = 0;
    change(stores, name, |row| {
        let private = private_of(row)?;
        revoked = private.tokens.len();
        row.access = Access::Private(Arc::new(Private { tokens: Vec::new(), ..private.clone() }));
        Ok(())
    })
    .await?;
    Ok(revoked)
}

/// A share link's query and when it ends, seconds since 1970.
///
/// # Errors
/// [`SpriteError`].
pub async fn link(stores: &Stores, name: &SpriteName, port: u16, life: Duration) -> Result<(String, u64), SpriteError> {
    if life.is_zero() || life > LINK_LIFE_MAX {
        return Err(SpriteError::Field { field: "expires", rule: "1s to 365days" });
    }
    let (row, _) = sprites::living(stores, name).await?;
    if port != 0 && !row.ports.contains(&port) {
        return Err(SpriteError::Field { field: "port", rule: "one of the sprite's declared ports" });
    }
    let private = private_of(&row)?;
    let signer = signer(&stores.local, name, Seed::Kept)?;
    if private.share_key.is_none() || private.share_key != signer.public_key() {
        return Err(SpriteError::Corrupt(name.clone()));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expires = now + life.as_secs().max(1);
    Ok((format!("{PARAMETER}={}", signer.grant(name, port, expires)), expires))
}

/// Revokes every share link made so far, and the cookies they became.
///
/// # Errors
/// [`SpriteError`].
pub async fn revoke_links(stores: &Stores, name: &SpriteName) -> Result<(), SpriteError> {
    private_of(&sprites::living(stores, name).await?.0)?;
    let share_key = signer(&stores.local, name, Seed::New)?.public_key();
    change(stores, name, |row| {
        row.access = Access::Private(Arc::new(Private { share_key, ..private_of(row)?.clone() }));
        Ok(())
    })
    .await
}

/// Says which other sites' scripts may ask for a private sprite; none with `None`.
///
/// # Errors
/// [`SpriteError`].
pub async fn set_cors(stores: &Stores, name: &SpriteName, policy: Option<CorsPolicy>) -> Result<(), SpriteError> {
    if let Some(rule) = policy.as_ref().and_then(CorsPolicy::broken_rule) {
        return Err(SpriteError::Field { field: "cors", rule });
    }
    change(stores, name, |row| {
        let cors = policy.map(Box::new);
        row.access = Access::Private(Arc::new(Private { cors, ..private_of(row)?.clone() }));
        Ok(())
    })
    .await
}

/// Says which client certificates it asks for; none with `None`.
///
/// # Errors
/// [`SpriteError`].
pub async fn set_client_certificate(
    stores: &Stores,
    name: &SpriteName,
    rules: Option<ClientCertificate>,
) -> Result<(), SpriteError> {
    let rule = "require and request need certificates of CAs (PEM, 16 KiB at most), pass has none";
    let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let fine = |rules: &ClientCertificate| rules.is_bounded() && verifier(rules, provider()).is_ok();
    if !rules.as_ref().is_none_or(fine) {
        return Err(SpriteError::Field { field: "ca_pem", rule });
    }
    change(stores, name, |row| {
        row.client_certificate = rules;
        Ok(())
    })
    .await
}

/// Says who may wake it.
///
/// # Errors
/// [`SpriteError`].
pub async fn set_wake_rules(stores: &Stores, name: &SpriteName, rules: WakeRules) -> Result<(), SpriteError> {
    if !rules.is_bounded() {
        return Err(sprites::wrong_rules());
    }
    change(stores, name, |row| {
        row.wake = rules;
        Ok(())
    })
    .await
}

fn private_of(row: &SpriteRow) -> Result<&Private, SpriteError> {
    match &row.access {
        Access::Private(private) => Ok(private),
        Access::Public => Err(SpriteError::Public),
    }
}

/// The seed of a sprite's share links, for the host it moves to.
pub(crate) fn seed(store: &EmbeddedStore, name: &SpriteName) -> Result<Option<[u8; 32]>, SpriteError> {
    let entry = store.get(&format!("{SEED_PREFIX}{name}"))?;
    let seed = entry.map(|entry| entry.value.as_slice().try_into()).transpose();
    seed.map_err(|_| SpriteError::Corrupt(name.clone()))
}

/// Keeps the seed of a sprite that came from another host.
pub(crate) fn install_seed(store: &EmbeddedStore, name: &SpriteName, seed: &[u8; 32]) -> Result<(), SpriteError> {
    Ok(sprites::put_local(store, &format!("{SEED_PREFIX}{name}"), Some(seed))?)
}

/// Forgets the seed of one that has moved away.
pub(crate) fn forget_seed(store: &EmbeddedStore, name: &SpriteName) -> Result<(), SpriteError> {
    Ok(sprites::put_local(store, &format!("{SEED_PREFIX}{name}"), None)?)
}

/// Which seed of share links is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seed {
    Kept,
    KeptOrNew,
    New,
}

fn signer(store: &EmbeddedStore, name: &SpriteName, wanted: Seed) -> Result<Signer, SpriteError> {
    let key = format!("{SEED_PREFIX}{name}");
    let present = store.get(&key)?;
    let corrupt = || SpriteError::Corrupt(name.clone());
    if let (Some(entry), Seed::Kept | Seed::KeptOrNew) = (&present, wanted) {
        let seed = entry.value.as_slice().try_into().map_err(|_| corrupt())?;
        return Signer::from_seed(seed).ok_or_else(corrupt);
    }
    if wanted == Seed::Kept {
        return Err(corrupt());
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| SpriteError::Random)?;
    store.compare_and_set(&key, present.map(|entry| entry.version), Some(&seed))?;
    Signer::from_seed(&seed).ok_or_else(corrupt)
}

async fn change(
    stores: &Stores,
    name: &SpriteName,
    change: impl FnOnce(&mut SpriteRow) -> Result<(), SpriteError>,
) -> Result<(), SpriteError> {
    let (mut row, version) = sprites::living(stores, name).await?;
    change(&mut row)?;
    row.proof.serial += u64::from(stores.own.is_some());
    stores.publish(name, row, Some(version)).await?;
    Ok(())
}
