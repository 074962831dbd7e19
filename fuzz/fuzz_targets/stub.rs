//! What the sentry reads from a stub: the context that they share, and the code whose call sites it rewrites.
//!
//! The platform is built here by itself, which takes seconds where the whole takes minutes.

#![no_main]
#![allow(dead_code, reason = "the rest of the platform")]

#[path = "../../src/errno.rs"]
mod errno;
#[path = "../../src/platform/mod.rs"]
mod platform;
#[path = "../../src/seccomp"]
mod seccomp {
    pub mod stub;
    pub mod trap;
}

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use errno::{Errno, Result};
use libfuzzer_sys::fuzz_target;
use platform::Regs;
use platform::systrap::arena::Arena;
use platform::systrap::context::{self, Context};
use platform::systrap::patch::{Patches, Poke, ROOM};

/// The input, word by word; zeros when it is at its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let n = self.0.len().min(N);
        let (head, rest) = self.0.split_at(n);
        bytes[..n].copy_from_slice(head);
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn half(&mut self) -> u64 {
        u16::from_ne_bytes(self.take()).into()
    }

    fn word(&mut self) -> u64 {
        match self.byte() % 4 {
            // Something within the context, as pointers there are.
            0 => context::WINDOW + self.half(),
            1 => self.half(),
            _ => u64::from_ne_bytes(self.take()),
        }
    }
}

/// A context with any words anywhere, used as the sentry uses one that a stub has written.
fn contexts(mut input: Input<'_>) {
    static ARENA: OnceLock<Arc<Arena>> = OnceLock::new();
    let arena = ARENA.get_or_init(|| Arena::new().expect("the host has memory"));
    let slab = arena.take().expect("the one before was given back");
    let start = slab.start();
    let context = Context::new(slab, 0, true);
    // SAFETY: a structure of integers.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    let mut image = vec![0; 2696];
    while !input.0.is_empty() {
        for _ in 0..input.byte() % 32 {
            let offset = (input.half() % context::SIZE) & !7;
            let word = input.word();
            // SAFETY: within the slab, aligned.
            unsafe { start.add(offset as usize).cast::<u64>().write_volatile(word) };
        }
        context.load_call(&mut regs);
        assert_eq!(regs.gs_base, 0);
        let luggage = context.luggage();
        assert!(luggage.brought.1 <= context::BROUGHT_LEN && luggage.writable.1 <= context::BUFFER_LEN);
        let offset = usize::from(input.byte()) * 8;
        context.read_brought(offset, &mut image[..luggage.brought.1]);
        context.read_taken(offset, &mut image);
        context.read_buffer(&mut image);
        context.read_xstate(&mut image);
        let _ = (context.stop(), context.copy_left(), context.exchanged(), context.succeeded());
        let _ = (context.order_copy(input.word(), input.word(), 1), context.order_store());
        for frame in [context.load_signal(), context.nested_frame(input.word())].into_iter().flatten() {
            frame.load(&mut regs);
            let _ = frame.info();
            frame.store(&regs);
            let len = usize::from(input.byte()) * 8;
            frame.load_xstate(&mut image[..len]);
            let _ = frame.store_xstate(&image[..len]);
        }
    }
}

/// Memory that holds what the input says, which is another thing each time it is read.
struct Liar<'a, 'b> {
    input: &'a mut Input<'b>,
    allowed: Vec<Range<u64>>,
}

impl Poke for Liar<'_, '_> {
    fn poke(&mut self, addr: u64, _bytes: [u8; 8]) -> Result<()> {
        let within = |range: &Range<u64>| range.start <= addr && addr + 8 <= range.end;
        assert!(self.allowed.iter().any(within), "a store at {addr:#x}, which is nobody's");
        if self.input.byte() == 1 { Err(Errno::EIO) } else { Ok(()) }
    }

    fn peek(&mut self, _addr: u64, bytes: &mut [u8]) -> usize {
        bytes.iter_mut().for_each(|byte| *byte = self.input.byte());
        bytes.len() - usize::from(self.input.byte()) % (bytes.len() + 1)
    }

    fn is_shared(&self) -> bool {
        true
    }
}

/// Sites that are rewritten and put back.
fn sites(mut input: Input<'_>) {
    let mut patches = Patches::default();
    let mut memory = Liar { input: &mut input, allowed: Vec::new() };
    while !memory.input.0.is_empty() {
        let page = 0x40_0000 + u64::from(memory.input.byte() % 64) * 0x1000;
        match memory.input.byte() % 6 {
            0 => {
                let range = page..page + (1 + u64::from(memory.input.byte() % 8)) * 0x1000;
                patches.leave(&mut memory, &range, true);
                patches.enter_text(range.clone());
                memory.allowed.push(range);
            }
            1 => {
                let start = 0x100_0000 + u64::from(memory.input.byte() % 32) * ROOM;
                patches.leave(&mut memory, &(start..start + ROOM), true);
                patches.enter_room(start);
                memory.allowed.push(start..start + ROOM);
            }
            2 => {
                let range = page..page + memory.input.half();
                let gone = memory.input.byte() % 2 == 0;
                patches.leave(&mut memory, &range, gone);
            }
            _ => {
                let (back, number) = (page + memory.input.half() % 0x1000, memory.input.word());
                let _ = patches.rewrite(&mut memory, back, number);
                let inside = patches.seen_from_inside(back);
                assert!(inside == back || patches.is_slot(inside));
                assert_eq!(patches.seen_from_outside(inside), back);
                let _ = (patches.trapped(memory.input.word()), patches.take_wish());
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.byte() % 2 {
        0 => contexts(input),
        _ => sites(input),
    }
});
