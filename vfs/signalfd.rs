//! `signalfd(2)`: pending signals that are read.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{Errno, Result};
use crate::io::Sink;
use crate::vfs::anon;
use crate::vfs::file::File;
use crate::vfs::inode::Attr;
use crate::wait::{Events, WaitQueue};

/// The size of `struct signalfd_siginfo`.
pub const RECORD: usize = 128;

/// SIGKILL and SIGSTOP, which are never given: bits as in a signal set (signal n is bit n - 1).
const NEVER: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

/// Whose signals are read. The sentry implements it for a process; "pending" means for the process or the calling thread.
pub trait SignalSource: Send + Sync {
    /// Takes one pending signal of `mask` off, as `struct signalfd_siginfo` (see [`record`]).
    fn dequeue(&self, mask: u64) -> Option<[u8; RECORD]>;

    /// Whether a signal of `mask` is pending.
    fn pending(&self, mask: u64) -> bool;

    /// Woken with [`Events::IN`] for each signal that becomes pending, blocked or not.
    fn wait_queue(&self) -> &WaitQueue;
}

/// A set of signals to read.
pub struct SignalFd {
    source: Arc<dyn SignalSource>,
    mask: AtomicU64,
}

impl SignalFd {
    /// For the signals in `mask`.
    pub fn new(source: Arc<dyn SignalSource>, mask: u64) -> SignalFd {
        SignalFd { source, mask: AtomicU64::new(mask & !NEVER) }
    }

    /// `signalfd(2)` on an existing descriptor: replaces the set.
    pub fn set_mask(&self, mask: u64) {
        self.mask.store(mask & !NEVER, Ordering::SeqCst);
        self.source.wait_queue().wake(Events::READ);
    }

    /// The set, for `/proc/PID/fdinfo`.
    pub fn mask(&self) -> u64 {
        self.mask.load(Ordering::SeqCst)
    }
}

