//! The CLI's half of `cert …`.

use super::client::{Show, call, print};
use super::table;
use crate::cli::Exit;
use crate::domains::parse;
use anyhow::{Context, bail};
use clap::Subcommand;
use http::Method;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often is looked whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long `--wait` waits (chosen: an order takes seconds, and a CA some minutes on a bad day).
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Longest name or id, bytes: a host name (RFC 1035 §2.3.4) and what stands before it in an id.
const NAME_BYTES_MAX: usize = 300;

/// What is done with certificates from public CAs.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// All of them: whose, until when, whether this edge serves them, and how they are.
    List,
    /// Which one answers for a name and why; what is on its way, what keeps it, and what helps.
    Explain {
        /// A host name, or an id as in `cert list`.
        name: String,
    },
    /// Order a new one now, before it is due.
    Renew {
        /// A host name, or an id as in `cert list`.
        name: String,
        /// Until every PoP that lives serves it, 5 minutes at most.
        #[arg(long)]
        wait: bool,
    },
    /// The key is somebody else's too: another certificate takes its place everywhere, then it is revoked, then all tickets are void.
    Compromise {
        /// A host name: the certificates of every CA for it; or an id as in `cert list`.
        name: String,
        /// Until all that is done, 5 minutes at most.
        #[arg(long)]
        wait: bool,
    },
    /// Visitors trust a CA no more: at once its certificates are the last resort at every PoP, and nothing more is ordered of it.
    Distrust {
        /// The CA, as it is called in the config.
        ca: String,
        /// They trust it after all.
        #[arg(long)]
        undo: bool,
    },
    /// The accounts at the CAs.
    #[command(subcommand)]
    Account(AccountCommand),
    /// The key encryption key of `acme.kek_file`, which the data keys are wrapped under that all secrets are sealed under.
    #[command(subcommand)]
    Kek(KekCommand),
}

/// What is done with key encryption keys.
#[derive(Debug, Subcommand)]
pub enum KekCommand {
    /// Which ones each PoP that lives knows, by id, the one in use first; and which one each data key is wrapped under.
    Show,
    /// Wrap every data key under the first one of this edge; refused while a PoP that lives does not know it.
    Rewrap {
        /// Make another data key as well, which all is sealed under from then on: after an old key was stolen.
        #[arg(long)]
        new_data_key: bool,
    },
}

/// What is done with accounts at CAs.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Change the account's key; the account, its orders and its certificates stay.
    RollOver {
        /// The CA, as it is called in the config; the first one when left out.
        #[arg(long, value_name = "NAME")]
        ca: Option<String>,
    },
}

/// Runs one `cert …` command and prints its result.
pub async fn cert(socket: &Path, json: bool, command: CertCommand) -> Exit {
    print(run(socket, command).await, json)
}

async fn run(socket: &Path, command: CertCommand) -> anyhow::Result<(Value, Show)> {
    Ok(match command {
        CertCommand::List => (call(socket, Method::GET, "/v1/certificates", None).await?, table::certificates as Show),
        CertCommand::Explain { name } => {
            let path = format!("/v1/certificates/{}", plain(&name)?);
            (call(socket, Method::GET, &path, None).await?, table::certificate as Show)
        }
        CertCommand::Renew { name, wait } => {
            let path = format!("/v1/certificates/{}/renew", plain(&name)?);
            let asked = call(socket, Method::POST, &path, None).await?;
            if wait {
                wait_for(socket, &asked, is_renewed).await?;
            }
            (asked, table::asked as Show)
        }
        CertCommand::Account(AccountCommand::RollOver { ca }) => {
            let asked = ca.map(|ca| serde_json::json!({ "ca": ca }));
            let changed = call(socket, Method::POST, "/v1/accounts/roll-over", asked).await?;
            (changed, table::object as Show)
        }
        CertCommand::Distrust { ca, undo } => {
            let method = if undo { Method::DELETE } else { Method::POST };
            let path = format!("/v1/cas/{}/distrust", plain(&ca)?);
            (call(socket, method, &path, None).await?, table::object as Show)
        }
        CertCommand::Kek(KekCommand::Show) => (call(socket, Method::GET, "/v1/kek", None).await?, table::keks as Show),
        CertCommand::Kek(KekCommand::Rewrap { new_data_key }) => {
            let asked = Some(serde_json::json!({ "new_data_key": new_data_key }));
            (call(socket, Method::POST, "/v1/kek/rewrap", asked).await?, table::object as Show)
        }
        CertCommand::Compromise { name, wait } => {
            let path = format!("/v1/certificates/{}/compromise", plain(&name)?);
            let asked = call(socket, Method::POST, &path, None).await?;
            if wait {
                wait_for(socket, &asked, is_revoked).await?;
            }
            (asked, table::asked as Show)
        }
    })
}

/// Whether a generation is revoked, and tickets are void.
fn is_revoked(now: &Value, generation: u64) -> bool {
    let revocations = now["revocations"].as_array();
    revocations.is_some_and(|all| all.iter().any(|one| one["generation"] == generation && one["over"] == true))
}

/// A name as it goes into a path: what is none never becomes one.
fn plain(name: &str) -> anyhow::Result<String> {
    let name = name.strip_prefix("*.").unwrap_or(name).to_ascii_lowercase();
    // A name of ours need not be one that somebody can own in public DNS.
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    match (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fine) {
        true => Ok(name),
        false => Ok(parse(&name)?.as_str().to_owned()),
    }
}

/// Whether every PoP that lives serves a newer one than that.
fn is_renewed(now: &Value, generation: u64) -> bool {
    let everywhere = now["not_served_by"].as_array().is_some_and(Vec::is_empty);
    now["generation"].as_u64().is_some_and(|newest| newest > generation) && everywhere
}

/// Waits until all that was asked for is as it was to be.
async fn wait_for(socket: &Path, asked: &Value, done: impl Fn(&Value, u64) -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + WAIT_MAX;
    for one in asked.as_array().context("the answer is no list")? {
        let (id, generation) = (one["id"].as_str().unwrap_or_default(), one["generation"].as_u64().unwrap_or(0));
        loop {
            let now = call(socket, Method::GET, &format!("/v1/certificates/{id}"), None).await?;
            let now = &now["certificates"][0];
            if done(now, generation) {
                break;
            }
            if Instant::now() >= end {
                let why = &now["explained"];
                bail!("{id}: not done after {} s: {} {}", WAIT_MAX.as_secs(), why["cause"], why["evidence"]);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}
