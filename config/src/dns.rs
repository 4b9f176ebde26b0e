//! The DNS authority of our own zones.

use crate::listen::{Names, is_domain};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Longest name of a zone or of what is in one, bytes: 63 and a dot must fit before it within 253 (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 189;
/// Most zones, and most addresses of each kind (chosen; as many as there may be suffixes).
const ENTRIES_MAX: usize = 16;
/// Most name servers of a zone: with two addresses each, they and their glue still fit an answer of 1,232 bytes.
const NAME_SERVERS_MAX: usize = 8;
/// Most addresses of a name server, likewise.
const GLUE_MAX: usize = 2;
/// Most certification authorities (chosen: two, and what is on its way in or out). Their records fit an answer of 1,232 bytes.
const ISSUERS_MAX: usize = 4;
/// Longest account of a certification authority, bytes (chosen: today's have some 60; the record has 255 at most).
const ACCOUNT_BYTES_MAX: usize = 128;
/// Longest text of a TXT record, bytes (RFC 1035 §3.3: one character string).
const TEXT_BYTES_MAX: usize = 255;
/// Most connections over TCP (design: "TCP ≤ 1,000").
const TCP_MAX: usize = 1_000;

/// Section `[dns]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Addresses to answer at, over UDP and TCP; none: there is no DNS authority here.
    pub listen: Vec<SocketAddr>,
    /// The zones; empty for the suffixes that are not under another one.
    pub zones: Vec<String>,
    /// The name servers of every zone, the first of them its primary.
    pub name_servers: Vec<NameServer>,
    /// Where the names of sprites lead; empty for `domains.addresses`.
    pub addresses: Vec<IpAddr>,
    /// Who may issue certificates; empty for everybody.
    pub issuers: Vec<Issuer>,
    /// TXT records.
    pub texts: Vec<Text>,
    /// Mail address of who keeps the zones; empty for hostmaster at each.
    pub hostmaster: String,
    /// The HTTPS records promise HTTP/3 as well.
    pub http3: bool,
    /// How long resolvers keep addresses of sprites.
    #[serde(with = "crate::text")]
    pub address_ttl: Duration,
    /// Answers over UDP to each network (/24, /56) in a second.
    pub answers_per_second: u32,
    /// Connections over TCP.
    pub tcp_connections: usize,
}

/// A name server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameServer {
    /// Its name.
    pub name: String,
    /// Its addresses, when its name is in one of our zones.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Who may issue certificates for a zone (RFC 8659).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The name it goes by in CAA records.
    pub ca: String,
    /// The one account that may ask (`accounturi`, RFC 8657 §3); empty for every account.
    #[serde(default)]
    pub account: String,
    /// How it may validate (`validationmethods`, RFC 8657 §4).
    #[serde(default = "dns_01")]
    pub methods: Vec<String>,
}

fn dns_01() -> Vec<String> {
    vec!["dns-01".into()]
}

/// A TXT record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// A zone, a suffix, or one label that begins with `_` before such a name.
    pub name: String,
    /// What it says.
    pub value: String,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            zones: Vec::new(),
            name_servers: Vec::new(),
            addresses: Vec::new(),
            issuers: Vec::new(),
            texts: Vec::new(),
            hostmaster: String::new(),
            http3: false,
            address_ttl: Duration::from_secs(60),
            answers_per_second: 500,
            tcp_connections: TCP_MAX,
        }
    }
}

impl Dns {
    /// The zones in lower case: as configured, or every suffix that is not under another one.
    #[must_use]
    pub fn zones(&self, names: &Names) -> Vec<String> {
        if !self.zones.is_empty() {
            return self.zones.iter().map(|zone| zone.to_ascii_lowercase()).collect();
        }
        let suffixes: Vec<_> = names.suffixes.iter().map(|suffix| suffix.to_ascii_lowercase()).collect();
        let mut zones: Vec<String> = Vec::new();
        for suffix in &suffixes {
            let under = suffixes.iter().any(|other| other != suffix && is_in(suffix, other));
            if !under && !zones.contains(suffix) {
                zones.push(suffix.clone());
            }
        }
        zones
    }

