//! Where a program's parts go, and their mapping.
//!
//! ```text
//! 0x7ffffffff000  stack (random below the top), gap of at least 128 MiB
//!                 mmap_base: interpreter, then what the program maps, downwards; a static PIE without interpreter too
//! 0x555555554000  a PIE (random above), its heap behind it
//! as linked       an ET_EXEC program, its heap behind it
//! ```

use std::ops::Range;
use std::sync::Arc;

use super::elf::{PF_R, PF_W, PF_X, Phdr, Program};
use super::{CommitArgs, Prepared, stack};
use crate::errno::{Errno, Result, check};
use crate::platform::UserThread;
use crate::sentry::mm::area::{Area, AreaFlags, PROT_ALL};
use crate::sentry::mm::user::{PAGE, write_all};
use crate::sentry::mm::{Layout, MMAP_MIN_ADDR, MemoryManager, page_down, page_up};
use crate::vfs::file::OpenFile;

/// Random bits, in pages, of the stack's top: 16 GiB.
const STACK_BITS: u32 = 22;
/// Random bits, in pages, of the mapping area and of a PIE's place: 1 TiB.
const MMAP_BITS: u32 = 28;
/// How far the heap may begin behind the program.
const BRK_SPREAD: u64 = 32 << 20;
/// The most of a stack that is mapped at once; beyond that it grows on faults. A fault of a mapped page is the host's and
/// costs a twentieth of one that the sentry answers.
const STACK_MAPPED: u64 = 8 << 20;
/// The least.
const STACK_LEAST: u64 = 256 << 10;

/// Random numbers for one program: one call to the host.
pub struct Random([u8; 128], usize);

impl Random {
    fn new() -> Result<Random> {
        let mut bytes = [0; 128];
        // SAFETY: valid for writes of its length.
        let n = check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as i64)?;
        if n as usize == bytes.len() { Ok(Random(bytes, 16)) } else { Err(Errno::EIO) }
    }

    fn draw(&mut self) -> u64 {
        let word = self.0.get(self.1..self.1 + 8).and_then(|word| word.try_into().ok()).unwrap_or([0; 8]);
        self.1 += 8;
        u64::from_ne_bytes(word)
    }

    fn pages(&mut self, bits: u32) -> u64 {
        (self.draw() & ((1 << bits) - 1)) * PAGE
    }
}

/// Addresses that are decided before anything is mapped.
pub struct Plan {
    stack: Range<u64>,
    random: Random,
}

/// What the stack image needs to know.
pub struct Placed {
    /// The program's places (those of the stack are filled in later).
    pub layout: Layout,
    /// The stack's area.
    pub stack: Range<u64>,
    /// `AT_PHDR`.
    pub phdr: u64,
    /// `AT_BASE`: where the interpreter is.
    pub base: u64,
    /// `AT_ENTRY`.
    pub entry: u64,
    /// Where execution begins.
    pub start: u64,
    /// `AT_SYSINFO_EHDR`.
    pub vdso: u64,
    /// `AT_RANDOM`'s bytes.
    pub random: [u8; 16],
    /// By how much the stack pointer is moved within its page or two.
    pub jitter: u64,
}

impl Plan {
    /// Draws the stack's place and with it the mapping area's top.
    pub fn new(mm: &MemoryManager, prepared: &Prepared, args: &CommitArgs<'_>) -> Result<Plan> {
        let mut random = Random::new()?;
        let limit = prepared.limits.stack;
        let needed = stack::size_bound(prepared, args) + (128 << 10);
        let size = page_up(limit.clamp(STACK_LEAST, STACK_MAPPED).max(needed)).ok_or(Errno::E2BIG)?;
        let all = mm.range();
        // The vDSO is where the host put it: the stack keeps clear of it.
        let stack = (0..8)
            .map(|_| if args.randomize { random.pages(STACK_BITS) } else { 0 })
            .chain((1..64).map(|step| step << 30))
            .filter_map(|down| {
                let end = all.end.checked_sub(down)?;
                Some(end.checked_sub(size)?..end)
            })
            .find(|stack| mm.is_free(&(stack.start.saturating_sub(1 << 20)..stack.end)))
            .ok_or(Errno::ENOMEM)?;
        let spread = (1 << STACK_BITS) * PAGE;
        let gap = limit.saturating_add(spread + (1 << 20)).clamp(128 << 20, all.end / 6 * 5);
        let drawn = if args.randomize { random.pages(MMAP_BITS) } else { 0 };
        mm.set_mmap_base(all.end.saturating_sub(gap).saturating_sub(drawn).min(stack.start));
        Ok(Plan { stack, random })
    }