impl File for SignalFd {
    /// As many records as fit and are pending. `EINVAL` when not one fits.
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        if sink.room() < RECORD {
            return Err(Errno::EINVAL);
        }
        let mut records = Vec::new();
        while records.len() + RECORD <= sink.room() {
            let Some(record) = self.source.dequeue(self.mask()) else { break };
            records.extend_from_slice(&record);
        }
        if records.is_empty() {
            return Err(Errno::EAGAIN);
        }
        match sink.put(&records)? / RECORD * RECORD {
            0 => Err(Errno::EFAULT),
            whole => Ok(whole),
        }
    }

    fn poll(&self) -> Events {
        if self.source.pending(self.mask()) { Events::IN } else { Events::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.source.wait_queue())
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        Some(anon::shared_attr())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[signalfd]".into())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Which fields of a `siginfo_t` mean something: `sigaction(2)`, "The siginfo_t argument to a SA_SIGINFO handler".
enum Layout {
    Kill,
    Timer,
    Queued,
    Child,
    Fault,
    Poll,
    Syscall,
}

fn layout(signal: i32, code: i32) -> Layout {
    /// `SI_KERNEL`: codes below it and above 0 are the signal's own.
    const SI_KERNEL: i32 = 0x80;
    /// The highest `POLL_*`, which may come with any signal (`F_SETSIG`).
    const POLL_HUP: i32 = 6;
    match (signal, code) {
        (_, libc::SI_TIMER) => Layout::Timer,
        (_, libc::SI_SIGIO) => Layout::Poll,
        (_, ..0) => Layout::Queued,
        (_, 0 | SI_KERNEL..) => Layout::Kill,
        (libc::SIGILL | libc::SIGFPE | libc::SIGSEGV | libc::SIGBUS | libc::SIGTRAP, _) => Layout::Fault,
        (libc::SIGCHLD, _) => Layout::Child,
        (libc::SIGSYS, _) => Layout::Syscall,
        (_, 1..=POLL_HUP) => Layout::Poll,
        _ => Layout::Kill,
    }
}

/// A `siginfo_t` of x86_64 as `struct signalfd_siginfo`.
pub fn record(info: &[u8; 128]) -> [u8; RECORD] {
    let int = |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let mut out = [0; RECORD];
    // (from, to, length): the offsets of the fields in the two structures.
    let mut copy = |fields: &[(usize, usize, usize)]| {
        for &(from, to, len) in fields {
            out[to..to + len].copy_from_slice(&info[from..from + len]);
        }
    };
    copy(&[(0, 0, 12)]); // signal, errno, code
    match layout(int(0), int(8)) {
        Layout::Kill => copy(&[(16, 12, 8)]),
        Layout::Timer => copy(&[(16, 24, 4), (20, 32, 4), (24, 48, 8), (24, 44, 4)]),
        Layout::Queued => copy(&[(16, 12, 8), (24, 48, 8), (24, 44, 4)]),
        Layout::Child => copy(&[(16, 12, 8), (24, 40, 4), (32, 56, 16)]),
        Layout::Fault => copy(&[(16, 72, 8), (24, 80, 2)]),
        Layout::Poll => copy(&[(16, 28, 4), (24, 20, 4)]),
        Layout::Syscall => copy(&[(16, 88, 8), (24, 84, 4), (28, 96, 4)]),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SliceSink;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Pending(Mutex<Vec<i32>>, WaitQueue);

    impl SignalSource for Pending {
        fn dequeue(&self, mask: u64) -> Option<[u8; RECORD]> {
            let mut signals = self.0.lock();
            let at = signals.iter().position(|signal| mask & 1 << (signal - 1) != 0)?;
            let mut info = [0; 128];
            info[..4].copy_from_slice(&signals.remove(at).to_ne_bytes());
            Some(record(&info))
        }

        fn pending(&self, mask: u64) -> bool {
            self.0.lock().iter().any(|signal| mask & 1 << (signal - 1) != 0)
        }

        fn wait_queue(&self) -> &WaitQueue {
            &self.1
        }
    }

    #[test]
    fn as_many_records_as_fit_are_read() {
        let pending = Arc::new(Pending::default());
        pending.0.lock().extend([10, 12, 10, 9]);
        let file = SignalFd::new(pending.clone(), 1 << 9 | 1 << 8);
        assert_eq!(file.mask(), 1 << 9, "SIGKILL is not for reading");
        let mut buf = [0; 3 * RECORD];
        assert_eq!(file.read(0, &mut SliceSink::new(&mut buf[..RECORD - 1])), Err(Errno::EINVAL));
        assert_eq!(file.read(0, &mut SliceSink::new(&mut buf)), Ok(2 * RECORD));
        assert_eq!((buf[0], buf[RECORD]), (10, 10));
        assert_eq!(file.read(0, &mut SliceSink::new(&mut buf)), Err(Errno::EAGAIN));
        assert_eq!(file.poll(), Events::empty());
        file.set_mask(1 << 11);
        assert_eq!(file.poll(), Events::IN);
    }

    #[test]
    fn records_hold_what_the_signal_tells() {
        let mut info = [0u8; 128];
        for (at, byte) in info.iter_mut().enumerate().skip(16) {
            *byte = at as u8;
        }
        let with = |signal: i32, code: i32| {
            let mut info = info;
            info[..4].copy_from_slice(&signal.to_ne_bytes());
            info[8..12].copy_from_slice(&code.to_ne_bytes());
            record(&info)
        };
        let child = with(libc::SIGCHLD, libc::CLD_EXITED);
        assert_eq!((child[12], child[16], child[40], child[56], child[64]), (16, 20, 24, 32, 40));
        let fault = with(libc::SIGSEGV, 1);
        assert_eq!((fault[12], fault[72]), (0, 16));
        let queued = with(40, libc::SI_QUEUE);
        assert_eq!((queued[12], queued[16], queued[44], queued[48]), (16, 20, 24, 24));
        let timer = with(14, libc::SI_TIMER);
        assert_eq!((timer[12], timer[24], timer[32], timer[48]), (0, 16, 20, 24));
        let kill = with(libc::SIGCHLD, libc::SI_USER);
        assert_eq!((kill[12], kill[16], kill[40]), (16, 20, 0));
    }
}
