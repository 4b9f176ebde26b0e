//! Servers of a store engine: started, killed, frozen and ended by the test that owns them.

use rustix::process::{Pid, Signal, kill_process};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

/// One server process and how to start it again on what it has on disk.
pub struct Node {
    child: Option<Child>,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Node {
    /// Starts it; what it says goes to `log`.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn start(program: &Path, arguments: Vec<String>, log: PathBuf) -> Self {
        let mut node = Self { child: None, program: program.into(), arguments, log };
        node.restart();
        node
    }

    /// Starts it again.
    ///
    /// # Panics
    /// When it runs, or cannot be started.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // Three of them share the machine with the test.
        command.env("GOMAXPROCS", "1");
        self.child = Some(command.spawn().expect("the server starts"));
    }

    /// Ends it as a power cut does (SIGKILL).
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    /// Cuts it off from everybody: its sockets stay open and nothing comes out of them.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Undoes [`Node::freeze`].
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether it runs or is frozen.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("our own child");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<_> = text.lines().rev().take(15).collect();
            eprintln!("--- {} wrote last ---", self.log.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Writes a certificate for `address` and its key into `folder`; where they are.
///
/// # Panics
/// When they cannot be made.
#[must_use]
pub fn certificate(folder: &Path, address: IpAddr) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec![address.to_string()]).unwrap();
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (certificate, key)
}

/// `count` addresses of servers, which nobody else takes, not even while a server is dead: they are on a
/// loopback address of this cluster's own, where no outgoing connection is given a port.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn addresses(count: usize) -> Vec<SocketAddr> {
    static CLUSTERS: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 64 + CLUSTERS.fetch_add(1, Ordering::Relaxed) % 64, high, low.clamp(1, 254));
    let sockets: Vec<_> = (0..count).map(|_| TcpListener::bind((own, 0)).unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
}
