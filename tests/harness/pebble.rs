//! Debian's Pebble: a real CA, whose validation asks the DNS it is told and comes to the ports it is told.

use crate::cluster::Node;
use crate::{tools, until};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;

/// From its start until it answers (measured: below a second).
const START: Duration = Duration::from_secs(60);

/// What it does otherwise than a CA on a good day.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moods {
    /// Of a hundred nonces, how many it refuses.
    pub refuses_nonces: u32,
    /// It wants accounts bound to a customer: `kid-1`.
    pub wants_binding: bool,
    /// It looks at an answer for less than so many seconds, at random; 0: it takes no time.
    pub looks_s: u32,
}

/// The CA. Dropping it kills it, and it forgets everything.
pub struct Pebble {
    node: Node,
    folder: TempDir,
    address: SocketAddr,
    management: SocketAddr,
}

impl Pebble {
    /// Starts one that asks the DNS at `dns` and comes to `http` and `tls`; `None` when there is none to start.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(dns: SocketAddr, http: u16, tls: u16, moods: Moods) -> Option<Self> {
        if !tools::requires(&["pebble", "curl"]) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("edge-pebble-").tempdir().unwrap();
        let all = crate::cluster::addresses(2);
        let (address, management) = (all[0], all[1]);
        certificates(&folder, address);
        let path = |name: &str| folder.path().join(name).display().to_string();
        let settings = serde_json::json!({ "pebble": {
            "listenAddress": address.to_string(), "managementListenAddress": management.to_string(),
            "certificate": path("srv.pem"), "privateKey": path("srv.key"),
            "httpPort": http, "tlsPort": tls, "ocspResponderURL": "",
            "externalAccountBindingRequired": moods.wants_binding,
            "externalAccountMACKeys": { "kid-1": KEY },
        }});
        std::fs::write(folder.path().join("pebble.json"), settings.to_string()).unwrap();
        let program = tools::find("pebble").expect("found above");
        // It takes its moods from its environment.
        let looks = match moods.looks_s {
            0 => "PEBBLE_VA_NOSLEEP=1".to_owned(),
            seconds => format!("PEBBLE_VA_SLEEPTIME={seconds}"),
        };
        let mut arguments = vec![looks, "PEBBLE_AUTHZREUSE=0".into()];
        arguments.push(format!("PEBBLE_WFE_NONCEREJECT={}", moods.refuses_nonces));
        arguments.push(program.display().to_string());
        arguments.extend(["-config".into(), path("pebble.json"), "-dnsserver".into(), dns.to_string()]);
        let env = tools::find("env").expect("every system has it");
        let node = Node::start(&env, arguments, folder.path().join("pebble.log"));
        let pebble = Self { node, folder, address, management };
        until("pebble to answer", START, async || pebble.get(&pebble.directory()).await).await;
        Some(pebble)
    }

    /// How many requests to paths that begin so have come.
    #[must_use]
    pub fn requests(&self, path: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("pebble.log")).unwrap_or_default();
        log.matches(&format!("POST {path}")).count()
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// Where it answers.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whom to trust to speak to it.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The secret half of the binding `kid-1`, base64url.
    #[must_use]
    pub const fn binding(&self) -> &'static str {
        KEY
    }

    /// The root its certificates lead to, PEM.
    ///
    /// # Panics
    /// When it does not say.
    pub async fn root(&self) -> String {
        self.get(&format!("https://{}/roots/0", self.management)).await.expect("pebble says its root")
    }

    /// What it says of a certificate (DER): "Valid" or "Revoked", and why (RFC 5280 §5.3.1).
    ///
    /// # Panics
    /// When it does not know it.
    pub async fn status(&self, leaf: &[u8]) -> (String, Option<u64>) {
        let url = format!("https://{}/cert-status-by-serial/{}", self.management, serial(leaf));
        let said = self.get(&url).await.expect("pebble knows the certificate");
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        (said["Status"].as_str().unwrap_or_default().to_owned(), said["Reason"].as_u64())
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("pebble.log")).unwrap_or_default()
    }

    /// Nothing comes out of it any more; its sockets stay open.
    pub fn freeze(&self) {
        self.node.freeze();
    }

    /// Undoes [`Pebble::freeze`].
    pub fn thaw(&self) {
        self.node.thaw();
    }

    async fn get(&self, url: &str) -> Option<String> {
        let ca = self.ca_file();
        let asked = Command::new("curl").args(["-sf", "-m", "3", "--cacert"]).arg(ca).arg(url).output().await.unwrap();
        asked.status.success().then(|| String::from_utf8(asked.stdout).unwrap())
    }
}

/// 32 bytes that are nobody's secret.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// The serial number of a certificate as Pebble writes it, in hex without zeros before it: after the outer sequences and
/// the version (RFC 5280 §4.1).
///
/// # Panics
/// When it is none of version 3.
#[must_use]
pub fn serial(leaf: &[u8]) -> String {
    const BEFORE: &[u8] = &[0xa0, 3, 2, 1, 2, 2];
    let at =
        leaf.windows(BEFORE.len()).position(|bytes| bytes == BEFORE).expect("a version-3 certificate") + BEFORE.len();
    let number = &leaf[at + 1..][..usize::from(leaf[at])];
    let text: String = number.iter().map(|byte| format!("{byte:02x}")).collect();
    text.trim_start_matches('0').to_owned()
}

/// Debian ships no certificate for it.
fn certificates(folder: &TempDir, address: SocketAddr) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![address.ip().to_string()]).unwrap();
    // One that is called as its issuer is would be taken for self-signed.
    params.distinguished_name.push(DnType::CommonName, "pebble");
    let leaf = params.signed_by(&own, &issuer).unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("ca.pem", ca.pem());
    write("srv.pem", leaf.pem());
    write("srv.key", own.serialize_pem());
}
