//! Tests with hand-assembled programs.

use super::*;
use crate::errno::Errno;
use crate::platform::{Backing, Event, MapRequest, Title, UserThread};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;

fn anonymous(addr: u64, len: u64, prot: i32) -> MapRequest {
    MapRequest { addr, len, prot, shared: false, flags: 0, backing: Backing::Anonymous }
}

/// A thread that is to run `code`, with a page of data.
fn thread(platform: &PtracePlatform, code: &[u8]) -> Box<dyn UserThread> {
    let mut user = platform.spawn().unwrap().attach().unwrap();
    load(&mut *user, code);
    user
}

fn load(user: &mut dyn UserThread, code: &[u8]) {
    let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    user.map(&anonymous(CODE, 0x1000, rwx)).unwrap();
    user.map(&anonymous(DATA, 0x2000, libc::PROT_READ | libc::PROT_WRITE)).unwrap();
    user.space().write(CODE, code).unwrap();
    user.regs_mut().rip = CODE;
}

fn run(user: &mut dyn UserThread) -> Event {
    loop {
        match user.run() {
            Event::Interrupted => {}
            event => return event,
        }
    }
}

fn expect_syscall(user: &mut dyn UserThread) -> u64 {
    match run(user) {
        Event::Syscall => user.regs().orig_rax,
        Event::Fault(info) => panic!("fault {} at {:#x}", info.si_signo, user.regs().rip),
        _ => panic!("no system call"),
    }
}

/// `mov $39,%eax; syscall; mov %rax,%rdi; mov $231,%eax; syscall`.
const GETPID_EXIT: &[u8] = &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0xc7, 0xb8, 231, 0, 0, 0, 0x0f, 0x05];

#[test]
fn system_calls_stop_and_take_our_answer() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, GETPID_EXIT);
    assert_eq!(expect_syscall(&mut *user), 39);
    user.regs_mut().rax = 4711;
    assert_eq!(expect_syscall(&mut *user), 231);
    assert_eq!(user.regs().rdi, 4711);
}

#[test]
fn faults_tell_where() {
    let platform = PtracePlatform::new().unwrap();
    // mov 0x1234,%rax
    let mut user = thread(&platform, &[0x48, 0x8b, 0x04, 0x25, 0x34, 0x12, 0, 0]);
    let Event::Fault(info) = run(&mut *user) else { panic!("no fault") };
    // SAFETY: a SIGSEGV's siginfo has an address.
    assert_eq!((info.si_signo, info.si_code, unsafe { info.si_addr() } as u64), (libc::SIGSEGV, 1, 0x1234));
}

#[test]
fn the_host_shows_a_programs_own_name_and_arguments() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, GETPID_EXIT);
    let pid = user.space().host_pid();
    let shown = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
    assert_eq!((shown("comm"), shown("cmdline")), (b"runsc-stub\n".to_vec(), Vec::new()));
    user.space().write(DATA + 0x1000, b"true\0two words\0A=b\0").unwrap();
    let (args, env) = (DATA + 0x1000..DATA + 0x100f, DATA + 0x100f..DATA + 0x1013);
    user.entitle(&Title { name: b"a-name-of-more-than-15", args, env, stack: DATA + 0x1000 });
    assert_eq!((shown("comm"), shown("cmdline")), (b"a-name-of-more-\n".to_vec(), b"true\0two words\0".to_vec()));
    assert_eq!(shown("environ"), b"A=b\0");
    // As does a title that a program writes there, and a fork's.
    user.space().write(DATA + 0x1000, b"TRUE").unwrap();
    assert_eq!(shown("cmdline"), b"TRUE\0two words\0");
    let child = user.fork().unwrap().attach().unwrap();
    let child = std::fs::read(format!("/proc/{}/cmdline", child.space().host_pid())).unwrap();
    assert_eq!(child, b"TRUE\0two words\0");
    assert_eq!(expect_syscall(&mut *user), 39, "it runs as before");
    // The next program has nothing of it.
    user.renew().unwrap();
    assert_eq!(shown("cmdline"), b"");
}

