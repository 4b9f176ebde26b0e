//! What travels on a wake-aware stream and on the control stream of a session.
//!
//! Every frame is a protobuf message behind a big-endian `u16` length, so an
//! unknown field of a newer peer is skipped and a frame never exceeds
//! [`FRAME_BYTES_MAX`]. The messages are declared with `prost` derives; no
//! `protoc` is needed. This file knows no socket and no clock.

use prost::Message;

/// Version both ends put into [`Open`]; a peer that speaks another one is refused.
pub const VERSION: u32 = 1;

/// Largest encoded message, bytes (chosen: an `Open` is below 400 bytes, the
/// bound leaves room for longer names and request ids).
pub const FRAME_BYTES_MAX: usize = 4096;

/// What kind of exchange the stream will carry; decides how silence counts (`wake.md` §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum StreamClass {
    /// One or more plain requests; bytes either way are activity.
    Http = 0,
    /// An upgraded WebSocket.
    WebSocket = 1,
    /// A server-sent event stream.
    Sse = 2,
    /// Raw bytes after an upgrade to something else.
    Tunnel = 3,
}

/// Who asked, as far as the edge could tell; feeds the wake receipt and, later, budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ClientClass {
    /// Nothing is known.
    Anonymous = 0,
    /// A browser navigation.
    Navigation = 1,
    /// An authenticated subject.
    Authenticated = 2,
    /// The operator, through the admin API.
    Operator = 3,
    /// It calls itself a crawler, a link preview or a monitor.
    Crawler = 4,
}

/// How the guest came to run for this request (`wake.md` §7, header `Sprite-Wake`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WakeKind {
    /// It was running already.
    None = 0,
    /// A stop that had begun was called off.
    Interrupted = 1,
    /// It was frozen in memory and goes on.
    Warm = 2,
    /// It was started from its disk.
    Cold = 3,
    /// It came back from a checkpoint.
    Restored = 4,
}

impl WakeKind {
    /// The token used in `Sprite-Wake` and in receipts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Interrupted => "interrupted",
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::Restored => "restored",
        }
    }
}

/// Why an owner refused, one meaning each; `edge-proxy/src/respond.rs` maps it to a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Cause {
    /// Never sent; what an unknown number from a newer peer decodes to.
    Unspecified = 0,
    /// The host's start queue is full.
    HostBusy = 1,
    /// The last start failed and the back-off is running.
    WakeFailed = 2,
    /// The sprite cannot start until somebody mends it (bad command, lost volume).
    WakeFailedPermanent = 3,
    /// The guest runs, the asked port stayed closed for the whole port wait.
    PortClosed = 4,
    /// The port is neither `$PORT` nor declared.
    PortNotDeclared = 5,
    /// The wake's deadline passed before the guest was ready.
    WakeDeadline = 6,
    /// The peer speaks another version of this protocol.
    Version = 7,
    /// The owner is shutting down.
    ShuttingDown = 8,
    /// The guest ended while the request waited.
    GuestDied = 9,
    /// Its people have stopped it.
    StoppedByOwner = 10,
    /// It has been awake today for as long as its people let it.
    AwakeBudget = 11,
    /// What it had in memory is lost, and its people want to wake it themselves then.
    LossyWake = 12,
    /// Its tenant has as many sprites running here as it may.
    TenantAtCapacity = 13,
}

/// First frame of a stream, edge → owner. The request bytes may follow at once.
#[derive(Clone, PartialEq, Message)]
pub struct Open {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Lower-case sprite name.
    #[prost(string, tag = "2")]
    pub sprite: String,
    /// Placement number the edge believes in.
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    /// The run the edge believes in; the owner answers [`Asleep`] if another one runs.
    #[prost(uint64, optional, tag = "4")]
    pub expect_run: Option<u64>,
    /// Guest port; 0 means the sprite's HTTP port.
    #[prost(uint32, tag = "5")]
    pub port: u32,
    /// Whether the owner may start the guest for this stream.
    #[prost(bool, tag = "6")]
    pub wake: bool,
    /// Milliseconds from receipt until the edge gives up.
    #[prost(uint32, tag = "7")]
    pub deadline_ms: u32,
    /// Opaque id for logs and receipts.
    #[prost(string, tag = "8")]
    pub request_id: String,
    /// See [`ClientClass`].
    #[prost(enumeration = "ClientClass", tag = "9")]
    pub client_class: i32,
    /// See [`StreamClass`].
    #[prost(enumeration = "StreamClass", tag = "10")]
    pub class: i32,
}

