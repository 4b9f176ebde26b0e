//! Hands the newest certificate of each wish to the resolver, as the table changes.

use super::rows::StoreRows;
use super::served::{Served, Target, target};
use super::table::CertificateTable;
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
    served: Arc<Served>,
) {
    let mut changes = table.changes();
    loop {
        changes.mark_unchanged();
        round(&table, &sealer, &rows, &serving, &served).await;
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn round(
    table: &CertificateTable,
    sealer: &Sealer,
    rows: &StoreRows,
    serving: &DomainCertificates,
    served: &Served,
) {
    let now = acme::unix_now();
    let best = best(table, now);
    let (mut names, mut put) = (Vec::new(), Vec::new());
    for (target, (wish, row)) in &best {
        if served.of(target).is_some_and(|(served, generation)| served == *wish && generation == row.generation) {
            continue;
        }
        let key = match open(sealer, rows, wish, row).await {
            Ok(key) => Arc::new(key),
            Err(error) => {
                tracing::error!(wish, generation = row.generation, %error, "a certificate cannot be served");
                served.failed(wish, row.generation, format!("{error:#}"));
                continue;
            }
        };
        match target {
            (true, suffix) => serving.resolver().put_suffix(suffix, key),
            (false, name) => names.push((name.clone(), Some(Slot::Loaded(key.into())))),
        }
        put.push((target, wish, row.generation));
    }
    let gone = served.retain(|target| best.contains_key(target) || target.0);
    names.extend(gone.into_iter().map(|(_, name)| (name, None)));
    if !names.is_empty() {
        serving.resolver().change(names);
    }
    // Nothing is said to be served before it is.
    for (target, wish, generation) in put {
        served.put(target.clone(), wish, generation);
    }
    served.speak(table, now);
    serving.brought_up_to_date();
}

/// The best certificate of each suffix (`true`) and domain: one whose key is nobody else's before one whose key is, one that
/// has not ended before one that has; then of a wish the newest, and of several wishes the one that lasts longest.
fn best(table: &CertificateTable, now: u64) -> BTreeMap<Target, (String, Arc<CertRow>)> {
    let mut best: BTreeMap<_, (String, Arc<CertRow>)> = BTreeMap::new();
    for found in table.all() {
        let Some(target) = target(&found.wish) else { continue };
        let fit = |row: &CertRow| (!row.compromised, row.not_after > now);
        let better = best.get(&target).is_none_or(|(wish, row)| match *wish == found.wish {
            true => (fit(row), row.generation) < (fit(&found.row), found.row.generation),
            false => (fit(row), row.not_after) < (fit(&found.row), found.row.not_after),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_cas::table::CertificateRow;

    const NOW: u64 = 1_800_000_000;

    fn row(generation: u64, not_after: u64, compromised: bool) -> CertRow {
        CertRow {
            names: vec!["*.sprites.test".into()],
            ca: "a".into(),
            generation,
            chain: String::new(),
            sealed_key: String::new(),
            not_before: NOW - 1000,
            not_after,
            issued_at: NOW - 1000,
            ari: None,
            window: None,
            compromised,
            renew_asked: None,
            revocation: None,
        }
    }

    #[test]
    fn the_best_is_the_newest_of_the_ca_that_lasts_longest_and_one_with_a_stolen_key_is_the_last_resort() {
        let table = CertificateTable::new();
        let put = |ca: &str, row: CertRow| {
            table.apply_put(CertificateRow { wish: format!("wild.{ca}.sprites.test"), row: Arc::new(row) });
            let best = best(&table, NOW);
            let (wish, row) = &best[&(true, "sprites.test".to_owned())];
            (wish.split('.').nth(1).unwrap().to_owned(), row.generation)
        };
        let is = |ca: &str, generation| (ca.to_owned(), generation);
        assert_eq!(put("a", row(1, NOW + 100, false)), is("a", 1));
        assert_eq!(put("a", row(2, NOW + 90, false)), is("a", 2));
        // Nothing else is there, so it is served on.
        assert_eq!(put("a", row(1, NOW + 100, true)), is("a", 2));
        assert_eq!(put("a", row(2, NOW + 90, true)), is("a", 2));
        assert_eq!(put("b", row(7, NOW + 10, false)), is("b", 7));
        assert_eq!(put("a", row(3, NOW + 80, false)), is("a", 3));
        assert_eq!(put("b", row(8, NOW + 200, false)), is("b", 8));
        assert_eq!(put("b", row(8, NOW - 1, false)), is("a", 3));
    }
}
