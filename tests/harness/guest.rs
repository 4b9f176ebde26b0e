//! Guests that behave as the test asks (`guest.py`), and gates that keep one from starting.

use crate::{Demo, tools};
use std::path::{Path, PathBuf};

const SCRIPT: &str = include_str!("guest.py");

/// Keeps a guest from listening until the test opens it.
pub struct Gate(PathBuf);

impl Gate {
    /// Lets the guest go on.
    ///
    /// # Panics
    /// When the folder is gone.
    pub fn open(&self) {
        std::fs::write(&self.0, b"").unwrap();
    }
}

impl Demo {
    /// Writes a script for guests; where it is. Guests' own folders are the product's business.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let folder = self.data().join("scripts-of-the-test");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The command of a sprite that runs `guest.py`.
    ///
    /// # Panics
    /// Without a Python.
    #[must_use]
    pub fn guest_command(&self) -> String {
        let python = tools::python(&[]).expect("python3 is installed");
        format!("exec {} -u {} $PORT", shell(&python), shell(&self.script("guest.py", SCRIPT)))
    }

    /// Makes a sprite of `guest.py`.
    pub async fn create_guest(&self, name: &str) {
        self.create(name, &self.guest_command()).await;
    }

    /// Makes one that does not listen before the gate is open, so that a request to it stays held.
    pub async fn create_gated(&self, name: &str) -> Gate {
        let gate = self.data().join(format!("gate-{name}"));
        let wait = format!("while [ ! -e {} ]; do sleep 0.02; done", shell(&gate));
        self.create(name, &format!("{wait}; {}", self.guest_command())).await;
        // Whatever a test does before it opens the gate.
        self.admin(&["sprite", "limits", name, "--port-wait", "60s"]).await;
        Gate(gate)
    }
}

/// A path as one word of a shell.
#[must_use]
pub fn shell(path: &Path) -> String {
    format!("'{}'", path.to_str().expect("temporary paths are text").replace('\'', "'\\''"))
}
