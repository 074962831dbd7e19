//! `prctl(2)`'s memory operations, and copies between two memories (`process_vm_readv(2)`).

use std::sync::Arc;

use super::area::Backing;
use super::user::PAGE;
use super::{Layout, MemoryManager, page_up};
use crate::errno::{Errno, Result};

/// How long the name of an area may be, its NUL included: `PR_SET_VMA_ANON_NAME`.
pub const NAME_MAX: usize = 80;

impl MemoryManager {
    /// `PR_SET_VMA_ANON_NAME`; `None` takes a name away. `EINVAL`, `ENOMEM` (a hole), `EBADF` (a file's mapping).
    pub fn set_name(&self, addr: u64, len: u64, name: Option<&[u8]>) -> Result<()> {
        let printable = |byte: &u8| matches!(byte, 0x20..=0x7e) && !b"\\`$[]".contains(byte);
        if name.is_some_and(|name| name.len() >= NAME_MAX || !name.iter().all(printable)) {
            return Err(Errno::EINVAL);
        }
        if !addr.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let end = page_up(len).and_then(|len| addr.checked_add(len)).ok_or(Errno::ENOMEM)?;
        if end == addr {
            return Ok(());
        }
        let range = addr..end;
        let name: Option<Arc<[u8]>> = name.filter(|name| !name.is_empty()).map(Arc::from);
        let mut inner = self.lock();
        let nameable = |backing: &Backing| matches!(backing, Backing::Anonymous | Backing::SharedAnonymous(_));
        let refused = inner.map.overlapping(&range).find(|area| !nameable(&area.backing)).map(|area| area.start);
        let reached = refused.map_or(end, |start| start.max(addr));
        let holes = !inner.map.is_covered(&(addr..reached));
        inner.map.update(&(addr..reached), |area| area.name.clone_from(&name));
        match (refused, holes) {
            (Some(_), _) => Err(Errno::EBADF),
            (None, true) => Err(Errno::ENOMEM),
            (None, false) => Ok(()),
        }
    }

    /// `PR_SET_MM` of one place (not `PR_SET_MM_AUXV`, `EXE_FILE`, `MAP`). The caller has `CAP_SYS_RESOURCE`. `EINVAL`.
    pub fn set_place(&self, option: i32, addr: u64) -> Result<()> {
        if addr >= self.range.end || addr < super::MMAP_MIN_ADDR {
            return Err(Errno::EINVAL);
        }
        let mut inner = self.lock();
        let mapped = inner.map.find(addr).is_some();
        let mut layout = inner.layout.clone();
        let place = place(&mut layout, option).ok_or(Errno::EINVAL)?;
        *place = addr;
        let ordered = layout.start_code < layout.end_code
            && layout.start_data <= layout.end_data
            && layout.start_brk <= layout.brk
            && layout.arg_start <= layout.arg_end
            && layout.env_start <= layout.env_end;
        // The heap's places need not be mapped; the others must be.
        let is_brk = (6..=7).contains(&option);
        if !ordered || !(mapped || is_brk) {
            return Err(Errno::EINVAL);
        }
        inner.layout = layout;
        Ok(())
    }

    /// `PR_SET_MM_AUXV`: pairs of words. `EINVAL` when too long.
    pub fn set_auxv(&self, words: &[u64]) -> Result<()> {
        if words.len() > 64 {
            return Err(Errno::EINVAL);
        }
        self.lock().auxv = words.to_vec();
        Ok(())
    }
}

/// The place that an option of `PR_SET_MM` sets.
fn place(layout: &mut Layout, option: i32) -> Option<&mut u64> {
    Some(match option {
        1 => &mut layout.start_code,
        2 => &mut layout.end_code,
        3 => &mut layout.start_data,
        4 => &mut layout.end_data,
        5 => &mut layout.start_stack,
        6 => &mut layout.start_brk,
        7 => &mut layout.brk,
        8 => &mut layout.arg_start,
        9 => &mut layout.arg_end,
        10 => &mut layout.env_start,
        11 => &mut layout.env_end,
        _ => return None,
    })
}

/// Copies from one memory to another, piece by piece: `process_vm_readv(2)` and `process_vm_writev(2)`. `from` and `to` are
/// `(address, length)` lists. Returns how much was copied; `EFAULT` when nothing could be.
pub fn copy_between(
    source: &MemoryManager,
    from: &[(u64, usize)],
    target: &MemoryManager,
    to: &[(u64, usize)],
) -> Result<u64> {
    let total = |parts: &[(u64, usize)]| parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.1 as u64));
    let want = total(from).min(total(to));
    let (mut from, mut to) = (Pieces::new(from), Pieces::new(to));
    let mut buf = vec![0u8; want.min(256 << 10) as usize];
    let mut done = 0;
    while done < want {
        let (Some((source_at, room)), Some((target_at, space))) = (from.peek(), to.peek()) else { break };
        let n = room.min(space).min(buf.len());
        let read = source.space.read(source_at, &mut buf[..n]);
        let copied = read.and_then(|n| target.space.write(target_at, &buf[..n]));
        match copied {
            Ok(0) => break,
            Ok(copied) => {
                from.advance(copied);
                to.advance(copied);
                done += copied as u64;
                if copied < n {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

struct Pieces<'a> {
    parts: &'a [(u64, usize)],
    used: usize,
}

impl<'a> Pieces<'a> {
    fn new(parts: &'a [(u64, usize)]) -> Pieces<'a> {
        Pieces { parts, used: 0 }
    }

    fn peek(&mut self) -> Option<(u64, usize)> {
        loop {
            let (&(addr, len), rest) = self.parts.split_first()?;
            if self.used < len {
                return Some((addr.wrapping_add(self.used as u64), len - self.used));
            }
            (self.parts, self.used) = (rest, 0);
        }
    }

    fn advance(&mut self, n: usize) {
        self.used += n;
    }
}
