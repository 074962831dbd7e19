//! How a stub process comes to show its program's name and arguments on the host: `PR_SET_NAME` and `PR_SET_MM_MAP`,
//! `prctl(2)`, both in one visit.
//!
//! The second tells the host's kernel where in the memory the arguments are, so that `/proc/PID/cmdline` is what the
//! program's memory holds there: a title that the program writes over them later (`setproctitle(3)`) shows as well. Without
//! a file for `/proc/PID/exe` it takes no privilege. It sets all places at once; those that are of no use here, code, data
//! and heap, are set to the stub's page, which is the one thing that is always mapped.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{Errno, Result};
use crate::platform::Title;
use crate::platform::ptrace::stub::{PAGE, STUB};
use crate::seccomp::stub::TITLE_MAP_SIZE;

/// How many bytes of a name count, its NUL included: `TASK_COMM_LEN`.
const NAME: usize = 16;

/// `struct prctl_mm_map`, linux/prctl.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Map {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

const _: () = assert!(size_of::<Map>() as u64 == TITLE_MAP_SIZE);

/// Name and map, as they are stored in the stub's memory.
type Stored = [u8; NAME + TITLE_MAP_SIZE as usize];

static IMPOSSIBLE: AtomicBool = AtomicBool::new(false);

/// Whether the host has not refused it before.
pub fn is_possible() -> bool {
    !IMPOSSIBLE.load(Ordering::Relaxed)
}

/// The host refuses: a kernel without `CONFIG_CHECKPOINT_RESTORE` says `EINVAL`. It is not asked again.
pub fn failed(error: Errno) {
    if matches!(error, Errno::EINVAL | Errno::EPERM) && !IMPOSSIBLE.swap(true, Ordering::Relaxed) {
        log::debug!("the host's tools do not show the container's command lines: PR_SET_MM_MAP: {error}");
    }
}

/// What is stored where, and the calls that have the host look at it there. `EINVAL` when there is no room.
#[allow(clippy::type_complexity, reason = "read once, at the one call")]
pub fn calls(title: &Title<'_>) -> Result<(u64, Stored, [(i64, [u64; 5]); 2])> {
    let at = title.stack.checked_sub(Title::ROOM).ok_or(Errno::EINVAL)? & !15;
    let (page, page_end) = (STUB, STUB + PAGE as u64);
    let map = Map {
        start_code: page,
        end_code: page_end,
        start_data: page,
        end_data: page,
        start_brk: page_end,
        brk: page_end,
        start_stack: title.stack,
        arg_start: title.args.start,
        arg_end: title.args.end,
        env_start: title.env.start,
        env_end: title.env.end,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    let mut stored = [0; NAME + TITLE_MAP_SIZE as usize];
    let shown = title.name.len().min(NAME - 1);
    stored[..shown].copy_from_slice(&title.name[..shown]);
    stored[NAME..].copy_from_slice(&bytes(map));
    let name = [libc::PR_SET_NAME as u64, at, 0, 0, 0];
    let places = [libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, at + NAME as u64, TITLE_MAP_SIZE, 0];
    Ok((at, stored, [(libc::SYS_prctl, name), (libc::SYS_prctl, places)]))
}

fn bytes(map: Map) -> [u8; TITLE_MAP_SIZE as usize] {
    // SAFETY: integers without padding between or behind them, eleven words, one more and two halves.
    unsafe { std::mem::transmute(map) }
}
