//! What every test stands on: a process of its own, results with errnos, children, and waiting with a limit.
//!
//! The test harness has many threads, and Linux's process-wide state (signal handlers, working directory, umask,
//! descriptors) is shared by them. So each test runs in a child of the harness with one thread, default signal
//! handling, no descriptor above 2 but the one for reports, and a fresh working directory that is removed afterwards.
//! A panic there, or in a process it forks, travels through that descriptor into the failure the harness shows.

use std::ffi::{CStr, CString};
use std::fmt::Debug;
use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libc::{c_int, c_long, c_void, pid_t};

/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// The descriptor that panics are written to; -1 in the harness itself.
static REPORT: AtomicI32 = AtomicI32::new(-1);

/// Where [`REPORT`] is put: above what tests use and count on.
const REPORT_FD: c_int = 500;

fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let harness = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let fd = REPORT.load(Ordering::Relaxed);
            if fd < 0 {
                return harness(info);
            }
            let message = info.payload();
            let message = message
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| message.downcast_ref::<&str>().copied())
                .unwrap_or("?");
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let text = format!("{place}: {message}\n");
            // SAFETY: the text is valid for its length.
            unsafe { libc::write(fd, text.as_ptr().cast(), text.len().min(4096)) };
        }));
    });
}

/// A new directory's path for one test.
fn fresh_directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("linux-{}-{number}", std::process::id()));
    fs::create_dir(&path).expect("a directory for the test");
    path
}

/// Runs a test's body in a process of its own, and fails with its message, its signal, or its hanging.
#[track_caller]
pub fn isolated(body: impl FnOnce()) {
    install_hook();
    let directory = fresh_directory();
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    ok(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) });
    // SAFETY: the child runs code that takes no lock another thread can hold: the C library's allocator is made for
    // fork, and panics go through the hook above.
    let pid = ok(unsafe { libc::fork() });
    if pid == 0 {
        let passed = catch_unwind(AssertUnwindSafe(|| {
            enter(&directory, ends[1]);
            body();
        }));
        // The end of the report: the end of file would come only when all descendants have ended, too.
        write(REPORT.load(Ordering::Relaxed), b"\0");
        // SAFETY: ends this process without running the harness's exit handlers.
        unsafe { libc::_exit(if passed.is_ok() { 0 } else { 101 }) };
    }
    // SAFETY: both are this function's own.
    let mut report = unsafe {
        libc::close(ends[1]);
        fs::File::from(OwnedFd::from_raw_fd(ends[0]))
    };
    let message = collect(&mut report, pid);
    let status = wait(pid);
    let _ = fs::remove_dir_all(&directory);
    match (status, message) {
        (Status::Exited(0), Ok(message)) if message.is_empty() => (),
        (_, Err(message)) => panic!("hung for {LIMIT:?}\n{message}"),
        (status, Ok(message)) => panic!("{status:?}\n{message}"),
    }
}

/// Puts the child into the state that tests start from.
fn enter(directory: &std::path::Path, report: c_int) {
    // SAFETY: calls on this process's own state.
    unsafe {
        ok(libc::dup3(report, REPORT_FD, libc::O_CLOEXEC));
        REPORT.store(REPORT_FD, Ordering::Relaxed);
        libc::syscall(libc::SYS_close_range, 3, REPORT_FD - 1, 0);
        libc::syscall(libc::SYS_close_range, REPORT_FD + 1, u32::MAX, 0);
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        ok(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()));
        let mut off: libc::stack_t = std::mem::zeroed();
        off.ss_flags = libc::SS_DISABLE;
        ok(libc::sigaltstack(&off, ptr::null_mut()));
        libc::umask(0o022);
        let path = CString::new(directory.as_os_str().as_encoded_bytes()).unwrap();
        ok(libc::chdir(path.as_ptr()));
    }
}