/// `int $0x80` and `sysenter` are no way into this kernel, whatever the host offers.
#[test]
fn entries_of_32_bit_programs_fault() {
    let platform = PtracePlatform::new().unwrap();
    // mov $20,%eax; int $0x80
    let mut user = thread(&platform, &[0xb8, 20, 0, 0, 0, 0xcd, 0x80]);
    let Event::Fault(info) = run(&mut *user) else { panic!("no fault") };
    // SAFETY: a SIGSEGV's siginfo has an address.
    assert_eq!((info.si_signo, info.si_code, unsafe { info.si_addr() } as u64), (libc::SIGSEGV, 0x80, 0));
    assert_eq!((user.regs().rip, user.regs().rax as u32), (CODE + 5, 20), "the instruction has not been carried out");
    // A handler that skips it goes on.
    user.space().write(CODE + 7, &GETPID_EXIT[..7]).unwrap();
    user.regs_mut().rip = CODE + 7;
    assert_eq!(expect_syscall(&mut *user), 39);
    // mov $20,%eax; sysenter
    let mut user = thread(&platform, &[0xb8, 20, 0, 0, 0, 0x0f, 0x34]);
    (user.regs_mut().rsp, user.regs_mut().rbp) = (DATA + 0x1000, DATA + 0x1000);
    assert!(
        matches!(run(&mut *user), Event::Fault(_)),
        "SIGSEGV, or SIGILL where the processor has none in 64-bit mode"
    );
}

#[test]
fn a_fork_has_its_own_memory() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, GETPID_EXIT);
    assert_eq!(expect_syscall(&mut *user), 39);
    user.space().write(DATA, b"parent").unwrap();
    let seed = user.fork().unwrap();
    user.space().write(DATA, b"change").unwrap();
    let child = std::thread::spawn(move || {
        let mut child = seed.attach().unwrap();
        assert_eq!(child.regs().rip, CODE + 7);
        let mut bytes = [0; 6];
        child.space().read(DATA, &mut bytes).unwrap();
        assert_eq!(&bytes, b"parent");
        assert_eq!(expect_syscall(&mut *child), 231);
        assert_eq!(child.regs().rdi, 0);
    });
    child.join().unwrap();
    user.regs_mut().rax = 1;
    assert_eq!(expect_syscall(&mut *user), 231);
}

#[test]
fn threads_share_memory_and_outlive_the_first() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, GETPID_EXIT);
    assert_eq!(expect_syscall(&mut *user), 39);
    let seed = user.spawn_thread().unwrap();
    let pid = user.space().host_pid();
    let (gone, wait) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        let mut other = seed.attach().unwrap();
        wait.recv().unwrap();
        other.space().write(DATA, b"shared").unwrap();
        assert_eq!(expect_syscall(&mut *other), 231);
    });
    let space = user.space().clone();
    drop(user);
    gone.send(()).unwrap();
    other.join().unwrap();
    // The last one has killed the process, which takes its time to end.
    // SAFETY: the kernel fills the structure; the process stays to be reaped.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_PID, pid as u32, &mut info, libc::WEXITED | libc::WNOWAIT);
    }
    assert_eq!(space.read(DATA, &mut [0; 1]), Err(Errno::EFAULT));
    drop(space);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::kill(pid, 0) }, -1, "the process is gone and reaped");
}

#[test]
fn interruptions_are_never_lost() {
    let platform = PtracePlatform::new().unwrap();
    // 1: jmp 1b
    let mut user = thread(&platform, &[0xeb, 0xfe]);
    let interrupter = user.interrupter();
    interrupter.interrupt();
    assert!(matches!(user.run(), Event::Interrupted));
    for _ in 0..100 {
        let other = interrupter.clone();
        let thread = std::thread::spawn(move || other.interrupt());
        assert!(matches!(user.run(), Event::Interrupted));
        thread.join().unwrap();
        assert_eq!(user.regs().rip, CODE);
    }
}

#[test]
fn a_renewed_thread_starts_from_nothing() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, GETPID_EXIT);
    let old = user.space().clone();
    user.renew().unwrap();
    assert_eq!(old.read(CODE, &mut [0; 1]), Err(Errno::EFAULT));
    assert_eq!(user.space().read(CODE, &mut [0; 1]), Err(Errno::EFAULT));
    load(&mut *user, GETPID_EXIT);
    assert_eq!(expect_syscall(&mut *user), 39);
    // With the vDSO gone the process cannot serve again.
    let vdso = user.space().vdso().0;
    user.unmap(vdso.start, vdso.end - vdso.start).unwrap();
    let pid = user.space().host_pid();
    user.renew().unwrap();
    assert_ne!(user.space().host_pid(), pid);
    load(&mut *user, GETPID_EXIT);
    assert_eq!(expect_syscall(&mut *user), 39);
}

