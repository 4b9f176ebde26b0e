//! An edge of our own with machines that cost nothing behind it, for figures of the edge alone.

use crate::admin::Admin;
use crate::edge::{Door, Protocol};
use crate::fake_owner::FakeOwner;
use crate::machine;
use crate::orchestrator::{After, Orchestrator, Wake};
use crate::servers::{Engine, Server, free_addresses};
use anyhow::{Context, bail, ensure};
use backhaul::wire::WakeKind;
use http::Method;
use router::access::Access;
use router::names::SpriteName;
use router::route::{Generation, HostId};
use router::rows::{ROW_VERSION, SpriteRow};
use router::store::Store;
use router::wake::WakeRules;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
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

/// Who is behind the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OwnerKind {
    /// An owner that knows only time: what is measured is the edge's.
    Fake,
    /// The product's own, whose driver asks an orchestrator: what is measured is the whole product's.
    Product,
}

/// A running edge in a new directory, its machines, and the way in.
pub(crate) struct Bench {
    child: Child,
    program: PathBuf,
    directory: TempDir,
    pub(crate) admin: Admin,
    pub(crate) machines: Orchestrator,
    at: SocketAddr,
    /// None when the owner is in the edge's process.
    fleet: Option<Fleet>,
}

/// The fake owner, and the store that leads to it.
struct Fleet {
    owner: FakeOwner,
    number: HostId,
    store: Store,
    _etcd: Server,
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
        Self::start_before(settings, OwnerKind::Product).await
    }

    /// As [`Bench::start`], with that owner. Sprites of a fake one are public, have no driver, and wake as
    /// [`Bench::sprite`] says.
    ///
    /// # Errors
    /// As there; and a fake owner needs `etcd`.
    pub(crate) async fn start_before(settings: &Settings, owner: OwnerKind) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("edge-proxy");
        if !program.is_file() {
            bail!("{} does not exist; build it: cargo build --release -p edge-proxy", program.display());
        }
        let directory = tempfile::Builder::new().prefix("loadtest-").tempdir()?;
        let data = directory.path().join("data");
        let (config, secret) = (directory.path().join("edge.toml"), directory.path().join("secret"));
        std::fs::write(&secret, SECRET)?;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
        let Settings { hold, host } = settings;
        let (machines, [at]) = (Orchestrator::start()?, free_addresses()?);
        let etcd = match owner {
            OwnerKind::Fake => Some(Server::start(Engine::Etcd).await?),
            OwnerKind::Product => None,
        };
        let fleet = etcd.as_ref().map_or_else(String::new, |(etcd, _)| {
            let etcd = format!("[store]\nengine = \"etcd\"\n[store.etcd]\nservers = [{:?}]\n", etcd.address);
            format!("{etcd}[fleet]\nname = \"pop\"\n")
        });
        let text = format!(
            "data_dir = {data:?}\n[listen]\nhttps = [\"{at}\"]\nhttp = []\n[names]\nsuffixes = [\"sprites.test\"]\n\
             [hold]\nwasted_wakes_per_hour = 0\n{hold}\n\
             [host]\nidle_timeout = \"10m\"\nwarm_for = \"1h\"\nwakes_per_hour = 0\n{host}\n\
             [drivers.http]\nsecret_file = {secret:?}\n{fleet}"
        );
        std::fs::write(&config, text)?;
        let fleet = match etcd {
            Some(etcd) => Some(Fleet::enrol(etcd, &program, directory.path(), machines.guest()).await?),
            None => None,
        };
        let child = spawn(&program, &config)?;
        let admin = Admin::new(data.join("admin.sock"));
        let mut bench = Self { child, program, directory, admin, machines, at, fleet };
        bench.until_it_answers().await?;
        Ok(bench)
    }

    /// Where the edge keeps what it knows.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
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
        self.child = spawn(&self.program, &self.directory.path().join("edge.toml"))?;
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

    /// A public sprite that wakes so long after it was asked to.
    ///
    /// # Errors
    /// It is refused.
    pub(crate) async fn sprite(&self, name: &str, wakes_in: Duration) -> anyhow::Result<Sprite> {
        let Some(fleet) = &self.fleet else {
            let millis = u64::try_from(wakes_in.as_millis())?;
            return self.create(name, self.machines.driver(After::Millis(millis), self.machines.guest())).await;
        };
        fleet.owner.create(name, wakes_in);
        fleet.place(name).await?;
        Ok(Sprite { name: name.to_owned(), authority: format!("{name}.sprites.test:{}", self.at.port()) })
    }

    /// The wakes of one sprite so far, as whoever made it run saw them.
    pub(crate) fn wakes(&self, sprite: &Sprite) -> Vec<Wake> {
        match &self.fleet {
            Some(fleet) => fleet.owner.wakes(&sprite.name),
            None => self.machines.wakes(&sprite.name),
        }
    }

    /// Puts it to sleep, `warm` or `cold`, and waits until it is.
    ///
    /// # Errors
    /// It does not sleep.
    pub(crate) async fn sleep(&self, sprite: &Sprite, depth: &str) -> anyhow::Result<()> {
        if let Some(fleet) = &self.fleet {
            let kind = if depth == "warm" { WakeKind::Warm } else { WakeKind::Cold };
            return fleet.owner.sleep(&sprite.name, kind).await;
        }
        let path = format!("/v1/sprites/{}/sleep", sprite.name);
        self.admin.call(Method::POST, &path, Some(json!({ "depth": depth }))).await.map(drop)
    }

    /// The way in to its sprites.
    ///
    /// # Errors
    /// The edge has no certificate yet.
    pub(crate) fn door(&self, protocol: Protocol) -> anyhow::Result<Door> {
        Door::new(self.at, &self.data().join("ca.pem"), protocol)
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
        machine::memory(self.child.id().context("the edge has ended")?)
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
        self.directory.close()?;
        Ok(())
    }
}

