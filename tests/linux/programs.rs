//! Programs for the tests of `execve`: this executable under another name in `argv[0]`.
//!
//! A function in `.init_array` runs before the harness's `main`, on the process's first stack, and becomes the program
//! when the name asks for one.

use std::ffi::{CStr, CString, c_char, c_int};

use crate::common::*;

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = start;

extern "C" fn start(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    // SAFETY: the C library passes `main`'s own arguments.
    let (arguments, environment) = unsafe { (strings(argv), strings(envp)) };
    let Some(name) = arguments.first() else { return };
    let status = match name.as_slice() {
        b"test-print" => print(argc, &arguments, &environment),
        b"test-descriptors" => descriptors(&arguments),
        b"test-recurse" => recurse(64 * 1024) as c_int & 1,
        b"test-signals" => signals(),
        b"test-exit" => 42,
        _ => return,
    };
    // SAFETY: ends the process before the harness begins.
    unsafe { libc::_exit(status) }
}

/// # Safety
///
/// `list` is a null-terminated array of C strings.
unsafe fn strings(mut list: *const *const c_char) -> Vec<Vec<u8>> {
    let mut strings = Vec::new();
    // SAFETY: as promised by the caller.
    unsafe {
        while !(*list).is_null() {
            strings.push(CStr::from_ptr(*list).to_bytes().to_vec());
            list = list.add(1);
        }
    }
    strings
}

/// Writes each argument and each variable in brackets.
fn print(argc: c_int, arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> c_int {
    let mut text = format!("{argc}").into_bytes();
    for string in arguments.iter().chain(environment) {
        text.extend([b"[", string.as_slice(), b"]"].concat());
    }
    write(1, &text);
    0
}

/// The status has a bit for each descriptor named in the arguments that is open.
fn descriptors(arguments: &[Vec<u8>]) -> c_int {
    let mut open = 0;
    for (index, argument) in arguments[1..].iter().enumerate() {
        let fd: c_int = std::str::from_utf8(argument).unwrap().parse().unwrap();
        // SAFETY: no memory is involved.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1 {
            open |= 1 << index;
        }
    }
    open
}

/// Uses over a hundred bytes of stack for each level.
#[inline(never)]
fn recurse(levels: u32) -> u32 {
    let frame = std::hint::black_box([levels; 16]);
    if levels == 0 { 0 } else { recurse(levels - 1) + frame[3] - frame[7] }
}

/// Bits: SIGUSR1 ignored, SIGUSR2 default, SIGHUP blocked, SIGTERM pending.
fn signals() -> c_int {
    let disposition = |signal| {
        // SAFETY: an all-zero action is valid, and the kernel fills it.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action);
            action.sa_sigaction
        }
    };
    let (mut blocked, mut pending) = (set(&[]), set(&[]));
    // SAFETY: both sets are valid.
    unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &mut blocked);
        libc::sigpending(&mut pending);
        c_int::from(disposition(libc::SIGUSR1) == libc::SIG_IGN)
            | c_int::from(disposition(libc::SIGUSR2) == libc::SIG_DFL) << 1
            | libc::sigismember(&blocked, libc::SIGHUP) << 2
            | libc::sigismember(&pending, libc::SIGTERM) << 3
    }
}

/// This executable's path.
pub fn this() -> CString {
    CString::new(std::env::current_exe().unwrap().into_os_string().into_encoded_bytes()).unwrap()
}

/// `execve(2)`: returns only when it fails.
pub fn exec(path: &CStr, arguments: &[&CStr], environment: &[&CStr]) -> c_int {
    let list = |strings: &[&CStr]| {
        let mut list: Vec<*const c_char> = strings.iter().map(|string| string.as_ptr()).collect();
        list.push(std::ptr::null());
        list
    };
    // SAFETY: both lists end with a null and live until the call returns.
    unsafe { libc::execve(path.as_ptr(), list(arguments).as_ptr(), list(environment).as_ptr()) }
}

/// Runs a program with standard output into a pipe; returns what it wrote and how it ended.
#[track_caller]
pub fn output_of(path: &CStr, arguments: &[&CStr], environment: &[&CStr]) -> (String, Status) {
    let (reader, writer) = pipe();
    let pid = child(|| {
        // SAFETY: no memory is involved.
        ok(unsafe { libc::dup2(writer, 1) });
        exec(path, arguments, environment);
        errno()
    });
    close(writer);
    let mut text = Vec::new();
    loop {
        let part = read_some(reader, PAGE);
        if part.is_empty() {
            break;
        }
        text.extend(part);
    }
    close(reader);
    (String::from_utf8(text).unwrap(), wait(pid))
}