    pub(crate) fn check(&self, names: &Names, addresses: &[IpAddr]) -> Result<(), (&'static str, String)> {
        let most = |key, count, most| if count > most { Err((key, format!("at most {most}"))) } else { Ok(()) };
        most("dns.listen", self.listen.len(), ENTRIES_MAX)?;
        most("dns.zones", self.zones.len(), ENTRIES_MAX)?;
        most("dns.name_servers", self.name_servers.len(), NAME_SERVERS_MAX)?;
        most("dns.addresses", self.addresses.len(), ENTRIES_MAX)?;
        most("dns.issuers", self.issuers.len(), ISSUERS_MAX)?;
        most("dns.texts", self.texts.len(), ENTRIES_MAX)?;
        // An answer must leave from the address that was asked, which a socket for all of them does not know.
        if self.listen.iter().any(|address| address.ip().is_unspecified()) {
            return Err(("dns.listen", "name each address; 0.0.0.0 and [::] cannot answer from the one asked".into()));
        }
        let zones = self.zones(names);
        self.check_zones(&zones)?;
        for server in &self.name_servers {
            check_name_server(server, &zones, names)?;
        }
        self.issuers.iter().try_for_each(check_issuer)?;
        self.texts.iter().try_for_each(|text| check_text(text, &zones, names))?;
        if !self.hostmaster.is_empty() && !is_mailbox(&self.hostmaster) {
            return Err(("dns.hostmaster", "a mail address of letters, digits and dashes before its @".into()));
        }
        if !(1..=86_400).contains(&self.address_ttl.as_secs()) {
            return Err(("dns.address_ttl", "1s to 1day".into()));
        }
        if !(1..=1_000_000).contains(&self.answers_per_second) {
            return Err(("dns.answers_per_second", "1 to 1000000".into()));
        }
        if !(1..=TCP_MAX).contains(&self.tcp_connections) {
            return Err(("dns.tcp_connections", format!("1 to {TCP_MAX}")));
        }
        if self.listen.is_empty() {
            return Ok(());
        }
        if self.name_servers.is_empty() {
            return Err(("dns.name_servers", "a zone needs a name server, better four".into()));
        }
        if let Some(suffix) = names.suffixes.iter().find(|suffix| is_delegated(suffix, &zones)) {
            return Err(("names.suffixes", format!("{suffix} is where challenges are, and has no sprites")));
        }
        if self.addresses.is_empty() && addresses.is_empty() {
            return Err((
                "dns.addresses",
                "where the names of sprites lead: give them here or as domains.addresses".into(),
            ));
        }
        most("domains.addresses", addresses.len(), if self.addresses.is_empty() { ENTRIES_MAX } else { usize::MAX })
    }

    fn check_zones(&self, zones: &[String]) -> Result<(), (&'static str, String)> {
        if let Some(wrong) = self.zones.iter().find(|zone| !is_domain(zone, NAME_BYTES_MAX)) {
            return Err(("dns.zones", format!("{wrong:?} is no domain name")));
        }
        for (at, zone) in zones.iter().enumerate() {
            let others = zones.iter().enumerate().filter(|(other, _)| *other != at);
            if let Some((_, other)) = others.into_iter().find(|(_, other)| is_in(zone, other)) {
                return Err((
                    "dns.zones",
                    format!("{zone} is in {other} already: a suffix of a zone needs none of its own"),
                ));
            }
        }
        Ok(())
    }
}

