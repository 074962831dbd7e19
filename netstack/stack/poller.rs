//! Who reads the devices.
//!
//! A packet should wake the thread that wants it and no other: waking a thread on another CPU costs 25 to 50 us, a read of
//! the device 1 us. So a task that waits for anything offers to wait on the device meanwhile. One at a time is the
//! *poller*; it handles what arrives, for whomever it is, and if that was what it waited for it just goes on.
//!
//! ```text
//! task: nothing ready ─> Stack::park ─> poller? ─ yes ─> wait {device, own wake-up} ─> packets ─> own object ready ─> return
//!                                          └ no, another is ─> park as usual
//! ```
//!
//! A poller that returns leaves the device unwatched until the next task waits, usually soon. The stand-in thread steps in
//! when that takes too long: while there is traffic it looks every `GRACE` whether the device was left alone since its
//! last look; after `IDLE` looks without a change it waits on the device itself, or, when a poller just waits on and on,
//! for that one's end. It costs nothing then.
//! Every look at the device is non-blocking and holds the poller's lock, so packets are handled in order.
//!
//! Costs: to become poller, one atomic exchange; to wait, one `ppoll` and one `read` more than packets; to stop, one store
//! (and, after an idle period, a `write` that wakes the stand-in).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::Stack;
use super::iface::{Interface, MAX_DEVICES};
use crate::netstack::device::{RxBuffer, Tap};
use crate::wait::Parker;

/// How long the device is left alone before the stand-in looks.
const GRACE: Duration = Duration::from_micros(500);
/// After how many looks without a change the stand-in sleeps without end.
const IDLE: u32 = 200;
/// How many frames one look takes before other wake-ups are looked at.
const BATCH: usize = 64;

/// The stand-in looks at the device from time to time.
const LOOKS: u8 = 0;
/// It waits on the device.
const WAITS: u8 = 1;
/// It waits for the poller's end.
const PARKED: u8 = 2;

/// Who reads the device.
#[derive(Default)]
pub struct Poller {
    /// Held by the poller; guards the order of packets.
    buffer: Mutex<RxBuffer>,
    /// Whether a task is poller.
    taken: AtomicBool,
    /// How often a task became poller.
    turns: AtomicU64,
    /// Wakes the stand-in out of its wait for the device.
    kick: OnceLock<OwnedFd>,
    /// What the stand-in does: [`LOOKS`], [`WAITS`] or [`PARKED`].
    stand_in: AtomicU8,
}

impl Poller {
    /// Wakes the stand-in if it does `what`.
    fn relieve(&self, what: u8) {
        if self.stand_in.compare_exchange(what, LOOKS, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            kick(self.kick.get());
        }
    }
}

/// The right to wait on the device.
pub struct PollerGuard<'a> {
    stack: &'a Stack,
    devices: &'a [Interface],
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// `ready` said so.
    Ready,
    /// The descriptor became readable, or a signal came.
    Wakeup,
    /// The deadline.
    Timeout,
}

impl Stack {
    /// Takes the right to wait on the device; `None` when another has it, or there is no device.
    pub fn try_become_poller(&self) -> Option<PollerGuard<'_>> {
        let devices = self.interfaces.devices();
        if devices.is_empty() {
            return None;
        }
        if self.poller.taken.swap(true, Ordering::SeqCst) {
            return None;
        }
        self.poller.turns.fetch_add(1, Ordering::Relaxed);
        self.poller.relieve(WAITS);
        Some(PollerGuard { stack: self, devices })
    }

    /// [`Parker::park`], with the device being polled meanwhile if nobody else does: what a task that waits for anything
    /// calls. The task's own locks must be free.
    pub fn park(&self, parker: &Parker, deadline: Option<Instant>) -> bool {
        let Some(guard) = self.try_become_poller() else { return parker.park(deadline) };
        loop {
            let mut woken = Woken::Ready;
            let parked = parker.park_with(|wake| {
                woken = guard.wait(&|| parker.has_token(), wake, deadline);
                woken == Woken::Wakeup
            });
            match parked {
                Ok(true) => return true,
                Ok(false) if woken == Woken::Timeout => return false,
                Ok(false) => {}
                Err(_) => {
                    drop(guard);
                    return parker.park(deadline);
                }
            }
        }
    }

    /// Handles the packets that are there, unless another thread does so now. For a task that is about to find nothing.
    pub fn poll_device(&self) {
        let devices = self.interfaces.devices();
        if !devices.is_empty()
            && let Some(mut buffer) = self.poller.buffer.try_lock()
        {
            self.drain(devices, &mut buffer);
        }
    }

    /// While it is held no packet is handled.
    #[cfg(test)]
    pub fn hold_packets(&self) -> MutexGuard<'_, RxBuffer> {
        self.poller.buffer.lock()
    }

    /// Handles up to [`BATCH`] packets of each device. Returns whether there may be more.
    fn drain(&self, devices: &[Interface], buffer: &mut MutexGuard<'_, RxBuffer>) -> bool {
        let mut more = false;
        for interface in devices {
            more |= interface.tap.as_ref().is_some_and(|tap| self.drain_one(interface, tap, buffer));
        }
        more
    }

    fn drain_one(&self, interface: &Interface, tap: &Tap, buffer: &mut MutexGuard<'_, RxBuffer>) -> bool {
        for _ in 0..BATCH {
            match tap.receive(buffer) {
                Ok(Some(received)) => {
                    // The last line of defence: a packet that a protocol cannot bear costs that packet, not the sandbox.
                    if catch_unwind(AssertUnwindSafe(|| self.input_frame(interface, received))).is_err() {
                        tap.stats.rx_dropped.fetch_add(1, Ordering::Relaxed);
                        log::error!("a received packet made the network stack panic");
                    }
                }
                Ok(None) => return false,
                Err(error) => {
                    log::debug!("{}: {error}", interface.name);
                    return false;
                }
            }
        }
        true
    }
}

