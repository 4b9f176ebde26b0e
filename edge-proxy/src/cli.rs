//! The command line: what was typed, and which exit code it ends with.

use crate::admin::cert_client::CertCommand;
use crate::admin::ticket_client::TicketCommand;
use crate::fleet::{self, FleetCommand};
use crate::run::Role;
use crate::{admin, demo, run, sample};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use config::Config;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0.
    Done,
    /// 64, EX_USAGE of sysexits(3).
    Usage,
    /// 70, EX_SOFTWARE: it could not be done.
    Failed,
    /// 78, EX_CONFIG.
    Config,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Usage => 64,
            Exit::Failed => 70,
            Exit::Config => 78,
        })
    }
}

/// The edge that wakes what it serves.
#[derive(Debug, Parser)]
#[command(
    name = "edge-proxy",
    version,
    after_help = "Exit codes: 0 done, 64 bad usage, 70 it could not be done, 78 bad config."
)]
struct Cli {
    /// Admin socket of the edge to talk to.
    #[arg(long, global = true, value_name = "SOCKET", default_value = "edge-proxy-data/admin.sock")]
    admin: PathBuf,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Edge and worker host on this machine, with sample sprites.
    Demo(DemoArguments),
    /// The edge; with the worker host of the same machine, unless fleet.name makes it one of many.
    Run {
        /// Config file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// A worker host of a fleet.
    Host {
        /// Config file (TOML), with fleet.name.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Enrol the machines of a fleet: works on the store of the config file.
    Fleet {
        /// Config file (TOML), with a store that machines share.
        #[arg(long, value_name = "FILE", global = true, default_value = "edge.toml")]
        config: PathBuf,
        #[command(subcommand)]
        command: FleetCommand,
    },
    /// Read a config file and print what would run; 78 when it is wrong.
    Check {
        /// Config file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make a WireGuard key: the private one into a new file, the public one to the terminal.
    Keygen {
        /// The new file; it must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// A key an operator signs with instead (docs/fleet.md); the public one belongs in fleet.operators.
        #[arg(long)]
        operator: bool,
    },
    /// Work on the sprites of a running edge.
    #[command(subcommand)]
    Sprite(SpriteCommand),
    /// Custom domains of the sprites: whole host names of other people (docs/domains.md).
    #[command(subcommand)]
    Domain(DomainCommand),
    /// The DNS authority of the edge (docs/dns.md).
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Certificates from public CAs (docs/certificates.md).
    #[command(subcommand)]
    Cert(CertCommand),
    /// Keys of the session tickets, which all edges share (docs/tls.md).
    #[command(subcommand)]
    Ticket(TicketCommand),
    /// How the running edge is doing.
    Status,
    /// Let go of routes that vanished from the store too many at once and are served on (store.held_removals in status).
    AcceptRemovals {
        /// Of another region this edge follows (regions in status); its own when left out.
        #[arg(long, value_name = "NAME")]
        region: Option<String>,
    },
    /// Change the WireGuard key and the certificate of a worker host of a fleet, while it serves.
    RotateKeys {
        /// Where the next WireGuard socket listens; the address of the present one and a free port when left out.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
        /// How long the old keys are good for what is open, 1h when left out.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        old_for: Option<Duration>,
    },
    /// Routes.
    #[command(subcommand)]
    Route(RouteCommand),
    /// What it counts, as Prometheus reads it (GET /metrics on the admin socket).
    Metrics,
    /// What ran on this host, from when to when and why.
    Ledger {
        /// Only records behind this number.
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
        /// At most so many, 1 to 1000.
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Run one of the demo's sample programs on $PORT.
    #[command(hide = true)]
    Sample {
        /// hello, counter, chat, clock, echo or stamp.
        name: String,
    },
}

/// What is asked about routes.
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// What this edge believes of a host name and would do with a request for it. Wakes nothing.
    Explain {
        /// As in a URL, without port.
        host: String,
    },
}

/// Arguments of `demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArguments {
    /// Where to serve HTTPS; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    pub https: SocketAddr,
    /// Where to redirect plain HTTP from.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub http: SocketAddr,
    /// Where everything that must survive is kept.
    #[arg(long, value_name = "DIR", default_value = "edge-proxy-data")]
    pub data_dir: PathBuf,
    /// A sprite sleeps after this long without activity, at least 100ms.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,
    /// The domain whose labels are sprites.
    #[arg(long, value_name = "DOMAIN", default_value = "sprites.localhost")]
    pub suffix: String,
    /// What carries streams from the edge to the host.
    #[arg(long, value_enum, default_value_t = LinkArgument::default())]
    pub link: LinkArgument,
    /// What a name that does not exist is answered with.
    #[arg(long, value_enum, default_value_t = UnknownNamesArgument::default())]
    pub unknown_names: UnknownNamesArgument,
}

/// How `demo` answers names that do not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum UnknownNamesArgument {
    /// 404.
    #[default]
    NotFound,
    /// As a private sprite: 401.
    AsPrivate,
}

/// The links `demo` can use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LinkArgument {
    /// WireGuard in this process with a QUIC session inside it.
    #[default]
    Userspace,
    /// Plain TCP without protection, which never leaves this machine.
    DirectInsecure,
}

