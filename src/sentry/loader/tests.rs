//! Tests with a hand-assembled program, damaged in many ways, and with the system's own shell.

use std::collections::HashMap;
use std::sync::Arc;

use super::*;
use crate::platform::ptrace::PtracePlatform;
use crate::platform::{Event, Platform, UserThread};
use crate::sentry::mm::tests::HostFile;
use crate::sentry::mm::user::UserStr;

const CODE: u64 = 0x40_0000;

/// `mov (%rsp),%rdi; mov data,%rsi; mov bss,%rdx; mov $231,%eax; syscall`.
const PROGRAM: &[u8] = &[
    0x48, 0x8b, 0x3c, 0x24, 0x48, 0x8b, 0x34, 0x25, 0x00, 0x11, 0x60, 0x00, 0x48, 0x8b, 0x14, 0x25, 0x00, 0x30, 0x60,
    0x00, 0xb8, 231, 0, 0, 0, 0x0f, 0x05,
];

#[derive(Clone, Copy)]
struct Segment(u32, u32, u64, u64, u64, u64);

/// Code at the file's start; 8 bytes of data at 0x1100, which a load of 0x2000 bytes puts at 0x60_1100; zeros behind.
const SEGMENTS: [Segment; 2] = [Segment(1, 5, 0, CODE, 0x1000, 0x1000), Segment(1, 6, 0x1100, 0x60_1100, 8, 0x2000)];

