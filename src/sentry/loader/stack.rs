//! What is on a program's stack when it starts: the x86_64 psABI, "Process Initialization".
//!
//! ```text
//! sp ─▶ argc, argv…, 0, envp…, 0, auxiliary vector │ random bytes, platform │ arguments, environment, path │ 8 zeros ─ top
//! ```

use std::ops::Range;

use super::auxv::AT_MINSIGSTKSZ;
use super::image::Placed;
use super::{CommitArgs, Prepared};
use crate::errno::{Errno, Result};
use crate::sentry::mm::user::PAGE;

/// The bytes of a new stack.
pub struct Image {
    /// What goes to `pointer` and up.
    pub bytes: Vec<u8>,
    /// The stack pointer.
    pub pointer: u64,
    /// Where the argument strings are.
    pub args: Range<u64>,
    /// Where the environment strings are.
    pub env: Range<u64>,
    /// The auxiliary vector, as it is on the stack.
    pub auxv: Vec<u64>,
}

fn length(texts: &[Vec<u8>]) -> u64 {
    texts.iter().map(|text| text.len() as u64 + 1).sum()
}

/// At most so many bytes.
pub(super) fn size_bound(prepared: &Prepared, args: &CommitArgs<'_>) -> u64 {
    let strings = length(&prepared.argv) + length(&prepared.envp) + prepared.path.len() as u64;
    let pointers = 8 * (prepared.argv.len() + prepared.envp.len()) as u64;
    strings + pointers + args.host.platform.len() as u64 + 4 * PAGE
}

/// Appends the strings, and their addresses to `pointers`. Returns where they are.
fn strings(bytes: &mut Vec<u8>, base: u64, texts: &[Vec<u8>], pointers: &mut Vec<u64>) -> Range<u64> {
    let start = base + bytes.len() as u64;
    for text in texts {
        pointers.push(base + bytes.len() as u64);
        bytes.extend_from_slice(text);
        bytes.push(0);
    }
    start..base + bytes.len() as u64
}

impl Image {
    pub(super) fn build(prepared: &Prepared, args: &CommitArgs<'_>, placed: &Placed) -> Result<Image> {
        // The strings, up to the top.
        let size = length(&prepared.argv) + length(&prepared.envp) + prepared.path.len() as u64 + 1 + 8;
        let base = placed.stack.end.checked_sub(size).ok_or(Errno::E2BIG)?;
        let (mut text, mut argv, mut envp) = (Vec::with_capacity(size as usize), Vec::new(), Vec::new());
        let arg_range = strings(&mut text, base, &prepared.argv, &mut argv);
        let env_range = strings(&mut text, base, &prepared.envp, &mut envp);
        let path = base + text.len() as u64;
        text.extend_from_slice(&prepared.path);
        text.resize(size as usize, 0);

        // Platform and random bytes, below them.
        let platform = (base & !15).saturating_sub(placed.jitter & !15) - (args.host.platform.len() as u64 + 1);
        let random = (platform & !15) - 16;
        let auxv = vector(prepared, args, placed, &Strings { path, platform, random });

        // The words.
        let mut words = vec![argv.len() as u64];
        words.extend(argv);
        words.push(0);
        words.extend(envp);
        words.push(0);
        words.extend(&auxv);
        let pointer = random.checked_sub(8 * words.len() as u64).ok_or(Errno::E2BIG)? & !15;
        if pointer < placed.stack.start {
            return Err(Errno::E2BIG);
        }
        let mut bytes = vec![0u8; (placed.stack.end - pointer) as usize];
        let mut put = |at: u64, part: &[u8]| {
            let at = (at - pointer) as usize;
            bytes[at..at + part.len()].copy_from_slice(part);
        };
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        put(pointer, &words);
        put(random, &placed.random);
        put(platform, &args.host.platform);
        put(base, &text);
        Ok(Image { bytes, pointer, args: arg_range, env: env_range, auxv })
    }
}

/// Where what the vector points to is.
struct Strings {
    path: u64,
    platform: u64,
    random: u64,
}

/// The auxiliary vector, in Linux's order.
fn vector(prepared: &Prepared, args: &CommitArgs<'_>, placed: &Placed, at: &Strings) -> Vec<u64> {
    let (creds, host) = (args.creds, args.host);
    let pairs = [
        (libc::AT_SYSINFO_EHDR, placed.vdso),
        (AT_MINSIGSTKSZ, host.minsigstksz),
        (libc::AT_HWCAP, host.hwcap),
        (libc::AT_PAGESZ, PAGE),
        (libc::AT_CLKTCK, host.clktck),
        (libc::AT_PHDR, placed.phdr),
        (libc::AT_PHENT, size_of::<super::elf::Phdr>() as u64),
        (libc::AT_PHNUM, prepared.program.phnum.into()),
        (libc::AT_BASE, placed.base),
        (libc::AT_FLAGS, 0),
        (libc::AT_ENTRY, placed.entry),
        (libc::AT_UID, creds.ruid.into()),
        (libc::AT_EUID, creds.euid.into()),
        (libc::AT_GID, creds.rgid.into()),
        (libc::AT_EGID, creds.egid.into()),
        (libc::AT_SECURE, args.secure.into()),
        (libc::AT_RANDOM, at.random),
        (libc::AT_HWCAP2, host.hwcap2),
        (libc::AT_EXECFN, at.path),
        (libc::AT_PLATFORM, at.platform),
        (libc::AT_NULL, 0),
    ];
    pairs.iter().flat_map(|&(kind, value)| [kind, value]).collect()
}