impl PollerGuard<'_> {
    /// Waits for `ready`, which is asked after each packet, for `wake` to become readable, or for `deadline`; handles all
    /// packets meanwhile. No lock may be held that handling a packet takes.
    pub fn wait(&self, ready: &dyn Fn() -> bool, wake: BorrowedFd<'_>, deadline: Option<Instant>) -> Woken {
        loop {
            let more = self.stack.drain(self.devices, &mut self.stack.poller.buffer.lock());
            if ready() {
                return Woken::Ready;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = if more { Some(Duration::ZERO) } else { left };
            let taps = self.devices.iter().filter_map(|interface| interface.tap.as_deref());
            match wait_readable(taps, Some(wake), left) {
                (_, true) => return Woken::Wakeup,
                (false, false) if !more && left.is_some() => return Woken::Timeout,
                _ => {}
            }
        }
    }
}

impl Drop for PollerGuard<'_> {
    fn drop(&mut self) {
        self.stack.poller.taken.store(false, Ordering::SeqCst);
        self.stack.poller.relieve(PARKED);
    }
}

/// Waits until one of the devices or `wake` is readable. An interruption counts as a wake-up.
fn wait_readable<'a>(
    devices: impl Iterator<Item = &'a Tap>,
    wake: Option<BorrowedFd<'_>>,
    left: Option<Duration>,
) -> (bool, bool) {
    let entry = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds = [entry(-1); MAX_DEVICES + 1];
    fds[0] = entry(wake.map_or(-1, |fd| fd.as_raw_fd()));
    let mut count = 1;
    for (slot, device) in fds[1..].iter_mut().zip(devices) {
        *slot = entry(device.fd().as_raw_fd());
        count += 1;
    }
    let spec = left.map(|left| libc::timespec {
        tv_sec: left.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array has `count` entries and, like the time, lives through the call; no signal mask is passed.
    let n = unsafe { libc::ppoll(fds.as_mut_ptr(), count, spec, std::ptr::null()) };
    if n < 0 { (false, true) } else { (fds[1..].iter().any(|one| one.revents != 0), fds[0].revents != 0) }
}

fn eventfd() -> Option<OwnedFd> {
    let flags = nix::sys::eventfd::EfdFlags::EFD_NONBLOCK | nix::sys::eventfd::EfdFlags::EFD_CLOEXEC;
    match nix::sys::eventfd::EventFd::from_value_and_flags(0, flags) {
        Ok(event) => Some(event.into()),
        Err(error) => {
            log::error!("no eventfd for the network's stand-in thread: {error}");
            None
        }
    }
}

fn kick(event: Option<&OwnedFd>) {
    if let Some(event) = event {
        let _ = crate::io::host_write(event.as_fd(), &1u64.to_ne_bytes(), None);
    }
}

/// Starts the stand-in thread, which ends when the stack does.
pub(super) fn start(stack: &Arc<Stack>) {
    let taps: Vec<Arc<Tap>> = stack.interfaces.devices().iter().filter_map(|one| one.tap.clone()).collect();
    if let Some(event) = eventfd() {
        let _ = stack.poller.kick.set(event); // interfaces are attached once
    }
    let weak = stack.me.clone();
    let thread = std::thread::Builder::new().name("net".into()).stack_size(256 << 10);
    if let Err(error) = thread.spawn(move || stand_in(&weak, &taps)) {
        log::error!("no network thread, packets wait for a task that waits: {error}");
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        kick(self.kick.get());
    }
}

fn stand_in(weak: &Weak<Stack>, taps: &[Arc<Tap>]) {
    let _ = nix::sys::prctl::set_timerslack(1);
    // A descriptor of its own, so that the stack may end while this thread waits.
    let own_kick = weak.upgrade().and_then(|stack| stack.poller.kick.get()?.try_clone().ok());
    let (mut last, mut quiet) = ((0, false), IDLE);
    loop {
        let Some(stack) = weak.upgrade() else { return };
        let poller = &stack.poller;
        let now = (poller.turns.load(Ordering::SeqCst), poller.taken.load(Ordering::SeqCst));
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        if !now.1
            && quiet > 0
            && let Some(mut buffer) = poller.buffer.try_lock()
        {
            while stack.drain(stack.interfaces.devices(), &mut buffer) {}
        }
        if quiet < IDLE {
            drop(stack);
            std::thread::sleep(GRACE);
            continue;
        }
        poller.stand_in.store(if now.1 { PARKED } else { WAITS }, Ordering::SeqCst);
        // A poller that came or went before the store saw nobody to wake.
        if now != (poller.turns.load(Ordering::SeqCst), poller.taken.load(Ordering::SeqCst)) {
            poller.stand_in.store(LOOKS, Ordering::SeqCst);
            continue;
        }
        drop(stack);
        let watched = if now.1 { &[] } else { taps };
        let (_, kicked) = wait_readable(watched.iter().map(|tap| &**tap), own_kick.as_ref().map(AsFd::as_fd), None);
        if kicked && let Some(event) = &own_kick {
            let _ = crate::io::host_read(event.as_fd(), &mut [0; 8], None);
        }
    }
}