fn check_name_server(server: &NameServer, zones: &[String], names: &Names) -> Result<(), (&'static str, String)> {
    let NameServer { name, addresses } = server;
    let wrong = |what: &str| Err(("dns.name_servers", format!("{name}: {what}")));
    if !is_domain(name, NAME_BYTES_MAX) {
        return wrong("no domain name");
    }
    if zones.iter().chain(&names.suffixes).any(|ours| ours.eq_ignore_ascii_case(name)) || is_delegated(name, zones) {
        return wrong("a name of its own is needed");
    }
    match zones.iter().any(|zone| is_in(name, zone)) {
        true if addresses.is_empty() => wrong("its addresses are needed, since its name is in a zone of ours"),
        true if addresses.len() > GLUE_MAX => wrong("at most 2 addresses"),
        false if !addresses.is_empty() => wrong("its addresses are in a zone that is not ours"),
        _ => Ok(()),
    }
}

fn check_issuer(issuer: &Issuer) -> Result<(), (&'static str, String)> {
    let Issuer { ca, account, methods } = issuer;
    let wrong = |what: &str| Err(("dns.issuers", format!("{ca}: {what}")));
    if !is_domain(ca, NAME_BYTES_MAX) {
        return wrong("no domain name");
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b';' | b'"' | b',');
    let uri = account.starts_with("https://") && account.len() <= ACCOUNT_BYTES_MAX && account.bytes().all(plain);
    if !account.is_empty() && !uri {
        return wrong("account: the URL of the account, https://…, at most 128 bytes");
    }
    let word = |method: &String| {
        (1..=32).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match (1..=4).contains(&methods.len()) && methods.iter().all(word) {
        true => Ok(()),
        false => wrong("methods: 1 to 4, such as \"dns-01\""),
    }
}

/// A name that were a sprite's, or above the text's, would lose its address to the record: a node has what it has and no more
/// (RFC 4592 §2.2).
fn check_text(text: &Text, zones: &[String], names: &Names) -> Result<(), (&'static str, String)> {
    let Text { name, value } = text;
    let wrong = |what: &str| Err(("dns.texts", format!("{name}: {what}")));
    let ours = |name: &str| zones.iter().chain(&names.suffixes).any(|ours| ours.eq_ignore_ascii_case(name));
    let label = name.split_once('.').and_then(|(label, above)| label.strip_prefix('_').filter(|_| ours(above)));
    if !ours(name) && !label.is_some_and(|label| is_domain(label, 62)) {
        return wrong("a zone, a suffix, or one label before such a name that begins with _");
    }
    if label.is_some_and(|label| label.eq_ignore_ascii_case("acme-challenge")) {
        return wrong("challenges come and go by themselves");
    }
    match (1..=TEXT_BYTES_MAX).contains(&value.len()) && value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        true => Ok(()),
        false => wrong("1 to 255 printable ASCII characters"),
    }
}

/// Whether `name` is `zone` or under it.
fn is_in(name: &str, zone: &str) -> bool {
    let (name, zone) = (name.as_bytes(), zone.as_bytes());
    let Some(before) = name.len().checked_sub(zone.len()) else { return false };
    name[before..].eq_ignore_ascii_case(zone) && (before == 0 || name[before - 1] == b'.')
}

/// Whether `name` is at or under the part of a zone that others' challenges are delegated to.
fn is_delegated(name: &str, zones: &[String]) -> bool {
    zones.iter().any(|zone| is_in(name, &format!("acme.{zone}")))
}

