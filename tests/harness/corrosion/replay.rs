//! Recorded answers, played back. A transcript is text:
//!
//! ```text
//! # a comment
//! > POST /v1/subscriptions          the next such request …
//! < 200 corro-query-id=ID …         … gets this head,
//! {"columns":["name"]}              these lines,
//! {"row":[1,["{x*9000}"]]}          with so many x,
//! ! after GET /v1/subscriptions     waits for a request that begins so, or for a moment of quiet:
//! ! quiet
//! ! half {"change":["upd            a line without its end
//! ! end                             and then its end: clean, or
//! ! cut                             not; without either it stays open and silent.
//! ```
//!
//! Of several exchanges that fit a request the first that was not played is. What none fits is answered: an epoch to a query
//! for it, 404 to the rest.

use super::server::{Answer, Asked, Cut, Server, whole};
use bytes::Bytes;
use http::Response;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// So long nothing comes (chosen: above the pause after which a resumed feed is caught up).
const QUIET: Duration = Duration::from_millis(1_500);
/// The history of every transcript.
const EPOCH: &str = "{\"columns\":[\"name\",\"owner\",\"gen\",\"body\"]}\n{\"row\":[1,[\"epoch\",\"\",0,\"e1\"]]}\n{\"eoq\":{\"time\":1e-6}}\n";

/// The server. Dropping it ends it.
pub struct Replay {
    server: Server,
    played: watch::Receiver<Vec<String>>,
}

#[derive(Clone, Debug)]
struct Exchange {
    request: String,
    /// What its body must have in it.
    body: String,
    status: u16,
    headers: Vec<(String, String)>,
    acts: Vec<Act>,
}

#[derive(Clone, Debug)]
enum Act {
    Say(String),
    After(String),
    Quiet,
    End,
    Cut,
}

impl Replay {
    /// Plays a transcript.
    ///
    /// # Panics
    /// When it is none.
    pub async fn start(transcript: &str) -> Self {
        let exchanges = Arc::new(Mutex::new(parse(transcript)));
        let (plays, played) = watch::channel(Vec::new());
        let plays = Arc::new(plays);
        let server = Server::start(Arc::new(move |asked: Asked| answer(&exchanges, &plays, &asked))).await;
        Self { server, played }
    }

    /// The section of a client of it.
    #[must_use]
    pub fn settings(&self) -> config::CorrosionStore {
        super::settings(self.server.address)
    }

    /// What was asked, in order: method and path, of subscriptions alone.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<String> {
        let all = self.played.borrow();
        all.iter().filter(|asked| asked.contains("/v1/subscriptions")).cloned().collect()
    }
}

fn parse(transcript: &str) -> VecDeque<Exchange> {
    let mut exchanges: VecDeque<Exchange> = VecDeque::new();
    for line in transcript.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (mark, rest) = line.split_at(line.find(' ').map_or(line.len(), |at| at + 1));
        if mark == "> " {
            // METHOD PATH, and perhaps a part of the body.
            let mut words = rest.splitn(3, ' ');
            let request = format!("{} {}", words.next().unwrap(), words.next().unwrap());
            let body = words.next().unwrap_or_default().to_owned();
            exchanges.push_back(Exchange { request, body, status: 200, headers: Vec::new(), acts: Vec::new() });
            continue;
        }
        let exchange = exchanges.back_mut().expect("a transcript begins with a request");
        if mark == "< " {
            let mut words = rest.split(' ');
            exchange.status = words.next().unwrap().parse().expect("a status");
            let pair = |word: &str| word.split_once('=').map(|(name, value)| (name.into(), value.into()));
            exchange.headers = words.filter_map(pair).collect();
            continue;
        }
        exchange.acts.push(match (mark, rest.split_once(' ')) {
            ("! ", Some(("half", text))) => Act::Say(text.into()),
            ("! ", Some(("after", request))) => Act::After(request.into()),
            ("! ", None) if rest == "quiet" => Act::Quiet,
            ("! ", None) if rest == "end" => Act::End,
            ("! ", None) if rest == "cut" => Act::Cut,
            ("! ", _) => panic!("no transcript: {line}"),
            _ => Act::Say(format!("{}\n", filled(line))),
        });
    }
    exchanges
}

/// With `{x*N}` written out.
fn filled(line: &str) -> String {
    let Some((before, rest)) = line.split_once("{x*") else { return line.into() };
    let (count, after) = rest.split_once('}').expect("{x*N}");
    format!("{before}{}{after}", "x".repeat(count.parse().expect("a number")))
}

fn answer(exchanges: &Mutex<VecDeque<Exchange>>, plays: &Arc<watch::Sender<Vec<String>>>, asked: &Asked) -> Answer {
    let request = format!("{} {}", asked.method, asked.path);
    let found = {
        let mut exchanges = exchanges.lock().unwrap();
        let fits = |one: &Exchange| request.starts_with(&one.request) && asked.body.contains(&one.body);
        let at = exchanges.iter().position(fits);
        at.and_then(|at| exchanges.remove(at))
    };
    plays.send_modify(|played| played.push(request.clone()));
    let Some(exchange) = found else {
        return match request == "POST /v1/queries" && asked.body.contains("\"epoch\"") {
            true => whole(200, EPOCH),
            false => whole(404, "{\"error\":\"nothing is recorded\"}"),
        };
    };
    let (sender, pieces) = mpsc::channel(4);
    let mut played = plays.subscribe();
    tokio::spawn(async move {
        for act in exchange.acts {
            match act {
                Act::Say(text) if sender.send(Ok(Bytes::from(text.clone()))).await.is_ok() => {}
                Act::Say(_) | Act::End => return,
                Act::Cut => return drop(sender.send(Err(Cut)).await),
                Act::Quiet => tokio::time::sleep(QUIET).await,
                Act::After(request) => {
                    let asked = |played: &Vec<String>| played.iter().any(|one| one.starts_with(&request));
                    drop(played.wait_for(asked).await);
                }
            }
        }
        sender.closed().await;
    });
    let mut response = Response::builder().status(exchange.status);
    for (name, value) in &exchange.headers {
        response = response.header(name, value);
    }
    response.body(pieces).unwrap()
}
