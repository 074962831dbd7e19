//! `execve` and `execveat`: arguments, scripts, what stays and what goes, errors.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use libc::c_int;

use crate::common::*;
use crate::programs::{exec, output_of, this};

/// An executable file.
fn program(path: &str, contents: &[u8]) {
    fs::write(path, contents).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Path of a link to this executable, short enough for the first line of a script.
fn short_link() -> String {
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), "prog").unwrap();
    std::env::current_dir().unwrap().join("prog").to_str().unwrap().to_owned()
}

#[test]
fn arguments_and_environment_arrive() {
    isolated(|| {
        let (text, status) = output_of(&this(), &[c"test-print", c"", c"a b", c"\xc3\xa4"], &[c"X=1", c"plain"]);
        assert_eq!(status, Status::Exited(0));
        assert!(text.starts_with("4[test-print][][a b]["), "{text}");
        assert!(text.ends_with("[X=1][plain]"), "{text}");
    });
}

#[test]
fn many_arguments_arrive() {
    isolated(|| {
        let argument = CString::new("x".repeat(1000)).unwrap();
        let mut arguments = vec![c"test-print"];
        arguments.extend(std::iter::repeat_n(argument.as_c_str(), 1000));
        let (text, status) = output_of(&this(), &arguments, &[]);
        assert_eq!(status, Status::Exited(0));
        assert!(text.starts_with("1001[test-print]["));
        assert_eq!(text.len(), "1001[test-print]".len() + 1000 * 1002);
    });
}

#[test]
fn one_argument_over_128_kib_gives_e2big() {
    isolated(|| {
        let largest = CString::new("x".repeat(32 * PAGE - 1)).unwrap();
        let (text, _) = output_of(&this(), &[c"test-print", &largest], &[]);
        assert_eq!(text.len(), "2[test-print][]".len() + 32 * PAGE - 1);
        let larger = CString::new("x".repeat(32 * PAGE)).unwrap();
        fails(exec(&this(), &[c"test-print", &larger], &[]), libc::E2BIG);
    });
}

#[test]
fn arguments_over_the_limit_give_e2big() {
    isolated(|| {
        let argument = CString::new("x".repeat(100_000)).unwrap();
        let mut arguments = vec![c"test-print"];
        arguments.extend(std::iter::repeat_n(argument.as_c_str(), 100));
        fails(exec(&this(), &arguments, &[]), libc::E2BIG);
    });
}

#[test]
fn script_runs_with_its_interpreter_and_one_argument() {
    isolated(|| {
        // The interpreter's name becomes argv[0], so the program is asked for by a link of its name.
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), "test-print").unwrap();
        program("s", b"#! test-print  one two \t\nrest");
        let (text, status) = output_of(c"./s", &[c"ignored", c"last"], &[c"E=1"]);
        assert_eq!(status, Status::Exited(0));
        assert_eq!(text, "4[test-print][one two][./s][last][E=1]");
    });
}

#[test]
fn script_without_argument_or_newline() {
    isolated(|| {
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), "test-print").unwrap();
        program("s", b"#!test-print");
        let (text, _) = output_of(c"./s", &[c"ignored"], &[]);
        assert_eq!(text, "2[test-print][./s]");
    });
}

#[test]
fn scripts_nest() {
    isolated(|| {
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), "test-print").unwrap();
        program("inner", b"#!test-print in\n");
        program("outer", b"#!inner out\n");
        let (text, _) = output_of(c"./outer", &[c"ignored", c"x"], &[]);
        assert_eq!(text, "6[test-print][in][inner][out][./outer][x]");
    });
}

#[test]
fn script_of_itself_gives_eloop() {
    isolated(|| {
        program("s", b"#!./s\n");
        fails(exec(c"./s", &[c"s"], &[]), libc::ELOOP);
    });
}

#[test]
fn script_with_missing_interpreter_gives_enoent() {
    isolated(|| {
        program("s", b"#!/no/such/interpreter\n");
        fails(exec(c"./s", &[c"s"], &[]), libc::ENOENT);
    });
}

#[test]
fn shell_runs_a_script() {
    isolated(|| {
        program("s", b"#!/bin/sh\necho $0 $1 $#; exit 3\n");
        let (text, status) = output_of(c"./s", &[c"ignored", c"a b"], &[]);
        assert_eq!((text.as_str(), status), ("./s a b 1\n", Status::Exited(3)));
    });
}

