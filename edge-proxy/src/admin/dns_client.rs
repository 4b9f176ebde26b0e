//! The CLI's half of `dns …`.

use super::client::{Show, call, print, query};
use super::table;
use crate::cli::{ChallengeCommand, DnsCommand, Exit};
use http::Method;
use serde_json::json;
use std::path::Path;

/// Runs one `dns …` command and prints its result.
pub async fn dns(socket: &Path, json: bool, command: DnsCommand) -> Exit {
    let (method, name, value) = match command {
        DnsCommand::Query { name, kind } => {
            let path = format!("/v1/dns/query?name={}&type={}", query(&name), query(&kind));
            let answer = call(socket, Method::GET, &path, None).await;
            return print(answer.map(|value| (value, table::answer as Show)), json);
        }
        DnsCommand::Challenge(ChallengeCommand::Add { name, value }) => (Method::POST, name, value),
        DnsCommand::Challenge(ChallengeCommand::Remove { name, value }) => (Method::DELETE, name, value),
    };
    let body = json!({ "name": name, "value": value });
    let done = call(socket, method, "/v1/dns/challenges", Some(body)).await;
    print(done.map(|value| (value, table::object as Show)), json)
}