impl Fleet {
    /// Makes the edge's keys, starts the owner, and enrols both.
    async fn enrol(
        (etcd, store): (Server, Store),
        program: &Path,
        directory: &Path,
        guest: SocketAddr,
    ) -> anyhow::Result<Self> {
        let config = directory.join("edge.toml");
        let call = async |arguments: &[&str]| -> anyhow::Result<Value> {
            let output =
                Command::new(program).args(arguments).arg("--config").arg(&config).arg("--json").output().await?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "edge-proxy {arguments:?}: {said}");
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        let keys = call(&["fleet", "keys"]).await?;
        let enrol = keys["as_pop"].as_str().context("no command that enrols the edge")?.to_owned();
        let words: Vec<_> = enrol.split(' ').collect();
        let behind = |flag: &str| words.iter().skip_while(|word| **word != flag).nth(1).copied().context("no key");
        let (key, pin) = (behind("--key")?, behind("--pin")?);
        call(&["fleet", "pop", "add", "pop", "--key", key, "--pin", pin]).await?;
        let owner = FakeOwner::start(directory, key.parse()?, pin, guest)?;
        let (key, endpoint) = (owner.key.to_string(), owner.endpoint.to_string());
        let host = ["fleet", "host", "add", "fake", "--key", &key, "--pin", &owner.pin, "--endpoint", &endpoint];
        call(&host).await?;
        // The first host of a new store.
        Ok(Self { owner, number: HostId(1), store, _etcd: etcd })
    }

    async fn place(&self, name: &str) -> anyhow::Result<()> {
        let row = SpriteRow {
            version: ROW_VERSION,
            tenant: String::new(),
            generation: Generation(1),
            host: self.number,
            ports: Vec::new(),
            access: Access::Public,
            wake: WakeRules::default(),
            client_certificate: None,
            deleted: false,
            proof: router::placement::Proof::default(),
        };
        router::apply::publish(&*self.store, &SpriteName::parse(name)?, &row, None).await?;
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
