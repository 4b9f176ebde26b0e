//! `ticket …`: both halves, the command line's and the admin API's.

use super::api::{Admin, Problem};
use super::client::{Show, call, print};
use super::table;
use crate::cli::Exit;
use crate::tickets::Tickets;
use clap::Subcommand;
use http::{Method, StatusCode};
use router::store::StoreError;
use serde_json::{Value, json};
use std::path::Path;

/// What is done with the keys of session tickets.
#[derive(Debug, Subcommand)]
pub enum TicketCommand {
    /// The keys as this edge knows them, the newest first.
    List,
    /// Make new keys now; they are used as soon as every edge has them.
    Rotate,
    /// Delete every key, on all edges: clients with tickets make a full handshake the next time.
    Purge,
}

/// Runs one `ticket …` command and prints its result.
pub async fn ticket(socket: &Path, json: bool, command: TicketCommand) -> Exit {
    let (method, path, show) = match command {
        TicketCommand::List => (Method::GET, "/v1/tickets", table::tickets as Show),
        TicketCommand::Rotate => (Method::POST, "/v1/tickets/rotate", table::object as Show),
        TicketCommand::Purge => (Method::DELETE, "/v1/tickets", table::object as Show),
    };
    print(call(socket, method, path, None).await.map(|value| (value, show)), json)
}

impl Admin {
    pub(super) fn list_tickets(&self) -> Result<Value, Problem> {
        Ok(self.tickets()?.list())
    }

    pub(super) fn rotate_tickets(&self) -> Result<Value, Problem> {
        self.tickets()?.rotate();
        Ok(json!({ "rotating": true }))
    }

    pub(super) async fn purge_tickets(&self) -> Result<Value, Problem> {
        match self.tickets()?.purge().await {
            Ok(purged) => Ok(json!({ "purged": purged })),
            Err(error @ (StoreError::Unavailable(_) | StoreError::Uncertain(_))) => {
                Err((StatusCode::SERVICE_UNAVAILABLE, format!("some keys may be left: {error}")))
            }
            Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, format!("some keys may be left: {error}"))),
        }
    }

    fn tickets(&self) -> Result<&Tickets, Problem> {
        let none = "this process shares no ticket keys: it is no edge, or its fleet has no tls.kek";
        let tickets = self.tls.as_ref().and_then(|tls| tls.tickets());
        tickets.ok_or_else(|| (StatusCode::CONFLICT, none.into()))
    }
}
