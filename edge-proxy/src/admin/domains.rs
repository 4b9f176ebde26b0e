//! Custom domains over the admin API: what is asked, in JSON, and what came of it.

use super::api::{Admin, Problem};
use crate::domains::{Domains, DomainsError, parse, parse_asked};
use http::StatusCode;
use router::names::SpriteName;
use router::rows::SpriteRow;
use router::store::StoreError;
use serde::Deserialize;
use serde_json::{Value, json};

impl Admin {
    /// Every domain, those of the config file included, by name.
    pub(super) fn list_domains(&self) -> Value {
        let table = &self.domains.table;
        let fixed = table.all_fixed().map(|(name, sprite)| (name.clone(), Domains::shown_fixed(name, sprite)));
        let stored = table.rows().into_iter().map(|(name, row)| {
            let shown = self.domains.shown(&name, &row);
            (name, shown)
        });
        let mut all: Vec<_> = fixed.chain(stored).collect();
        all.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        all.into_iter().map(|(_, shown)| shown).collect()
    }

    pub(super) async fn add_domain(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            domain: String,
            sprite: String,
            #[serde(default)]
            proved: bool,
        }
        let asked: Asked = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("the body is no domain and sprite: {error}")))?;
        let domain = parse_asked(&asked.domain).map_err(failed)?;
        let sprite =
            SpriteName::parse(&asked.sprite).map_err(|error| (StatusCode::BAD_REQUEST, format!("sprite: {error}")))?;
        let tenant = self.tenant_of(&sprite).await.map_err(failed)?;
        let row = self.domains.add(&domain, &tenant, &sprite, asked.proved).await.map_err(failed)?;
        Ok(self.domains.shown(&domain.name, &row))
    }

    pub(super) async fn check_domain(&self, name: &str) -> Result<Value, Problem> {
        let name = parse(name).map_err(failed)?;
        let row = self.domains.check(&name).await.map_err(failed)?;
        Ok(self.domains.shown(&name, &row))
    }

    pub(super) async fn explain_domain(&self, name: &str) -> Result<Value, Problem> {
        let name = parse(name).map_err(failed)?;
        let certificate = match self.edge.as_ref().and_then(|edge| edge.challenged()) {
            Some(from_cas) => from_cas.explain_domain(name.as_str()).await,
            None => self.domains.explain_own_certificate(&name),
        };
        self.domains.explain(&name, certificate, |sprite| self.route(sprite)).await.map_err(failed)
    }

    pub(super) async fn remove_domain(&self, name: &str) -> Result<Value, Problem> {
        let name = parse(name).map_err(failed)?;
        self.domains.remove(&name).await.map_err(failed)?;
        Ok(json!({ "removed": name }))
    }

    /// Whose a sprite is, as the store has it.
    async fn tenant_of(&self, sprite: &SpriteName) -> Result<String, DomainsError> {
        let key = SpriteRow::key(sprite);
        let row = self.stores.routes.get(&key).await?.and_then(|entry| SpriteRow::decode(&key, &entry.value).ok());
        // Whose it is decides who gets a domain: a row that nobody may have written says nothing.
        let believed = |row: &SpriteRow| row.check_proof(sprite, None, self.table.own().operators()).is_ok();
        let living = row.map(|(_, row)| row).filter(|row| !row.deleted && believed(row));
        living.map(|row| row.tenant).ok_or_else(|| DomainsError::NoSprite(sprite.clone()))
    }
}

fn failed(error: DomainsError) -> Problem {
    let status = match &error {
        DomainsError::Name(_) | DomainsError::Letters | DomainsError::TooLong => StatusCode::BAD_REQUEST,
        DomainsError::Ours(_) | DomainsError::Taken(_) => StatusCode::CONFLICT,
        DomainsError::Unknown(_) | DomainsError::NoSprite(_) => StatusCode::NOT_FOUND,
        DomainsError::Store(StoreError::Conflict { .. }) => StatusCode::CONFLICT,
        DomainsError::Store(StoreError::Unavailable(_) | StoreError::Uncertain(_)) => StatusCode::SERVICE_UNAVAILABLE,
        DomainsError::Corrupt(_) | DomainsError::Random | DomainsError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, error.to_string())
}
