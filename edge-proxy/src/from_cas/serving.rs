//! Hands the newest certificate of each wish to the resolver, as the table changes.

use super::rows::StoreRows;
use super::table::CertificateTable;
use super::wishes::For;
use crate::domain_certificates::DomainCertificates;
use acme::certificate::{CertRow, sealed_as};
use acme::order::verify;
use acme::resolver::Slot;
use acme::seal::{SealError, Sealer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::sign::CertifiedKey;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Shortest pause between two rounds (chosen).
const PAUSE: Duration = Duration::from_millis(10);
/// A round happens this often at least: certificates end, and another CA's may be better then (chosen).
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Serves what the table says; never returns.
pub(super) async fn follow(
    table: Arc<CertificateTable>,
    sealer: Arc<Sealer>,
    rows: Arc<StoreRows>,
    serving: Arc<DomainCertificates>,
) {
    let mut changes = table.changes();
    let mut served = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        round(&table, &sealer, &rows, &serving, &mut served).await;
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// What is served of a name or suffix: of which wish, which generation.
type Served = BTreeMap<(bool, String), (String, u64)>;

async fn round(
    table: &CertificateTable,
    sealer: &Sealer,
    rows: &StoreRows,
    serving: &DomainCertificates,
    served: &mut Served,
) {
    let best = best(table, acme::unix_now());
    let mut names = Vec::new();
    for (target, (wish, row)) in &best {
        let is_served = (wish.clone(), row.generation);
        if served.get(target) == Some(&is_served) {
            continue;
        }
        let key = match open(sealer, rows, wish, row).await {
            Ok(key) => Arc::new(key),
            Err(error) => {
                tracing::error!(wish, generation = row.generation, %error, "a certificate cannot be served");
                continue;
            }
        };
        match target {
            (true, suffix) => serving.resolver().put_suffix(suffix, key),
            (false, name) => {
                let below = row.names.iter().any(|name| name.starts_with("*."));
                let below = below.then(|| Slot::Loaded(Arc::clone(&key).into()));
                names.extend([(format!(".{name}"), below), (name.clone(), Some(Slot::Loaded(key.into())))]);
            }
        }
        served.insert(target.clone(), is_served);
    }
    served.retain(|target, _| {
        let stays = best.contains_key(target) || target.0;
        if !stays {
            names.extend([(format!(".{}", target.1), None), (target.1.clone(), None)]);
        }
        stays
    });
    if !names.is_empty() {
        serving.resolver().change(names);
    }
    serving.brought_up_to_date();
}

/// The best certificate of each suffix (`true`) and domain: one that has not ended before one that has, then of the CA that
/// comes first by its wish, then the newest.
fn best(table: &CertificateTable, now: u64) -> BTreeMap<(bool, String), (String, Arc<CertRow>)> {
    let mut best: BTreeMap<_, (String, Arc<CertRow>)> = BTreeMap::new();
    for found in table.all().into_iter().filter(|found| !found.row.compromised) {
        let target = match For::of(&found.wish) {
            Some(For::Suffix { suffix, .. }) => (true, suffix.to_owned()),
            Some(For::Domain(name)) => (false, name.to_owned()),
            None => continue,
        };
        let rank = |row: &CertRow| (row.not_after > now, row.not_after);
        let better = best.get(&target).is_none_or(|(wish, row)| match *wish == found.wish {
            true => row.generation < found.row.generation,
            false => rank(row) < rank(&found.row),
        });
        if better {
            best.insert(target, (found.wish.clone(), Arc::clone(&found.row)));
        }
    }
    best
}

async fn open(sealer: &Sealer, rows: &StoreRows, wish: &str, row: &CertRow) -> anyhow::Result<CertifiedKey> {
    let sealed = STANDARD.decode(&row.sealed_key)?;
    let key = match sealer.open(&sealed_as(wish), row.generation, &sealed) {
        Err(SealError::UnknownKey(_)) => {
            sealer.reload(rows).await?;
            sealer.open(&sealed_as(wish), row.generation, &sealed)?
        }
        opened => opened?,
    };
    Ok(verify::read(&row.chain, &key)?.key)
}
