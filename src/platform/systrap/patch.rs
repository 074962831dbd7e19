//! Call sites that are rewritten, so that the next call goes to the stub with no signal.
//!
//! A `syscall` instruction is two bytes; a jump to anywhere within 2 GiB is five. Two shapes have room:
//!
//! ```text
//! before:  b8 27 00 00 00   mov $39,%eax         ──▶  e9 .. .. .. ..   jmp slot
//!          31 ff            xor %edi,%edi             31 ff            (untouched, as any number of such)
//!          0f 05            syscall                   0f 05            (untouched)
//!
//! behind:  0f 05            syscall              ──▶  e9 .. cc .. ..   jmp slot
//!          48 3d 01 f0 ...  cmp $-4095,%rax           .. (the rest of the instruction is never reached)
//! ```
//!
//! In the first, one whole instruction before the call makes room: nobody can be in its middle, and what is between it and
//! the call, which a slot has a copy of, still works for whoever is there or jumps there, as does the call. In the second, the
//! instructions behind the call are displaced; somebody may come to them from elsewhere, or from a call that was under way.
//! The slot's place is chosen so that the jump's byte there is `cc`: the trap tells, and the thread goes on in the slot's copy.
//!
//! A **slot** does the displaced instruction's work and enters the stub:
//!
//! ```text
//! [displaced]; lea back(%rip),%rcx; mov $ENTRY,%r11d; jmp *%r11;  tail: [displaced]; jmp back
//! ```
//!
//! Only code of files that is mapped private and not writable is rewritten: the host then copies the page, and the file, its
//! other mappings and other processes see nothing. Code made by the program (JIT) is left alone. What the container does to
//! the memory of a site (unmap, protect, move) first puts the site's own bytes back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::code;
use super::shape::{self, Shape};
use crate::errno::{Errno, Result};

/// Bytes of a slot.
pub const SLOT: u64 = 48;

/// Bytes of the address range that slots are made in: whatever the distance's second byte is to be, there is a place.
pub const ROOM: u64 = 0x1_0000;

/// The byte of a jump at which threads arrive that come behind the call.
const TRAP: u8 = 0xcc;

/// How far a slot may be: a jump's reach, less what a site and its slot are long.
const REACH: u64 = (1 << 31) - 0x1000;

/// How many sites are remembered as not to be rewritten.
const REFUSED: usize = 4096;

/// A rewritten site.
#[derive(Clone)]
pub struct Site {
    /// What was there, eight bytes from the first one that is changed.
    original: [u8; 8],
    /// How many of them are changed.
    len: usize,
    /// Behind the call.
    back: u64,
    /// Behind all that the slot does in place of the program.
    end: u64,
    slot: u64,
    /// Where the slot goes on behind the call, if not in the program's own code.
    tail: Option<u64>,
}

/// A range in which slots are.
#[derive(Clone)]
struct Room {
    start: u64,
    used: Vec<bool>,
}

impl Room {
    fn range(&self) -> Range<u64> {
        self.start..self.start + ROOM
    }

    fn reaches(&self, site: u64) -> bool {
        self.start.abs_diff(site) < REACH && (self.start + ROOM).abs_diff(site) < REACH
    }

    /// A free slot from which on `fits` says yes.
    fn find(&self, fits: impl Fn(u64) -> bool) -> Option<usize> {
        let places = self.used.iter().enumerate().filter(|(_, used)| !**used);
        places.map(|(index, _)| index).find(|&index| fits(self.start + index as u64 * SLOT))
    }
}

/// What is known of one memory's sites.
#[derive(Clone, Default)]
pub struct Patches {
    /// Code of files, mapped private and not writable.
    texts: Vec<Range<u64>>,
    rooms: Vec<Room>,
    sites: BTreeMap<u64, Site>,
    tails: HashMap<u64, u64>,
    refused: HashSet<u64>,
    /// A room near here is wanted.
    wanted: Option<Range<u64>>,
}

/// Writes eight bytes of a program's memory, whatever its protection.
pub trait Poke {
    /// Stores `bytes` at `addr`.
    fn poke(&mut self, addr: u64, bytes: [u8; 8]) -> Result<()>;

    /// Fills `bytes` from `addr` on, as far as there is memory.
    fn peek(&mut self, addr: u64, bytes: &mut [u8]) -> usize;

