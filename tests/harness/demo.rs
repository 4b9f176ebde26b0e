//! One running `edge-proxy demo`, started and ended by the test that owns it.

use crate::{binary, processes, until};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// From the start of the process to its `ready` line (chosen: a debug build on a busy
/// machine needs a second or two).
const READY_LIMIT: Duration = Duration::from_secs(60);
/// From SIGINT to the end; the guests' grace is 2 s.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// How to start it.
#[derive(Clone)]
pub struct Options {
    /// `--idle-timeout`; a minute unless the test is about idling, so that a slow
    /// machine puts nothing to sleep behind a test's back.
    pub idle_timeout: String,
    /// `--suffix`, if not the default.
    pub suffix: Option<String>,
    /// The data directory of an earlier demo.
    pub data: Option<Arc<TempDir>>,
    /// More arguments.
    pub arguments: Vec<String>,
    /// Sections of a config file: then `run` is started on it instead of `demo`.
    pub config: Option<String>,
    /// With a config: `host` instead of `run`, a worker host without listeners.
    pub host: bool,
    /// With a config: set in its environment to "1".
    pub switch: Option<&'static str>,
    /// With a config: what it logs (`RUST_LOG`), and the file all its output goes to instead of [`Demo::log`].
    pub log: Option<(&'static str, PathBuf)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            idle_timeout: "60s".into(),
            suffix: None,
            data: None,
            arguments: Vec::new(),
            config: None,
            host: false,
            switch: None,
            log: None,
        }
    }
}

/// A running demo. Dropping it kills it; [`Demo::stop`] ends it as Ctrl-C does.
pub struct Demo {
    child: Child,
    data: Arc<TempDir>,
    printed: Vec<String>,
    lines: mpsc::UnboundedReceiver<String>,
    log: Arc<Mutex<String>>,
    /// Where it serves HTTPS.
    pub https: SocketAddr,
    /// Its domain, without the sprite's label.
    pub suffix: String,
}