/// Values of `--wake`.
const POLICIES: [&str; 5] = ["any", "people", "authenticated", "paths", "never"];

/// `sprite …`.
#[derive(Clone, Debug, Subcommand)]
pub enum SpriteCommand {
    /// Make a sprite of any command that listens on $PORT. Ends when every edge knows it, or after a second.
    Create {
        /// 1 to 40 of a-z, 0-9 and '-'.
        name: String,
        /// Run by `sh -c` in the sprite's own directory.
        #[arg(long, required_unless_present_any = ["wake_command", "driver"])]
        command: Option<String>,
        /// The most memory the command and all it begins may have, MiB; docs/drivers.md says where that can be kept.
        #[arg(long, value_name = "MIB", requires = "command")]
        memory_mib: Option<u32>,
        /// Wakes a machine somebody else runs, instead: prints {"address":"IP:PORT"}.
        #[arg(long, value_name = "COMMAND", conflicts_with = "command", requires = "sleep_command")]
        wake_command: Option<String>,
        /// Puts it to sleep, as deep as $SPRITE_DEPTH says.
        #[arg(long, value_name = "COMMAND", requires = "wake_command")]
        sleep_command: Option<String>,
        /// A TOML file with a driver and its settings, instead; docs/drivers.md has one for each.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["command", "wake_command"])]
        driver: Option<PathBuf>,
        /// Anybody may ask for it.
        #[arg(long, conflicts_with = "private")]
        public: bool,
        /// Only who brings its token or a share link (the default); prints the token.
        #[arg(long)]
        private: bool,
        /// A port that may be asked for as PORT--NAME besides $PORT; up to 16.
        #[arg(long)]
        port: Vec<u16>,
        /// It sleeps after this long without activity; the host's figure when left out.
        #[arg(long, value_name = "DURATION")]
        idle_timeout: Option<String>,
        /// Which requests may wake it.
        #[arg(long, default_value = "any", value_parser = POLICIES)]
        wake: String,
        /// A beginning of paths that may wake it under `people` and `paths`; up to 16.
        #[arg(long, value_name = "PREFIX")]
        wake_path: Vec<String>,
    },
    /// All sprites.
    List,
    /// One sprite.
    Show {
        /// Its name.
        name: String,
        /// What keeps it awake at this moment, instead.
        #[arg(long)]
        why: bool,
    },
    /// Wake it and wait until it runs.
    Wake {
        /// Its name.
        name: String,
    },
    /// Put it to sleep and wait until it sleeps.
    Sleep {
        /// Its name.
        name: String,
        /// End it instead of freezing it.
        #[arg(long)]
        cold: bool,
    },
    /// Stop it until it is started again: no request wakes it.
    Stop {
        /// Its name.
        name: String,
    },
    /// Let a stopped sprite wake again.
    Start {
        /// Its name.
        name: String,
    },
    /// Let new requests wait while something else pauses, restores or moves it. Of two holds the later end
    /// counts.
    Hold {
        /// Its name.
        name: String,
        /// When the hold ends by itself, at most 30s.
        #[arg(long, value_name = "DURATION", default_value = "30s")]
        max: String,
    },
    /// End every hold of it: who waited goes on.
    Release {
        /// Its name.
        name: String,
    },
    /// Move it to another host of the fleet while its visitors wait.
    Move {
        /// Its name.
        name: String,
        /// The host it shall live on.
        #[arg(long, value_name = "HOST")]
        to: String,
    },
    /// Destroy it; its directory stays.
    Delete {
        /// Its name.
        name: String,
    },
    /// How long it was awake, and what passed through it.
    Usage {
        /// Its name.
        name: String,
        /// From when on: how long ago (24h), or a time (2026-01-31T12:00:00Z); all that is kept when left out.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },
    /// Its last 100 wakes.
    Receipts {
        /// Its name.
        name: String,
    },
    /// Say who may ask for it.
    Access {
        /// Its name.
        name: String,
        /// "private" prints a new token; "public" forgets tokens and links.
        #[arg(value_parser = ["public", "private"])]
        access: String,
    },
    /// Say which other sites' scripts may ask for a private sprite (CORS).
    Cors {
        /// Its name.
        name: String,
        /// An origin (`https://app.example`), or "*" for every site; up to 16.
        #[arg(long = "origin", value_name = "ORIGIN", required_unless_present = "none")]
        origins: Vec<String>,
        /// A method besides GET, HEAD and POST; up to 16.
        #[arg(long = "method", value_name = "METHOD")]
        methods: Vec<String>,
        /// A request header; up to 16. Authorization, Content-Type and Sprite-Token when left out.
        #[arg(long = "header", value_name = "NAME")]
        headers: Vec<String>,
        /// Cookies may come along.
        #[arg(long)]
        credentials: bool,
        /// How long browsers may keep the answer, at most 24h.
        #[arg(long, value_name = "DURATION", default_value = "10min")]
        max_age: String,
        /// No site's scripts, as for a new sprite.
        #[arg(long, conflicts_with_all = ["origins", "methods", "headers", "credentials"])]
        none: bool,
    },
    /// Ask its visitors for client certificates (docs/tls.md).
    ClientCertificate {
        /// Its name.
        name: String,
        /// require: no handshake without one of these CAs; request: one that comes must be of them; pass: any is handed on.
        #[arg(value_parser = ["require", "request", "pass", "none"])]
        mode: String,
        /// Certificates of the CAs, a PEM file; for require and request.
        #[arg(long, value_name = "FILE", required_if_eq_any = [("mode", "require"), ("mode", "request")])]
        ca: Option<PathBuf>,
    },
    /// Say which requests may wake it.
    WakeRules {
        /// Its name.
        name: String,
        /// The policy.
        #[arg(value_parser = POLICIES)]
        policy: String,
        /// A beginning of paths that may wake it under `people` and `paths`; up to 16.
        #[arg(long = "path", value_name = "PREFIX")]
        paths: Vec<String>,
        /// Its own app answers for /robots.txt and /favicon.ico, which then wake it.
        #[arg(long)]
        no_edge_paths: bool,
        /// A TOML file of `answer` tables: paths the edge answers itself (docs/waking.md).
        #[arg(long, value_name = "FILE")]
        answers: Option<PathBuf>,
        /// Navigations are held like every other request, without a page.
        #[arg(long)]
        no_waiting_page: bool,
        /// Sockets that come back by themselves after it fell asleep wake it.
        #[arg(long)]
        no_damping: bool,
        /// A stream of events that cannot be served now is told to come back (`retry:`), because a browser's
        /// EventSource never retries a 503.
        #[arg(long)]
        retry_event_streams: bool,
        /// Requests held for it, at most 1024; the edge's figure when left out.
        #[arg(long, value_name = "COUNT")]
        held: Option<u16>,
        /// Held requests let go at once when it runs; doubled each 25 ms.
        #[arg(long, value_name = "COUNT")]
        release_window: Option<u16>,
        /// Requests it can serve at a time, as long as those who waited are let go.
        #[arg(long, value_name = "COUNT")]
        concurrency: Option<u16>,
    },
    /// Set what holds for this sprite instead of the host's figures; "host" goes back to those.
    Limits {
        /// Its name.
        name: String,
        /// It sleeps after this long without activity.
        #[arg(long, value_name = "DURATION")]
        idle_timeout: Option<String>,
        /// Anonymous wakes an hour before it stays awake longer; 0 is no bound.
        #[arg(long, value_name = "COUNT")]
        wakes_per_hour: Option<String>,
        /// How long it may be awake in a day; over it no request wakes it.
        #[arg(long, value_name = "DURATION")]
        awake_per_day: Option<String>,
        /// How long open sockets without data keep it awake.
        #[arg(long, value_name = "DURATION")]
        silent_sockets: Option<String>,
        /// How long a closed port of it is waited for, at most 60s.
        #[arg(long, value_name = "DURATION")]
        port_wait: Option<String>,
        /// Whether only its owner wakes it after it lost what it had in memory.
        #[arg(long, value_name = "BOOL")]
        refuse_lossy: Option<bool>,
    },
    /// Make another token for a private sprite.
    Token {
        /// Its name.
        name: String,
        /// Revoke every token instead.
        #[arg(long)]
        revoke: bool,
    },
    /// Make a link that opens a private sprite in a browser until it expires.
    Share {
        /// Its name.
        name: String,
        /// How long it is good for, at most 365days.
        #[arg(long, value_name = "DURATION", default_value = "24h")]
        expires: String,
        /// A declared port instead of $PORT.
        #[arg(long)]
        port: Option<u16>,
        /// Revoke every link made so far instead.
        #[arg(long, conflicts_with_all = ["port"])]
        revoke: bool,
    },
}

/// `domain …`.
#[derive(Clone, Debug, Subcommand)]
pub enum DomainCommand {
    /// Claim a domain for a sprite; prints the TXT record that proves it.
    Add {
        /// A whole host name, or `*.` and one: that and every name one label below it. Other letters than a to z become A-labels.
        fqdn: String,
        /// The sprite it is to lead to.
        sprite: String,
        /// Serve it at once, on your word: for domains that move here. Its record is due in 30 days as everybody's.
        #[arg(long)]
        proved: bool,
    },
    /// All domains.
    List,
    /// Look for its record now instead of waiting for the next look.
    Check {
        /// The domain.
        fqdn: String,
    },
    /// What is there and what is missing, step by step.
    Explain {
        /// The domain.
        fqdn: String,
    },
    /// Take it away: it leads nowhere from now on.
    Remove {
        /// The domain.
        fqdn: String,
    },
}

/// `dns …`.
#[derive(Clone, Debug, Subcommand)]
pub enum DnsCommand {
    /// What this edge answers when it is asked.
    Query {
        /// A name, in one of our zones or not.
        name: String,
        /// The type of records.
        #[arg(value_name = "TYPE", default_value = "A")]
        kind: String,
    },
    /// TXT records of challenges, for an ACME client that proves that a zone is ours. They last until the edge ends.
    #[command(subcommand)]
    Challenge(ChallengeCommand),
}

/// `dns challenge …`.
#[derive(Clone, Debug, Subcommand)]
pub enum ChallengeCommand {
    /// Add a value to what is there.
    Add {
        /// `_acme-challenge.SUFFIX`, or `ID.acme.ZONE` with an ID of 32 hexadecimal digits.
        name: String,
        /// What the record is to say.
        value: String,
    },
    /// Take a value away.
    Remove {
        /// Its name.
        name: String,
        /// The value.
        value: String,
    },
}

/// Parses the arguments of this process and does what they say.
#[must_use]
pub fn run_from_arguments() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error).into(),
    };
    match cli.command {
        Command::Sample { name } => match sample::run(&name) {
            Ok(()) => Exit::Done,
            Err(error) => failed(&format!("sample {name}: {error:#}")),
        },
        Command::Check { config } => check(&config, cli.json),
        Command::Run { config } => {
            logging();
            match Config::load(&config) {
                Ok(config) => {
                    let role = Role::of_run(&config);
                    run::run(config, role)
                }
                Err(error) => wrong_config(&error),
            }
        }
        Command::Host { config } => {
            logging();
            match Config::load(&config) {
                Ok(config) if config.fleet.name.is_empty() => {
                    failed("fleet.name: a worker host of a fleet has a name; alone, `run` is edge and host")
                }
                Ok(config) => run::run(config, Role::Host),
                Err(error) => wrong_config(&error),
            }
        }
        Command::Fleet { config, command } => match Config::load(&config) {
            Ok(config) => fleet::run(&config, command, cli.json),
            Err(error) => wrong_config(&error),
        },
        Command::Demo(arguments) => {
            logging();
            demo::run(arguments)
        }
        Command::Keygen { out, operator } => keygen(&out, operator, cli.json),
        Command::Sprite(command) => client(admin::client::sprite(&cli.admin, cli.json, command)),
        Command::Domain(command) => client(admin::domain_client::domain(&cli.admin, cli.json, command)),
        Command::Dns(command) => client(admin::dns_client::dns(&cli.admin, cli.json, command)),
        Command::Cert(command) => client(admin::cert_client::cert(&cli.admin, cli.json, command)),
        Command::Ticket(command) => client(admin::ticket_client::ticket(&cli.admin, cli.json, command)),
        Command::Metrics => client(admin::client::metrics(&cli.admin)),
        Command::Status => client(admin::client::status(&cli.admin, cli.json)),
        Command::Route(RouteCommand::Explain { host }) => client(admin::client::explain(&cli.admin, cli.json, &host)),
        Command::AcceptRemovals { region } => {
            client(admin::client::accept_removals(&cli.admin, cli.json, region.as_deref()))
        }
        Command::RotateKeys { listen, old_for } => {
            client(admin::client::rotate_keys(&cli.admin, cli.json, listen, old_for))
        }
        Command::Ledger { after, limit } => client(admin::client::ledger(&cli.admin, cli.json, after, limit)),
    }
    .into()
}