/// Reads the report to its end; on a hang kills the process, and returns what it had said as the error.
fn collect(report: &mut fs::File, pid: pid_t) -> Result<String, String> {
    let start = Instant::now();
    let mut text = Vec::new();
    loop {
        let left = LIMIT.saturating_sub(start.elapsed());
        let mut poll = libc::pollfd { fd: report.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        let ready = unsafe { libc::poll(&mut poll, 1, left.as_millis() as c_int) };
        if ready == 0 {
            // SAFETY: no memory is involved.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            return Err(String::from_utf8_lossy(&text).into_owned());
        }
        let mut buffer = [0; 4096];
        match report.read(&mut buffer) {
            Ok(count) if count > 0 && buffer[count - 1] == 0 => {
                text.extend_from_slice(&buffer[..count - 1]);
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
            Ok(0) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(_) => (),
        }
    }
}

/// A system call's result as the C library gives it.
pub trait Returned: Copy + Debug {
    fn is_error(self) -> bool;
}

impl Returned for c_int {
    fn is_error(self) -> bool {
        self == -1
    }
}

impl Returned for c_long {
    fn is_error(self) -> bool {
        self == -1
    }
}

impl Returned for isize {
    fn is_error(self) -> bool {
        self == -1
    }
}

impl Returned for *mut c_void {
    fn is_error(self) -> bool {
        self == libc::MAP_FAILED
    }
}

pub fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The result of a call that must succeed.
#[track_caller]
pub fn ok<T: Returned>(result: T) -> T {
    assert!(!result.is_error(), "failed: {}", std::io::Error::last_os_error());
    result
}

/// Asserts that a call failed, and how.
#[track_caller]
pub fn fails<T: Returned>(result: T, expected: c_int) {
    let errno = errno();
    assert!(result.is_error(), "{result:?}, not errno {expected}");
    let text = |errno| std::io::Error::from_raw_os_error(errno).to_string();
    assert!(errno == expected, "{}, not {}", text(errno), text(expected));
}

/// How a child changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Exited(c_int),
    Killed(c_int),
    Stopped(c_int),
    Continued,
}

impl Status {
    pub fn from_wait(status: c_int) -> Status {
        if libc::WIFEXITED(status) {
            Status::Exited(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            Status::Killed(libc::WTERMSIG(status))
        } else if libc::WIFSTOPPED(status) {
            Status::Stopped(libc::WSTOPSIG(status))
        } else {
            assert!(libc::WIFCONTINUED(status), "{status:#x}");
            Status::Continued
        }
    }
}

/// Forks; the child runs `body` and exits with its result. It dies with its parent.
#[track_caller]
pub fn child(body: impl FnOnce() -> c_int) -> pid_t {
    // SAFETY: as in `isolated`.
    let pid = ok(unsafe { libc::fork() });
    if pid == 0 {
        // SAFETY: no memory is involved.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
        // SAFETY: ends this process without running the harness's exit handlers.
        unsafe { libc::_exit(status) };
    }
    pid
}

/// Waits for a child's end.
#[track_caller]
pub fn wait(pid: pid_t) -> Status {
    wait_for(pid, 0)
}

/// `waitpid` with options, repeated while signals interrupt it.
#[track_caller]
pub fn wait_for(pid: pid_t, options: c_int) -> Status {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid.
        let result = unsafe { libc::waitpid(pid, &mut status, options) };
        if result == -1 && errno() == libc::EINTR {
            continue;
        }
        assert_eq!(ok(result), pid);
        return Status::from_wait(status);
    }
}

/// Runs `body` in a forked child, whose failing is the caller's.
#[track_caller]
pub fn in_child(body: impl FnOnce()) {
    let pid = child(|| {
        body();
        0
    });
    assert_eq!(wait(pid), Status::Exited(0));
}

/// Runs `body` in a child with another user and group and no capability.
#[track_caller]
pub fn as_user(user: u32, body: impl FnOnce()) {
    in_child(|| {
        // SAFETY: calls on the child's own credentials.
        unsafe {
            ok(libc::setgroups(0, ptr::null()));
            ok(libc::setresgid(user, user, user));
            ok(libc::setresuid(user, user, user));
        }
        body();
    });
}

/// Waits for a condition that another process or thread brings about.
#[track_caller]
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT / 2, "never happened");
        // SAFETY: no memory is involved.
        unsafe { libc::usleep(500) };
    }
}

/// The state letter in `/proc/<pid>/stat`; `None` when there is no such process.
pub fn state(pid: pid_t) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text[text.rfind(')')? + 2..].chars().next()
}

/// Waits until a process or thread sleeps.
#[track_caller]
pub fn until_asleep(pid: pid_t) {
    eventually(|| state(pid) == Some('S'));
}

