//! The keys of this machine: of its edge and of its worker host, each in a file of its own.

use anyhow::{Context, ensure};
use backhaul::keys::PrivateKey;
use backhaul::session::Identity;
use backhaul::signing_file;
use config::Config;
use router::signing::{Operators, SigningKey};

/// One end of a session: a WireGuard key and a certificate.
pub struct End {
    /// The WireGuard key.
    pub key: PrivateKey,
    /// The certificate.
    pub identity: Identity,
    /// What it signs its rows with.
    pub signing: SigningKey,
}

impl End {
    /// The edge's end, made when it is not there yet.
    ///
    /// # Errors
    /// A file that cannot be read or made, and which.
    pub fn of_edge(config: &Config) -> anyhow::Result<Self> {
        Self::load(config, "edge")
    }

    /// The worker host's end, made when it is not there yet.
    ///
    /// # Errors
    /// A file that cannot be read or made, and which.
    pub fn of_host(config: &Config) -> anyhow::Result<Self> {
        Self::load(config, "host")
    }

    /// The worker host's next keys, made when they are not there yet, with the signing key it has.
    ///
    /// # Errors
    /// A file that cannot be read or made, and which.
    pub fn next_of_host(config: &Config) -> anyhow::Result<Self> {
        let signing = Self::of_host(config)?.signing;
        let directory = config.data_dir.join("keys");
        let key = PrivateKey::load_or_generate(&directory.join("host-next.key"))?;
        let identity = Identity::load_or_generate(&directory.join("host-next.identity"))?;
        Ok(Self { key, identity, signing })
    }

    /// Whether next keys were made that have not taken their place.
    #[must_use]
    pub fn has_next(config: &Config) -> bool {
        ["key", "identity"].iter().any(|kind| config.data_dir.join("keys").join(format!("host-next.{kind}")).exists())
    }

    /// Puts the next keys in the place of the present ones. May be done again when it was cut short.
    ///
    /// # Errors
    /// A file that cannot be renamed.
    pub fn promote(config: &Config) -> anyhow::Result<()> {
        let directory = config.data_dir.join("keys");
        for kind in ["identity", "key"] {
            let (from, to) = (directory.join(format!("host-next.{kind}")), directory.join(format!("host.{kind}")));
            if from.exists() {
                std::fs::rename(&from, &to).with_context(|| to.display().to_string())?;
            }
        }
        Ok(())
    }

    fn load(config: &Config, name: &str) -> anyhow::Result<Self> {
        let directory = config.data_dir.join("keys");
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let key = PrivateKey::load_or_generate(&directory.join(format!("{name}.key")))?;
        let identity = Identity::load_or_generate(&directory.join(format!("{name}.identity")))?;
        let signing = signing_file::load_or_generate(&directory.join(format!("{name}.signing")))?;
        Ok(Self { key, identity, signing })
    }
}

/// Whose signatures count, as the config says.
///
/// # Errors
/// A key that is none.
pub fn operators(config: &Config) -> anyhow::Result<Operators> {
    let keys =
        config.fleet.operators.iter().map(|key| key.parse().with_context(|| format!("fleet.operators: {key:?}")));
    Ok(Operators::new(keys.collect::<anyhow::Result<Vec<_>>>()?))
}

/// The operator's own key, when the config names one; then its public half must be among `fleet.operators`.
///
/// # Errors
/// A file that cannot be read, or a key nobody would believe.
pub fn operator(config: &Config) -> anyhow::Result<Option<SigningKey>> {
    let operators = operators(config)?;
    let Some(path) = &config.fleet.operator_key else {
        ensure!(!operators.demand(), "fleet.operator_key: none; nobody would believe what is not signed");
        return Ok(None);
    };
    let key = signing_file::load(path).context("fleet.operator_key")?;
    ensure!(
        operators.include(&key.public()),
        "fleet.operators lacks {}, the key of fleet.operator_key; nobody would believe it",
        key.public()
    );
    Ok(Some(key))
}
