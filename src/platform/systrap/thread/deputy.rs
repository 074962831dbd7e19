//! A stub thread that maps and clones for a container thread which is free.
//!
//! Only what is traced may have the seal in its registers. To stop a free thread for a call of the sentry's costs 12 us and has
//! its next calls traced: 70 to 120 us in all, measured with twenty calls between two mappings. Its deputy is a thread of the
//! same process that is traced as long as it lives and never runs container code. It makes the call on the sentry thread's
//! CPU, at the price of two switches, while the free thread waits where it is.
//!
//! A thread gets one once it has changed its memory often: to make a deputy and to end it costs some 40 us and a thread of the
//! host, which a program that ends soon has no use for. When the thread ends and its process goes on, the deputy waits for
//! another thread, untraced and with nothing in its registers.

use std::sync::atomic::Ordering;

use super::{Mode, TrapThread, kept};
use crate::errno::Result;
use crate::platform::placement;

/// Changes after which a thread gets a deputy, counted in those that a traced thread makes: each of them would be made by the
/// thread itself, and costs no more.
const CHANGES: u32 = 64;

/// How many of those one change counts that the thread was stopped for.
const STOPPED: u32 = 16;

/// Calls between two changes below which the pair is better off on one CPU. A thread that looks on another has the host interrupt
/// that CPU to make it forget what was mapped, 17 to 35 us in a virtual machine; each call is 3 us cheaper.
const APART: u32 = 12;

/// The host's thread.
pub(super) struct Deputy {
    tid: i32,
    /// The host's number of the CPU that it is pinned to.
    pinned: Option<usize>,
    /// The thread's stint when it was last used.
    used: u32,
    /// Whether that was soon after the time before.
    is_busy: bool,
}

impl TrapThread {
    /// Sees to it that the stub makes calls of the sentry's: by the deputy while the thread is free, itself otherwise, traced
    /// from then on. True when the thread goes on waiting.
    pub(super) fn lend_a_hand(&mut self) -> Result<bool> {
        let waits = matches!(self.mode, Mode::Waiting(_));
        if let Some(deputy) = &mut self.deputy {
            if !waits {
                return Ok(false);
            }
            if self.context.as_ref().is_some_and(|context| !context.halted.get()) {
                deputy.come(placement::pinned());
                let calls = self.stint.wrapping_sub(deputy.used);
                (deputy.used, deputy.is_busy) = (self.stint, calls < APART);
                self.inner.deputy = Some(deputy.tid);
                return Ok(true);
            }
        }
        self.call_back()?;
        self.changes += if waits { STOPPED } else { 1 };
        if self.deputy.is_none() {
            self.hire();
        }
        Ok(false)
    }

    /// Gives the thread a deputy if it is time.
    fn hire(&mut self) {
        let waiting = kept(&self.inner.space.process).and_then(|contexts| contexts.deputies.take());
        if waiting.is_some() || self.changes >= CHANGES {
            self.changes = 0;
            match self.inner.hire(waiting) {
                Ok(tid) => self.deputy = Some(Deputy { tid, pinned: None, used: 0, is_busy: false }),
                Err(error) => log::debug!("a thread has no deputy: {error}"),
            }
        }
    }

    /// The same, for a clone: the extended state that the new thread is to have, unless it has its parent's anyway.
    pub(super) fn prepare_clone(&mut self) -> Result<Option<Vec<u8>>> {
        if self.lend_a_hand()? {
            let xstate = self.xstate_free();
            if xstate.is_some() {
                return Ok(xstate);
            }
            self.call_back()?;
        }
        Ok(None)
    }

    /// Ends the deputy; with `keep` it waits for another thread of the process, if there are not many that do.
    pub(super) fn dismiss(&mut self, keep: bool) {
        self.changes = 0;
        let Some(deputy) = self.deputy.take() else { return };
        let process = self.inner.space.process.clone();
        let contexts = kept(&process).filter(|contexts| keep && contexts.deputies.has_room());
        match contexts {
            Some(contexts) if self.inner.release(deputy.tid) => {
                // A process that has such threads is not used for another program.
                process.has_resting.store(true, Ordering::SeqCst);
                contexts.deputies.put(deputy.tid);
            }
            _ => self.inner.dismiss(deputy.tid),
        }
    }
}

impl Deputy {
    /// Whether it was last used for two changes in close succession; told once.
    pub(super) fn was_busy(&mut self) -> bool {
        std::mem::take(&mut self.is_busy)
    }

    /// To the calling thread's CPU: what runs elsewhere is woken there, which takes 25 us and more.
    fn come(&mut self, cpu: Option<usize>) {
        if let Some(cpu) = cpu
            && self.pinned.replace(cpu) != Some(cpu)
        {
            placement::pin_thread(self.tid, &[cpu]);
        }
    }
}