fn is_mailbox(text: &str) -> bool {
    text.split_once('@')
        .is_some_and(|(user, domain)| !user.contains('.') && is_domain(user, 63) && is_domain(domain, NAME_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns() -> Dns {
        let name_servers = vec![NameServer { name: "ns1.sprites.dev".into(), addresses: vec![[192, 0, 2, 53].into()] }];
        Dns {
            listen: vec![([192, 0, 2, 53], 53).into()],
            name_servers,
            addresses: vec![[192, 0, 2, 1].into()],
            ..Dns::default()
        }
    }

    fn wrong(change: impl FnOnce(&mut Dns)) -> String {
        let mut dns = dns();
        change(&mut dns);
        let (key, what) = dns.check(&Names::default(), &[]).unwrap_err();
        format!("{key}: {what}")
    }

    #[test]
    fn a_zone_is_a_suffix_that_is_under_no_other() {
        let names = |suffixes: &[&str]| Names {
            suffixes: suffixes.iter().map(ToString::to_string).collect(),
            ..Names::default()
        };
        let zones = |suffixes| Dns::default().zones(&names(suffixes));
        assert_eq!(
            zones(&["eu.Sprites.dev", "sprites.dev", "xsprites.dev", "sprites.dev"]),
            ["sprites.dev", "xsprites.dev"]
        );
        assert_eq!(Dns { zones: vec!["Dev".into()], ..Dns::default() }.zones(&names(&["sprites.dev"])), ["dev"]);
    }

    #[test]
    fn what_would_not_work_is_named() {
        assert_eq!(dns().check(&Names::default(), &[]), Ok(()));
        for (change, says) in [
            ((|dns| dns.listen = vec![([0, 0, 0, 0], 53).into()]) as fn(&mut Dns), "dns.listen: name each"),
            (|dns| dns.zones = vec!["sprites.dev".into(), "eu.sprites.dev".into()], "dns.zones: eu.sprites.dev is in"),
            (|dns| dns.zones = vec!["a..b".into()], "dns.zones: \"a..b\""),
            (|dns| dns.name_servers.clear(), "dns.name_servers: a zone needs"),
            (|dns| dns.name_servers[0].addresses.clear(), "ns1.sprites.dev: its addresses are needed"),
            (|dns| dns.name_servers[0].name = "ns.elsewhere.example".into(), "not ours"),
            (|dns| dns.name_servers[0].name = "Sprites.dev".into(), "a name of its own"),
            (|dns| dns.name_servers[0].name = "ns.acme.sprites.dev".into(), "a name of its own"),
            (|dns| dns.addresses.clear(), "dns.addresses: where the names"),
            (
                |dns| dns.issuers.push(Issuer { ca: "ca".into(), account: "a;b".into(), methods: dns_01() }),
                "ca: account",
            ),
            (
                |dns| dns.issuers.push(Issuer { ca: "ca".into(), account: String::new(), methods: vec![] }),
                "ca: methods",
            ),
            (|dns| dns.texts.push(Text { name: "www.sprites.dev".into(), value: "x".into() }), "begins with _"),
            (|dns| dns.texts.push(Text { name: "_x.www.sprites.dev".into(), value: "x".into() }), "begins with _"),
            (
                |dns| dns.texts.push(Text { name: "_acme-challenge.sprites.dev".into(), value: "x".into() }),
                "come and go",
            ),
            (|dns| dns.texts.push(Text { name: "_psl.sprites.dev".into(), value: "\n".into() }), "printable"),
            (|dns| dns.hostmaster = "us".into(), "dns.hostmaster"),
            (|dns| dns.address_ttl = Duration::ZERO, "dns.address_ttl"),
            (|dns| dns.answers_per_second = 0, "dns.answers_per_second"),
            (|dns| dns.tcp_connections = 1_001, "dns.tcp_connections"),
        ] {
            let what = wrong(change);
            assert!(what.contains(says), "{what} is not {says}");
        }
        let names = Names { suffixes: vec!["sprites.dev".into(), "x.acme.sprites.dev".into()], ..Names::default() };
        assert_eq!(dns().check(&names, &[]).unwrap_err().0, "names.suffixes");
        // Where no DNS is answered here, that is nobody's concern.
        assert_eq!(Dns::default().check(&names, &[]), Ok(()));
    }

    #[test]
    fn the_addresses_of_domains_will_do() {
        let without = Dns { addresses: Vec::new(), ..dns() };
        assert_eq!(without.check(&Names::default(), &[[192, 0, 2, 1].into()]), Ok(()));
    }
}
