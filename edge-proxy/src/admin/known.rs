//! From a change of a route to where it is in effect: this process's own table, and every PoP.

use super::api::Admin;
use router::names::SpriteName;
use router::rows::SpriteRow;
use router::table::Lookup;
use serde_json::Value;
use std::time::Duration;

/// How often this process's own table is looked at, and how far apart: a second together (chosen: it follows
/// within a turn, or it is cut off and says so in its status).
const LOOKS: u32 = 200;
/// See [`LOOKS`].
const LOOK: Duration = Duration::from_millis(5);

/// Where a change is in effect.
#[must_use]
pub(crate) struct KnownAt {
    /// PoPs that have not said in time that they go by it; none on a machine that stands alone.
    unacknowledged: Option<Vec<String>>,
}

impl KnownAt {
    /// Says so in an answer.
    pub(crate) fn told(self, mut answer: Value) -> Value {
        if let Some(unacknowledged) = self.unacknowledged {
            answer["unacknowledged"] = unacknowledged.into();
        }
        answer
    }
}

impl Admin {
    /// Waits until the route of a sprite is everywhere what the store says, so that the next request is not told what
    /// was true before: in this process's own table, and at every PoP. A second at most.
    pub(crate) async fn visible(&self, name: &SpriteName) -> KnownAt {
        let key = SpriteRow::key(name);
        let stored = self.stores.routes.get(&key).await.ok().flatten();
        let version = stored.as_ref().map(|entry| entry.version);
        let route = stored.and_then(|entry| SpriteRow::decode(&key, &entry.value).ok()).map(|(_, row)| row.route());
        let here = async {
            for _ in 0..LOOKS {
                let known = match self.table.own().lookup(name) {
                    Lookup::Found(route) => Some(route),
                    Lookup::Unknown | Lookup::NotReady => None,
                };
                if known == route {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let everywhere = async {
            match (&self.acks, version) {
                (Some(acks), Some(version)) => Some(acks.everywhere(name, version).await),
                // The store has gone away since: which change it was, nobody can say.
                (Some(acks), None) => Some(acks.nobody()),
                (None, _) => None,
            }
        };
        let ((), unacknowledged) = tokio::join!(here, everywhere);
        KnownAt { unacknowledged }
    }
}