#[test]
fn copies_stop_at_the_page_that_is_missing() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, GETPID_EXIT);
    let space = user.space().clone();
    let mut buf = [0u8; 0x3000];
    assert_eq!(space.read(DATA + 0x1f00, &mut buf), Ok(0x100));
    assert_eq!(space.write(DATA + 0x1fff, &[1, 2, 3]), Ok(1));
    assert_eq!(space.read(DATA + 0x2000, &mut buf), Err(Errno::EFAULT));
    assert_eq!(space.read_vectored(&[(DATA, 8), (DATA + 0x1ffc, 8), (DATA, 8)], &mut buf[..24]), Ok(12));
    user.protect(DATA, 0x1000, libc::PROT_READ).unwrap();
    assert_eq!(space.write(DATA, &[1]), Err(Errno::EFAULT));
    assert_eq!(space.read(stub::STUB, &mut buf[..1]), Err(Errno::EFAULT), "the stub's page is not the container's");
    assert_eq!(space.read(u64::MAX - 1, &mut buf), Err(Errno::EFAULT));
}

#[test]
fn compare_exchange_reports_what_it_found() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, GETPID_EXIT);
    user.space().write(DATA, &7u32.to_ne_bytes()).unwrap();
    assert_eq!(user.compare_exchange(DATA, 8, 9), Ok(7));
    assert_eq!(user.compare_exchange(DATA, 7, 9), Ok(7));
    assert_eq!(user.compare_exchange(DATA, 7, 1), Ok(9));
    assert_eq!(user.compare_exchange(0x1_0000_0000, 7, 1), Err(Errno::EFAULT));
    assert_eq!(expect_syscall(&mut *user), 39, "the program's own registers are untouched");
}

#[test]
fn extended_state_goes_there_and_back() {
    let platform = PtracePlatform::new().unwrap();
    // vmovdqu (DATA),%ymm5; mov $39,%eax; syscall; vmovdqu %ymm5,(DATA+64); syscall
    let code = [
        0xc5, 0xfe, 0x6f, 0x2c, 0x25, 0, 0, 0x50, 0, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc5, 0xfe, 0x7f, 0x2c, 0x25, 64,
        0, 0x50, 0, 0x0f, 0x05,
    ];
    let mut user = thread(&platform, &code);
    let pattern: Vec<u8> = (100..132).collect();
    user.space().write(DATA, &pattern).unwrap();
    expect_syscall(&mut *user);
    let image = user.xstate().unwrap();
    assert_eq!(image[160 + 5 * 16..][..16], pattern[..16]);
    user.set_xstate(&image).unwrap();
    expect_syscall(&mut *user);
    let mut stored = [0; 32];
    user.space().read(DATA + 64, &mut stored).unwrap();
    assert_eq!(stored[..], pattern[..]);
    assert_eq!(user.set_xstate(&[0; 16]), Err(Errno::EINVAL));
}

#[test]
fn a_killed_stub_is_lost() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, &[0xeb, 0xfe]);
    // SAFETY: our own child.
    unsafe { libc::kill(user.space().host_pid(), libc::SIGKILL) };
    assert!(matches!(run(&mut *user), Event::Lost));
    assert!(user.unmap(DATA, 0x1000).is_err());
}

#[test]
fn the_vdso_tells_the_time_without_a_system_call() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform, &[]);
    let (_, image) = user.space().vdso();
    // SAFETY: dlsym on the host's own vDSO, to find where in the image the function is.
    let offset = unsafe {
        let handle = libc::dlopen(c"linux-vdso.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        libc::dlsym(handle, c"__vdso_clock_gettime".as_ptr()) as u64 - libc::getauxval(libc::AT_SYSINFO_EHDR)
    };
    // call *%rax; syscall
    user.space().write(CODE, &[0xff, 0xd0, 0x0f, 0x05]).unwrap();
    let regs = user.regs_mut();
    (regs.rax, regs.rdi, regs.rsi, regs.rsp) = (image + offset, 1, DATA, DATA + 0x1ff0);
    run(&mut *user);
    assert_eq!(user.regs().rip, CODE + 4);
    let mut seconds = [0; 8];
    user.space().read(DATA, &mut seconds).unwrap();
    let mut host = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: valid for writes.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut host) };
    assert!((host.tv_sec as u64).abs_diff(u64::from_ne_bytes(seconds)) <= 1);
}
