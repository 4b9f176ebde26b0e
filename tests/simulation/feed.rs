//! Where each sprite is placed: the truth, and what each edge has heard of it so far.

use super::world::{EDGES, Event, World};
use router::names::SpriteName;
use router::route::HostId;

/// One placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) host: HostId,
    pub(crate) generation: u64,
    /// A tombstone.
    pub(crate) deleted: bool,
}

impl World {
    /// The truth changes; every edge hears of it in its own time.
    pub(super) fn publish(&mut self, name: &SpriteName, place: Place) {
        self.places.insert(name.clone(), place);
        for edge in 0..EDGES {
            let delay = self.up_to(self.chances.feed_ms);
            self.after(delay, Event::Fed(edge, name.clone(), place));
        }
    }

    /// An edge hears of a placement; an older one changes nothing.
    pub(super) fn fed(&mut self, edge: usize, name: &SpriteName, place: Place) {
        let known = self.edges[edge].table.get(name);
        if known.is_some_and(|known| known.generation >= place.generation) {
            return;
        }
        self.edges[edge].table.insert(name.clone(), place);
        let waiting = self.requests.iter().filter(|(_, request)| {
            let enough = request.awaits.as_ref().is_some_and(|(generation, _)| *generation <= place.generation);
            request.edge == edge && request.name == *name && enough
        });
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.hop(id);
        }
    }
}
