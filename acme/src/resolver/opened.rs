//! Certificates that were sealed and are open now: a bounded number of them. Looking one up takes no lock;
//! adding one does, and takes one away that was not asked for since it was last looked at (second chance, which keeps
//! what is used as a list in order of use would, without a list to write to at each lookup).

use super::{Certificate, Handle};
use papaya::HashMap;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// See the module.
#[derive(Debug)]
pub(super) struct Opened {
    most: usize,
    entries: HashMap<Handle, Entry>,
    /// In the order in which they are looked at when room is needed.
    queue: Mutex<VecDeque<Handle>>,
}

#[derive(Debug)]
struct Entry {
    certificate: Certificate,
    /// Asked for since it was last looked at.
    used: AtomicBool,
}

impl Opened {
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), entries: HashMap::new(), queue: Mutex::default() }
    }

    pub(super) fn get(&self, handle: Handle) -> Option<Certificate> {
        let entries = self.entries.pin();
        let entry = entries.get(&handle)?;
        // Written only when it changes: a hot certificate is read by every core.
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(entry.certificate.clone())
    }

    pub(super) fn add(&self, handle: Handle, certificate: Certificate) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = self.entries.pin();
        let known = entries.insert(handle, Entry { certificate, used: AtomicBool::new(false) }).is_some();
        if !known {
            queue.push_back(handle);
        }
        // Each one is looked at twice at most: after a round none has been used.
        while queue.len() > self.most
            && let Some(oldest) = queue.pop_front()
        {
            match entries.get(&oldest) {
                Some(entry) if entry.used.swap(false, Ordering::Relaxed) => queue.push_back(oldest),
                _ => drop(entries.remove(&oldest)),
            }
        }
    }

    pub(super) fn forget(&self, gone: &[Handle]) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = self.entries.pin();
        if gone.iter().filter(|handle| entries.remove(*handle).is_some()).count() > 0 {
            queue.retain(|handle| entries.contains_key(handle));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
