//! The DNS authority of this edge (`acme/src/dns`): what it is made of, and what is asked of it over the admin API.

use crate::admin::{Admin, Problem, fields};
use crate::from_cas::FromCas;
use acme::dns::server::{Server, Sockets, bind};
use acme::dns::{Authority, Counts, Published, Pull, Pulling, ZoneView};
use anyhow::Context;
use config::Config;
use http::StatusCode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// What the rest of the process sees of it.
pub struct Dns {
    authority: Arc<Authority>,
    published: Arc<Published>,
    pull: Option<Arc<LatePull>>,
    listen: Vec<SocketAddr>,
    zones: Vec<String>,
}

/// Bound sockets, by thread, and where they are bound.
pub(crate) struct Bound {
    sockets: Vec<Sockets>,
    listen: Vec<SocketAddr>,
}

impl Bound {
    /// Binds what the configuration says; nothing where it says nothing.
    ///
    /// # Errors
    /// An address that cannot be bound.
    pub(crate) fn bind(config: &Config, threads: usize) -> anyhow::Result<Option<Self>> {
        if config.dns.listen.is_empty() {
            return Ok(None);
        }
        let (sockets, listen) = bind(&config.dns.listen, threads).map_err(|(address, error)| {
            anyhow::Error::new(error).context(format!("DNS: cannot listen on {address}"))
        })?;
        Ok(Some(Self { sockets, listen }))
    }

    /// Begins to answer.
    ///
    /// # Errors
    /// A record that cannot be written, or no more threads.
    pub(crate) fn serve(self, config: &Config) -> anyhow::Result<(Arc<Dns>, Server)> {
        let view = ZoneView::new(&config.dns, &config.names, &config.domains.addresses).context("DNS: the zones")?;
        let published = Arc::new(Published::default());
        // Who is nobody's peer asks nobody, and no question waits for it.
        let pull = config.fleet.peers.filter(|_| config.acme.is_on()).map(|_| Arc::new(LatePull::default()));
        let asks = pull.clone().map(|pull| pull as Arc<dyn Pull>);
        let authority = Authority::new(view, config.dns.answers_per_second, Arc::clone(&published) as _, asks);
        let server = Server::start(&authority, self.sockets, connections(config)).context("DNS: the threads")?;
        let zones = config.dns.zones(&config.names);
        tracing::info!(listen = ?self.listen, ?zones, "DNS is answered");
        Ok((Arc::new(Dns { authority, published, pull, listen: self.listen, zones }), server))
    }
}

/// A connection costs a file: of those the process may open, an eighth at most, so that DNS never takes them from visitors.
fn connections(config: &Config) -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    config.dns.tcp_connections.min(usize::try_from(files / 8).unwrap_or(usize::MAX).max(1))
}

/// Other PoPs, who are known some time after the first question.
#[derive(Default)]
struct LatePull(OnceLock<Arc<FromCas>>);

impl Pull for LatePull {
    fn pull(&self, name: String) -> Pulling {
        let from_cas = self.0.get().cloned();
        Box::pin(async move {
            match from_cas {
                Some(from_cas) => from_cas.txt(&name).await,
                None => Vec::new(),
            }
        })
    }
}

impl Dns {
    /// From now on these are asked for challenges that are not known here.
    pub(crate) fn ask(&self, from_cas: &Arc<FromCas>) {
        if let Some(pull) = &self.pull {
            // There is one in a process.
            let _ = pull.0.set(Arc::clone(from_cas));
        }
    }

    /// The challenges it answers.
    pub(crate) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }

    /// Where it answers and for what.
    pub(crate) fn status(&self) -> Value {
        json!({ "listen": self.listen, "zones": self.zones })
    }

    /// Makes known what it counts. Labels have few values: types and codes by name, the rest as "other".
    pub(crate) fn register(&self, registry: &mut Registry) {
        let Counts {
            questions,
            codes,
            truncated,
            cut,
            dropped,
            unsent,
            pulled,
            pulls_refused,
            connections,
            connections_refused,
        } = self.authority.counts();
        registry.register("dns_questions", "Questions that were answered, by type", family("type", &questions));
        registry.register("dns_answers", "Answers by response code", family("code", &codes));
        let limited = family("how", &[("cut", cut), ("dropped", dropped)]);
        registry.register("dns_limited", "Answers above the limit of a network", limited);
        let mut count = |name, help, value| registry.register(name, help, ConstCounter::new(value));
        count("dns_truncated", "Answers that did not fit a datagram", truncated);
        count("dns_unsent", "Answers the socket had no room for", unsent);
        count("dns_pulled", "Challenges that others were asked for", pulled);
        count("dns_pulls_refused", "Challenges that too many were asked for already", pulls_refused);
        count("dns_connections", "Connections over TCP", connections);
        count("dns_connections_refused", "Connections that were too many", connections_refused);
    }
}

fn family(label: &'static str, values: &[(&'static str, u64)]) -> Family<[(&'static str, &'static str); 1], Counter> {
    let family = Family::<_, Counter>::default();
    for (name, value) in values {
        family.get_or_create(&[(label, *name)]).inc_by(*value);
    }
    family
}

impl Admin {
    fn dns(&self) -> Result<&Dns, Problem> {
        self.dns.as_deref().ok_or_else(|| (StatusCode::CONFLICT, "this process answers no DNS; see dns.listen".into()))
    }

    /// What would be answered to `?name=…&type=…`; A when no type is said.
    pub(crate) fn dns_question(&self, query: Option<&str>) -> Result<Value, Problem> {
        let query = fields(query, &["name", "type"])?;
        let name = query.get("name").map_or("", String::as_str);
        let kind = query.get("type").map_or("A", String::as_str);
        let explained = self.dns()?.authority.explain(name, kind);
        let explained = explained.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        Ok(json!({
            "code": explained.code,
            "answers": explained.answers,
            "authority": explained.authority,
            "additional": explained.additional,
            "bytes": explained.bytes,
        }))
    }

    /// Publishes the TXT record of a challenge, or takes it away.
    pub(crate) fn dns_challenge(&self, body: &[u8], publish: bool) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            name: String,
            value: String,
        }
        let wrong = |why: String| (StatusCode::BAD_REQUEST, why);
        let Asked { name, value } =
            serde_json::from_slice(body).map_err(|error| wrong(format!("the body is no name and value: {error}")))?;
        let dns = self.dns()?;
        if !dns.authority.is_for_challenges(&name) {
            return Err(wrong(format!(
                "no challenge is looked for at {name}; they are at _acme-challenge.SUFFIX and at ID.acme.ZONE"
            )));
        }
        if publish {
            dns.published.add(&name, &value).map_err(|error| wrong(error.to_string()))?;
        } else if !dns.published.remove(&name, &value) {
            return Err((StatusCode::NOT_FOUND, format!("{name} has no such value")));
        }
        Ok(json!({ "name": name, "value": value, "published": publish }))
    }
}
