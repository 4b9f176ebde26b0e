//! The CLI's half: one request over the unix socket.

use super::table;
use crate::cli::{Exit, SpriteCommand};
use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;

/// Stands for the host's own figure in `sprite limits`.
const HOST: &str = "host";

/// Runs one `sprite …` command and prints its result.
pub async fn sprite(socket: &Path, json: bool, command: SpriteCommand) -> Exit {
    let done = match command {
        SpriteCommand::Create {
            name,
            command,
            memory_mib,
            wake_command,
            sleep_command,
            driver,
            public,
            private: _,
            port,
            idle_timeout,
            wake,
            wake_path,
        } => {
            let access = if public { "public" } else { "private" };
            let mut body = json!({ "name": name, "ports": port, "access": access });
            let commands = [("command", command), ("wake_command", wake_command), ("sleep_command", sleep_command)];
            for (field, command) in commands.into_iter().filter_map(|(field, command)| Some((field, command?))) {
                body[field] = command.into();
            }
            match driver.map(|file| toml_of("--driver", &file)).transpose() {
                Ok(Some(driver)) => body["driver"] = driver,
                Ok(None) => {}
                Err(error) => return print(Err(error), json),
            }
            if let Some(mib) = memory_mib {
                body["memory_mib"] = mib.into();
            }
            body["wake"] = wake.into();
            body["wake_paths"] = wake_path.into();
            if let Some(timeout) = idle_timeout {
                body["idle_timeout"] = timeout.into();
            }
            call(socket, Method::POST, "/v1/sprites", Some(body)).await.map(|value| (value, table::sprite as Show))
        }
        SpriteCommand::List => {
            call(socket, Method::GET, "/v1/sprites", None).await.map(|value| (value, table::sprites as Show))
        }
        SpriteCommand::Show { name, why: true } => {
            call(socket, Method::GET, &path(&name, "/why"), None).await.map(|value| (value, table::object as Show))
        }
        SpriteCommand::Show { name, why: false } => {
            call(socket, Method::GET, &path(&name, ""), None).await.map(|value| (value, table::sprite as Show))
        }
        SpriteCommand::Wake { name } => {
            call(socket, Method::POST, &path(&name, "/wake"), None).await.map(|value| (value, table::sprite as Show))
        }
        SpriteCommand::Sleep { name, cold } => {
            let body = json!({ "depth": if cold { "cold" } else { "warm" } });
            call(socket, Method::POST, &path(&name, "/sleep"), Some(body))
                .await
                .map(|value| (value, table::sprite as Show))
        }
        SpriteCommand::Stop { name } => post(socket, &name, "/stop", None).await,
        SpriteCommand::Start { name } => post(socket, &name, "/start", None).await,
        SpriteCommand::Hold { name, max } => post(socket, &name, "/hold", Some(json!({ "max": max }))).await,
        SpriteCommand::Release { name } => post(socket, &name, "/release", None).await,
        SpriteCommand::Move { name, to } => {
            call(socket, Method::POST, &path(&name, "/move"), Some(json!({ "to": to })))
                .await
                .map(|value| (value, table::object as Show))
        }
        SpriteCommand::Delete { name } => {
            call(socket, Method::DELETE, &path(&name, ""), None).await.map(|value| (value, table::object as Show))
        }
        SpriteCommand::Receipts { name } => call(socket, Method::GET, &path(&name, "/receipts"), None)
            .await
            .map(|value| (value, table::receipts as Show)),
        SpriteCommand::Usage { name, since } => {
            let since = since.map_or_else(String::new, |since| format!("?since={}", query(&since)));
            call(socket, Method::GET, &path(&name, &format!("/usage{since}")), None)
                .await
                .map(|value| (value, table::object as Show))
        }
        SpriteCommand::Access { name, access } => {
            call(socket, Method::POST, &path(&name, "/access"), Some(json!({ "access": access })))
                .await
                .map(|value| (value, table::sprite as Show))
        }
        SpriteCommand::ClientCertificate { name, mode, .. } if mode == "none" => {
            post(socket, &name, "/client-certificate", Some(Value::Null)).await
        }
        SpriteCommand::ClientCertificate { name, mode, ca } => {
            let mut body = json!({ "mode": mode });
            if let Some(file) = ca {
                match std::fs::read_to_string(&file).with_context(|| format!("--ca {}", file.display())) {
                    Ok(pem) => body["ca_pem"] = pem.into(),
                    Err(error) => return print(Err(error), json),
                }
            }
            post(socket, &name, "/client-certificate", Some(body)).await
        }
        SpriteCommand::Cors { name, none: true, .. } => post(socket, &name, "/cors", Some(Value::Null)).await,
        SpriteCommand::Cors { name, origins, methods, headers, credentials, max_age, none: false } => {
            let max_age = match humantime::parse_duration(&max_age) {
                Ok(max_age) => max_age.as_secs(),
                Err(error) => return print(Err(anyhow::anyhow!("--max-age: {error}")), json),
            };
            let mut body =
                json!({ "origins": origins, "methods": methods, "credentials": credentials, "max_age": max_age });
            if !headers.is_empty() {
                body["headers"] = headers.into();
            }
            post(socket, &name, "/cors", Some(body)).await
        }
        SpriteCommand::WakeRules {
            name,
            policy,
            paths,
            no_edge_paths,
            answers,
            no_waiting_page,
            no_damping,
            retry_event_streams,
            held,
            release_window,
            concurrency,
        } => {
            let mut body = json!({ "policy": policy, "paths": paths, "edge_paths": !no_edge_paths });
            body["waiting_page"] = (!no_waiting_page).into();
            body["damping"] = (!no_damping).into();
            body["retry_event_streams"] = retry_event_streams.into();
            let figures = [("held", held), ("release_window", release_window), ("concurrency", concurrency)];
            for (field, figure) in figures.into_iter().filter_map(|(field, figure)| Some((field, figure?))) {
                body[field] = figure.into();
            }
            match answers.map(|file| toml_of("--answers", &file)).transpose() {
                Ok(answers) => {
                    let answers = answers.map(|mut answers| answers["answer"].take());
                    body["answers"] = answers.filter(Value::is_array).unwrap_or_else(|| json!([]));
                }
                Err(error) => return print(Err(error), json),
            }
            call(socket, Method::POST, &path(&name, "/wake-rules"), Some(body))
                .await
                .map(|value| (value, table::sprite as Show))
        }
        SpriteCommand::Limits {
            name,
            idle_timeout,
            wakes_per_hour,
            awake_per_day,
            silent_sockets,
            port_wait,
            refuse_lossy,
        } => {
            let mut body = json!({});
            let texts = [
                ("idle_timeout", idle_timeout),
                ("awake_per_day", awake_per_day),
                ("silent_sockets", silent_sockets),
                ("port_wait", port_wait),
            ];
            for (field, text) in texts.into_iter().filter_map(|(field, text)| Some((field, text?))) {
                body[field] = if text == HOST { Value::Null } else { text.into() };
            }
            if let Some(count) = wakes_per_hour {
                // What is no number is refused by the server, which says so.
                body["wakes_per_hour"] = if count == HOST {
                    Value::Null
                } else {
                    count.parse::<u32>().map_or_else(|_| count.into(), Value::from)
                };
            }
            if let Some(refuse) = refuse_lossy {
                body["refuse_lossy"] = refuse.into();
            }
            post(socket, &name, "/limits", Some(body)).await
        }
        SpriteCommand::Token { name, revoke } => {
            let method = if revoke { Method::DELETE } else { Method::POST };
            call(socket, method, &path(&name, "/tokens"), None).await.map(|value| (value, table::object as Show))
        }
        SpriteCommand::Share { name, expires, port, revoke } => {
            let (method, body) = match revoke {
                true => (Method::DELETE, None),
                false => (Method::POST, Some(json!({ "expires": expires, "port": port }))),
            };
            call(socket, method, &path(&name, "/links"), body).await.map(|value| (value, table::object as Show))
        }
    };
    print(done, json)
}

