//! Where the routing table is kept.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Most servers of an engine that are named (chosen; any of them leads to all).
const SERVERS_MAX: usize = 16;
/// Longest delay of bulk changes (chosen: what somebody needs to see a mistake and take it back).
const BULK_DELAY_MAX: Duration = Duration::from_secs(600);

/// Section `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// What keeps the routes.
    pub engine: StoreEngine,
    /// When over 5 % of the routes (16 in any case) change their host or are deleted within a minute, the further
    /// changes are applied so much later; at most 10 min, nothing by default. A fleet's canaries leave it at nothing.
    #[serde(with = "crate::text")]
    pub bulk_delay: Duration,
    /// Used by engine `nats`.
    pub nats: NatsStore,
    /// Used by engine `etcd`.
    pub etcd: EtcdStore,
    /// Used by engine `embedded`.
    pub embedded: EmbeddedStore,
    /// Used by engine `primary`.
    pub primary: PrimaryStore,
    /// Used by engine `corrosion`.
    pub corrosion: CorrosionStore,
}

/// The store engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreEngine {
    /// A file of this process.
    #[default]
    Embedded,
    /// A key-value bucket of NATS `JetStream`.
    Nats,
    /// Keys of etcd.
    Etcd,
    /// The file of another process, which serves it.
    Primary,
    /// A table of Corrosion, through the agent of this machine.
    Corrosion,
}

/// Section `[store.embedded]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedStore {
    /// Where the file is served to the other machines of a fleet; none: to nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<SocketAddr>,
    /// Pins of the certificates of those who may enrol machines from elsewhere.
    pub operators: Vec<String>,
}

/// Section `[store.primary]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrimaryStore {
    /// Where the primary serves its file, `HOST:PORT`.
    pub server: String,
    /// SHA-256 of its certificate's public key, hexadecimal.
    pub pin: String,
}

/// Section `[store.corrosion]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorrosionStore {
    /// The HTTP API of this machine's agent, `http://ADDRESS:PORT`.
    pub api: String,
    /// Where the API's bearer token is; empty for none.
    pub token_file: PathBuf,
    /// The table of the rows, made by the agent's schema files.
    pub table: String,
}

impl Default for CorrosionStore {
    fn default() -> Self {
        Self { api: String::new(), token_file: PathBuf::new(), table: "routes".into() }
    }
}

/// Section `[store.nats]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsStore {
    /// Servers of the cluster, `nats://HOST:PORT` or `tls://HOST:PORT`.
    pub servers: Vec<String>,
    /// The bucket.
    pub bucket: String,
    /// Whether to make the bucket when it is missing.
    pub create: bool,
    /// Copies of the bucket that is made.
    pub replicas: usize,
    /// A credentials file of the account; empty for none.
    pub credentials_file: PathBuf,
    /// Roots the servers' certificates are checked against; empty for the system's.
    pub ca_file: PathBuf,
}

impl Default for NatsStore {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            bucket: "routes".into(),
            create: false,
            replicas: 3,
            credentials_file: PathBuf::new(),
            ca_file: PathBuf::new(),
        }
    }
}

/// Section `[store.etcd]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdStore {
    /// Client addresses of its members, `https://HOST:PORT` or `http://HOST:PORT`.
    pub servers: Vec<String>,
    /// What our keys begin with.
    pub prefix: String,
    /// User of etcd's own access control; empty for none.
    pub user: String,
    /// Where the user's password is.
    pub password_file: PathBuf,
    /// Roots the members' certificates are checked against; empty for the system's.
    pub ca_file: PathBuf,
}

impl Default for EtcdStore {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            prefix: "/edge-proxy/".into(),
            user: String::new(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
        }
    }
}

