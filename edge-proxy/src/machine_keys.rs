//! The keys of this machine: of its edge and of its worker host, each in a file of its own.

use anyhow::Context;
use backhaul::keys::PrivateKey;
use backhaul::session::Identity;
use config::Config;

/// One end of a session: a WireGuard key and a certificate.
pub struct End {
    /// The WireGuard key.
    pub key: PrivateKey,
    /// The certificate.
    pub identity: Identity,
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

    fn load(config: &Config, name: &str) -> anyhow::Result<Self> {
        let directory = config.data_dir.join("keys");
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let key = PrivateKey::load_or_generate(&directory.join(format!("{name}.key")))?;
        let identity = Identity::load_or_generate(&directory.join(format!("{name}.identity")))?;
        Ok(Self { key, identity })
    }
}
