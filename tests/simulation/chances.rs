//! How likely things are, and how long they take.

/// Per thousand, or milliseconds; an `every` of 0 means never.
#[derive(Clone, Debug)]
pub(crate) struct Chances {
    pub(crate) lost: u32,
    pub(crate) doubled: u32,
    /// Longest way of a message; messages overtake each other.
    pub(crate) delay_ms: u64,
    /// Longest start of a process, and again until it listens.
    pub(crate) start_ms: u64,
    pub(crate) start_fails: u32,
    pub(crate) start_hangs: u32,
    pub(crate) never_listens: u32,
    pub(crate) client_leaves: u32,
    pub(crate) patience_ms: (u64, u64),
    pub(crate) request_every_ms: u64,
    pub(crate) sleep_every_ms: u64,
    pub(crate) death_every_ms: u64,
    pub(crate) session_lost_every_ms: u64,
    pub(crate) edge_dies_every_ms: u64,
    /// An orchestrator lets visitors wait.
    pub(crate) hold_every_ms: u64,
    /// Its people stop a sprite, and start it again a little later.
    pub(crate) stop_every_ms: u64,
    pub(crate) move_every_ms: u64,
    /// One is destroyed, and made again a little later.
    pub(crate) destroy_every_ms: u64,
    pub(crate) owner_dies_every_ms: u64,
    /// A process is not scheduled for up to 20 s: its clock jumps.
    pub(crate) stall_every_ms: u64,
    /// Longest way of a placement to an edge; each edge has its own.
    pub(crate) feed_ms: u64,
    /// The new host of a moved sprite hears of it up to this much later than the old one.
    pub(crate) lag_ms: u64,
    /// What was frozen is found dead.
    pub(crate) memory_lost: u32,
    /// A request goes by what its edge believes to run, without asking.
    pub(crate) warm: u32,
    /// Bounds that a few requests reach.
    pub(crate) tight: bool,
}

impl Chances {
    /// Everything goes wrong now and then.
    pub(crate) const fn rough() -> Self {
        Self {
            lost: 50,
            doubled: 30,
            delay_ms: 300,
            start_ms: 400,
            start_fails: 50,
            start_hangs: 10,
            never_listens: 20,
            client_leaves: 200,
            patience_ms: (500, 15_000),
            request_every_ms: 120,
            sleep_every_ms: 3_000,
            death_every_ms: 9_000,
            session_lost_every_ms: 14_000,
            edge_dies_every_ms: 40_000,
            hold_every_ms: 5_000,
            stop_every_ms: 11_000,
            move_every_ms: 6_000,
            destroy_every_ms: 13_000,
            owner_dies_every_ms: 31_000,
            stall_every_ms: 12_000,
            feed_ms: 1_500,
            lag_ms: 300,
            memory_lost: 50,
            warm: 400,
            tight: true,
        }
    }

    /// Nothing breaks; sprites still sleep when they are idle or told to.
    pub(crate) const fn healthy() -> Self {
        Self {
            lost: 0,
            doubled: 0,
            start_fails: 0,
            start_hangs: 0,
            never_listens: 0,
            client_leaves: 0,
            patience_ms: (15_000, 30_000),
            death_every_ms: 0,
            session_lost_every_ms: 0,
            edge_dies_every_ms: 0,
            stop_every_ms: 0,
            destroy_every_ms: 0,
            owner_dies_every_ms: 0,
            stall_every_ms: 0,
            move_every_ms: 0,
            lag_ms: 0,
            memory_lost: 0,
            warm: 0,
            tight: false,
            ..Self::rough()
        }
    }

    /// Whether a message always arrives, and nobody stands still: then it is known who waits.
    pub(crate) const fn strict(&self) -> bool {
        self.lost == 0 && self.session_lost_every_ms == 0 && self.stall_every_ms == 0
    }

    /// Nothing happens by itself, and messages take no time.
    pub(crate) const fn calm() -> Self {
        Self { delay_ms: 0, request_every_ms: 0, sleep_every_ms: 0, hold_every_ms: 0, ..Self::healthy() }
    }
}