impl Store {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.engine == StoreEngine::Nats && self.nats.servers.is_empty() {
            return Err(("store.nats.servers", "engine \"nats\" needs at least one".into()));
        }
        if self.bulk_delay > BULK_DELAY_MAX {
            return Err(("store.bulk_delay", "at most 10min".into()));
        }
        servers("store.nats.servers", &self.nats.servers, "tls://", "nats://")?;
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let bucket = &self.nats.bucket;
        if bucket.is_empty() || bucket.len() > 64 || !bucket.bytes().all(letter) {
            return Err(("store.nats.bucket", "1 to 64 letters, digits, - or _".into()));
        }
        if ![1, 3, 5].contains(&self.nats.replicas) {
            return Err(("store.nats.replicas", "1, 3 or 5".into()));
        }
        if self.engine == StoreEngine::Etcd && self.etcd.servers.is_empty() {
            return Err(("store.etcd.servers", "engine \"etcd\" needs at least one".into()));
        }
        servers("store.etcd.servers", &self.etcd.servers, "https://", "http://")?;
        let prefix = &self.etcd.prefix;
        if prefix.len() > 64 || !prefix.ends_with('/') || prefix.contains(char::is_whitespace) {
            return Err(("store.etcd.prefix", "at most 64 bytes, the last of them a slash, no spaces".into()));
        }
        if self.embedded.operators.iter().any(|pin| !is_pin(pin.as_str())) {
            return Err(("store.embedded.operators", "SHA-256 of public keys, 64 hexadecimal digits each".into()));
        }
        if self.engine == StoreEngine::Primary {
            let (host, port) = self.primary.server.rsplit_once(':').unwrap_or_default();
            if host.is_empty() || !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return Err(("store.primary.server", "engine \"primary\" needs it: HOST:PORT".into()));
            }
            if !is_pin(&self.primary.pin) {
                return Err(("store.primary.pin", "SHA-256 of the primary's public key, 64 hexadecimal digits".into()));
            }
        }
        self.corrosion.check(self.engine)?;
        if self.etcd.user.is_empty() != self.etcd.password_file.as_os_str().is_empty() {
            return Err(("store.etcd.password_file", "user and password_file are given together".into()));
        }
        Ok(())
    }
}

impl CorrosionStore {
    fn check(&self, engine: StoreEngine) -> Result<(), (&'static str, String)> {
        if engine == StoreEngine::Corrosion && self.api.is_empty() {
            return Err((
                "store.corrosion.api",
                "engine \"corrosion\" needs the agent of this machine: http://ADDRESS:PORT".into(),
            ));
        }
        if !self.api.is_empty() {
            servers("store.corrosion.api", std::slice::from_ref(&self.api), "https://", "http://")?;
        }
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let begins = self.table.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        if !begins || self.table.len() > 64 || !self.table.bytes().all(letter) {
            return Err(("store.corrosion.table", "1 to 64 small letters, digits or _, a letter first".into()));
        }
        Ok(())
    }
}