#[test]
fn what_is_no_program_gives_enoexec() {
    isolated(|| {
        program("empty", b"");
        fails(exec(c"./empty", &[c"x"], &[]), libc::ENOEXEC);
        program("text", b"echo hello\n");
        fails(exec(c"./text", &[c"x"], &[]), libc::ENOEXEC);
        program("half", b"\x7fELF\x02\x01\x01");
        fails(exec(c"./half", &[c"x"], &[]), libc::ENOEXEC);
        program("nothing", b"#!\n");
        fails(exec(c"./nothing", &[c"x"], &[]), libc::ENOEXEC);
    });
}

#[test]
fn errors_of_the_path() {
    isolated(|| unsafe {
        fails(exec(c"./missing", &[c"x"], &[]), libc::ENOENT);
        fails(exec(c"", &[c"x"], &[]), libc::ENOENT);
        file(c"plain", b"#!/bin/sh\n");
        fails(exec(c"./plain", &[c"x"], &[]), libc::EACCES);
        fails(exec(c".", &[c"x"], &[]), libc::EACCES);
        fails(exec(c"./plain/x", &[c"x"], &[]), libc::ENOTDIR);
        fails(libc::execve(16 as *const _, [std::ptr::null()].as_ptr(), [std::ptr::null()].as_ptr()), libc::EFAULT);
        ok(libc::symlink(c"loop".as_ptr(), c"loop".as_ptr()));
        fails(exec(c"./loop", &[c"x"], &[]), libc::ELOOP);
        ok(libc::mkfifo(c"fifo".as_ptr(), 0o777));
        fails(exec(c"./fifo", &[c"x"], &[]), libc::EACCES);
    });
}

#[test]
fn pointers_outside_memory_give_efault() {
    isolated(|| unsafe {
        let arguments = [16 as *const libc::c_char, std::ptr::null()];
        fails(libc::execve(this().as_ptr(), arguments.as_ptr(), [std::ptr::null()].as_ptr()), libc::EFAULT);
        fails(libc::execve(this().as_ptr(), 16 as *const _, [std::ptr::null()].as_ptr()), libc::EFAULT);
    });
}

#[test]
fn failed_exec_leaves_the_process_as_it_was() {
    isolated(|| {
        extern "C" fn nothing(_: c_int) {}
        handle(libc::SIGUSR1, nothing, 0);
        let fd = ok(open(c"f", libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC));
        fails(exec(c"./missing", &[c"x"], &[]), libc::ENOENT);
        assert_eq!(write(fd, b"x"), 1);
        // SAFETY: a signal with a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
    });
}

#[test]
fn close_on_exec_closes() {
    isolated(|| unsafe {
        let (kept, closed) = (ok(open(c"/", libc::O_RDONLY)), ok(open(c"/", libc::O_RDONLY | libc::O_CLOEXEC)));
        let set_later = ok(open(c"/", libc::O_RDONLY));
        ok(libc::fcntl(set_later, libc::F_SETFD, libc::FD_CLOEXEC));
        let names: Vec<CString> =
            [kept, closed, set_later].iter().map(|fd| CString::new(fd.to_string()).unwrap()).collect();
        let pid = child(|| exec(&this(), &[c"test-descriptors", &names[0], &names[1], &names[2]], &[]));
        assert_eq!(wait(pid), Status::Exited(0b001));
        ok(libc::fcntl(closed, libc::F_GETFD));
    });
}

#[test]
fn exec_resets_handlers_and_keeps_ignoring_mask_and_pending() {
    isolated(|| unsafe {
        extern "C" fn nothing(_: c_int) {}
        let pid = child(|| {
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            handle(libc::SIGUSR2, nothing, 0);
            block(&[libc::SIGHUP, libc::SIGTERM]);
            libc::raise(libc::SIGTERM);
            exec(&this(), &[c"test-signals"], &[])
        });
        assert_eq!(wait(pid), Status::Exited(0b1111));
    });
}

#[test]
fn exec_from_a_thread_keeps_the_pid_and_ends_the_others() {
    isolated(|| unsafe {
        let pid = child(|| {
            std::thread::spawn(|| libc::pause());
            std::thread::spawn(|| exec(&this(), &[c"test-exit"], &[])).join().unwrap()
        });
        assert_eq!(wait(pid), Status::Exited(42));
    });
}