/// A pipe: the end to read, the end to write.
pub fn pipe() -> (c_int, c_int) {
    pipe_with(0)
}

pub fn pipe_with(flags: c_int) -> (c_int, c_int) {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    ok(unsafe { libc::pipe2(ends.as_mut_ptr(), flags) });
    (ends[0], ends[1])
}

/// A pair of connected UNIX sockets.
pub fn socket_pair(kind: c_int) -> (c_int, c_int) {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    ok(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) });
    (ends[0], ends[1])
}

pub fn close(fd: c_int) {
    // SAFETY: no memory is involved.
    ok(unsafe { libc::close(fd) });
}

/// `write(2)` as it is.
pub fn write(fd: c_int, bytes: &[u8]) -> isize {
    // SAFETY: the bytes are valid for their length.
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }
}

/// `read(2)` as it is.
pub fn read(fd: c_int, buffer: &mut [u8]) -> isize {
    // SAFETY: the buffer is valid for its length.
    unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) }
}

/// What one `read(2)` of up to `size` bytes gives.
#[track_caller]
pub fn read_some(fd: c_int, size: usize) -> Vec<u8> {
    let mut buffer = vec![0; size];
    let count = ok(read(fd, &mut buffer));
    buffer.truncate(count as usize);
    buffer
}

/// `open(2)` as it is.
pub fn open(path: &CStr, flags: c_int) -> c_int {
    // SAFETY: the path ends with a zero byte.
    unsafe { libc::open(path.as_ptr(), flags, 0o644) }
}

/// Creates or replaces a file.
#[track_caller]
pub fn file(path: &CStr, contents: &[u8]) {
    fs::write(path.to_str().unwrap(), contents).unwrap();
}

/// A new file that is open for reading and writing.
#[track_caller]
pub fn open_new(path: &CStr) -> c_int {
    ok(open(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL))
}

/// `stat(2)`, which must succeed.
#[track_caller]
pub fn stat(path: &CStr) -> libc::stat {
    // SAFETY: an all-zero stat is valid, and the kernel fills it.
    unsafe {
        let mut stat = std::mem::zeroed();
        ok(libc::stat(path.as_ptr(), &mut stat));
        stat
    }
}

/// `fstat(2)`, which must succeed.
#[track_caller]
pub fn fstat(fd: c_int) -> libc::stat {
    // SAFETY: as in `stat`.
    unsafe {
        let mut stat = std::mem::zeroed();
        ok(libc::fstat(fd, &mut stat));
        stat
    }
}

/// A set of signals.
pub fn set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: the set is initialised by `sigemptyset`.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            ok(libc::sigaddset(&mut set, *signal));
        }
        set
    }
}

/// Blocks signals.
pub fn block(signals: &[c_int]) {
    // SAFETY: the set is valid.
    ok(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set(signals), ptr::null_mut()) });
}

/// Unblocks signals.
pub fn unblock(signals: &[c_int]) {
    // SAFETY: the set is valid.
    ok(unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &set(signals), ptr::null_mut()) });
}

/// Installs a handler with flags and an empty mask.
pub fn handle(signal: c_int, handler: extern "C" fn(c_int), flags: c_int) {
    // SAFETY: the handler lives as long as the program.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        ok(libc::sigaction(signal, &action, ptr::null_mut()));
    }
}

/// A handler with three arguments.
pub type InfoHandler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs a handler that gets the signal's origin and the interrupted context.
pub fn handle_info(signal: c_int, handler: InfoHandler, flags: c_int) {
    // SAFETY: the handler lives as long as the program.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags | libc::SA_SIGINFO;
        ok(libc::sigaction(signal, &action, ptr::null_mut()));
    }
}

/// Private or shared anonymous memory.
#[track_caller]
pub fn anonymous(size: usize, flags: c_int) -> *mut u8 {
    // SAFETY: the kernel chooses a free range.
    ok(unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), size, protection, flags | libc::MAP_ANONYMOUS, -1, 0)
    })
    .cast()
}

/// Memory that forked children share, as a value.
pub fn shared<T>() -> &'static T {
    // SAFETY: zeroed memory of a page; used with atomics and arrays of them, which are valid when zero.
    unsafe { &*anonymous(size_of::<T>().max(1), libc::MAP_SHARED).cast() }
}

pub fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

/// The size of a page on x86-64.
pub const PAGE: usize = 4096;