fn is_pin(pin: &str) -> bool {
    pin.len() == 64 && pin.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What crosses a network is encrypted, by TLS or by the tunnel whose addresses are private.
fn servers(key: &'static str, servers: &[String], secure: &str, plain: &str) -> Result<(), (&'static str, String)> {
    if servers.len() > SERVERS_MAX {
        return Err((key, format!("at most {SERVERS_MAX}")));
    }
    let fine = |server: &String| {
        let with_port = |rest: &str| match rest.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !host.contains(['/', '@']) && port.parse() != Ok(0_u16) => {
                port.parse::<u16>().is_ok().then(|| host.trim_matches(['[', ']']).to_owned())
            }
            _ => None,
        };
        match (server.strip_prefix(secure).and_then(with_port), server.strip_prefix(plain).and_then(with_port)) {
            (Some(_), _) => true,
            (None, Some(host)) => host == "localhost" || host.parse().is_ok_and(is_private),
            (None, None) => false,
        }
    };
    match servers.iter().find(|server| !fine(server)) {
        None => Ok(()),
        Some(server) => {
            Err((key, format!("{server:?}: {secure}HOST:PORT, or {plain}ADDRESS:PORT with a private address")))
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use crate::Config;

    fn checked(section: &str) -> Result<(), String> {
        Config::parse(section, "f").map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn an_engine_needs_its_servers_and_the_way_to_them_is_encrypted() {
        assert!(checked("[store]\nengine = \"embedded\"").is_ok());
        assert!(checked("[store]\nengine = \"nats\"").unwrap_err().contains("at least one"));
        assert!(checked("[store]\nbulk_delay = \"10m\"").is_ok());
        assert!(checked("[store]\nbulk_delay = \"11m\"").unwrap_err().contains("at most"));
        assert!(checked("[store]\nengine = \"paper\"").unwrap_err().contains("embedded"));
        for server in [
            "tls://nats.example.org:4222",
            "nats://127.0.0.1:1",
            "nats://localhost:1",
            "nats://[fd00::1]:1",
            "nats://10.0.0.1:4222",
        ] {
            assert!(
                checked(&format!("[store]\nengine = \"nats\"\n[store.nats]\nservers = [{server:?}]")).is_ok(),
                "{server}"
            );
        }
        for server in [
            "nats://nats.example.org:4222",
            "nats://192.0.2.1:4222",
            "127.0.0.1:1",
            "tls://a",
            "tls://a:0",
            "tls://u:p@a:1",
            "tls://:1",
        ] {
            assert!(checked(&format!("[store.nats]\nservers = [{server:?}]")).is_err(), "{server}");
        }
    }

    #[test]
    fn keys_of_etcd_are_under_a_prefix_and_a_user_has_a_password() {
        assert!(checked("[store]\nengine = \"etcd\"").unwrap_err().contains("at least one"));
        assert!(checked("[store.etcd]\nservers = [\"http://etcd.example.org:2379\"]").is_err());
        let fine = "[store.etcd]\nservers = [\"https://etcd.example.org:2379\"]\nprefix = \"/a/\"";
        assert!(checked(&format!("{fine}\nuser = \"edge\"\npassword_file = \"/p\"")).is_ok());
        for wrong in
            ["prefix = \"\"", "prefix = \"/a\"", "prefix = \"/a b/\"", "user = \"edge\"", "password_file = \"/p\""]
        {
            assert!(checked(&format!("[store.etcd]\n{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn corrosion_has_an_agent_of_its_own_and_in_a_fleet_operators_who_sign() {
        let engine = "[store]\nengine = \"corrosion\"\n";
        assert!(checked(engine).unwrap_err().contains("needs the agent of this machine"));
        let fine = format!("{engine}[store.corrosion]\napi = \"http://127.0.0.1:8080\"\n");
        assert!(checked(&fine).is_ok());
        assert!(checked(&format!("{fine}table = \"eu_1\"\ntoken_file = \"/t\"")).is_ok());
        for wrong in ["table = \"\"", "table = \"Routes\"", "table = \"1a\"", "table = \"a;b\""] {
            assert!(checked(&format!("{fine}{wrong}")).unwrap_err().contains("store.corrosion.table"), "{wrong}");
        }
        for api in ["http://192.0.2.1:8080", "http://agent.example.org:8080", "127.0.0.1:8080", "http://127.0.0.1"] {
            assert!(checked(&format!("{engine}[store.corrosion]\napi = {api:?}")).is_err(), "{api}");
        }
        // Of two hosts that make one name at two agents, only a signature says whose it is.
        let said = checked(&format!("{fine}[fleet]\nname = \"a\"")).unwrap_err();
        assert!(said.contains("fleet.operators") && said.contains("no compare-and-set"), "{said}");
        let key = "a".repeat(43);
        assert!(checked(&format!("{fine}[fleet]\nname = \"a\"\noperators = [{key:?}]")).is_ok());
    }

    #[test]
    fn a_bucket_has_a_name_nats_can_keep_and_an_odd_number_of_copies() {
        assert!(checked("[store.nats]\nbucket = \"eu-1_routes\"\nreplicas = 1").is_ok());
        for wrong in ["bucket = \"\"", "bucket = \"a.b\"", "bucket = \"a b\"", "replicas = 2", "replicas = 0"] {
            assert!(checked(&format!("[store.nats]\n{wrong}")).is_err(), "{wrong}");
        }
    }
}