/// Second frame of a stream, owner → edge; exactly one, before any guest byte.
#[derive(Clone, PartialEq, Message)]
pub struct OpenReply {
    /// The decision.
    #[prost(oneof = "Reply", tags = "1, 2, 3, 4, 5, 6")]
    pub reply: Option<Reply>,
}

/// The owner's decision. Nothing but [`Reply::Opened`] has delivered a byte to a guest.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Reply {
    /// The stream is spliced to the guest.
    #[prost(message, tag = "1")]
    Opened(Opened),
    /// Not running (or another run), and the edge did not ask for a wake.
    #[prost(message, tag = "2")]
    Asleep(Asleep),
    /// Placed elsewhere.
    #[prost(message, tag = "3")]
    Moved(Moved),
    /// Destroyed.
    #[prost(message, tag = "4")]
    Gone(Gone),
    /// Never heard of it, or only of an older placement.
    #[prost(message, tag = "5")]
    Unknown(Unknown),
    /// Not served, with the cause.
    #[prost(message, tag = "6")]
    Refused(Refused),
}

/// See [`Reply::Opened`] and [`Outcome::Ready`].
#[derive(Clone, PartialEq, Message)]
pub struct Opened {
    /// Placement number of the owner.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// The guest's life that serves this.
    #[prost(uint64, tag = "2")]
    pub run: u64,
    /// How it came to run.
    #[prost(enumeration = "WakeKind", tag = "3")]
    pub kind: i32,
    /// Milliseconds from the owner's decision to start until ready; 0 when it was running.
    #[prost(uint32, tag = "4")]
    pub wake_ms: u32,
    /// Whether the wake was already under way when this edge asked.
    #[prost(bool, tag = "5")]
    pub joined: bool,
    /// It had slept warm, and what it had in memory is lost (`wake.md` §2).
    #[prost(bool, tag = "6")]
    pub lost_memory: bool,
}

/// See [`Reply::Asleep`].
#[derive(Clone, PartialEq, Message)]
pub struct Asleep {
    /// It does not sleep: it is held, and asking for a wake is how one waits for that to end.
    #[prost(bool, tag = "1")]
    pub held: bool,
    /// It does not sleep: its run did not take the connection, because its port is closed or
    /// its backlog full.
    #[prost(bool, tag = "2")]
    pub not_connected: bool,
}

/// Names a host id of the table, never an address.
#[derive(Clone, PartialEq, Message)]
pub struct Moved {
    /// Id of the new host.
    #[prost(string, tag = "1")]
    pub host: String,
    /// Its placement number.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
}

/// See [`Reply::Gone`].
#[derive(Clone, PartialEq, Message)]
pub struct Gone {
    /// The placement number that was destroyed.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
}

/// See [`Reply::Unknown`].
#[derive(Clone, PartialEq, Message)]
pub struct Unknown {
    /// What the owner knows; 0 when nothing.
    #[prost(uint64, tag = "1")]
    pub my_generation: u64,
}

/// See [`Reply::Refused`].
#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    /// See [`Cause`].
    #[prost(enumeration = "Cause", tag = "1")]
    pub cause: i32,
    /// When another try makes sense, milliseconds; 0 when the owner cannot tell.
    #[prost(uint32, tag = "2")]
    pub retry_after_ms: u32,
    /// A short sentence for the operator ("exit status 1"); never shown to visitors.
    #[prost(string, tag = "3")]
    pub detail: String,
}

/// One message of the control stream, or beside it, edge → owner.
#[derive(Clone, PartialEq, Message)]
pub struct ToOwner {
    /// The message.
    #[prost(oneof = "EdgeMessage", tags = "1, 2, 3, 4, 5")]
    pub message: Option<EdgeMessage>,
}

/// See [`ToOwner`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum EdgeMessage {
    /// Start it, or join the start under way.
    #[prost(message, tag = "1")]
    Wake(Wake),
    /// The last waiter of this edge left.
    #[prost(message, tag = "2")]
    Withdraw(Withdraw),
    /// What this edge has open, once a second while there is anything.
    #[prost(message, tag = "3")]
    Leases(Leases),
    /// A [`Cordon`] is in effect at this edge.
    #[prost(message, tag = "4")]
    Cordoned(Cordoned),
    /// A change of a route that leads to this host is in effect at this edge.
    #[prost(message, tag = "5")]
    Applied(Applied),
}