/// What stands in a TOML file; the server says what is wrong in it.
fn toml_of(option: &str, file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{option} {}", file.display()))?;
    toml::from_str(&text).with_context(|| format!("{option} {}", file.display()))
}

/// One order to a sprite; shows the sprite.
async fn post(socket: &Path, name: &str, order: &str, body: Option<Value>) -> anyhow::Result<(Value, Show)> {
    let value = call(socket, Method::POST, &path(name, order), body).await?;
    Ok((value, table::sprite as Show))
}

/// Runs `metrics`.
pub async fn metrics(socket: &Path) -> Exit {
    match exchange(socket, Method::GET, "/metrics", None).await {
        Ok(text) => {
            print!("{}", String::from_utf8_lossy(&text));
            Exit::Done
        }
        Err(error) => print(Err(error), false),
    }
}

/// Runs `status`.
pub async fn status(socket: &Path, json: bool) -> Exit {
    print(call(socket, Method::GET, "/v1/status", None).await.map(|value| (value, table::object as Show)), json)
}

/// Runs `route explain`.
pub async fn explain(socket: &Path, json: bool, host: &str) -> Exit {
    let explained = call(socket, Method::GET, &format!("/v1/explain/{}", query(host)), None).await;
    print(explained.map(|value| (value, table::object as Show)), json)
}