    /// Whether other threads may be running in the memory.
    fn is_shared(&self) -> bool;
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Patches {
    /// A file's code is mapped here now.
    pub fn enter_text(&mut self, range: Range<u64>) {
        self.texts.push(range);
    }

    /// Whether the container's code could be anything of ours: cheap, for every stop.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// Whether `addr` is in a slot.
    pub fn is_slot(&self, addr: u64) -> bool {
        self.rooms.iter().any(|room| room.range().contains(&addr))
    }

    /// Where the container is when its stub is to go on at `rip`.
    pub fn seen_from_outside(&self, rip: u64) -> u64 {
        let site = self.tails.get(&rip).and_then(|start| self.sites.get(start));
        site.map_or(rip, |site| site.back)
    }

    /// Where the call is that a thread makes in a slot: it is to go on at `back`, in its slot or behind the call.
    pub fn call_before(&self, back: u64) -> Option<u64> {
        let back = self.seen_from_outside(back);
        let (_, site) = self.sites.range(..back).next_back()?;
        (site.back == back).then_some(back - 2)
    }

    /// Where the stub has to go on for the container to be at `rip`.
    pub fn seen_from_inside(&self, rip: u64) -> u64 {
        if self.sites.is_empty() {
            return rip;
        }
        self.sites.get(&rip.wrapping_sub(2)).and_then(|site| site.tail).unwrap_or(rip)
    }

    /// Where a thread goes on that has met one of our `int3`, whose end is `rip`.
    pub fn trapped(&self, rip: u64) -> Option<u64> {
        if let Some(site) = self.sites.get(&rip.wrapping_sub(1)) {
            return Some(site.slot);
        }
        // In the middle of a jump that begins three bytes before.
        self.sites.get(&rip.wrapping_sub(3)).and_then(|site| site.tail)
    }

    /// Takes the wish for a room.
    pub fn take_wish(&mut self) -> Option<Range<u64>> {
        self.wanted.take()
    }

    /// There is a room of [`ROOM`] bytes at `start`, mapped readable and executable.
    pub fn enter_room(&mut self, start: u64) {
        self.rooms.push(Room { start, used: vec![false; (ROOM / SLOT) as usize] });
    }

    /// Whether there is anything to be gained by trying to rewrite the site of the call that ends at `back`.
    pub fn may_rewrite(&self, back: u64) -> bool {
        !self.refused.contains(&back) && self.texts.iter().any(|text| text.contains(&back))
    }

    /// Rewrites the site of the call that ends at `back`, if it has a shape that can be. Whether it was or is.
    pub fn rewrite(&mut self, memory: &mut dyn Poke, back: u64, number: u64) -> Result<bool> {
        if self.refused.contains(&back) {
            return Ok(false);
        }
        let Some(text) = self.texts.iter().find(|text| text.contains(&back)).cloned() else { return Ok(false) };
        let Some(shape) = Self::look(memory, &text, back, number) else {
            if self.refused.len() < REFUSED {
                self.refused.insert(back);
            }
            return Ok(false);
        };
        if self.sites.contains_key(&shape.start) {
            return Ok(true);
        }
        let Some((room, index)) = self.find_slot(&shape) else {
            self.wanted = Some(text);
            return Ok(false);
        };
        let slot = self.rooms[room].start + index as u64 * SLOT;
        let (image, tail) = slot_image(&shape, slot, back).ok_or(Errno::ERANGE)?;
        for (at, bytes) in image.chunks_exact(8).enumerate() {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            memory.poke(slot + at as u64 * 8, word)?;
        }
        self.rooms[room].used[index] = true;
        let mut original = [0; 8];
        if memory.peek(shape.start, &mut original) < 8 {
            return Ok(false);
        }
        let changed = jump(&shape, slot, original).ok_or(Errno::ERANGE)?;
        let (start, len) = (shape.start, shape.len);
        let end = if shape.behind { back + shape.displaced.len() as u64 } else { back };
        self.tails.extend(tail.map(|tail| (tail, start)));
        self.sites.insert(start, Site { original, len, back, end, slot, tail });
        write(memory, start, original, changed)?;
        Ok(true)
    }

    fn look(memory: &mut dyn Poke, text: &Range<u64>, back: u64, number: u64) -> Option<Shape> {
        let before = (back - text.start).min(shape::BEFORE as u64) as usize;
        let behind = (text.end - back).min(shape::BEHIND as u64) as usize;
        let mut bytes = vec![0; before + behind];
        if memory.peek(back - before as u64, &mut bytes) < bytes.len() {
            return None;
        }
        let shape = shape::find(&bytes, before, back, number)?;
        // The eight bytes that are written at once.
        (text.contains(&shape.start) && shape.start + 8 <= text.end).then_some(shape)
    }

    fn find_slot(&self, shape: &Shape) -> Option<(usize, usize)> {
        let reachable = self.rooms.iter().enumerate().filter(|(_, room)| room.reaches(shape.start));
        for (at, room) in reachable {
            let behind = shape.behind;
            let fits = |slot: u64| !behind || (distance(shape, slot) >> 8) as u8 == TRAP;
            if let Some(index) = room.find(fits) {
                return Some((at, index));
            }
        }
        None
    }

    /// The container is about to change what is mapped in `range`. `gone`: its bytes go away by that; otherwise they are put
    /// back before.
    pub fn leave(&mut self, memory: &mut dyn Poke, range: &Range<u64>, gone: bool) {
        if !self.texts.is_empty() {
            self.cut_texts(range);
        }
        if self.sites.is_empty() && self.rooms.is_empty() || range.is_empty() {
            return;
        }
        let near = range.start.saturating_sub(shape::BEFORE as u64)..range.end;
        let touched = |start: u64, site: &Site| overlap(range, &(start..site.end));
        let mut starts: Vec<u64> =
            self.sites.range(near).filter(|(start, site)| touched(**start, site)).map(|(start, _)| *start).collect();
        let lost: Vec<Range<u64>> = self.rooms.iter().map(Room::range).filter(|room| overlap(room, range)).collect();
        if !lost.is_empty() {
            let in_lost = |site: &Site| lost.iter().any(|room| room.contains(&site.slot));
            starts.extend(self.sites.iter().filter(|(_, site)| in_lost(site)).map(|(start, _)| *start));
        }
        for start in starts {
            let Some(site) = self.sites.remove(&start) else { continue };
            if let Some(tail) = site.tail {
                self.tails.remove(&tail);
            }
            if gone && range.contains(&start) {
                continue;
            }
            let mut now = [0; 8];
            let mut back = now;
            if memory.peek(start, &mut now) == 8 {
                back[..site.len].copy_from_slice(&site.original[..site.len]);
                back[site.len..].copy_from_slice(&now[site.len..]);
                let _ = write(memory, start, now, back);
            }
        }
        self.rooms.retain(|room| !overlap(&room.range(), range));
    }

    fn cut_texts(&mut self, range: &Range<u64>) {
        let mut rest = Vec::with_capacity(self.texts.len());
        for text in self.texts.drain(..) {
            if !overlap(&text, range) {
                rest.push(text);
                continue;
            }
            rest.extend(
                [text.start..range.start, range.end..text.end].into_iter().filter(|part| part.start < part.end),
            );
        }
        self.texts = rest;
        self.refused.retain(|back| !range.contains(back));
    }
}

/// The jump's distance.
fn distance(shape: &Shape, slot: u64) -> u32 {
    slot.wrapping_sub(shape.start + 5) as u32
}

/// The site with the jump in it. `None` when that does not reach.
fn jump(shape: &Shape, slot: u64, mut bytes: [u8; 8]) -> Option<[u8; 8]> {
    bytes[0] = 0xe9;
    bytes[1..5].copy_from_slice(&relative(shape.start + 5, slot)?);
    // One instruction of more than five bytes: nobody comes to its rest.
    if !shape.behind {
        bytes[5..shape.len].fill(0x90);
    }
    Some(bytes)
}

fn relative(from: u64, to: u64) -> Option<[u8; 4]> {
    i32::try_from(to.wrapping_sub(from) as i64).ok().map(i32::to_le_bytes)
}

/// The code of a slot, and where its tail is.
fn slot_image(shape: &Shape, slot: u64, back: u64) -> Option<([u8; SLOT as usize], Option<u64>)> {
    let mut code = Vec::with_capacity(SLOT as usize);
    let here = |code: &Vec<u8>| slot + code.len() as u64;
    if !shape.behind {
        code.extend_from_slice(&shape.displaced);
    }
    // lea to(%rip),%rcx; mov $ENTRY,%r11d; jmp *%r11
    let (lea, enter) = (7, 9);
    let tail = slot + lea + enter;
    let to = if shape.behind { tail } else { back };
    let from = here(&code) + lea;
    code.extend_from_slice(&[0x48, 0x8d, 0x0d]);
    code.extend_from_slice(&relative(from, to)?);
    code.extend_from_slice(&[0x41, 0xbb]);
    code.extend_from_slice(&(code::entry() as u32).to_le_bytes());
    code.extend_from_slice(&[0x41, 0xff, 0xe3]);
    if shape.behind {
        code.extend_from_slice(&shape.displaced);
        code.push(0xe9);
        let from = here(&code) + 4;
        code.extend_from_slice(&relative(from, back + shape.displaced.len() as u64)?);
    }
    let mut image = [0xcc; SLOT as usize];
    image.get_mut(..code.len())?.copy_from_slice(&code);
    Some((image, shape.behind.then_some(tail)))
}

/// Changes eight bytes of code. While other threads may come along, the first byte is a trap until the others are in place;
/// each step is a host call, which is more time than a processor takes for an instruction that it has begun to fetch.
fn write(memory: &mut dyn Poke, at: u64, old: [u8; 8], new: [u8; 8]) -> Result<()> {
    if memory.is_shared() {
        let mut step = old;
        step[0] = TRAP;
        memory.poke(at, step)?;
        step = new;
        step[0] = TRAP;
        memory.poke(at, step)?;
    }
    memory.poke(at, new)
}