/// Asks the owner to make a sprite ready. Retransmitted with the same id; idempotent.
#[derive(Clone, PartialEq, Message)]
pub struct Wake {
    /// Random 128 bits, two halves.
    #[prost(fixed64, tag = "1")]
    pub wake_id_high: u64,
    /// Lower half.
    #[prost(fixed64, tag = "2")]
    pub wake_id_low: u64,
    /// Lower-case sprite name.
    #[prost(string, tag = "3")]
    pub sprite: String,
    /// Placement number the edge believes in.
    #[prost(uint64, tag = "4")]
    pub generation: u64,
    /// Guest port; 0 means the sprite's HTTP port.
    #[prost(uint32, tag = "5")]
    pub port: u32,
    /// Milliseconds from receipt until the last waiter gives up.
    #[prost(uint32, tag = "6")]
    pub deadline_ms: u32,
    /// Short reason for the receipt ("http GET"); no header values, no query strings.
    #[prost(string, tag = "7")]
    pub reason: String,
    /// See [`ClientClass`].
    #[prost(enumeration = "ClientClass", tag = "8")]
    pub client_class: i32,
}

/// See [`EdgeMessage::Withdraw`].
#[derive(Clone, PartialEq, Message)]
pub struct Withdraw {
    /// Upper half of the wake's id.
    #[prost(fixed64, tag = "1")]
    pub wake_id_high: u64,
    /// Lower half.
    #[prost(fixed64, tag = "2")]
    pub wake_id_low: u64,
}

/// All leases of one edge on one host, in one frame.
#[derive(Clone, PartialEq, Message)]
pub struct Leases {
    /// One entry per (sprite, run) with something open or in transit.
    #[prost(message, repeated, tag = "1")]
    pub leases: Vec<Lease>,
}

/// An edge's claim that it has work for one run of a sprite. TTL 15 s (`wake.md` §8).
#[derive(Clone, PartialEq, Message)]
pub struct Lease {
    /// Lower-case sprite name.
    #[prost(string, tag = "1")]
    pub sprite: String,
    /// The run it is for.
    #[prost(uint64, tag = "2")]
    pub run: u64,
    /// Requests and sockets in progress.
    #[prost(uint32, tag = "3")]
    pub open: u32,
    /// Of those: sockets, streams of events and long answers, which keep it awake for as long
    /// as there is data on one of them now and then.
    #[prost(uint32, tag = "4")]
    pub sockets: u32,
    /// Milliseconds since there was data on any of them.
    #[prost(uint32, tag = "5")]
    pub quiet_ms: u32,
}

/// One message of the control stream, or beside it, owner → edge.
#[derive(Clone, PartialEq, Message)]
pub struct ToEdge {
    /// The message.
    #[prost(oneof = "OwnerMessage", tags = "1, 2")]
    pub message: Option<OwnerMessage>,
}

/// See [`ToEdge`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum OwnerMessage {
    /// About one wake.
    #[prost(message, tag = "1")]
    Answer(WakeAnswer),
    /// The run is about to end: no new request should be sent to it.
    #[prost(message, tag = "2")]
    Cordon(Cordon),
}

/// Progress or outcome of the wake with this id.
#[derive(Clone, PartialEq, Message)]
pub struct WakeAnswer {
    /// Upper half of the wake's id.
    #[prost(fixed64, tag = "1")]
    pub wake_id_high: u64,
    /// Lower half.
    #[prost(fixed64, tag = "2")]
    pub wake_id_low: u64,
    /// The answer.
    #[prost(oneof = "Outcome", tags = "3, 4, 5, 6, 7, 8, 9")]
    pub outcome: Option<Outcome>,
}

/// `Accepted`, any number of `Progress`, then exactly one of the others.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Outcome {
    /// The owner has the wake.
    #[prost(message, tag = "3")]
    Accepted(Accepted),
    /// It entered another phase.
    #[prost(message, tag = "4")]
    Progress(Progress),
    /// The guest's port answers.
    #[prost(message, tag = "5")]
    Ready(Opened),
    /// Not started, or the start failed.
    #[prost(message, tag = "6")]
    Refused(Refused),
    /// Placed elsewhere.
    #[prost(message, tag = "7")]
    Moved(Moved),
    /// Destroyed.
    #[prost(message, tag = "8")]
    Gone(Gone),
    /// Never heard of it.
    #[prost(message, tag = "9")]
    Unknown(Unknown),
}

/// See [`Outcome::Accepted`].
#[derive(Clone, PartialEq, Message)]
pub struct Accepted {
    /// A wake for this sprite was already under way.
    #[prost(bool, tag = "1")]
    pub joined: bool,
    /// It is held: its wake begins when that ends.
    #[prost(bool, tag = "2")]
    pub held: bool,
    /// How long the owner thinks the wake will take, milliseconds; 0 when it cannot tell.
    #[prost(uint32, tag = "3")]
    pub eta_ms: u32,
}

/// Where a wake stands (`wake.md` §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// Waiting for a start slot of the host.
    Queued = 0,
    /// The driver starts or continues the guest.
    Starting = 1,
    /// The guest runs, its port does not answer yet.
    PortWait = 2,
}

