//! What the sentry reads from a stub, filled with anything: pseudo-random, and the same at each run.

use super::*;
use crate::platform::Regs;
use crate::platform::ptrace::thread::zero_regs;
use crate::platform::systrap::arena::Arena;
use crate::platform::systrap::context::{self, Context};
use crate::platform::systrap::patch::{Patches, Poke, ROOM, SLOT};
use crate::platform::systrap::shape;

const ROUNDS: usize = 20_000;

/// A context and its memory.
fn scratch(arena: &Arc<Arena>) -> (Context, *mut u8) {
    let slab = arena.take().unwrap();
    let start = slab.start();
    (Context::new(slab, 3, true), start)
}

fn put(start: *mut u8, offset: u64, word: u64) {
    assert!(offset.is_multiple_of(8) && offset < context::SIZE);
    // SAFETY: within the slab, aligned.
    unsafe { start.add(offset as usize).cast::<u64>().write_volatile(word) };
}

#[test]
fn contexts_of_anything() {
    let arena = Arena::new().unwrap();
    let (context, start) = scratch(&arena);
    let mut random = Random(0xfeed);
    let mut regs: Regs = zero_regs();
    let mut image = vec![0; 2696];
    for round in 0..ROUNDS {
        for _ in 0..32 {
            let inside = context.address() + context::STACK + random.below(0x700) * 8;
            let word = if random.below(2) == 0 { inside } else { random.word() };
            put(start, random.below(context::SIZE / 8) * 8, word);
            put(start, random.below(0x20) * 8, word);
        }
        context.load_call(&mut regs);
        assert_eq!(regs.gs_base, 0);
        if random.below(2) == 0 {
            // A frame that could be one, anywhere, the last possible places included.
            let room = context::SIZE - context::STACK;
            for field in [context::field::FRAME, context::field::INFO] {
                put(start, field as u64, context.address() + context::STACK + random.below(room / 8 + 2) * 8);
            }
        }
        let _ = (context.stop(), context.copy_left(), context.exchanged());
        let Some(frame) = context.load_signal() else { continue };
        frame.load(&mut regs);
        let _ = frame.info();
        frame.store(&regs);
        let at = frame.address() - context.address();
        if random.below(2) == 0 && at + 40 + 24 * 8 < context::SIZE {
            let state = context::STACK + random.below((context::SIZE - context::STACK) / 8) * 8;
            put(start, at + 40 + 23 * 8, context.address() + state);
            if state + 512 <= context::SIZE {
                put(start, state + 464, 0x4650_5853);
                put(start, state + 480, random.word());
            }
        }
        let len = [0, 1, 400, 464, 511, 512, 513, 520, 576, 832, 2696][round % 11];
        frame.load_xstate(&mut image[..len]);
    }
}

#[test]
fn shapes_of_anything() {
    let mut random = Random(0xbeef);
    let alphabet = [
        0x0f, 0x05, 0xb8, 0x48, 0xc7, 0xc0, 0x3d, 0x89, 0x8b, 0x83, 0x98, 0x41, 0x4c, 0x24, 0x08, 0x90, 0xe9, 0xeb, 39,
        0, 0x31, 0xba,
    ];
    let mut found = [0; 3];
    for _ in 0..ROUNDS * 20 {
        let len = random.below(49) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| alphabet[random.below(alphabet.len() as u64) as usize]).collect();
        let at = random.below(50) as usize;
        let back = 0x40_0000 + random.below(0x1000);
        // Mostly a call, with a load of its number somewhere before.
        if let Some(call) = at.checked_sub(2).filter(|_| at <= len && random.below(4) != 0) {
            bytes[call..at].copy_from_slice(&[0x0f, 0x05]);
            if let Some(load) = call.checked_sub(5 + random.below(20) as usize) {
                bytes[load..load + 5].copy_from_slice(&[0xb8, 39, 0, 0, 0]);
            }
        }
        if let Some(shape) = shape::find(&bytes, at, back, random.below(2) * 39) {
            let displaced = shape.displaced.len();
            assert!((5..=8).contains(&shape.len) && (3..=SLOT as usize - 16).contains(&displaced));
            let start = if shape.behind { back - 2 } else { back - 2 - displaced as u64 };
            assert_eq!(shape.start, start);
            assert!(shape.behind || shape.len <= displaced && displaced + 2 <= shape::BEFORE);
            found[if shape.behind { 0 } else { 1 + usize::from(shape.len < displaced) }] += 1;
        }
    }
    assert!(found.iter().all(|found| *found > 100), "behind, in front, further in front: {found:?}");
}

