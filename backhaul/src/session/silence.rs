//! When a host counts as gone: it was asked something, and not a datagram of it came for six seconds.
//!
//! No clock: it is asked once a tick. What is sent is looked at frame by frame, because an
//! acknowledgement asks for nothing: an idle session sends one last and is silent rightly. Once
//! something has been asked, every tick counts, also those in which nothing is sent: the pauses between
//! retransmissions double, and a count of ticks with datagrams would take 20 s to come to six.

use quinn::FrameStats;

/// Ticks of silence before the tunnel is renewed.
const RENEW: u32 = 2;
/// Ticks of silence before the session counts as dead.
const DEAD: u32 = 6;

/// How a host is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It speaks, or nothing was asked of it.
    Fine,
    /// Its tunnel may be what is broken.
    Renew,
    /// It is gone.
    Dead,
}

/// What one session has heard and asked.
#[derive(Debug, Default)]
pub(super) struct Silence {
    heard: u64,
    asked: u64,
    /// Something was asked since it was heard last.
    waits: bool,
    ticks: u32,
}

impl Silence {
    /// A tick is over, by whose end so many datagrams were heard and so many questions asked.
    pub(super) fn tick(&mut self, heard: u64, asked: u64) -> Verdict {
        if std::mem::replace(&mut self.heard, heard) != heard {
            (self.waits, self.ticks, self.asked) = (false, 0, asked);
            return Verdict::Fine;
        }
        // What was asked just before the last word came is asked again, and noticed then.
        self.waits |= std::mem::replace(&mut self.asked, asked) != asked;
        self.ticks += u32::from(self.waits);
        match self.ticks {
            DEAD.. => Verdict::Dead,
            RENEW if self.waits => Verdict::Renew,
            _ => Verdict::Fine,
        }
    }
}

/// Frames that were sent and have to be acknowledged at once (RFC 9000 §13.2): what carries bytes, and the
/// pings that retransmissions come down to.
pub(super) const fn asked(sent: &FrameStats) -> u64 {
    sent.stream + sent.ping + sent.reset_stream + sent.stop_sending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_once_and_stays_silent_is_dead_after_six_ticks_however_seldom_it_is_asked_again() {
        let mut silence = Silence::default();
        assert_eq!(silence.tick(10, 4), Verdict::Fine);
        // Asked in the first tick and in the fourth.
        let ticks = [5, 5, 5, 6, 6, 6].map(|asked| silence.tick(10, asked));
        let [.., before, last] = ticks;
        assert_eq!((ticks[0], ticks[1], ticks[2]), (Verdict::Fine, Verdict::Renew, Verdict::Fine));
        assert_eq!((before, last), (Verdict::Fine, Verdict::Dead));
    }

    #[test]
    fn a_word_begins_the_count_anew_and_an_idle_session_is_silent_rightly() {
        let mut silence = Silence::default();
        silence.tick(10, 4);
        for _ in 0..100 {
            assert_eq!(silence.tick(10, 4), Verdict::Fine, "nothing was asked");
        }
        for asked in 5..10 {
            assert_ne!(silence.tick(10, asked), Verdict::Dead);
        }
        assert_eq!(silence.tick(11, 10), Verdict::Fine);
        for _ in 0..100 {
            assert_eq!(silence.tick(11, 10), Verdict::Fine, "it was answered");
        }
    }
}
