//! Real virtual machines: the guest of `tests/qemu`, under QEMU's own execution (TCG).

use crate::{Answer, Demo, processes, tools, until};
use std::path::PathBuf;
use std::time::Duration;

/// From nothing to the first answer: 3 s on a quiet machine of two cores, 12 s beside three
/// busy processes; the rest is for worse.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// The guest's kernel and initrd.
///
/// # Panics
/// When they or QEMU are not there; the message says what to run.
#[must_use]
pub fn image() -> (PathBuf, PathBuf) {
    assert!(
        tools::find("qemu-system-x86_64").is_some(),
        "\n\n  qemu-system-x86_64 is missing: run tests/run, or install qemu-system-x86\n"
    );
    let folder = std::env::var_os("EDGE_PROXY_TEST_GUEST").map(PathBuf::from).unwrap_or_else(|| {
        let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("edge-proxy-test-guest")
    });
    let (kernel, initrd) = (folder.join("kernel"), folder.join("initrd"));
    assert!(
        kernel.is_file() && initrd.is_file(),
        "\n\n  there is no test guest in {}: run tests/qemu/build-guest\n",
        folder.display()
    );
    (kernel, initrd)
}

/// What the guest's counter answers: which boot it is, and how often it was asked since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// A number of this boot.
    pub boot: String,
    /// Kept in the guest's memory only.
    pub count: u32,
}

impl Counted {
    /// Reads an answer to `/cgi-bin/count`.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn of(answer: &Answer) -> Self {
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = answer.text();
        let (boot, count) = text.trim().split_once(' ').unwrap_or_else(|| panic!("no counter: {answer:?}"));
        Self { boot: boot.into(), count: count.parse().unwrap() }
    }

    /// What the next answer must be if nothing of its memory was lost.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { count: self.count + 1, ..self.clone() }
    }
}

impl Demo {
    /// Makes a sprite of the test's guest, which listens on `port` too. `append` are further
    /// words of its kernel's command line.
    ///
    /// # Panics
    /// Without an image.
    pub async fn create_vm(&self, name: &str, port: u16, append: &str) {
        let (kernel, initrd) = image();
        let append = format!("console=ttyS0 quiet panic=-1 second_port={port} {append}");
        let text = format!(
            "[qemu]\nkernel = '{}'\ninitrd = '{}'\nappend = '{append}'\nmemory_mib = 128\n",
            kernel.display(),
            initrd.display()
        );
        let file = self.script(&format!("{name}.toml"), &text);
        let file = file.to_str().expect("temporary paths are text");
        let port = port.to_string();
        self.admin(&["sprite", "create", name, "--public", "--driver", file, "--port", &port]).await;
    }

    /// Processes of QEMU in the sprite's directory.
    #[must_use]
    pub fn machines(&self, name: &str) -> Vec<u32> {
        let about = processes::about(&self.data().join("sprites").join(name));
        about.into_iter().filter(|process| processes::runs(process.pid)).map(|process| process.pid).collect()
    }

    /// Asks until it is up: a machine under heavy load may need longer than one hold.
    pub async fn boot(&self, name: &str) -> Answer {
        until(&format!("{name} to boot"), BOOT_LIMIT, async || {
            Some(self.get(name, "/cgi-bin/count").await).filter(|answer| answer.status == 200)
        })
        .await
    }
}
