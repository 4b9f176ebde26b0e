//! Which sprite a request is for: `Host` or `:authority`, held against the handshake.

use crate::client::Client;
use crate::error::RequestError;
use crate::worker::Edge;
use http::request::Parts;
use http::{HeaderValue, Version, header};
use router::domains::table::DomainLookup;
use router::names::{NameError, Target, parse_host};

/// A parsed host, kept on the connection so that the next request need not parse it again.
#[derive(Clone)]
pub struct NamedTarget {
    /// As the client wrote it; goes to the sprite unchanged.
    pub host: HeaderValue,
    /// What it names.
    pub target: Target,
    /// It is a custom domain, which may be taken away while its connection lives.
    pub by_domain: bool,
}

/// Names the sprite of `request`.
///
/// # Errors
/// - [`RequestError::BadRequest`]: no host, two hosts, or one that is no host.
/// - [`RequestError::Misdirected`]: another name than the handshake's. All sprites share
///   a wildcard certificate, so browsers coalesce connections; 421 makes them open a new one.
/// - [`RequestError::NoSuchSprite`]: no name of ours.
pub fn of(request: &Parts, client: &Client, edge: &Edge) -> Result<NamedTarget, RequestError> {
    let host = host_of(request)?;
    let bytes = match &host {
        Host::Header(value) => value.as_bytes(),
        Host::Authority(text) => text.as_bytes(),
    };
    if let Some(last) = client.last_target.borrow().as_ref()
        && last.host.as_bytes() == bytes
        && still_leads_there(last, bytes, edge)
    {
        return Ok(last.clone());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| RequestError::BadRequest("the host is not text"))?;
    if text.contains('@') {
        return Err(RequestError::BadRequest("the host carries user information"));
    }
    if let Some(name) = client.server_name.as_deref()
        && !without_port(text).eq_ignore_ascii_case(name)
    {
        return Err(RequestError::Misdirected);
    }
    let (target, by_domain) = resolve(text, edge)?;
    // A copy: the connection keeps it, and with a piece of a request's head it would keep
    // the whole buffer that was read into.
    let host = HeaderValue::from_str(text).map_err(|_| RequestError::BadRequest("the host is not text"))?;
    let named = NamedTarget { host, target, by_domain };
    *client.last_target.borrow_mut() = Some(named.clone());
    Ok(named)
}

/// What a host names, with or without a port: a sprite under one of our suffixes, which costs no look into
/// any table, or else what the table of domains says; and whether it was that.
///
/// # Errors
/// - [`RequestError::NoSuchSprite`]: no name of ours. [`RequestError::Unauthorized`] instead for a name that might
///   be somebody's domain, where names are secret.
/// - [`RequestError::TableNotReady`]: nobody knows yet.
pub(crate) fn resolve(host: &str, edge: &Edge) -> Result<(Target, bool), RequestError> {
    let error = match parse_host(host, edge.suffixes()) {
        Ok(target) => return Ok((target, false)),
        Err(error) => error,
    };
    match edge.domains.lookup(without_port(host)) {
        DomainLookup::Sprite(name) => Ok((Target { name, port: None }, true)),
        // At a suffix of ours: whatever it is, it is no name.
        _ if error != NameError::Foreign => Err(RequestError::NoSuchSprite),
        DomainLookup::NotReady => Err(RequestError::TableNotReady),
        DomainLookup::Unknown if edge.unknown_as_private => Err(RequestError::Unauthorized),
        DomainLookup::Unknown => Err(RequestError::NoSuchSprite),
    }
}

fn still_leads_there(last: &NamedTarget, host: &[u8], edge: &Edge) -> bool {
    let leads_there = |host| matches!(edge.domains.lookup(without_port(host)), DomainLookup::Sprite(name) if name == last.target.name);
    !last.by_domain || std::str::from_utf8(host).is_ok_and(leads_there)
}

enum Host<'a> {
    Header(&'a HeaderValue),
    Authority(&'a str),
}

/// The target's own authority wins over `Host` (RFC 9112 §3.2.2, RFC 9113 §8.3.1).
fn host_of(request: &Parts) -> Result<Host<'_>, RequestError> {
    let mut lines = request.headers.get_all(header::HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(RequestError::BadRequest("more than one Host"));
    }
    if let Some(authority) = request.uri.authority() {
        return Ok(Host::Authority(authority.as_str()));
    }
    match line {
        Some(value) => Ok(Host::Header(value)),
        None if request.version == Version::HTTP_10 => Err(RequestError::NoSuchSprite),
        None => Err(RequestError::BadRequest("no Host")),
    }
}

fn without_port(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}
