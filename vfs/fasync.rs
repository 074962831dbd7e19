//! Signal-driven I/O: `O_ASYNC`, `F_SETOWN` and `F_SETSIG` of `fcntl(2)`.
//!
//! ```text
//! file's WaitQueue ──wake──> Fasync (what happened, an atomic) ──> DUE ──> deliver: Owner::send
//! ```
//!
//! A wake-up runs under a file's locks, from where no signal can be sent. It leaves a note, and whoever comes first sends:
//! each task at the end of its system call, so that a signal which a call has caused is pending when the call returns; or
//! the `sigio` thread, for what packets and other threads bring about.
//!
//! Lock order: [`deliver`]'s turn, taken with no other lock held > everything that sending a signal or asking a file takes.
//! A [`Fasync`]'s settings > the file's wait queue > `DUE`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};

use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::wait::{Events, WaitKey, WaitQueue, Wakeable};

/// `POLL_*`, the `si_code` of a signal about readiness, with the events that `si_band` then has: `sigaction(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// `POLL_IN` and so on.
    pub code: i32,
    /// The events, with the values of `poll(2)`.
    pub band: Events,
}

const POLL_IN: Reason = Reason { code: 1, band: Events::READ };
const POLL_OUT: Reason = Reason { code: 2, band: Events::OUT.union(Events::WRNORM).union(Events::WRBAND) };
const POLL_ERR: Reason = Reason { code: 4, band: Events::ERR };
const POLL_PRI: Reason = Reason { code: 5, band: Events::PRI.union(Events::RDBAND) };
const POLL_HUP: Reason = Reason { code: 6, band: Events::HUP.union(Events::ERR) };

/// Who is told: `F_SETOWN`.
pub trait Owner: Send + Sync {
    /// `F_OWNER_*` and the id; `None` when there is nobody any more.
    fn id(&self) -> Option<(i32, i32)>;

    /// Sends `signal` (0 is SIGIO, with nothing told) about the file that is `fd` to its owner. Called without locks held.
    fn send(&self, signal: i32, reason: Reason, fd: i32);
}

#[derive(Default)]
struct Settings {
    owner: Option<Arc<dyn Owner>>,
    signal: i32,
    /// The descriptor by which `O_ASYNC` was set: `si_fd`.
    fd: i32,
    /// The registration with the file's queue, while `O_ASYNC` is set.
    armed: Option<WaitKey>,
}

/// The state of one open file description; most have none.
pub struct Fasync {
    me: Weak<Fasync>,
    object: Weak<dyn File>,
    /// Which events are told of: [`File::async_events`].
    wanted: Events,
    settings: Mutex<Settings>,
    /// Whether somebody found no room to write: only then is room told of, once.
    full: AtomicBool,
    /// What has happened and is not told yet.
    events: AtomicU32,
}

/// Those with something to tell; leaf lock.
static DUE: Mutex<VecDeque<Arc<Fasync>>> = Mutex::new(VecDeque::new());
static DUE_CHANGED: Condvar = Condvar::new();
/// How many there are that have not been told completely.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Held by who tells.
static TURN: Mutex<()> = Mutex::new(());

/// Sends all signals that are due; one load when there are none. When this returns, what was due before has been sent. No
/// lock may be held.
pub fn deliver() {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return;
    }
    let _turn = TURN.lock();
    loop {
        let next = DUE.lock().pop_front();
        let Some(next) = next else { return };
        next.tell();
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The thread for what no task sees to. `ENOMEM` when the host gives none.
fn start_thread() -> Result<()> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = STARTED.lock();
    if *started {
        return Ok(());
    }
    let run = || {
        crate::platform::placement::serve_all();
        loop {
            {
                let mut due = DUE.lock();
                while due.is_empty() {
                    DUE_CHANGED.wait(&mut due);
                }
            }
            deliver();
        }
    };
    std::thread::Builder::new().name("sigio".into()).spawn(run).map_err(|_| Errno::ENOMEM)?;
    *started = true;
    Ok(())
}

impl Fasync {
    /// For a description of `object`.
    pub fn new(object: &Arc<dyn File>) -> Arc<Fasync> {
        Arc::new_cyclic(|me| Fasync {
            me: me.clone(),
            object: Arc::downgrade(object),
            wanted: object.async_events().unwrap_or(Events::empty()),
            settings: Mutex::default(),
            full: AtomicBool::new(false),
            events: AtomicU32::new(0),
        })
    }

    /// `F_SETOWN`, `F_SETOWN_EX`.
    pub fn set_owner(&self, owner: Option<Arc<dyn Owner>>) {
        let old = std::mem::replace(&mut self.settings.lock().owner, owner);
        drop(old);
    }

    /// `F_GETOWN_EX`; `None` when there is nobody.
    pub fn owner(&self) -> Option<(i32, i32)> {
        let owner = self.settings.lock().owner.clone();
        owner?.id()
    }

    /// Whether there was an owner ever.
    pub fn has_owner(&self) -> bool {
        self.settings.lock().owner.is_some()
    }

