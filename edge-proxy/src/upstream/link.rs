//! What the codec needs of a stream, so that it can be tested without a backhaul.

use backhaul::GuestStream;
use backhaul::activity::ActivityGuard;
use backhaul::{GuestRead, GuestWrite};
use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way stream to one port of one run.
pub trait Link {
    /// The half that reads.
    type Read: AsyncRead + Unpin;
    /// The half that writes; it can be moved to a task that relays an upload.
    type Write: AsyncWrite + Unpin + 'static;
    /// Held from the first byte of a request to the last byte of its answer.
    type Guard;

    /// The half that reads.
    fn read(&mut self) -> &mut Self::Read;
    /// The half that writes, unless it was taken.
    fn write(&mut self) -> Option<&mut Self::Write>;
    /// Moves the half that writes out.
    fn take_write(&mut self) -> Option<Self::Write>;
    /// Puts it back.
    fn put_write(&mut self, write: Self::Write);
    /// Marks a request as in progress; `None` when the run takes no more.
    fn begin(&self) -> Option<Self::Guard>;
    /// From now on its silence counts as silence: headers were sent, and the rest may take long.
    fn may_be_silent(guard: &mut Self::Guard);
    /// There was data on it.
    fn touch(&self);
    /// Whether the run takes no more requests.
    fn is_closed(&self) -> bool;
    /// Bytes written towards the guest so far.
    fn to_guest_offset(&self) -> u64;
    /// Says whether it rests between two requests: an idle stream that is dropped ends like
    /// an idle connection, one in use like a broken exchange.
    fn set_idle(&mut self, idle: bool);
}

/// The write half of a [`GuestStream`] is never absent for the type, so whether it was
/// taken is kept by [`super::Connection`], which asks for it only then.
impl Link for GuestStream {
    type Read = GuestRead;
    type Write = GuestWrite;
    type Guard = ActivityGuard;

    fn read(&mut self) -> &mut GuestRead {
        &mut self.read
    }

    fn write(&mut self) -> Option<&mut GuestWrite> {
        Some(&mut self.write)
    }

    fn take_write(&mut self) -> Option<GuestWrite> {
        Some(self.write.take())
    }

    fn put_write(&mut self, write: GuestWrite) {
        self.write = write;
    }

    fn begin(&self) -> Option<ActivityGuard> {
        self.activity().begin()
    }

    fn may_be_silent(guard: &mut ActivityGuard) {
        guard.becomes_socket();
    }

    fn touch(&self) {
        self.activity().touch(std::time::Instant::now());
    }

    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }

    fn to_guest_offset(&self) -> u64 {
        Self::to_guest_offset(self)
    }

    fn set_idle(&mut self, idle: bool) {
        Self::set_idle(self, idle);
    }
}

/// Two plain halves without a run behind them.
#[derive(Debug)]
pub struct Halves<R, W> {
    read: R,
    write: Option<W>,
}

impl<R, W> Halves<R, W> {
    /// A link of these.
    pub const fn new(read: R, write: W) -> Self {
        Self { read, write: Some(write) }
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin + 'static> Link for Halves<R, W> {
    type Read = R;
    type Write = W;
    type Guard = ();

    fn read(&mut self) -> &mut R {
        &mut self.read
    }

    fn write(&mut self) -> Option<&mut W> {
        self.write.as_mut()
    }

    fn take_write(&mut self) -> Option<W> {
        self.write.take()
    }

    fn put_write(&mut self, write: W) {
        self.write = Some(write);
    }

    fn begin(&self) -> Option<()> {
        Some(())
    }

    fn may_be_silent((): &mut ()) {}

    fn touch(&self) {}

    fn is_closed(&self) -> bool {
        false
    }

    fn to_guest_offset(&self) -> u64 {
        0
    }

    fn set_idle(&mut self, _idle: bool) {}
}
