//! The CLI's half of `domain …`.

use super::client::{Show, call, print};
use super::table;
use crate::cli::{DomainCommand, Exit};
use crate::domains::{Asked, parse_asked};
use http::Method;
use serde_json::json;
use std::path::Path;

/// Runs one `domain …` command and prints its result.
pub async fn domain(socket: &Path, json: bool, command: DomainCommand) -> Exit {
    let (method, fqdn, rest, show) = match command {
        DomainCommand::Add { fqdn, sprite, proved } => {
            let body = json!({ "domain": fqdn, "sprite": sprite, "proved": proved });
            let added = call(socket, Method::POST, "/v1/domains", Some(body)).await;
            return print(added.map(|value| (value, table::object as Show)), json);
        }
        DomainCommand::List => {
            let list = call(socket, Method::GET, "/v1/domains", None).await;
            return print(list.map(|value| (value, table::domains as Show)), json);
        }
        DomainCommand::Check { fqdn } => (Method::POST, fqdn, "/check", table::object as Show),
        DomainCommand::Explain { fqdn } => (Method::GET, fqdn, "", table::steps as Show),
        DomainCommand::Remove { fqdn } => (Method::DELETE, fqdn, "", table::object as Show),
    };
    // What is no domain never becomes a path.
    let done = match parse_asked(&fqdn) {
        Ok(Asked { name, .. }) => call(socket, method, &format!("/v1/domains/{name}{rest}"), None).await,
        Err(error) => Err(error.into()),
    };
    print(done.map(|value| (value, show)), json)
}
