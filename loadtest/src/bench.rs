//! An edge of our own with machines that cost nothing behind it, for figures of the edge alone.

use crate::admin::Admin;
use crate::edge::{Door, Protocol};
use crate::orchestrator::Orchestrator;
use anyhow::{Context, bail, ensure};
use http::Method;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How long the edge may take to start (chosen: it takes a tenth of a second).
const START: Duration = Duration::from_secs(20);
/// Pause between two looks at it.
const LOOK: Duration = Duration::from_millis(10);
/// The bytes 0 to 31: nobody checks what it signs.
const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Lines of the edge's config file besides what every measurement needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// In section `[hold]`.
    pub(crate) hold: String,
    /// In section `[host]`.
    pub(crate) host: String,
}

/// A running edge in a new directory, its machines, and the way in.
pub(crate) struct Bench {
    child: Child,
    program: PathBuf,
    directory: PathBuf,
    pub(crate) admin: Admin,
    pub(crate) machines: Orchestrator,
}

/// A sprite that was made.
#[derive(Clone, Debug)]
pub(crate) struct Sprite {
    pub(crate) name: String,
    /// Name and port, as in its URL.
    pub(crate) authority: String,
}

impl Bench {
    /// Starts machines and the `edge-proxy` beside this program, and waits until it serves.
    ///
    /// # Errors
    /// It is not built, or does not start.
    pub(crate) async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("edge-proxy");
        if !program.is_file() {
            bail!("{} does not exist; build it: cargo build --release -p edge-proxy", program.display());
        }
        let directory = std::env::temp_dir().join(format!("loadtest-{}", std::process::id()));
        std::fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let (config, secret) = (directory.join("edge.toml"), directory.join("secret"));
        std::fs::write(&secret, SECRET)?;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
        let Settings { hold, host } = settings;
        let text = format!(
            "data_dir = {:?}\n[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[names]\nsuffixes = [\"sprites.test\"]\n\
             [hold]\nwasted_wakes_per_hour = 0\n{hold}\n\
             [host]\nidle_timeout = \"10m\"\nwarm_for = \"1h\"\nwakes_per_hour = 0\n{host}\n\
             [drivers.http]\nsecret_file = {secret:?}\n",
            directory.join("data"),
        );
        std::fs::write(&config, text)?;
        let child = spawn(&program, &config)?;
        let admin = Admin::new(directory.join("data/admin.sock"));
        let mut bench = Self { child, program, directory, admin, machines: Orchestrator::start()? };
        bench.until_it_answers().await?;
        Ok(bench)
    }

    /// Where the edge keeps what it knows.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// From its next start on the edge serves at this port.
    ///
    /// # Errors
    /// Its config file cannot be written.
    pub(crate) fn keep_port(&self, port: u16) -> anyhow::Result<()> {
        let config = self.directory.join("edge.toml");
        let text = std::fs::read_to_string(&config)?.replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1);
        Ok(std::fs::write(&config, text)?)
    }

    /// Ends the edge as Ctrl-C does; what it has on disk stays.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) async fn halt(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            kill_process(pid, Signal::INT)?;
        }
        self.child.wait().await?;
        Ok(())
    }

    /// Starts the edge again, on what it had; waits for nothing.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn again(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.program, &self.directory.join("edge.toml"))?;
        Ok(())
    }

    async fn until_it_answers(&mut self) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + START;
        loop {
            match self.status().await {
                Ok(_) => return Ok(()),
                Err(error) => ensure!(tokio::time::Instant::now() < end, "the edge did not start: {error:#}"),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the edge ended at once: {status}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the edge says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) async fn status(&self) -> anyhow::Result<Value> {
        self.admin.call(Method::GET, "/v1/status", None).await
    }

    /// A public sprite with a driver of [`Orchestrator::driver`].
    ///
    /// # Errors
    /// The edge refuses it.
    pub(crate) async fn create(&self, name: &str, driver: Value) -> anyhow::Result<Sprite> {
        let sprite = json!({ "name": name, "driver": driver, "access": "public" });
        let row = self.admin.call(Method::POST, "/v1/sprites", Some(sprite)).await?;
        let url = row["url"].as_str().context("the sprite has no URL")?;
        let authority = url.trim_start_matches("https://").trim_end_matches('/').to_owned();
        Ok(Sprite { name: name.to_owned(), authority })
    }

    /// Puts it to sleep, `warm` or `cold`, and waits until it is.
    ///
    /// # Errors
    /// It does not sleep.
    pub(crate) async fn sleep(&self, sprite: &Sprite, depth: &str) -> anyhow::Result<()> {
        let path = format!("/v1/sprites/{}/sleep", sprite.name);
        self.admin.call(Method::POST, &path, Some(json!({ "depth": depth }))).await.map(drop)
    }

    /// The way in to `sprite`, and to all others.
    ///
    /// # Errors
    /// The edge has no certificate yet, or the URL no port.
    pub(crate) fn door(&self, sprite: &Sprite, protocol: Protocol) -> anyhow::Result<Door> {
        let port = sprite.authority.rsplit_once(':').context("the URL has no port")?.1.parse()?;
        Door::new(SocketAddr::from(([127, 0, 0, 1], port)), &self.directory.join("data/ca.pem"), protocol)
    }

    /// Waits until the edge holds `count` requests.
    ///
    /// # Errors
    /// It does not within `within`.
    pub(crate) async fn until_held(&self, count: usize, within: Duration) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + within;
        loop {
            let held = self.status().await?["held"].as_u64().context("the status has no number of holds")?;
            if held == count as u64 {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < end, "{held} requests are held, not {count}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Memory of the edge that is in RAM now, and the most there ever was, bytes (`VmRSS`, `VmHWM`, proc(5)).
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let id = self.child.id().context("the edge has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let of = |key: &str| -> Option<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            value.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
        };
        of("VmRSS").zip(of("VmHWM")).context("the kernel does not say what it takes")
    }

    /// Processor time of the edge so far, milliseconds (`utime` and `stime`, proc(5)).
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn processor_ms(&self) -> anyhow::Result<u64> {
        let id = self.child.id().context("the edge has ended")?;
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        // Behind the program's name, which may hold anything, come the third field and on.
        let fields: Vec<_> = stat.rsplit_once(')').context("no stat")?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at - 3).and_then(|field| field.parse::<u64>().ok());
        let ticks = ticks(14).zip(ticks(15)).context("the kernel does not say what it took")?;
        Ok((ticks.0 + ticks.1) * 1_000 / rustix::param::clock_ticks_per_second())
    }

    /// Ends the edge as Ctrl-C does.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.halt().await?;
        std::fs::remove_dir_all(&self.directory)?;
        Ok(())
    }
}

fn spawn(program: &Path, config: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    Ok(command.spawn()?)
}

/// Lets this process and the edge it will start open `files` files each, or as many as this
/// user may; how many those are.
pub(crate) fn allow_files(files: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(have) = current.filter(|&current| current < files) else { return files };
    let raise = |to: u64| {
        let maximum = maximum.map(|maximum| maximum.max(to));
        setrlimit(Resource::Nofile, Rlimit { current: Some(to), maximum }).ok().map(|()| to)
    };
    raise(files).or_else(|| raise(maximum?.min(files))).unwrap_or(have)
}

/// As [`allow_files`], for measurements that make no sense with fewer.
///
/// # Errors
/// This user may not; it says what would help.
pub(crate) fn need_files(files: u64) -> anyhow::Result<()> {
    let have = allow_files(files);
    ensure!(have >= files, "{files} open files are needed and {have} allowed: raise `ulimit -Hn` as root");
    Ok(())
}