impl Demo {
    /// Starts one on free ports and waits until it says that it serves.
    ///
    /// # Panics
    /// When it does not; with all it printed.
    pub async fn start(options: Options) -> Self {
        let data = options.data.unwrap_or_else(|| {
            Arc::new(tempfile::Builder::new().prefix("edge-e2e-").tempdir().expect("a temporary folder"))
        });
        let suffix = options.suffix.clone().unwrap_or_else(|| "sprites.localhost".into());
        if let Some(config) = &options.config {
            return Self::run(data, suffix, config, options.host, options.switch, options.log).await;
        }
        let mut command = Command::new(binary::edge_proxy());
        command
            .args(["demo", "--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--idle-timeout", &options.idle_timeout])
            .arg("--data-dir")
            .arg(data.path());
        if let Some(suffix) = &options.suffix {
            command.args(["--suffix", suffix]);
        }
        let mut child = command
            .args(&options.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = lines_of(child.stdout.take().expect("stdout is piped"));
        let log = collect(child.stderr.take().expect("stderr is piped"));
        let https = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut demo = Self { child, data, printed: Vec::new(), lines, log, https, suffix };
        let ready = demo.line("ready ").await;
        let port = ready.trim_end().trim_end_matches('/').rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let Some(port) = port else { panic!("no port in {ready:?}") };
        demo.https.set_port(port);
        demo
    }

    /// `edge-proxy run` with these sections; it says by its admin socket that it serves.
    async fn run(
        data: Arc<TempDir>,
        suffix: String,
        sections: &str,
        host: bool,
        switch: Option<&'static str>,
        log: Option<(&'static str, PathBuf)>,
    ) -> Self {
        let file = Self::config_file(&data, &suffix, sections);
        let mut command = Command::new(binary::edge_proxy());
        command.args([if host { "host" } else { "run" }, "--config"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(switch.map(|name| (name, "1")));
        if let Some((level, file)) = log {
            let file = std::fs::File::create(file).expect("the folder is the test's");
            command.env("RUST_LOG", level).stdout(file.try_clone().expect("a second handle")).stderr(file);
        }
        let mut child = command.spawn().expect("the program starts");
        let lines = child.stdout.take().map_or_else(|| mpsc::unbounded_channel().1, lines_of);
        let log = child.stderr.take().map(collect).unwrap_or_default();
        let https = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut demo = Self { child, data, printed: Vec::new(), lines, log, https, suffix };
        until("the admin socket to answer", READY_LIMIT, async || {
            if let Ok(Some(status)) = demo.child.try_wait() {
                panic!("it ended with {status}: {}", demo.log());
            }
            demo.try_admin(&["status"]).await.status.success().then_some(())
        })
        .await;
        if host {
            return demo;
        }
        // It listens on nothing else.
        let port = processes::listening_ports(demo.pid()).into_iter().next();
        demo.https.set_port(port.expect("a port for HTTPS"));
        demo
    }

    /// The config file of one that is to run on these sections.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn config_file(data: &TempDir, suffix: &str, sections: &str) -> PathBuf {
        let file = data.path().join("edge.toml");
        let listen = match sections.contains("[listen]") {
            true => "",
            false => "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n",
        };
        let text = format!("data_dir = {:?}\n{listen}[names]\nsuffixes = [{suffix:?}]\n{sections}", data.path());
        std::fs::write(&file, text).expect("the folder is ours");
        file
    }

    /// Starts one with [`Options::default`].
    pub async fn new() -> Self {
        Self::start(Options::default()).await
    }

    /// Waits for a printed line that begins with `start` (also one printed before).
    ///
    /// # Panics
    /// When the program ends, or prints none in time.
    pub async fn line(&mut self, start: &str) -> String {
        if let Some(line) = self.printed.iter().find(|line| line.starts_with(start)) {
            return line.clone();
        }
        let wait = async {
            while let Some(line) = self.lines.recv().await {
                self.printed.push(line);
                let last = self.printed.last().expect("just pushed");
                if last.starts_with(start) {
                    return Some(last.clone());
                }
            }
            None
        };
        match tokio::time::timeout(READY_LIMIT, wait).await {
            Ok(Some(line)) => line,
            Ok(None) => panic!("it ended without a line {start:?}; it printed {:?} and {}", self.printed, self.log()),
            Err(_) => panic!("no line {start:?} in {READY_LIMIT:?}; it printed {:?} and {}", self.printed, self.log()),
        }
    }

    /// What it printed so far, as far as [`Demo::line`] has read.
    #[must_use]
    pub fn printed(&self) -> &[String] {
        &self.printed
    }

    /// What it wrote to stderr so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().expect("nobody panics with it").clone()
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// A share of the data directory, for a second demo on it.
    #[must_use]
    pub fn keep_data(&self) -> Arc<TempDir> {
        Arc::clone(&self.data)
    }

    /// The certificate to trust.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.data.path().join("ca.pem")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `NAME.SUFFIX`.
    #[must_use]
    pub fn host(&self, name: &str) -> String {
        format!("{name}.{}", self.suffix)
    }

    /// `NAME.SUFFIX:PORT`.
    #[must_use]
    pub fn authority(&self, name: &str) -> String {
        format!("{name}.{}:{}", self.suffix, self.https.port())
    }

    /// `https://NAME.SUFFIX:PORT` and `path`.
    #[must_use]
    pub fn url(&self, name: &str, path: &str) -> String {
        format!("https://{}{path}", self.authority(name))
    }

    /// Where it serves plain HTTP. It prints no address for it, the kernel knows it.
    ///
    /// # Panics
    /// When it listens on nothing besides HTTPS.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        let port = processes::listening_ports(self.pid()).into_iter().find(|&port| port != self.https.port());
        SocketAddr::from((Ipv4Addr::LOCALHOST, port.expect("a plain port beside the HTTPS port")))
    }

    /// Ends it as Ctrl-C does and proves that no process of it is left.
    ///
    /// # Panics
    /// When it does not end in time, or leaves a process behind.
    pub async fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("our own child");
        let child = &mut self.child;
        let status = until("the demo to end after SIGINT", STOP_LIMIT, async || child.try_wait().unwrap()).await;
        let left = processes::about(self.data.path());
        assert!(left.is_empty(), "processes are left: {left:?}");
        status
    }

    /// Ends it as Ctrl-C does; guests that another owner can find again may be left.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn leave(mut self) -> Arc<TempDir> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("our own child");
        let child = &mut self.child;
        until("the demo to end after SIGINT", STOP_LIMIT, async || child.try_wait().unwrap()).await;
        Arc::clone(&self.data)
    }

    /// Stops it where it is (SIGSTOP): its sockets stay open, and nothing comes out of them.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("our own child");
    }

    /// Undoes [`Demo::freeze`].
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("our own child");
    }

    /// Ends it as a crash does (SIGKILL): its guests may be left for the next start.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn crash(mut self) -> Arc<TempDir> {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
        Arc::clone(&self.data)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
            eprintln!("--- the demo wrote ---\n{}\n---", &log[tail..]);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            // Killed, it could not end its guests; they are ours all the same.
            end_all(self.data.path());
        }
    }
}

/// Ends what demos on a data directory have left, however its test ends.
pub struct Leftovers(pub Arc<TempDir>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        end_all(self.0.path());
    }
}

pub(crate) fn end_all(data: &Path) {
    for process in processes::about(data) {
        if let Some(pid) = rustix::process::Pid::from_raw(process.pid.cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn lines_of(stdout: impl Read + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { return };
            // Read on without a listener: a full pipe would block the program.
            let _ = sender.send(line);
        }
    });
    receiver
}

fn collect(stderr: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let writer = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = writer.lock().expect("nobody panics with it");
            log.push_str(&line);
            log.push('\n');
        }
    });
    log
}
