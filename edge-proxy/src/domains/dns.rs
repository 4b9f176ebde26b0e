//! The DNS as proofs and explanations need it: a few questions, each with a bound, nothing remembered.

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// For one try of one question (chosen; what resolvers use).
const TRY: Duration = Duration::from_secs(3);
/// For one question, with all its tries (chosen).
const QUESTION: Duration = Duration::from_secs(10);
/// Records of an answer that are looked at (chosen: more than any zone has under one name).
const RECORDS_MAX: usize = 64;

/// The DNS did not answer, or said that it cannot: nothing is known. A name without such records is no such case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the DNS does not answer: {0}")]
pub struct NoAnswer(pub String);

/// A resolver that keeps nothing: a record that was set a moment ago is to be seen.
pub struct Dns {
    resolver: Result<TokioResolver, NoAnswer>,
}

impl Dns {
    /// Asks `servers`, or those of `/etc/resolv.conf` when there are none. What is wrong there is said
    /// by each question: an edge without DNS serves all the same.
    #[must_use]
    pub fn new(servers: &[SocketAddr]) -> Self {
        let builder = match servers {
            [] => Resolver::builder_tokio(),
            servers => {
                let servers = servers.iter().map(|server| {
                    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                        connection.port = server.port();
                        connection
                    });
                    NameServerConfig::new(server.ip(), true, connections.into())
                });
                let config = ResolverConfig::from_name_servers(servers.collect());
                Ok(Resolver::builder_with_config(config, TokioRuntimeProvider::default()))
            }
        };
        let resolver = builder.and_then(|mut builder| {
            let options = builder.options_mut();
            options.cache_size = 0;
            options.timeout = TRY;
            options.attempts = 2;
            options.use_hosts_file = ResolveHosts::Never;
            options.preserve_intermediates = true;
            builder.build()
        });
        Self { resolver: resolver.map_err(|error| NoAnswer(error.to_string())) }
    }

    /// The TXT records of a name, each as one text; none when there are none.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn txt(&self, name: &str) -> Result<Vec<Vec<u8>>, NoAnswer> {
        let text = |record: &Record| match &record.data {
            RData::TXT(txt) => Some(txt.txt_data.concat()),
            _ => None,
        };
        self.ask(name, RecordType::TXT, text).await
    }

    /// The addresses of a name, both kinds; none when there are none.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NoAnswer> {
        let address = |record: &Record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        };
        let (four, six) =
            tokio::join!(self.ask(name, RecordType::A, address), self.ask(name, RecordType::AAAA, address));
        let mut addresses = four?;
        addresses.extend(six?);
        Ok(addresses)
    }

    /// What the CNAME record of a name points at, lower-case and without a dot at its end.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn cname(&self, name: &str) -> Result<Option<String>, NoAnswer> {
        let target = |record: &Record| match &record.data {
            RData::CNAME(target) => Some(target.0.to_ascii().trim_end_matches('.').to_ascii_lowercase()),
            _ => None,
        };
        Ok(self.ask(name, RecordType::CNAME, target).await?.pop())
    }

    async fn ask<T>(
        &self,
        name: &str,
        kind: RecordType,
        pick: impl Fn(&Record) -> Option<T>,
    ) -> Result<Vec<T>, NoAnswer> {
        let resolver = self.resolver.as_ref().map_err(Clone::clone)?;
        // The dot at the end: no search domain of this machine is tried.
        let asked = tokio::time::timeout(QUESTION, resolver.lookup(format!("{name}."), kind));
        match asked.await {
            Ok(Ok(answer)) => Ok(answer.answers().iter().take(RECORDS_MAX).filter_map(pick).collect()),
            Ok(Err(error)) if is_none(&error) => Ok(Vec::new()),
            Ok(Err(error)) => Err(NoAnswer(error.to_string())),
            Err(_) => Err(NoAnswer("it took too long".into())),
        }
    }
}

fn is_none(error: &NetError) -> bool {
    error.is_nx_domain() || error.is_no_records_found()
}
