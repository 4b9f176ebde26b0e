//! A DNS server of the test's own, on 127.0.0.1: TXT, A, AAAA and CNAME records that change while it runs, and
//! the ways a server fails.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Numbers of record types (RFC 1035 §3.2.2, RFC 3596 §2.1).
const A: u16 = 1;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;

/// What the server does with a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Answers.
    #[default]
    Well,
    /// Says SERVFAIL.
    Fails,
}

/// A running server; dropping it ends it.
pub struct DnsServer {
    /// Where it answers, by UDP.
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Zone {
    /// By name in lower case; the data of each record is as it goes over the wire.
    records: HashMap<String, Vec<(u16, Vec<u8>)>>,
    mood: Mood,
    asked: usize,
    /// Names at and under this are somebody else's to answer.
    delegated: Option<(String, SocketAddr)>,
}

impl DnsServer {
    /// Starts one without records.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn start() -> Self {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port"));
        let address = socket.local_addr().expect("it is bound");
        let zone = Arc::new(Mutex::new(Zone::default()));
        let served = Arc::clone(&zone);
        let task = tokio::spawn(async move {
            let mut question = [0; 512];
            loop {
                let Ok((length, from)) = socket.recv_from(&mut question).await else { return };
                let question = &question[..length];
                let alias = served.lock().unwrap_or_else(PoisonError::into_inner).alias(question);
                if let Some((to, alias)) = alias {
                    tokio::spawn(follow(Arc::clone(&socket), alias, from, to));
                    continue;
                }
                let delegated = served.lock().unwrap_or_else(PoisonError::into_inner).delegated_to(question);
                if let Some(to) = delegated {
                    tokio::spawn(pass_on(Arc::clone(&socket), question.to_vec(), from, to));
                    continue;
                }
                let answer = served.lock().unwrap_or_else(PoisonError::into_inner).answer(question);
                if let Some(answer) = answer {
                    // Who asked may be gone.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { address, zone, task }
    }

    /// Adds a TXT record.
    pub fn set_txt(&self, name: &str, text: &str) {
        let mut data = Vec::new();
        for part in text.as_bytes().chunks(255) {
            data.push(u8::try_from(part.len()).expect("at most 255"));
            data.extend(part);
        }
        self.add(name, TXT, data);
    }

    /// Adds an address.
    pub fn set_address(&self, name: &str, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.add(name, A, address.octets().into()),
            IpAddr::V6(address) => self.add(name, AAAA, address.octets().into()),
        }
    }

    /// Adds a CNAME record.
    pub fn set_cname(&self, name: &str, target: &str) {
        self.add(name, CNAME, encoded(target));
    }

    /// Takes every record of a name away.
    pub fn clear(&self, name: &str) {
        self.zone().records.remove(name);
    }

    /// Passes questions for a name, and for all under it, on to another server.
    pub fn delegate(&self, name: &str, to: SocketAddr) {
        self.zone().delegated = Some((name.to_ascii_lowercase(), to));
    }

    /// Says how questions are answered from now on.
    pub fn set_mood(&self, mood: Mood) {
        self.zone().mood = mood;
    }

    /// Questions so far.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.zone().asked
    }

    fn add(&self, name: &str, kind: u16, data: Vec<u8>) {
        self.zone().records.entry(name.to_ascii_lowercase()).or_default().push((kind, data));
    }

    fn zone(&self) -> std::sync::MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What another server answers within two seconds, if it does.
async fn pass_on(socket: Arc<UdpSocket>, question: Vec<u8>, from: SocketAddr, to: SocketAddr) {
    let Ok(own) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { return };
    let mut answer = [0; 4096];
    let asks = async {
        own.send_to(&question, to).await?;
        own.recv(&mut answer).await
    };
    if let Ok(Ok(length)) = tokio::time::timeout(std::time::Duration::from_secs(2), asks).await {
        // Who asked may be gone.
        let _ = socket.send_to(&answer[..length], from).await;
    }
}

/// An answer that leads to a name of another server, whose records are to be in it too.
struct Alias {
    /// Header, question and the CNAME records.
    begins: Vec<u8>,
    count: u16,
    /// Where the last target stands in it.
    at: u16,
    /// What the other server is asked.
    question: Vec<u8>,
}

/// What a resolver answers that follows an alias: two seconds for the other server.
async fn follow(socket: Arc<UdpSocket>, alias: Alias, from: SocketAddr, to: SocketAddr) {
    let Ok(own) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { return };
    let mut end = [0; 4096];
    let asks = async {
        own.send_to(&alias.question, to).await?;
        own.recv(&mut end).await
    };
    let Ok(Ok(length)) = tokio::time::timeout(std::time::Duration::from_secs(2), asks).await else { return };
    let (mut answer, mut rest) = (alias.begins, end[..length].get(alias.question.len()..).unwrap_or_default());
    let found = u16::from_be_bytes([end[6], end[7]]);
    for _ in 0..found {
        // A pointer to the question, ten bytes of the record, its data.
        let Some(data) = rest.get(10..12) else { return };
        let record = 12 + usize::from(u16::from_be_bytes([data[0], data[1]]));
        let Some(bytes) = rest.get(2..record) else { return };
        answer.extend((0xc000 | alias.at).to_be_bytes());
        answer.extend(bytes);
        rest = &rest[record..];
    }
    answer[3] |= end[3] & 0x0f;
    answer[6..8].copy_from_slice(&(alias.count + found).to_be_bytes());
    // Who asked may be gone.
    let _ = socket.send_to(&answer, from).await;
}

/// The name that is asked for, and where it ends.
fn asked_name(question: &[u8]) -> Option<(String, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
}

impl Zone {
    fn delegated_to(&self, question: &[u8]) -> Option<SocketAddr> {
        let (name, to) = self.delegated.as_ref()?;
        let (asked, _) = asked_name(question)?;
        asked.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')).then_some(*to)
    }

    /// Whether the name is an alias, directly or not, of one that another server has.
    fn alias(&self, question: &[u8]) -> Option<(SocketAddr, Alias)> {
        let (suffix, to) = self.delegated.as_ref()?;
        let (mut name, end) = asked_name(question)?;
        let kind = question.get(end..end + 4)?;
        if kind[..2] == CNAME.to_be_bytes() {
            return None;
        }
        let mut begins = question[..2].to_vec();
        begins.extend([0x84 | (question[2] & 1), 0x80, 0, 1]);
        begins.extend([0; 6]);
        begins.extend(&question[12..end + 4]);
        let mut at = 12;
        for count in 1..=8 {
            let (_, target) = self.records.get(&name)?.iter().find(|(of, _)| *of == CNAME)?;
            // The name is where the last target stands, class IN, no time to live.
            begins.extend((0xc000_u16 | at).to_be_bytes());
            begins.extend(CNAME.to_be_bytes());
            begins.extend([0, 1, 0, 0, 0, 0]);
            begins.extend(u16::try_from(target.len()).ok()?.to_be_bytes());
            at = u16::try_from(begins.len()).ok()?;
            begins.extend(target);
            name = asked_name(&[&[0; 12], &target[..]].concat())?.0;
            if name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
                let mut asks = question[..2].to_vec();
                asks.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
                asks.extend(target);
                asks.extend(kind);
                return Some((*to, Alias { begins, count, at, question: asks }));
            }
        }
        None
    }

    fn answer(&mut self, question: &[u8]) -> Option<Vec<u8>> {
        self.asked += 1;
        let (name, at) = asked_name(question)?;
        let kind = u16::from_be_bytes(question.get(at..at + 2)?.try_into().ok()?);
        let known = self.records.get(&name);
        // An alias answers for every type (RFC 1034 §3.6.2).
        let found: Vec<_> =
            known.into_iter().flatten().filter(|(of, _)| *of == kind || *of == CNAME).cloned().collect();
        let code: u8 = match (self.mood, known) {
            (Mood::Fails, _) => 2,
            (Mood::Well, None) => 3,
            (Mood::Well, Some(_)) => 0,
        };
        let count = if self.mood == Mood::Fails { 0 } else { u16::try_from(found.len()).ok()? };
        // An authoritative response to one question, which stands in it as it was asked.
        let mut answer = question[..2].to_vec();
        answer.extend([0x84 | (question[2] & 1), 0x80 | code, 0, 1]);
        answer.extend(count.to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(&question[12..at + 4]);
        for (of, data) in found.iter().take(count.into()) {
            // The name is the question's, class IN, no time to live.
            answer.extend([0xc0, 12]);
            answer.extend(of.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 0]);
            answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
            answer.extend(data);
        }
        Some(answer)
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut data = Vec::new();
    for label in name.split('.') {
        data.push(u8::try_from(label.len()).expect("a label"));
        data.extend(label.as_bytes());
    }
    data.push(0);
    data
}