fn elf_with(kind: u16, segments: &[Segment]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [kind, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [CODE + 0x800, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64, 56, segments.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for Segment(kind, flags, offset, at, filesz, memsz) in segments {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [*offset, *at, *at, *filesz, *memsz, 0x1000] {
            file.extend(word.to_le_bytes());
        }
    }
    file.resize(0x800, 0);
    file.extend(PROGRAM);
    file.resize(0x1100, 0);
    file.extend(0x1234_5678_9abcu64.to_le_bytes());
    // What follows in the file's page must not show behind the data.
    file.resize(0x2000, 0xff);
    file
}

fn elf() -> Vec<u8> {
    elf_with(2, &SEGMENTS)
}

#[derive(Default)]
struct Files(HashMap<Vec<u8>, Vec<u8>>);

impl Files {
    fn with(files: &[(&str, &[u8])]) -> Files {
        Files(files.iter().map(|(path, bytes)| (path.as_bytes().to_vec(), bytes.to_vec())).collect())
    }
}

impl ExecFiles for Files {
    fn open_exec(&mut self, path: &[u8]) -> Result<Arc<OpenFile>> {
        self.0.get(path).map(|bytes| HostFile::open(bytes, libc::O_RDONLY)).ok_or(Errno::ENOENT)
    }
}

fn try_prepare(bytes: &[u8], argv: &[&str], files: &mut dyn ExecFiles) -> Result<Prepared> {
    let args = ExecArgs {
        file: HostFile::open(bytes, libc::O_RDONLY),
        path: b"/bin/program-with-a-long-name".to_vec(),
        argv: argv.iter().map(|text| text.as_bytes().to_vec()).collect(),
        envp: vec![b"HOME=/".to_vec()],
        limits: MemLimits::default(),
        path_inaccessible: false,
    };
    prepare(args, files)
}

fn commit(prepared: Prepared, user: &mut dyn UserThread) -> Result<Loaded> {
    let (creds, host) = (Credentials::new(1000, 100, &[], Default::default()), HostAux::read());
    let args = CommitArgs { creds: &creds, secure: true, randomize: true, read_implies_exec: false, host: &host };
    prepared.commit(user, &args)
}

fn run(user: &mut dyn UserThread) -> Event {
    loop {
        match user.run() {
            Event::Interrupted => {}
            event => return event,
        }
    }
}

fn thread() -> (PtracePlatform, Box<dyn UserThread>) {
    let platform = PtracePlatform::new().unwrap();
    let user = platform.spawn().unwrap().attach().unwrap();
    (platform, user)
}

#[test]
fn a_static_program_runs_with_its_data_and_arguments() {
    let (_platform, mut user) = thread();
    let prepared = try_prepare(&elf(), &["program", "two words"], &mut Files::default()).unwrap();
    assert_eq!(prepared.comm, b"program-with-a-");
    let loaded = commit(prepared, &mut *user).unwrap();
    assert!(matches!(run(&mut *user), Event::Syscall));
    let regs = *user.regs();
    assert_eq!((regs.orig_rax, regs.rdi, regs.rsi, regs.rdx), (231, 2, 0x1234_5678_9abc, 0));
    assert_eq!(loaded.stack % 16, 0);
    let space = loaded.mm.space();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        space.read(at, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    };
    assert_eq!(word(0x60_1108), 0, "the rest of the data's page is cleared");
    assert_eq!(loaded.mm.cmdline(), b"program\0two words\0");
    assert_eq!(loaded.mm.environ(), b"HOME=/\0");
    // argc, two arguments, 0, one variable, 0; then the vector.
    assert_eq!((word(loaded.stack + 24), word(loaded.stack + 40)), (0, 0));
    let auxv: HashMap<u64, u64> = (0..40)
        .map(|pair| loaded.stack + 48 + 16 * pair)
        .map(|at| (word(at), word(at + 8)))
        .take_while(|p| p.0 != 0)
        .collect();
    assert_eq!((auxv[&libc::AT_PHDR], auxv[&libc::AT_PHNUM]), (CODE + 64, 2));
    assert_eq!((auxv[&libc::AT_UID], auxv[&libc::AT_EGID], auxv[&libc::AT_SECURE]), (1000, 100, 1));
    assert_eq!(auxv[&libc::AT_SYSINFO_EHDR], space.vdso().1);
    let name = UserStr::new(auxv[&libc::AT_EXECFN]).read_path(&**space).unwrap();
    assert_eq!(name, b"/bin/program-with-a-long-name");
    let platform = UserStr::new(auxv[&libc::AT_PLATFORM]).read_path(&**space).unwrap();
    assert_eq!(platform, b"x86_64");
    assert!(word(auxv[&libc::AT_RANDOM]) != 0 || word(auxv[&libc::AT_RANDOM] + 8) != 0);
    let layout = loaded.mm.layout();
    assert!((0x60_4000..0x60_4000 + (32 << 20)).contains(&layout.start_brk));
    assert!(loaded.mm.brk(&mut *user, layout.brk + 4096, &MemLimits::default()) > layout.brk);
}

#[test]
fn the_systems_shell_starts() {
    struct Host;
    impl ExecFiles for Host {
        fn open_exec(&mut self, path: &[u8]) -> Result<Arc<OpenFile>> {
            let path = std::str::from_utf8(path).map_err(|_| Errno::ENOENT)?;
            Ok(HostFile::open(&std::fs::read(path)?, libc::O_RDONLY))
        }
    }
    let (_platform, mut user) = thread();
    let prepared = try_prepare(&std::fs::read("/bin/sh").unwrap(), &["sh"], &mut Host).unwrap();
    let dynamic = prepared.interpreter.is_some();
    let loaded = commit(prepared, &mut *user).unwrap();
    assert!(matches!(run(&mut *user), Event::Syscall), "at {:#x}", user.regs().rip);
    struct Nameless;
    impl crate::sentry::mm::report::FileNames for Nameless {
        fn describe(&self, _file: &OpenFile) -> (Vec<u8>, u64, u64) {
            (b"/bin/sh".to_vec(), 0x801, 12)
        }
    }
    let maps = String::from_utf8(loaded.mm.maps(&Nameless)).unwrap();
    assert!(maps.contains("[stack]\n") && maps.contains("[vdso]\n"), "{maps}");
    assert_eq!(dynamic, loaded.mm.auxv()[..].chunks(16).any(|pair| pair[0] == 7 && pair[8..] != [0; 8]));
}

#[test]
fn scripts_lead_to_their_interpreter() {
    let mut files = Files::with(&[("/bin/prog", &elf()), ("/a", b"#!/bin/prog -x y \n"), ("/loop", b"#!/loop\n")]);
    let argv = |prepared: Prepared| {
        let argv: Vec<String> = prepared.argv().iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        argv.join("|")
    };
    let direct = try_prepare(b"#!/bin/prog\n", &["s", "1"], &mut files).unwrap();
    assert_eq!(argv(direct), "/bin/prog|/bin/program-with-a-long-name|1");
    let nested = try_prepare(b"#!/a z\n", &["s", "1"], &mut files).unwrap();
    assert_eq!(argv(nested), "/bin/prog|-x y|/a|z|/bin/program-with-a-long-name|1");
    assert_eq!(try_prepare(b"#!/loop\n", &["s"], &mut files).err(), Some(Errno::ELOOP));
    assert_eq!(try_prepare(b"#!/missing\n", &["s"], &mut files).err(), Some(Errno::ENOENT));
    assert_eq!(try_prepare(b"", &["s"], &mut files).err(), Some(Errno::ENOEXEC));
    assert_eq!(try_prepare(b"echo", &["s"], &mut files).err(), Some(Errno::ENOEXEC));
}

#[test]
fn damaged_headers_fail_before_the_point_of_no_return() {
    let good = elf();
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let interp = |offset: u64, len: u64| elf_with(2, &[SEGMENTS[0], Segment(3, 4, offset, CODE, len, len)]);
    // The path is put where the data was.
    let named = |path: &[u8]| {
        let mut file = interp(0x1100, path.len() as u64);
        file[0x1100..0x1100 + path.len()].copy_from_slice(path);
        file
    };
    let mut files = Files::with(&[("/text", &[b'x'; 100]), ("/short", b"\x7fELF"), ("/ld", &good)]);
    let cases: Vec<(Vec<u8>, Errno)> = vec![
        (good[..63].to_vec(), Errno::ENOEXEC),
        (good[..100].to_vec(), Errno::ENOEXEC),
        (changed(18, &[3, 0]), Errno::ENOEXEC),
        (changed(16, &[1, 0]), Errno::ENOEXEC),
        (changed(54, &[32, 0]), Errno::ENOEXEC),
        (changed(56, &[0, 0]), Errno::ENOEXEC),
        (changed(56, &[0xff, 0xff]), Errno::ENOEXEC),
        (changed(32, &[0xff; 8]), Errno::ENOEXEC),
        (interp(0x1100, 1), Errno::ENOEXEC),
        (interp(0x1100, 4097), Errno::ENOEXEC),
        (interp(0x10_0000, 8), Errno::EIO),
        (interp(u64::MAX - 3, 8), Errno::EINVAL),
        (named(b"/ld"), Errno::ENOEXEC),
        (named(b"/none\0"), Errno::ENOENT),
        (named(b"/text\0"), Errno::ELIBBAD),
        (named(b"/short\0"), Errno::EIO),
    ];
    for (index, (file, error)) in cases.iter().enumerate() {
        assert_eq!(try_prepare(file, &["x"], &mut files).err(), Some(*error), "case {index}");
    }
    assert!(try_prepare(&named(b"/ld\0"), &["x"], &mut files).is_ok());
}

#[test]
fn damaged_segments_fail_when_mapped() {
    let data = SEGMENTS[1];
    let cases = [
        vec![],
        vec![Segment(1, 5, 0, 0x1000, 0x1000, 0x1000)],
        vec![Segment(1, 5, 0, CODE, 0x1000, 0x800)],
        vec![Segment(1, 5, 0x10, CODE, 0x1000, 0x1000)],
        vec![Segment(1, 5, 0, CODE, 0x1000, u64::MAX - CODE)],
        vec![Segment(1, 5, 0, u64::MAX - 0xfff, 0x1000, 0x1000)],
        vec![Segment(1, 5, u64::MAX - 0xfff, CODE, 0x1000, 0x1000)],
        vec![SEGMENTS[0], Segment(1, 6, 0x10_0100, 0x60_1100, 8, data.5)],
    ];
    let (_platform, mut user) = thread();
    for (index, segments) in cases.into_iter().enumerate() {
        // An empty table of headers is refused earlier: something harmless stands there.
        let segments = if segments.is_empty() { vec![Segment(4, 4, 0, 0, 0, 0)] } else { segments };
        let prepared = try_prepare(&elf_with(2, &segments), &["x"], &mut Files::default()).unwrap();
        assert!(commit(prepared, &mut *user).is_err(), "case {index}");
    }
    // The thread is still good for a program.
    let prepared = try_prepare(&elf(), &[], &mut Files::default()).unwrap();
    commit(prepared, &mut *user).unwrap();
    assert!(matches!(run(&mut *user), Event::Syscall));
    assert_eq!(user.regs().rdi, 1, "no arguments become one empty one");
}

#[test]
fn arguments_have_limits() {
    let long = "x".repeat(MAX_ARG_STRLEN);
    let fits = "x".repeat(MAX_ARG_STRLEN - 1);
    let mut files = Files::default();
    assert_eq!(try_prepare(&elf(), &[&long], &mut files).err(), Some(Errno::E2BIG));
    let fifteen = vec![&fits[..]; 15];
    let (_platform, mut user) = thread();
    commit(try_prepare(&elf(), &fifteen, &mut files).unwrap(), &mut *user).unwrap();
    assert!(matches!(run(&mut *user), Event::Syscall));
    assert_eq!(user.regs().rdi, 15);
    assert_eq!(try_prepare(&elf(), &vec![&fits[..]; 16], &mut files).err(), Some(Errno::E2BIG));
}
