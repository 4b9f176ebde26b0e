//! `edge-proxy demo`: edge and worker host on this machine, with sample sprites, nothing
//! to install and no root.

use crate::admin::sprites::{NewSprite, SpriteError, create};
use crate::cli::{DemoArguments, Exit, LinkArgument, UnknownNamesArgument, failed};
use crate::run::{LOCAL_HOST, Role, Running, run_until_signal};
use anyhow::Context;
use config::{Config, Link, UnknownNames};
use router::access::Access;
use router::names::SpriteName;
use router::wake::WakeRules;
use std::io::Write;
use wakeup::spec::DriverSpec;

/// The samples that are made when they do not exist, and the path worth asking for.
const SAMPLES: [(&str, &str); 4] = [("hello", ""), ("counter", ""), ("chat", ""), ("clock", "events")];

/// Runs the demo until a signal ends it.
pub fn run(arguments: DemoArguments) -> Exit {
    let config = match configured(&arguments) {
        Ok(config) => config,
        Err(message) => {
            eprintln!("edge-proxy: {message}; see --help");
            return Exit::Usage;
        }
    };
    let ended = run_until_signal(config, Role::Alone, move |running| {
        Box::pin(async move {
            make_samples(running).await?;
            announce(running, &arguments)
        })
    });
    match ended {
        Ok(()) => Exit::Done,
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn configured(arguments: &DemoArguments) -> Result<Config, String> {
    let mut config = Config { data_dir: arguments.data_dir.clone(), ..Config::default() };
    config.listen.https = vec![arguments.https];
    config.listen.http = vec![arguments.http];
    config.names.suffixes = vec![arguments.suffix.clone()];
    config.host.idle_timeout = arguments.idle_timeout;
    // A demo is watched: a sprite told to sleep after a second should.
    config.host.minimum_run = config.host.minimum_run.min(arguments.idle_timeout);
    config.backhaul.link = match arguments.link {
        LinkArgument::Userspace => Link::Userspace,
        LinkArgument::DirectInsecure => Link::DirectInsecure,
    };
    config.names.unknown_names = match arguments.unknown_names {
        UnknownNamesArgument::NotFound => UnknownNames::NotFound,
        UnknownNamesArgument::AsPrivate => UnknownNames::AsPrivate,
    };
    config.check().map_err(|(key, message)| format!("{key}: {message}"))?;
    Ok(config)
}

async fn make_samples(running: &Running) -> anyhow::Result<()> {
    let admin = &running.admin;
    for (name, _) in SAMPLES {
        let driver = DriverSpec::Process { command: format!("exec \"$EDGE_PROXY\" sample {name}"), memory_mib: None };
        let new = NewSprite {
            name: SpriteName::parse(name)?,
            driver,
            ports: vec![],
            idle_timeout: None,
            access: Access::Public,
            wake: WakeRules::default(),
        };
        let owner = admin.owner.as_ref().context("the demo is a worker host")?;
        match create(&admin.stores, owner, LOCAL_HOST, new).await {
            Ok(_) | Err(SpriteError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The first request may come the moment `ready` is printed.
    while admin.table.len() < SAMPLES.len() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Scripts wait for the line that begins with `ready `.
fn announce(running: &Running, arguments: &DemoArguments) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let url = |name: &str, path: &str| -> anyhow::Result<String> {
        Ok(format!("{}{path}", running.admin.url(&SpriteName::parse(name)?)))
    };
    writeln!(out, "ready {}", url(SAMPLES[0].0, "")?)?;
    for (name, path) in SAMPLES {
        writeln!(out, "{name:8} {}", url(name, path)?)?;
    }
    let ca = arguments.data_dir.join("ca.pem");
    for (name, path) in SAMPLES {
        let https = running.https().context("the demo is an edge")?;
        let (port, ip) = (https.port(), https.ip());
        let resolve = format!("{name}.{}:{port}:{ip}", arguments.suffix);
        writeln!(out, "curl -i --cacert {} --resolve {resolve} {}", ca.display(), url(name, path)?)?;
    }
    out.flush()?;
    Ok(())
}