/// Memory that answers as it likes, and remembers where it was written.
struct Liar {
    random: Random,
    texts: Vec<std::ops::Range<u64>>,
    rooms: Vec<std::ops::Range<u64>>,
    shared: bool,
}

impl Poke for Liar {
    fn poke(&mut self, addr: u64, _bytes: [u8; 8]) -> Result<()> {
        let within = |range: &std::ops::Range<u64>| range.start <= addr && addr + 8 <= range.end;
        assert!(self.texts.iter().chain(&self.rooms).any(within), "a store at {addr:#x}, which is nobody's");
        if self.random.below(50) == 0 { Err(Errno::EIO) } else { Ok(()) }
    }

    fn peek(&mut self, _addr: u64, bytes: &mut [u8]) -> usize {
        let alphabet = [0x0f, 0x05, 0xb8, 0x48, 0x3d, 0x89, 0xc6, 0x90, 0xc7, 39, 0];
        bytes.iter_mut().for_each(|byte| *byte = alphabet[self.random.below(alphabet.len() as u64) as usize]);
        // Mostly a call with a load of its number before.
        if let Some(at) = bytes.len().checked_sub(16).filter(|&at| at >= 7 && self.random.below(4) != 0) {
            bytes[at - 2..at].copy_from_slice(&[0x0f, 0x05]);
            if self.random.below(2) == 0 {
                bytes[at - 7..at - 2].copy_from_slice(&[0xb8, 39, 0, 0, 0]);
            } else {
                bytes[at..at + 3].copy_from_slice(&[0x48, 0x89, 0xc6]);
            }
        }
        if self.random.below(30) == 0 { bytes.len() / 2 } else { bytes.len() }
    }

    fn is_shared(&self) -> bool {
        self.shared
    }
}

#[test]
fn patches_of_memory_that_lies() {
    let mut rewritten = 0;
    for seed in 1..60 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut patches = Patches::default();
        let mut memory =
            Liar { random: Random(seed * 77 + 1), texts: Vec::new(), rooms: Vec::new(), shared: seed % 2 == 0 };
        for _ in 0..ROUNDS / 40 {
            let page = 0x40_0000 + random.below(64) * 0x1000;
            match random.below(12) {
                0 | 1 => {
                    let range = page..page + (1 + random.below(8)) * 0x1000;
                    patches.leave(&mut memory, &range, true);
                    patches.enter_text(range.clone());
                    memory.texts.push(range);
                }
                2 => {
                    let start = 0x100_0000 + random.below(32) * ROOM;
                    patches.leave(&mut memory, &(start..start + ROOM), true);
                    patches.enter_room(start);
                    memory.rooms.push(start..start + ROOM);
                }
                3 => {
                    let start = if random.below(4) == 0 { 0x100_0000 + random.below(32) * ROOM } else { page };
                    let gone = random.below(2) == 0;
                    patches.leave(&mut memory, &(start..start + random.below(0x8000)), gone);
                }
                4 => patches.leave(&mut memory, &(random.next()..random.next()), true),
                _ => {
                    let back = page + random.below(0x1000);
                    let number = if random.below(8) == 0 { random.next() } else { 39 };
                    rewritten += usize::from(patches.rewrite(&mut memory, back, number) == Ok(true));
                    let inside = patches.seen_from_inside(back);
                    assert!(inside == back || patches.is_slot(inside));
                    assert_eq!(patches.seen_from_outside(inside), back);
                    let _ = (patches.trapped(random.word()), patches.take_wish(), patches.is_empty());
                }
            }
        }
    }
    assert!(rewritten > 1000, "{rewritten}");
    const { assert!(SLOT < ROOM) };
}
