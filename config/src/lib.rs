//! Every setting: its unit, its default, its limits. One TOML file in, a checked
//! [`Config`] out, or exactly what is wrong and where.
//!
//! Two steps: serde reads what was typed and refuses unknown keys; [`Config::check`]
//! turns it into what it means. Nothing here opens a file it is told about.

mod acme;
mod backhaul;
mod dns;
mod domains;
mod drivers;
mod error;
mod fleet;
mod hold;
mod host;
mod ledger;
mod limits;
mod listen;
mod region;
mod sprite;
mod store;
mod text;
mod webhook;

pub use acme::{Acme, AcmeCa, AcmeChallenge, AcmeLimits};
pub use backhaul::{BackhaulConfig, Link};
pub use dns::{Dns, Issuer, NameServer, Text};
pub use domains::Domains;
pub use drivers::{Accel, Cgroup, DockerDriver, Drivers, FirecrackerDriver, HttpDriver, ProcessDriver, Qemu};
pub use error::ConfigError;
pub use fleet::Fleet;
pub use hold::Hold;
pub use host::Host;
pub use ledger::Ledger;
pub use limits::Limits;
pub use listen::{Admin, Expired, Listen, Names, Tls, UnknownNames};
pub use region::Region;
pub use sprite::{MEMORY_MIB, StaticSprite};
pub use store::{CorrosionStore, EmbeddedStore, EtcdStore, NatsStore, PrimaryStore, Store, StoreEngine};
pub use webhook::Webhook;

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The whole configuration. `edge.example.toml` beside this crate explains each key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where everything that must survive is kept: store, keys, certificates, sprites.
    pub data_dir: PathBuf,
    /// Whether a crash may leave a core file, which has every private key that was in memory, and whether debuggers of
    /// the same user may attach.
    pub core_dumps: bool,
    /// Addresses to listen on.
    pub listen: Listen,
    /// The domains whose labels are sprites.
    pub names: Names,
    /// Whole host names of other people.
    pub domains: Domains,
    /// The DNS authority of our own zones.
    pub dns: Dns,
    /// Certificates and handshakes.
    pub tls: Tls,
    /// Certificates from public CAs.
    pub acme: Acme,
    /// The admin socket.
    pub admin: Admin,
    /// Where the routing table is kept.
    pub store: Store,
    /// This machine among others.
    pub fleet: Fleet,
    /// The way to the worker host.
    pub backhaul: BackhaulConfig,
    /// Bounds of the hold.
    pub hold: Hold,
    /// The worker host on this machine.
    pub host: Host,
    /// The wake drivers of that host.
    pub drivers: Drivers,
    /// The ledger of its runs.
    pub ledger: Ledger,
    /// Who is told what the ledger says.
    pub webhook: Webhook,
    /// Bounds of client connections.
    pub limits: Limits,
    /// Other regions, whose stores are followed beside the own one.
    #[serde(rename = "region", skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<Region>,
    /// Sprites that exist by configuration.
    #[serde(rename = "sprite", skip_serializing_if = "Vec::is_empty")]
    pub sprites: Vec<StaticSprite>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "edge-proxy-data".into(),
            core_dumps: false,
            listen: Listen::default(),
            names: Names::default(),
            domains: Domains::default(),
            dns: Dns::default(),
            tls: Tls::default(),
            acme: Acme::default(),
            admin: Admin::default(),
            store: Store::default(),
            fleet: Fleet::default(),
            backhaul: BackhaulConfig::default(),
            hold: Hold::default(),
            host: Host::default(),
            drivers: Drivers::default(),
            ledger: Ledger::default(),
            webhook: Webhook::default(),
            limits: Limits::default(),
            regions: Vec::new(),
            sprites: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`]: says file, line and column, shows the line, and what is allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { file: path.display().to_string(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads and checks `text`; `file` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::syntax(file, text, &error))?;
        config.check().map_err(|(key, message)| ConfigError::meaning(file, text, &key, &message))?;
        Ok(config)
    }

    /// Checks what the types alone cannot say; the key that is wrong and why.
    ///
    /// # Errors
    /// The first rule that is broken: the dotted key (`hold.timeout`, `sprite[1].ports`) and
    /// what is allowed.
    pub fn check(&self) -> Result<(), (String, String)> {
        self.check_sections().map_err(|(key, message)| (key.to_owned(), message))?;
        region::check_all(&self.regions, &self.fleet.region, !self.fleet.name.is_empty())?;
        sprite::check_all(&self.sprites)
    }

    fn check_sections(&self) -> Result<(), (&'static str, String)> {
        self.listen.check()?;
        self.names.check()?;
        self.domains.check()?;
        self.dns.check(&self.names, &self.domains.addresses)?;
        self.tls.check()?;
        self.acme.check(self)?;
        self.store.check()?;
        self.fleet.check(&self.store, self.backhaul.link)?;
        self.backhaul.check()?;
        self.hold.check()?;
        self.host.check()?;
        self.drivers.check()?;
        self.ledger.check()?;
        self.webhook.check()?;
        self.limits.check()
    }

    /// The admin socket: as configured, or `admin.sock` in the data directory.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.admin.socket.clone().unwrap_or_else(|| self.data_dir.join("admin.sock"))
    }

    /// The whole configuration as TOML, defaults included.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is made of tables, texts and numbers")
    }
}

#[cfg(test)]
mod tests;