/// Runs `accept-removals`.
pub async fn accept_removals(socket: &Path, json: bool, region: Option<&str>) -> Exit {
    let asked = region.map(|region| json!({ "region": region }));
    let accepted = call(socket, Method::POST, "/v1/accept-removals", asked).await;
    print(accepted.map(|value| (value, table::object as Show)), json)
}

/// Runs `rotate-keys`.
pub async fn rotate_keys(socket: &Path, json: bool, listen: Option<SocketAddr>, old_for: Option<Duration>) -> Exit {
    let mut asked = serde_json::Map::new();
    if let Some(listen) = listen {
        asked.insert("listen".into(), listen.to_string().into());
    }
    if let Some(old_for) = old_for {
        asked.insert("old_for_s".into(), old_for.as_secs().into());
    }
    let changed = call(socket, Method::POST, "/v1/rotate-keys", Some(asked.into())).await;
    print(changed.map(|value| (value, table::object as Show)), json)
}

/// Runs `ledger`: one page of it.
pub async fn ledger(socket: &Path, json: bool, after: u64, limit: u32) -> Exit {
    let page = format!("/v1/ledger?after={after}&limit={limit}");
    let records = exchange(socket, Method::GET, &page, None).await.and_then(|bytes| {
        let lines = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        lines.collect::<Result<Value, _>>().context("the answer is no JSON")
    });
    print(records.map(|records| (records, table::ledger as Show)), json)
}

pub(super) type Show = fn(&Value) -> String;

pub(super) fn print(done: anyhow::Result<(Value, Show)>, json: bool) -> Exit {
    match done {
        Ok((value, _)) if json => println!("{value}"),
        Ok((value, show)) => print!("{}", show(&value)),
        Err(error) => {
            eprintln!("edge-proxy: {error:#}");
            return Exit::Failed;
        }
    }
    Exit::Done
}

/// A name goes into the path as it is only if it could be one.
fn path(name: &str, rest: &str) -> String {
    let clean: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("/v1/sprites/{clean}{rest}")
}

/// A value of a query: whatever has a meaning of its own there is encoded (RFC 3986 §2.1).
pub(super) fn query(value: &str) -> String {
    let encode = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b':' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    value.bytes().map(encode).collect()
}

pub(super) async fn call(socket: &Path, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
    let bytes = exchange(socket, method, path, body).await?;
    serde_json::from_slice(&bytes).context("the answer is no JSON")
}

/// The content of the answer; a refusal is an error with its reason.
async fn exchange(socket: &Path, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        anyhow!(
            "no edge-proxy answers at {} ({error}); start one with `edge-proxy demo`, or name its socket with --admin",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    let request = Request::builder().method(method).uri(path).header(header::HOST, "admin").body(Full::new(body))?;
    let response = sender.send_request(request).await.context("the edge-proxy closed the connection")?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    drop(sender);
    connection.abort();
    if !status.is_success() {
        let value: Value = serde_json::from_slice(&bytes).context("the answer is no JSON")?;
        bail!("{}", value["detail"].as_str().unwrap_or("refused without a reason"));
    }
    Ok(bytes)
}
