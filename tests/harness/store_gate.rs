//! What stands between a PoP and NATS: it counts what the PoP writes about a name, and lets no more of it through from one
//! of these writes on, as if the PoP had died there. Everything else passes.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Subjects of rows about orders, in the bucket of the harness.
const ABOUT_ORDERS: [&str; 3] = ["$KV.routes.order.", "$KV.routes.cert.", "$KV.routes.chal."];

/// On which side of a write the way is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The store does not hear of it.
    Before,
    /// It is written, and whoever wrote it does not hear of that.
    After,
}

/// Called with a name when the way is closed for it.
pub type Closed = Box<dyn Fn(&str) + Send + Sync>;

/// The gate. Dropping it ends it.
pub struct StoreGate {
    address: SocketAddr,
    inner: Arc<Inner>,
    accepts: JoinHandle<()>,
}

struct Inner {
    closed: Closed,
    names: Mutex<HashMap<String, Name>>,
}

/// What is known of a name that is looked for.
#[derive(Default)]
struct Name {
    writes: Vec<String>,
    arrow: Option<Arrow>,
}

struct Arrow {
    passes: usize,
    side: Side,
    arrived: Option<oneshot::Sender<()>>,
}

/// What becomes of a message.
enum Then {
    Pass,
    Drop,
    /// It passes, and the answer to this subject does not.
    Deafen(String),
}

impl StoreGate {
    /// Starts one before a server of NATS.
    ///
    /// # Panics
    /// Without a socket.
    pub async fn start(nats: SocketAddr, closed: Closed) -> Self {
        let address = crate::cluster::addresses(1)[0];
        let listener = TcpListener::bind(address).await.unwrap();
        let inner = Arc::new(Inner { closed, names: Mutex::default() });
        let serving = Arc::clone(&inner);
        let accepts = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let inner = Arc::clone(&serving);
                // Whoever hangs up has its reasons.
                tokio::spawn(async move { inner.serve(client, nats).await.is_ok() });
            }
        });
        Self { address, inner, accepts }
    }

    /// What a PoP behind it is configured with.
    #[must_use]
    pub fn sections(&self) -> String {
        format!("[store]\nengine = \"nats\"\n[store.nats]\nservers = [\"nats://{}\"]\n", self.address)
    }

    /// Counts the writes about a name from now on.
    pub fn watch(&self, name: &str) {
        self.names().entry(name.to_owned()).or_default();
    }

    /// After `passes` further writes about this name nothing about it passes. The answer is when that is so.
    ///
    /// # Panics
    /// When there is one for this name.
    #[must_use]
    pub fn close(&self, name: &str, passes: usize, side: Side) -> oneshot::Receiver<()> {
        let (arrived, arrival) = oneshot::channel();
        let arrow = Arrow { passes, side, arrived: Some(arrived) };
        let before = self.names().entry(name.to_owned()).or_default().arrow.replace(arrow);
        assert!(before.is_none(), "{name} has an arrow");
        arrival
    }

    /// Keys of the writes about a name so far, in order.
    #[must_use]
    pub fn writes(&self, name: &str) -> Vec<String> {
        self.names().get(name).map(|name| name.writes.clone()).unwrap_or_default()
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Name>> {
        locked(&self.inner.names)
    }
}

impl Drop for StoreGate {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    async fn serve(self: Arc<Self>, client: TcpStream, nats: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(nats).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let deaf = Mutex::default();
        // One that has ended ends the other.
        tokio::select! {
            ended = pump(from_client, to_server, |line, payload| self.asked(line, payload, &deaf)) => ended,
            ended = pump(from_server, to_client, |line, _| Ok(self.answered(line, &deaf))) => ended,
        }
    }

    /// `PUB subject [reply] length` and `HPUB subject [reply] head length` (NATS client protocol).
    fn asked(&self, line: &str, payload: &[u8], deaf: &Mutex<Vec<String>>) -> io::Result<bool> {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let (["PUB", subject, reply, _] | ["HPUB", subject, reply, _, _]) = words[..] else { return Ok(true) };
        Ok(match self.then(subject, reply, payload) {
            Then::Pass => true,
            Then::Drop => false,
            Then::Deafen(reply) => {
                locked(deaf).push(reply);
                true
            }
        })
    }

    fn then(&self, subject: &str, reply: &str, payload: &[u8]) -> Then {
        if !ABOUT_ORDERS.iter().any(|prefix| subject.starts_with(prefix)) {
            return Then::Pass;
        }
        let mut names = locked(&self.names);
        let is = |name: &str| {
            let named = name.trim_start_matches("*.");
            subject.contains(named) || payload.windows(named.len()).any(|part| part == named.as_bytes())
        };
        let Some((text, name)) = names.iter_mut().find(|(name, _)| is(name)) else { return Then::Pass };
        name.writes.push(subject.trim_start_matches("$KV.routes.").to_owned());
        let (count, text) = (name.writes.len(), text.clone());
        let Some(arrow) = name.arrow.as_mut().filter(|arrow| count > arrow.passes) else { return Then::Pass };
        let Some(arrived) = arrow.arrived.take() else { return Then::Drop };
        (self.closed)(&text);
        // A test that does not wait for it may still close the way.
        let _ = arrived.send(());
        match arrow.side {
            Side::Before => Then::Drop,
            Side::After => Then::Deafen(reply.to_owned()),
        }
    }

    /// `MSG subject sid [reply] length` and `HMSG subject sid [reply] head length`.
    fn answered(&self, line: &str, deaf: &Mutex<Vec<String>>) -> bool {
        let mut words = line.split_ascii_whitespace();
        let (Some("MSG" | "HMSG"), Some(subject)) = (words.next(), words.next()) else { return true };
        !locked(deaf).iter().any(|deaf| deaf == subject)
    }
}

/// Hands on what `passes` says, message by message.
async fn pump(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    passes: impl Fn(&str, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let (mut from, mut line, mut payload) = (BufReader::new(from), String::new(), Vec::new());
    loop {
        line.clear();
        if from.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        payload.clear();
        if ["PUB ", "HPUB ", "MSG ", "HMSG "].iter().any(|verb| line.starts_with(verb)) {
            let length = line.split_ascii_whitespace().next_back().and_then(|word| word.parse::<usize>().ok());
            // With its end of line.
            payload.resize(length.ok_or(io::ErrorKind::InvalidData)? + 2, 0);
            from.read_exact(&mut payload).await?;
        }
        if passes(&line, &payload)? {
            to.write_all(line.as_bytes()).await?;
            to.write_all(&payload).await?;
        }
    }
}
