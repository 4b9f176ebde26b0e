//! The contract on a real agent, when `CORROSION_API` names one (`http://127.0.0.1:8080`) that knows the table of
//! docs/stores.md under the name in `CORROSION_TABLE` (`edge_proxy_test` when that is not set). Its rows are deleted.

use crate::{World, contract};
use router::store::Store;
use router::store::corrosion::CorrosionStore;
use std::path::PathBuf;
use std::sync::Arc;

struct Live(config::CorrosionStore);

fn settings() -> Option<config::CorrosionStore> {
    let api = std::env::var("CORROSION_API").ok()?;
    let table = std::env::var("CORROSION_TABLE").unwrap_or_else(|_| "edge_proxy_test".into());
    let token_file = std::env::var("CORROSION_TOKEN_FILE").map_or_else(|_| PathBuf::new(), PathBuf::from);
    Some(config::CorrosionStore { api, table, token_file })
}

impl World for Live {
    const ONE_NUMBER: bool = false;
    const OTHER: &str = "host/1";

    async fn start() -> Option<Self> {
        let settings = settings()?;
        let world = Self(settings);
        let store = world.store().await;
        for kind in ["sprite/", "host/"] {
            for entry in store.scan(kind).await.expect("an agent that has the table") {
                store.compare_and_set(&entry.key, Some(entry.version), None).await.unwrap();
            }
        }
        Some(world)
    }

    async fn store(&self) -> Store {
        Arc::new(CorrosionStore::open(&self.0, "host/a").unwrap())
    }
}

#[tokio::test]
async fn a_real_agent_keeps_the_contract() {
    if settings().is_none() {
        return eprintln!(
            "left out: CORROSION_API names no agent (tests/engines/corrosion/live.rs says what it needs)"
        );
    }
    // One table: one after the other.
    contract::rows::<Live>().await;
    contract::one_wins::<Live>().await;
    contract::no_gap::<Live>().await;
    contract::empty::<Live>().await;
    contract::slow::<Live>().await;
    contract::poison_and_mass_deletion::<Live>().await;
}