    /// Maps program, interpreter and stack.
    pub fn map(
        mut self,
        thread: &mut dyn UserThread,
        mm: &MemoryManager,
        prepared: &Prepared,
        args: &CommitArgs<'_>,
    ) -> Result<Placed> {
        let program = &prepared.program;
        let bias = self.program_bias(mm, program, prepared.interpreter.is_some(), args.randomize)?;
        let mut layout = map_program(thread, mm, &prepared.exe, program, bias, args.read_implies_exec)?;
        let entry = program.entry.wrapping_add(bias);
        let (mut start, mut base) = (entry, 0);
        if let Some((file, interpreter)) = &prepared.interpreter {
            base = self.interpreter_bias(mm, interpreter)?;
            map_program(thread, mm, file, interpreter, base, args.read_implies_exec)?;
            start = interpreter.entry.wrapping_add(base);
        }
        if !mm.range().contains(&start) {
            return Err(Errno::EINVAL);
        }
        self.place_heap(mm, &mut layout, program, prepared.interpreter.is_some(), args.randomize);
        let exec = if program.exec_stack || args.read_implies_exec { libc::PROT_EXEC } else { 0 };
        let prot = libc::PROT_READ | libc::PROT_WRITE | exec;
        let flags = AreaFlags::GROWSDOWN | AreaFlags::NORESERVE;
        mm.load_area(thread, Area::anonymous(self.stack.clone(), prot, flags))?;
        let mut random = [0; 16];
        random.copy_from_slice(&self.random.0[..16]);
        Ok(Placed {
            layout,
            stack: self.stack.clone(),
            phdr: if program.phdr == 0 { 0 } else { program.phdr.wrapping_add(bias) },
            base,
            entry,
            start,
            vdso: mm.space().vdso().1,
            random,
            jitter: if args.randomize { self.random.draw() % 8192 } else { 0 },
        })
    }

    /// What is added to the program's addresses.
    fn program_bias(&mut self, mm: &MemoryManager, program: &Program, interpreted: bool, random: bool) -> Result<u64> {
        let extent = extent(program)?;
        if !program.movable {
            let range = extent.0;
            return if mm.is_free(&range) { Ok(0) } else { Err(Errno::EEXIST) };
        }
        let (range, align) = extent;
        let at = if interpreted {
            let base = page_down(mm.range().end / 3 * 2) + if random { self.random.pages(MMAP_BITS) } else { 0 };
            base & !(align - 1)
        } else {
            place(mm, &range, align)?
        };
        Ok(at.wrapping_sub(range.start))
    }

    fn interpreter_bias(&mut self, mm: &MemoryManager, program: &Program) -> Result<u64> {
        let (range, align) = extent(program)?;
        if !program.movable {
            return if mm.is_free(&range) { Ok(0) } else { Err(Errno::EEXIST) };
        }
        Ok(place(mm, &range, align)?.wrapping_sub(range.start))
    }

    /// The heap begins behind the program; that of a program in the mapping area where a PIE would be, so that it has room.
    fn place_heap(
        &mut self,
        mm: &MemoryManager,
        layout: &mut Layout,
        program: &Program,
        interpreted: bool,
        random: bool,
    ) {
        if random && program.movable && !interpreted {
            layout.brk = page_down(mm.range().end / 3 * 2);
        }
        if random {
            layout.brk = layout.brk.saturating_add(page_down(self.random.draw() % BRK_SPREAD));
        }
        layout.start_brk = layout.brk;
    }
}

/// A place for `range` in the mapping area.
fn place(mm: &MemoryManager, range: &Range<u64>, align: u64) -> Result<u64> {
    let len = (range.end - range.start).checked_add(align - PAGE).ok_or(Errno::ENOMEM)?;
    let at = mm.find_place(len)?;
    at.checked_next_multiple_of(align).ok_or(Errno::ENOMEM)
}