/// Help and version are no errors; everything else is one clear line and 64.
fn usage(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print!("{error}");
            Exit::Done
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprint!("{error}");
            Exit::Usage
        }
        _ => {
            let text = error.to_string();
            let line: Vec<_> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("Usage"))
                .filter(|line| !line.is_empty())
                .collect();
            let line = line.join(" ");
            eprintln!("edge-proxy: {}; see --help", line.strip_prefix("error: ").unwrap_or(&line));
            Exit::Usage
        }
    }
}

/// One line to the terminal, exit code 70.
pub fn failed(message: &str) -> Exit {
    eprintln!("edge-proxy: {message}");
    Exit::Failed
}

fn wrong_config(error: &config::ConfigError) -> Exit {
    eprintln!("{error}");
    Exit::Config
}

fn check(path: &Path, json: bool) -> Exit {
    match Config::load(path) {
        Ok(config) if json => println!("{}", serde_json::to_value(&config).unwrap_or_default()),
        Ok(config) => {
            print!("{}", config.to_toml());
            if !config.fleet.name.is_empty() && config.fleet.operators.is_empty() {
                println!(
                    "# fleet.operators: none. Whoever may write to the store may move every sprite and enrol machines."
                );
            }
        }
        Err(error) => return wrong_config(&error),
    }
    Exit::Done
}

fn keygen(out: &Path, operator: bool, json: bool) -> Exit {
    let made = match operator {
        true => backhaul::signing_file::generate_into(out).map(|public| public.to_string()),
        false => backhaul::keys::PrivateKey::generate_into(out).map(|public| public.to_string()),
    };
    match made {
        Ok(public) if json => println!("{}", serde_json::json!({ "public_key": public })),
        Ok(public) => println!("{public}"),
        Err(error) => return failed(&format!("keygen: {error}")),
    }
    Exit::Done
}

fn client(command: impl Future<Output = Exit>) -> Exit {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => failed(&format!("no runtime: {error}")),
    }
}

/// Logs go to standard error; `RUST_LOG` says which.
fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