    /// `F_SETSIG`.
    pub fn set_signal(&self, signal: i32) {
        self.settings.lock().signal = signal;
    }

    /// `F_GETSIG`.
    pub fn signal(&self) -> i32 {
        self.settings.lock().signal
    }

    /// Begins to tell of what happens to the file, whose queue is `queue`. `ENOMEM`.
    pub fn arm(&self, queue: &WaitQueue, fd: i32) -> Result<()> {
        start_thread()?;
        // A connection that is being made tells when it stands.
        let writable = self.object.upgrade().is_none_or(|object| object.poll().intersects(Events::WRITE));
        self.full.store(!writable, Ordering::SeqCst);
        let mut settings = self.settings.lock();
        settings.fd = fd;
        if settings.armed.is_none()
            && let Some(me) = self.me.upgrade()
        {
            settings.armed = Some(queue.add(me, self.wanted, false));
        }
        Ok(())
    }

    /// A write found no room.
    pub fn note_full(&self) {
        self.full.store(true, Ordering::SeqCst);
    }

    /// Tells nothing from now on.
    pub fn disarm(&self, queue: &WaitQueue) {
        let mut settings = self.settings.lock();
        if let Some(key) = settings.armed.take() {
            queue.remove(key);
        }
    }

    fn tell(&self) {
        let events = Events::from_bits_truncate(self.events.swap(0, Ordering::SeqCst));
        let (owner, signal, fd) = {
            let settings = self.settings.lock();
            if settings.armed.is_none() {
                return;
            }
            (settings.owner.clone(), settings.signal, settings.fd)
        };
        let Some(owner) = owner else { return };
        let Some(object) = self.object.upgrade() else { return };
        if let Some(reason) = self.reason(events, || object.poll()) {
            owner.send(signal, reason, fd);
        }
    }

    /// What to say of `events`. Some objects announce everything at once that may have changed: then the file is asked.
    fn reason(&self, events: Events, poll: impl FnOnce() -> Events) -> Option<Reason> {
        let (input, output) = (events.intersects(Events::READ), events.intersects(Events::WRITE));
        let wanted = self.wanted;
        if !wanted.intersects(Events::ALWAYS) {
            // Of a pipe or terminal the end, too, is told as readiness.
            let reads = wanted.intersects(Events::READ) && (input || events.intersects(Events::ALWAYS));
            return if reads { Some(POLL_IN) } else { wanted.intersects(Events::WRITE).then_some(POLL_OUT) };
        }
        if input && !output && !events.intersects(Events::ALWAYS | Events::RDHUP) {
            return Some(POLL_IN);
        }
        let now = poll();
        let both = now & (events | Events::RDHUP);
        match () {
            () if both.intersects(Events::HUP) => Some(POLL_HUP),
            () if both.intersects(Events::ERR) => Some(POLL_ERR),
            () if both.intersects(Events::PRI) => Some(POLL_PRI),
            () if both.intersects(Events::READ | Events::RDHUP) && (input || events.contains(Events::RDHUP)) => {
                Some(POLL_IN)
            }
            () if output && now.intersects(Events::WRITE) && self.full.swap(false, Ordering::SeqCst) => Some(POLL_OUT),
            () => None,
        }
    }
}

impl Wakeable for Fasync {
    fn wake(&self, events: Events) -> bool {
        if !events.intersects(self.wanted | Events::ALWAYS) {
            return false;
        }
        if self.events.fetch_or(events.bits(), Ordering::SeqCst) == 0
            && let Some(me) = self.me.upgrade()
        {
            COUNT.fetch_add(1, Ordering::SeqCst);
            DUE.lock().push_back(me);
            DUE_CHANGED.notify_one();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::pipe::Pipe;

    struct Told(Mutex<Vec<(i32, i32, i32)>>);

    impl Owner for Told {
        fn id(&self) -> Option<(i32, i32)> {
            Some((1, 7))
        }

        fn send(&self, signal: i32, reason: Reason, fd: i32) {
            self.0.lock().push((signal, reason.code, fd));
        }
    }

    #[test]
    fn what_happens_to_a_pipe_is_told_its_reader() {
        let (reader, writer) = Pipe::create((0, 0), 0);
        let object: Arc<dyn File> = reader;
        let fasync = Fasync::new(&object);
        let told = Arc::new(Told(Mutex::default()));
        fasync.set_owner(Some(told.clone()));
        fasync.set_signal(34);
        let queue = object.wait_queue().unwrap();
        writer.write(0, &mut &b"x"[..]).unwrap();
        fasync.arm(queue, 5).unwrap();
        writer.write(0, &mut &b"x"[..]).unwrap();
        deliver();
        assert_eq!(*told.0.lock(), [(34, 1, 5)]);
        drop(writer);
        deliver();
        assert_eq!(told.0.lock().len(), 2, "the end is readiness");
        fasync.disarm(queue);
        queue.wake(Events::READ);
        deliver();
        assert_eq!(told.0.lock().len(), 2);
        assert!(queue.is_empty());
    }
}