/// See [`Outcome::Progress`].
#[derive(Clone, PartialEq, Message)]
pub struct Progress {
    /// See [`Phase`].
    #[prost(enumeration = "Phase", tag = "1")]
    pub phase: i32,
}

/// See [`OwnerMessage::Cordon`].
#[derive(Clone, PartialEq, Message)]
pub struct Cordon {
    /// Lower-case sprite name.
    #[prost(string, tag = "1")]
    pub sprite: String,
    /// The run that is about to end.
    #[prost(uint64, tag = "2")]
    pub run: u64,
    /// It does not end: nothing new may begin with it for a while, open or not.
    #[prost(bool, tag = "3")]
    pub hold: bool,
    /// It ends whatever is open with it: somebody ordered that.
    #[prost(bool, tag = "4")]
    pub forced: bool,
    /// Nothing ends and nothing is closed: the owner only asks what is open.
    #[prost(bool, tag = "6")]
    pub asks: bool,
    /// Comes back in [`Cordoned`], so that an answer to an earlier one is not taken for this one's.
    #[prost(uint64, tag = "5")]
    pub number: u64,
}

/// See [`EdgeMessage::Cordoned`].
#[derive(Clone, PartialEq, Message)]
pub struct Cordoned {
    /// Lower-case sprite name.
    #[prost(string, tag = "1")]
    pub sprite: String,
    /// The run nothing new begins with.
    #[prost(uint64, tag = "2")]
    pub run: u64,
    /// What is in progress with it and was not claimed before: the owner decided without knowing. Or all of it, if
    /// the owner asked.
    #[prost(message, optional, tag = "3")]
    pub claim: Option<Lease>,
    /// That of the [`Cordon`].
    #[prost(uint64, tag = "4")]
    pub number: u64,
}

/// See [`EdgeMessage::Applied`].
#[derive(Clone, PartialEq, Message)]
pub struct Applied {
    /// Lower-case sprite name.
    #[prost(string, tag = "1")]
    pub sprite: String,
    /// The store's number of the change.
    #[prost(uint64, tag = "2")]
    pub version: u64,
}

/// A frame that is too long or not a message of the expected kind.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length exceeds [`FRAME_BYTES_MAX`].
    #[error("frame of {length} bytes exceeds the {FRAME_BYTES_MAX} allowed")]
    TooLong {
        /// Announced length, bytes.
        length: usize,
    },
    /// The bytes are not the expected message.
    #[error("malformed frame")]
    Malformed(#[source] prost::DecodeError),
}

/// Appends `message` as one frame.
///
/// # Errors
/// [`FrameError::TooLong`]; nothing was appended.
pub fn encode<M: Message>(message: &M, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = message.encoded_len();
    let prefix = u16::try_from(length).ok().filter(|_| length <= FRAME_BYTES_MAX);
    let Some(prefix) = prefix else { return Err(FrameError::TooLong { length }) };
    out.extend_from_slice(&prefix.to_be_bytes());
    message.encode_raw(out);
    Ok(())
}

/// Reads one frame from the front of `bytes`: the message and the bytes consumed,
/// or `None` while the frame is incomplete.
///
/// # Errors
/// [`FrameError`]; the stream cannot be used any further.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<Option<(M, usize)>, FrameError> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*prefix));
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { length });
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let message = M::decode(body).map_err(FrameError::Malformed)?;
    Ok(Some((message, 2 + length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_survives_the_round_trip_in_any_split() {
        let open =
            Open { version: VERSION, sprite: "hello".into(), generation: 7, expect_run: Some(3), ..Open::default() };
        let mut bytes = Vec::new();
        encode(&open, &mut bytes).unwrap();
        for cut in 0..bytes.len() {
            assert!(decode::<Open>(&bytes[..cut]).unwrap().is_none(), "cut at {cut}");
        }
        bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
        let (back, used) = decode::<Open>(&bytes).unwrap().unwrap();
        assert_eq!(back, open);
        assert_eq!(&bytes[used..], b"GET / HTTP/1.1\r\n");
    }

    #[test]
    fn an_oversized_frame_is_refused_both_ways() {
        let open = Open { sprite: "x".repeat(FRAME_BYTES_MAX), ..Open::default() };
        assert!(matches!(encode(&open, &mut Vec::new()), Err(FrameError::TooLong { .. })));
        assert!(matches!(decode::<Open>(&[0xff, 0xff, 0]), Err(FrameError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode::<Open>(&bytes);
            let _ = decode::<OpenReply>(&bytes);
            let _ = decode::<ToOwner>(&bytes);
            let _ = decode::<ToEdge>(&bytes);
        }
    }
}
