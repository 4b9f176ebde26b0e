//! No core file of this process: it would have every private key that is in memory.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// From here on the kernel writes no core of this process, pipes none to a collector, and lets nobody but root attach to it
/// (prctl(2), PR_SET_DUMPABLE; a limit on the size of cores would not hold a collector back). What it starts is not
/// concerned: an exec undoes it. A kernel that refuses is no reason not to serve; the log says so.
pub(crate) fn forbid() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a crash may leave a core file with private keys in it");
    }
}
