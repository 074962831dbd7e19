//! Extended state of a thread that waits without a tracer.
//!
//! While it waits for the answer to a call, that state is in its registers: the stub stores it when told, and takes other
//! state when it goes on. While it waits in its signal handler, that state is in the signal's frame.

use std::sync::OnceLock;

use super::{Mode, TrapThread};
use crate::platform::ptrace::trace;
use crate::platform::systrap::context::{Context, Given, Stop, XSTATE_LEN};
use crate::platform::systrap::{hint, space};

/// What an image of the host's is like.
struct Format {
    /// Its length.
    len: usize,
    /// The components that it can have; all in the lower half.
    components: u32,
    /// What the host leaves for software in the area of `FXSAVE`.
    software: [u8; 48],
    /// `MXCSR_MASK`.
    mxcsr: u32,
}

static FORMAT: OnceLock<Option<Format>> = OnceLock::new();

const SOFTWARE: usize = 464;
const HEADER: usize = 512;
const HEADER_END: usize = 576;

fn u64_at(image: &[u8], at: usize) -> u64 {
    image.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn u32_at(image: &[u8], at: usize) -> u32 {
    u64_at(image, at) as u32
}

impl Format {
    /// `None` when there may be more than a context has room for: AMX has 8 KiB.
    fn of(image: &[u8]) -> Option<Format> {
        // The host tells which components there are in what it leaves for software.
        let components = u32::try_from(u64_at(image, SOFTWARE)).ok()?;
        let mask = match u32_at(image, 28) {
            // What `FXSAVE` stores where the processor says nothing.
            0 => 0xffbf,
            mask => mask,
        };
        let software = image.get(SOFTWARE..HEADER)?.try_into().ok()?;
        let fits = (HEADER_END..=XSTATE_LEN).contains(&image.len());
        fits.then_some(Format { len: image.len(), components, software, mxcsr: mask })
    }

    /// Whether a processor can restore it: `XRSTOR` raises a fault otherwise.
    fn accepts(&self, image: &[u8]) -> bool {
        image.len() == self.len
            && u32_at(image, 24) & !self.mxcsr == 0
            && u64_at(image, HEADER) & !u64::from(self.components) == 0
            && image[HEADER + 8..HEADER_END].iter().all(|&byte| byte == 0)
    }

    /// What the container may have written over is as the host would tell it.
    fn tidy(&self, image: &mut [u8]) {
        image[SOFTWARE..HEADER].copy_from_slice(&self.software);
        let present = u64_at(image, HEADER) & u64::from(self.components);
        image[HEADER..HEADER + 8].copy_from_slice(&present.to_ne_bytes());
        image[HEADER + 8..HEADER_END].fill(0);
    }
}

fn format() -> Option<&'static Format> {
    FORMAT.get().and_then(Option::as_ref)
}

/// Which components contexts are to have; `tid` is a traced thread. None where they have no room.
pub fn components(tid: i32) -> u32 {
    let format = FORMAT.get_or_init(|| Format::of(&trace::get_xstate(tid).ok()?));
    format.as_ref().map_or(0, |format| format.components)
}

impl TrapThread {
    /// Has the stub, which waits, do what `give` orders. Whether it has.
    pub(super) fn ordered(&self, give: impl FnOnce(&Context) -> Given) -> bool {
        let (Mode::Waiting(_), Some(context)) = (&self.mode, &self.context) else { return false };
        match give(context) {
            Given::Not => false,
            Given::Awake => space::finished(context, self.inner.tid),
            Given::Asleep(order) => space::finished_asleep(context, order, self.inner.tid),
        }
    }

    /// The extended state of a thread that waits. Costs a look of each processor at what the other has written, or two futex
    /// hand-overs, where stopping it takes 12 us and has it traced for a while.
    pub(super) fn xstate_free(&mut self) -> Option<Vec<u8>> {
        let (Mode::Waiting(stop), Some(format)) = (&self.mode, format()) else { return None };
        if let Some(image) = &self.pending {
            return Some(image.clone());
        }
        let mut image = vec![0; format.len];
        match stop {
            Stop::Signal => self.context.as_ref()?.load_signal()?.load_xstate(&mut image),
            Stop::Call if hint::stores_xstate(self.seen.orig_rax) => self.context.as_ref()?.read_xstate(&mut image),
            Stop::Call => {
                self.context.as_ref()?.write_xstate(&image[..HEADER_END]);
                if !self.ordered(|context| context.order_store()) {
                    return None;
                }
                let context = self.context.as_ref().filter(|context| context.succeeded())?;
                context.read_xstate(&mut image);
            }
        }
        format.tidy(&mut image);
        Some(image)
    }

    /// Has a thread that waits go on with this state. False when that takes a tracer.
    pub(super) fn set_xstate_free(&mut self, image: &[u8]) -> bool {
        let (Mode::Waiting(stop), Some(format)) = (&self.mode, format()) else { return false };
        let Some(context) = self.context.as_ref().filter(|context| !context.halted.get() && format.accepts(image))
        else {
            return false;
        };
        match stop {
            Stop::Signal => context.load_signal().is_some_and(|frame| frame.store_xstate(image)),
            Stop::Call => {
                self.pending = Some(image.to_vec());
                true
            }
        }
    }
}
