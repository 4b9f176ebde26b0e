//! Machines of a fleet: each a process of its own with keys of its own, enrolled as an operator does it.

use crate::{Demo, Options, admin};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use tempfile::TempDir;

/// The domain of every edge.
pub const SUFFIX: &str = "sprites.localhost";

/// An operator, whose key signs.
pub struct Operator {
    folder: TempDir,
    public: String,
}

impl Operator {
    /// With a new key, made as an operator makes it.
    ///
    /// # Panics
    /// When there is none.
    pub async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("edge-operator-").tempdir().expect("a temporary folder");
        let file = folder.path().join("operator.key");
        let output = admin::run(&["keygen", "--operator", "--out", file.to_str().expect("text")]).await;
        assert!(output.status.success(), "{output:?}");
        let public = String::from_utf8(output.stdout).expect("text").trim().to_owned();
        Self { folder, public }
    }

    /// Its public key.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// The file with the other half.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("operator.key")
    }
}

/// A machine before it is started, or between two starts.
pub struct Machine {
    /// Its name in the registry.
    pub name: String,
    data: Arc<TempDir>,
    sections: String,
    host: bool,
    /// Whose signatures it asks for.
    operators: Vec<String>,
    /// The operator's key, for `fleet`.
    operator: Option<PathBuf>,
    /// A variable of its environment that is set to "1" when it is started.
    pub switch: Option<&'static str>,
}

impl Machine {
    /// A worker host; `store` are the sections of the store they share.
    #[must_use]
    pub fn host(name: &str, store: &str) -> Self {
        Self::new(name, store, true)
    }

    /// An edge.
    #[must_use]
    pub fn pop(name: &str, store: &str) -> Self {
        Self::new(name, store, false)
    }

    fn new(name: &str, store: &str, host: bool) -> Self {
        let data = tempfile::Builder::new().prefix("edge-e2e-").tempdir().expect("a temporary folder");
        let sections = format!("{store}[fleet]\nname = {name:?}\n");
        Self {
            name: name.into(),
            data: Arc::new(data),
            sections,
            host,
            operators: Vec::new(),
            operator: None,
            switch: None,
        }
    }

    /// Of a fleet with this operator, whose key `fleet` is run with.
    #[must_use]
    pub fn signed_by(self, operator: &Operator) -> Self {
        self.signed_by_any(operator, &[operator])
    }

    /// The same for several, of whom the first signs.
    #[must_use]
    pub fn signed_by_any(self, signs: &Operator, operators: &[&Operator]) -> Self {
        let operators = operators.iter().map(|operator| operator.public().to_owned()).collect();
        Self { operators, operator: Some(signs.file()), ..self }
    }

    /// What it is started with.
    fn own_sections(&self) -> String {
        match &self.operators[..] {
            [] => self.sections.clone(),
            operators => format!("{}operators = {operators:?}\n", self.sections),
        }
    }

    /// What `fleet` is run with.
    fn operator_sections(&self) -> String {
        let key = self.operator.as_ref().map(|file| format!("operator_key = {file:?}\n")).unwrap_or_default();
        format!("{}{key}", self.own_sections())
    }

    /// With more lines in its section `[fleet]`.
    #[must_use]
    pub fn with(mut self, lines: &str) -> Self {
        self.sections.push_str(lines);
        self
    }

    /// Where it keeps everything.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// `edge-proxy fleet ARGUMENTS`, on this machine's config file.
    ///
    /// # Panics
    /// When it fails.
    pub async fn fleet(&self, arguments: &[&str]) -> Value {
        let output = self.run(&self.operator_sections(), &[&["--json", "fleet"], arguments].concat()).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "fleet {arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).expect("JSON with --json")
    }

    /// The same when it is to be refused: what it says.
    ///
    /// # Panics
    /// When it is done all the same.
    pub async fn try_fleet(&self, arguments: &[&str]) -> String {
        let output = self.run(&self.operator_sections(), &[&["fleet"], arguments].concat()).await;
        assert!(!output.status.success(), "fleet {arguments:?} was done");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// `edge-proxy check` on its config file: what it prints.
    pub async fn check(&self) -> String {
        let output = self.run(&self.own_sections(), &["check"]).await;
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts it although it is not to come up: what it says when it has ended.
    ///
    /// # Panics
    /// When it ends well.
    pub async fn refused(&self) -> String {
        let output = self.run(&self.own_sections(), &[if self.host { "host" } else { "run" }]).await;
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The command that would enrol this host, if edges reached it at an address.
    pub async fn keys_with_endpoint(&self) -> String {
        let sections = format!("{}endpoint = \"127.0.0.1:9\"\n", self.own_sections());
        let output = self.run(&sections, &["--json", "fleet", "keys"]).await;
        let keys: Value = serde_json::from_slice(&output.stdout).expect("JSON with --json");
        keys["as_host"].as_str().expect("a command").to_owned()
    }

    async fn run(&self, sections: &str, arguments: &[&str]) -> Output {
        let file = Demo::config_file(&self.data, SUFFIX, sections);
        let config = ["--config", file.to_str().expect("temporary paths are text")];
        admin::run(&[arguments, &config].concat()).await
    }

    /// Enrols it by the command it prints itself.
    ///
    /// # Panics
    /// When that is no such command, or fails.
    pub async fn enrol(&self) {
        let keys = self.fleet(&["keys"]).await;
        let printed = keys[if self.host { "as_host" } else { "as_pop" }].as_str().unwrap_or_default().to_owned();
        let words: Vec<_> = printed.split(' ').collect();
        let words = words.strip_prefix(&["edge-proxy", "fleet"]).expect("a command of ours");
        let arguments = words.strip_suffix(&["--config", "FILE"]).expect("it ends with the operator's config");
        self.fleet(arguments).await;
    }

    /// A worker host that picks its port itself and says at its start where it is, enrolled.
    ///
    /// # Panics
    /// When it cannot be.
    pub async fn enrolled_host(name: &str, store: &str, lines: &str) -> Self {
        let machine = Self::host(name, &format!("{store}[backhaul]\nlisten = \"127.0.0.1:0\"\n")).with(lines);
        let own = machine.keys_with_endpoint().await;
        let word = |after: &str| own.split(' ').skip_while(|word| *word != after).nth(1).expect("a command").to_owned();
        let (key, pin) = (word("--key"), word("--pin"));
        machine.fleet(&["host", "add", name, "--key", &key, "--pin", &pin, "--endpoint", "127.0.0.1:9"]).await;
        machine
    }

    /// An edge, enrolled.
    ///
    /// # Panics
    /// When it cannot be.
    pub async fn enrolled_pop(name: &str, store: &str) -> Self {
        let machine = Self::pop(name, store);
        machine.enrol().await;
        machine
    }

    /// Starts it.
    pub async fn start(&self) -> Demo {
        let data = Some(Arc::clone(&self.data));
        let config = Some(self.own_sections());
        Demo::start(Options { data, config, host: self.host, switch: self.switch, ..Options::default() }).await
    }
}