/// The pages that all segments take up, and the alignment they ask for. `EINVAL` for what cannot be mapped anywhere.
fn extent(program: &Program) -> Result<(Range<u64>, u64)> {
    let mut range: Option<Range<u64>> = None;
    let mut align = PAGE;
    for segment in &program.segments {
        let end = segment.vaddr.checked_add(segment.memsz).and_then(page_up).ok_or(Errno::EINVAL)?;
        let start = page_down(segment.vaddr);
        range = Some(range.map_or(start..end, |range| range.start.min(start)..range.end.max(end)));
        if segment.align.is_power_of_two() {
            align = align.max(segment.align);
        }
    }
    let range = range.filter(|range| !range.is_empty()).ok_or(Errno::EINVAL)?;
    Ok((range, align))
}

/// Maps the segments of one file, `bias` added to their addresses. Returns where its code, data and end are.
fn map_program(
    thread: &mut dyn UserThread,
    mm: &MemoryManager,
    file: &Arc<OpenFile>,
    program: &Program,
    bias: u64,
    read_implies_exec: bool,
) -> Result<Layout> {
    let backing = mm.private_backing(file)?;
    let mut layout = Layout { start_code: u64::MAX, ..Layout::default() };
    for segment in &program.segments {
        let at = segment.vaddr.wrapping_add(bias);
        if segment.filesz > segment.memsz {
            return Err(Errno::EINVAL);
        }
        let (file_end, end) = (at.checked_add(segment.filesz), at.checked_add(segment.memsz));
        let (Some(file_end), Some(end)) = (file_end, end) else { return Err(Errno::EINVAL) };
        if end > mm.range().end || at < mm.range().start.max(MMAP_MIN_ADDR) {
            return Err(Errno::EINVAL);
        }
        let prot = protection(segment.flags, read_implies_exec);
        let span = Span { at, file_end, end, prot };
        map_segment(thread, mm, &backing, segment, &span)?;
        if segment.flags & PF_X != 0 {
            layout.start_code = layout.start_code.min(at);
            layout.end_code = layout.end_code.max(file_end);
        }
        layout.start_data = layout.start_data.max(at);
        layout.end_data = layout.end_data.max(file_end);
        layout.brk = layout.brk.max(page_up(end).unwrap_or(end));
    }
    layout.start_code = layout.start_code.min(layout.end_code);
    Ok(layout)
}

/// Where one segment goes.
struct Span {
    at: u64,
    file_end: u64,
    end: u64,
    prot: i32,
}

/// Maps the file's part, clears the rest of its last page, and maps zeros behind.
fn map_segment(
    thread: &mut dyn UserThread,
    mm: &MemoryManager,
    backing: &Area,
    segment: &Phdr,
    span: &Span,
) -> Result<()> {
    let start = page_down(span.at);
    let mut zeros = start;
    if segment.filesz > 0 {
        let offset = segment.offset.checked_sub(span.at - start).ok_or(Errno::EINVAL)?;
        let end = page_up(span.file_end).ok_or(Errno::EINVAL)?;
        let fits = offset.is_multiple_of(PAGE) && offset.checked_add(end - start).is_some_and(|e| e <= i64::MAX as u64);
        if !fits {
            return Err(Errno::EINVAL);
        }
        mm.load_area(thread, Area { start, end, offset, prot: span.prot, ..backing.clone() })?;
        if span.end > span.file_end && span.prot & libc::PROT_WRITE != 0 && end > span.file_end {
            let blank = [0u8; PAGE as usize];
            write_all(&**mm.space(), span.file_end, &blank[..(end - span.file_end) as usize])?;
        }
        zeros = end;
    }
    let end = page_up(span.end).ok_or(Errno::EINVAL)?;
    if zeros < end {
        mm.load_area(thread, Area::anonymous(zeros..end, span.prot, AreaFlags::empty()))?;
    }
    Ok(())
}

fn protection(flags: u32, read_implies_exec: bool) -> i32 {
    let mut prot = 0;
    for (flag, bit) in [(PF_R, libc::PROT_READ), (PF_W, libc::PROT_WRITE), (PF_X, libc::PROT_EXEC)] {
        if flags & flag != 0 {
            prot |= bit;
        }
    }
    if read_implies_exec && prot & libc::PROT_READ != 0 { prot | libc::PROT_EXEC } else { prot & PROT_ALL }
}