#[test]
fn first_stack_grows_deep() {
    isolated(|| {
        // Under the limit of 8 MiB, which is set in case the tests run with another one.
        let pid = child(|| {
            let limit = libc::rlimit { rlim_cur: 64 << 20, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: the limit is valid.
            ok(unsafe { libc::setrlimit(libc::RLIMIT_STACK, &limit) });
            exec(&this(), &[c"test-recurse"], &[])
        });
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn stack_beyond_its_limit_is_a_fault() {
    isolated(|| {
        let pid = child(|| {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            // SAFETY: the limit is valid.
            ok(unsafe { libc::setrlimit(libc::RLIMIT_STACK, &limit) });
            exec(&this(), &[c"test-recurse"], &[])
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGSEGV));
    });
}

#[test]
fn execveat_of_a_directory_and_a_name() {
    isolated(|| unsafe {
        let link = CString::new(short_link()).unwrap();
        let directory = ok(open(c".", libc::O_PATH));
        let arguments = [c"test-exit".as_ptr(), std::ptr::null()];
        let execveat = |fd: c_int, path: &std::ffi::CStr, flags: c_int| {
            libc::syscall(libc::SYS_execveat, fd, path.as_ptr(), arguments.as_ptr(), 0, flags)
        };
        let pid = child(|| execveat(directory, c"prog", 0) as c_int);
        assert_eq!(wait(pid), Status::Exited(42));
        fails(execveat(directory, c"prog", libc::AT_SYMLINK_NOFOLLOW), libc::ELOOP);
        fails(execveat(directory, c"missing", 0), libc::ENOENT);
        fails(execveat(77, c"prog", 0), libc::EBADF);
        fails(execveat(directory, c"prog", 0x4000_0000), libc::EINVAL);
        let program = ok(open(&link, libc::O_PATH));
        let pid = child(|| execveat(program, c"", libc::AT_EMPTY_PATH) as c_int);
        assert_eq!(wait(pid), Status::Exited(42));
    });
}

#[test]
fn proc_self_exe_is_the_program() {
    isolated(|| {
        assert_eq!(fs::read_link("/proc/self/exe").unwrap(), std::env::current_exe().unwrap());
        let pid = child(|| exec(c"/proc/self/exe", &[c"test-exit"], &[]));
        assert_eq!(wait(pid), Status::Exited(42));
    });
}

#[test]
fn running_program_cannot_be_written() {
    isolated(|| {
        fs::copy("/bin/sh", "program").unwrap();
        let (told, tell) = pipe_with(libc::O_CLOEXEC);
        let (reader, writer) = pipe();
        let pid = child(|| {
            // SAFETY: no memory is involved.
            unsafe { libc::dup2(reader, 0) };
            close(writer);
            exec(c"./program", &[c"sh", c"-c", c"read x; exit 5"], &[]);
            errno()
        });
        close(tell);
        assert_eq!(read_some(told, 1), b"");
        fails(open(c"program", libc::O_WRONLY), libc::ETXTBSY);
        write(writer, b"\n");
        assert_eq!(wait(pid), Status::Exited(5));
        close(ok(open(c"program", libc::O_WRONLY)));
    });
}

#[test]
fn program_open_for_writing_cannot_run() {
    isolated(|| {
        fs::copy("/bin/sh", "program").unwrap();
        let fd = ok(open(c"program", libc::O_WRONLY));
        fails(exec(c"./program", &[c"sh", c"-c", c"exit 5"], &[]), libc::ETXTBSY);
        close(fd);
        let pid = child(|| exec(c"./program", &[c"sh", c"-c", c"exit 5"], &[]));
        assert_eq!(wait(pid), Status::Exited(5));
    });
}

#[test]
fn exec_wakes_the_vfork_parent() {
    isolated(|| unsafe {
        let pid = libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) as c_int;
        if pid == 0 {
            exec(c"/bin/sh", &[c"sh", c"-c", c"kill -STOP $$; exit 1"], &[]);
            libc::_exit(9);
        }
        assert_eq!(wait_for(pid, libc::WUNTRACED), Status::Stopped(libc::SIGSTOP));
        ok(libc::kill(pid, libc::SIGKILL));
        assert_eq!(wait(pid), Status::Killed(libc::SIGKILL));
    });
}

#[test]
fn comm_and_cmdline_follow_the_program() {
    isolated(|| {
        let (text, _) = output_of(c"/bin/sh", &[c"sh", c"-c", c"read x </proc/$$/comm; echo $x"], &[]);
        assert_eq!(text, "sh\n");
    });
}

#[test]
fn exec_without_permission_as_a_user_gives_eacces() {
    isolated(|| {
        fs::set_permissions(".", fs::Permissions::from_mode(0o755)).unwrap();
        program("private", b"#!/bin/sh\n");
        fs::set_permissions("private", fs::Permissions::from_mode(0o700)).unwrap();
        as_user(1234, || fails(exec(c"./private", &[c"x"], &[]), libc::EACCES));
    });
}

#[test]
fn execute_only_program_runs() {
    isolated(|| {
        fs::copy("/bin/sh", "program").unwrap();
        fs::set_permissions("program", fs::Permissions::from_mode(0o711)).unwrap();
        as_user(1234, || {
            fails(open(c"program", libc::O_RDONLY), libc::EACCES);
            let pid = child(|| exec(c"./program", &[c"sh", c"-c", c"exit 5"], &[]));
            assert_eq!(wait(pid), Status::Exited(5));
        });
    });
}

#[test]
fn auxiliary_vector_names_the_page_size_and_user() {
    isolated(|| unsafe {
        assert_eq!(libc::getauxval(libc::AT_PAGESZ), 4096);
        assert_eq!(libc::getauxval(libc::AT_CLKTCK), 100);
        assert_eq!(libc::getauxval(libc::AT_SECURE), 0);
        assert_eq!(libc::getauxval(libc::AT_UID), 0);
        assert_ne!(libc::getauxval(libc::AT_PHDR), 0);
        assert_ne!(libc::getauxval(libc::AT_ENTRY), 0);
        let random = libc::getauxval(libc::AT_RANDOM) as *const [u8; 16];
        assert_ne!(*random, [0; 16]);
        let platform = std::ffi::CStr::from_ptr(libc::getauxval(libc::AT_PLATFORM) as *const _);
        assert_eq!(platform, c"x86_64");
    });
}

#[test]
fn execveat_of_descriptors() {
    isolated(|| unsafe {
        let execveat = |fd: c_int, path: &std::ffi::CStr, flags: c_int| {
            let arguments = [c"x".as_ptr(), std::ptr::null()];
            libc::syscall(libc::SYS_execveat, fd, path.as_ptr(), arguments.as_ptr(), 0, flags)
        };
        program("s", b"#!/bin/sh\nexit 7\n");
        let script = ok(open(c"s", libc::O_RDONLY));
        fails(execveat(script, c"", 0), libc::ENOENT);
        fails(execveat(script, c"x", 0), libc::ENOTDIR);
        // The interpreter is given the script as /dev/fd/N.
        let pid = child(|| execveat(script, c"", libc::AT_EMPTY_PATH) as c_int);
        assert_eq!(wait(pid), Status::Exited(7));
        ok(libc::fcntl(script, libc::F_SETFD, libc::FD_CLOEXEC));
        fails(execveat(script, c"", libc::AT_EMPTY_PATH), libc::ENOENT);
        let named = ok(open(c"s", libc::O_PATH));
        let pid = child(|| execveat(named, c"", libc::AT_EMPTY_PATH) as c_int);
        assert_eq!(wait(pid), Status::Exited(7));
        let memory = ok(libc::memfd_create(c"m".as_ptr(), 0));
        assert_eq!(write(memory, b"#!/bin/sh\nexit 8\n"), 17);
        let pid = child(|| execveat(memory, c"", libc::AT_EMPTY_PATH) as c_int);
        assert_eq!(wait(pid), Status::Exited(8));
        ok(libc::fchmod(memory, 0o644));
        fails(execveat(memory, c"", libc::AT_EMPTY_PATH), libc::EACCES);
        let (reader, _writer) = pipe();
        fails(execveat(reader, c"", libc::AT_EMPTY_PATH), libc::EACCES);
        let directory = ok(open(c".", libc::O_RDONLY));
        fails(execveat(directory, c"", libc::AT_EMPTY_PATH), libc::EACCES);
    });
}
