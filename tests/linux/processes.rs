//! Processes and threads: `fork`, `vfork`, `clone` and its flags, groups, sessions, parents.

use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::{c_int, c_long, c_void, pid_t};

use crate::common::*;

/// `clone` like `fork`: no new stack.
unsafe fn clone(flags: c_int, parent_tid: *mut pid_t, child_tid: *mut pid_t) -> c_long {
    unsafe { libc::syscall(libc::SYS_clone, flags, 0, parent_tid, child_tid, 0) }
}

/// A child that runs `body` on a stack of its own, with `flags` and no signal at its end when they have none.
unsafe fn clone_on_stack(flags: c_int, body: extern "C" fn(*mut c_void) -> c_int, argument: *mut c_void) -> pid_t {
    let size = 64 * 1024;
    unsafe {
        let stack = anonymous(size, libc::MAP_PRIVATE);
        ok(libc::clone(body, stack.add(size).cast(), flags, argument))
    }
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

unsafe fn clone3(arguments: &CloneArgs) -> c_long {
    unsafe { libc::syscall(libc::SYS_clone3, arguments, size_of::<CloneArgs>()) }
}

#[test]
fn fork_gives_the_child_its_own_pid_and_this_parent() {
    isolated(|| unsafe {
        let parent = libc::getpid();
        let seen: &AtomicI32 = shared();
        let pid = child(|| {
            seen.store(libc::getpid(), Ordering::SeqCst);
            c_int::from(libc::getppid() != parent)
        });
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(seen.load(Ordering::SeqCst), pid);
    });
}

#[test]
fn fork_copies_memory() {
    isolated(|| {
        let mut value = Box::new(1);
        let pid = child(|| {
            *value = 2;
            *value
        });
        assert_eq!(wait(pid), Status::Exited(2));
        assert_eq!(*value, 1);
    });
}

#[test]
fn fork_shares_file_offsets() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        in_child(|| assert_eq!(write(fd, b"12345"), 5));
        assert_eq!(libc::lseek(fd, 0, libc::SEEK_CUR), 5);
    });
}

#[test]
fn fork_child_has_its_own_descriptors() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        in_child(|| close(fd));
        ok(libc::fcntl(fd, libc::F_GETFD));
    });
}

#[test]
fn exit_status_keeps_its_low_byte() {
    isolated(|| {
        assert_eq!(wait(child(|| 0x1ff)), Status::Exited(0xff));
        assert_eq!(wait(child(|| 256)), Status::Exited(0));
        assert_eq!(wait(child(|| -1)), Status::Exited(255));
    });
}

#[test]
fn vfork_parent_waits_until_the_child_ends() {
    isolated(|| unsafe {
        let done: &AtomicU32 = shared();
        extern "C" fn body(done: *mut c_void) -> c_int {
            // SAFETY: the parent's memory, which this shares.
            let done = unsafe { &*done.cast::<AtomicU32>() };
            for _ in 0..100 {
                // SAFETY: no memory is involved.
                unsafe { libc::sched_yield() };
            }
            done.store(1, Ordering::SeqCst);
            3
        }
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = clone_on_stack(flags, body, ptr::from_ref(done).cast_mut().cast());
        assert_eq!(done.load(Ordering::SeqCst), 1);
        assert_eq!(wait(pid), Status::Exited(3));
    });
}

#[test]
fn clone_vm_shares_memory() {
    isolated(|| unsafe {
        static VALUE: AtomicU32 = AtomicU32::new(0);
        extern "C" fn body(_: *mut c_void) -> c_int {
            VALUE.store(7, Ordering::SeqCst);
            0
        }
        let pid = clone_on_stack(libc::CLONE_VM | libc::SIGCHLD, body, ptr::null_mut());
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(VALUE.load(Ordering::SeqCst), 7);
    });
}

#[test]
fn clone_files_shares_descriptors() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        let pid = ok(clone(libc::CLONE_FILES | libc::SIGCHLD, ptr::null_mut(), ptr::null_mut())) as pid_t;
        if pid == 0 {
            libc::close(fd);
            libc::_exit(libc::open(c"/".as_ptr(), libc::O_PATH) - fd);
        }
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(fstat(fd).st_mode & libc::S_IFMT, libc::S_IFDIR);
    });
}

#[test]
fn clone_fs_shares_directory_and_umask() {
    isolated(|| unsafe {
        ok(libc::mkdir(c"d".as_ptr(), 0o755));
        let expected = std::env::current_dir().unwrap().join("d");
        let pid = ok(clone(libc::CLONE_FS | libc::SIGCHLD, ptr::null_mut(), ptr::null_mut())) as pid_t;
        if pid == 0 {
            libc::umask(0o077);
            libc::_exit(libc::chdir(c"d".as_ptr()));
        }
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(std::env::current_dir().unwrap(), expected);
        assert_eq!(libc::umask(0), 0o077);
    });
}

#[test]
fn clone_sighand_shares_handlers() {
    isolated(|| unsafe {
        extern "C" fn body(_: *mut c_void) -> c_int {
            // SAFETY: no memory is involved.
            unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
            0
        }
        let pid = clone_on_stack(libc::CLONE_VM | libc::CLONE_SIGHAND | libc::SIGCHLD, body, ptr::null_mut());
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(libc::signal(libc::SIGUSR1, libc::SIG_DFL), libc::SIG_IGN);
    });
}

#[test]
fn clone_flags_that_need_others_give_einval() {
    isolated(|| unsafe {
        fails(clone(libc::CLONE_SIGHAND | libc::SIGCHLD, ptr::null_mut(), ptr::null_mut()), libc::EINVAL);
        fails(clone(libc::CLONE_THREAD | libc::CLONE_VM, ptr::null_mut(), ptr::null_mut()), libc::EINVAL);
        fails(clone(libc::CLONE_FS | libc::CLONE_NEWNS, ptr::null_mut(), ptr::null_mut()), libc::EINVAL);
    });
}

#[test]
fn clone_writes_the_tid_for_parent_and_child() {
    isolated(|| unsafe {
        let tids: &[AtomicI32; 2] = shared();
        let flags = libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_SETTID | libc::SIGCHLD;
        let pid = ok(clone(flags, tids[0].as_ptr(), tids[1].as_ptr())) as pid_t;
        if pid == 0 {
            let right = tids[1].load(Ordering::SeqCst) == libc::getpid();
            libc::_exit(c_int::from(!right));
        }
        assert_eq!(tids[0].load(Ordering::SeqCst), pid);
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn clone_child_cleartid_clears_and_wakes() {
    isolated(|| unsafe {
        static TID: AtomicI32 = AtomicI32::new(1);
        extern "C" fn body(_: *mut c_void) -> c_int {
            0
        }
        let size = 64 * 1024;
        let stack = anonymous(size, libc::MAP_PRIVATE);
        let flags = libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
        let none = ptr::null_mut::<c_void>();
        let pid = ok(libc::clone(body, stack.add(size).cast(), flags, none, none, none, TID.as_ptr()));
        while TID.load(Ordering::SeqCst) == 1 {
            libc::syscall(libc::SYS_futex, TID.as_ptr(), libc::FUTEX_WAIT, 1, ptr::null::<libc::timespec>());
        }
        assert_eq!(TID.load(Ordering::SeqCst), 0);
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn clone_settls_sets_the_fs_base() {
    isolated(|| unsafe {
        static BASE: AtomicU32 = AtomicU32::new(0);
        let block = anonymous(PAGE, libc::MAP_PRIVATE);
        block.cast::<u64>().write(block as u64);
        block.cast::<u64>().add(1).write(0x1234);
        // The C library is unusable in this child: it only reads through its segment and ends.
        let size = 64 * 1024;
        let stack = anonymous(size, libc::MAP_PRIVATE).add(size);
        let flags = libc::CLONE_VM | libc::CLONE_SETTLS | libc::SIGCHLD;
        let pid: i64;
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov eax, fs:[8]",
            "mov [r12], eax",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "2:",
            inlateout("rax") libc::SYS_clone => pid,
            in("rdi") flags as i64, in("rsi") stack, in("rdx") 0, in("r10") 0, in("r8") block,
            in("r12") BASE.as_ptr(), lateout("rcx") _, lateout("r11") _,
        );
        assert!(pid > 0);
        assert_eq!(wait(pid as pid_t), Status::Exited(0));
        assert_eq!(BASE.load(Ordering::SeqCst), 0x1234);
    });
}

#[test]
fn clone_parent_makes_a_sibling() {
    isolated(|| unsafe {
        let sibling: &AtomicI32 = shared();
        let pid = child(|| {
            let pid = ok(clone(libc::CLONE_PARENT | libc::SIGCHLD, ptr::null_mut(), ptr::null_mut())) as pid_t;
            if pid == 0 {
                libc::_exit(9);
            }
            sibling.store(pid, Ordering::SeqCst);
            0
        });
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(wait(sibling.load(Ordering::SeqCst)), Status::Exited(9));
    });
}

#[test]
fn clone3_forks() {
    isolated(|| unsafe {
        let pid = ok(clone3(&CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() })) as pid_t;
        if pid == 0 {
            libc::_exit(5);
        }
        assert_eq!(wait(pid), Status::Exited(5));
    });
}

#[test]
fn clone3_gives_a_pidfd() {
    isolated(|| unsafe {
        let mut pidfd: c_int = -1;
        let arguments = CloneArgs {
            flags: libc::CLONE_PIDFD as u64,
            pidfd: &raw mut pidfd as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        let pid = ok(clone3(&arguments)) as pid_t;
        if pid == 0 {
            libc::_exit(0);
        }
        assert!(pidfd > 2);
        assert_eq!(libc::fcntl(pidfd, libc::F_GETFD), libc::FD_CLOEXEC);
        let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
        assert_eq!(ok(libc::poll(&mut poll, 1, -1)), 1);
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn clone3_checks_its_arguments() {
    isolated(|| unsafe {
        let with = |flags: c_int, signal| CloneArgs { flags: flags as u64, exit_signal: signal, ..Default::default() };
        fails(clone3(&with(0, 65)), libc::EINVAL);
        fails(clone3(&with(libc::CLONE_SIGHAND, 0)), libc::EINVAL);
        fails(clone3(&CloneArgs { stack: 4096, ..Default::default() }), libc::EINVAL);
        fails(clone3(&CloneArgs { stack_size: 4096, ..Default::default() }), libc::EINVAL);
        fails(libc::syscall(libc::SYS_clone3, &CloneArgs::default(), 8), libc::EINVAL);
        fails(libc::syscall(libc::SYS_clone3, 8, 64), libc::EFAULT);
    });
}

#[test]
fn threads_share_the_pid_and_have_tids() {
    isolated(|| unsafe {
        let pid = libc::getpid();
        assert_eq!(libc::gettid(), pid);
        let (thread_pid, tid) = std::thread::spawn(|| (libc::getpid(), libc::gettid())).join().unwrap();
        assert_eq!(thread_pid, pid);
        assert_ne!(tid, pid);
    });
}

#[test]
fn many_threads_run_and_end() {
    isolated(|| {
        static SUM: AtomicU32 = AtomicU32::new(0);
        for _ in 0..20 {
            let threads: Vec<_> =
                (0..10).map(|n| std::thread::spawn(move || SUM.fetch_add(n, Ordering::Relaxed))).collect();
            threads.into_iter().for_each(|thread| _ = thread.join().unwrap());
        }
        assert_eq!(SUM.load(Ordering::SeqCst), 900);
        // A thread is joined once it has let go of its stack, a moment before it is gone.
        eventually(|| std::fs::read_dir("/proc/self/task").unwrap().count() == 1);
    });
}

#[test]
fn exit_group_ends_all_threads() {
    isolated(|| unsafe {
        let pid = child(|| {
            for _ in 0..4 {
                std::thread::spawn(|| libc::pause());
            }
            std::thread::spawn(|| libc::_exit(6)).join().unwrap();
            0
        });
        assert_eq!(wait(pid), Status::Exited(6));
    });
}

#[test]
fn process_outlives_its_first_thread() {
    isolated(|| unsafe {
        let pid = child(|| {
            std::thread::spawn(|| {
                let leader = libc::getpid();
                eventually(|| state(leader) == Some('Z'));
                libc::_exit(8)
            });
            libc::syscall(libc::SYS_exit, 1);
            0
        });
        assert_eq!(wait(pid), Status::Exited(8));
    });
}

#[test]
fn fork_from_a_thread_takes_only_that_thread() {
    isolated(|| unsafe {
        let (reader, _writer) = pipe();
        std::thread::spawn(move || read(reader, &mut [0]));
        std::thread::spawn(|| {
            in_child(|| {
                assert_eq!(libc::getpid(), libc::gettid());
                assert_eq!(std::fs::read_dir("/proc/self/task").unwrap().count(), 1);
            });
        })
        .join()
        .unwrap();
    });
}

#[test]
fn set_tid_address_returns_the_tid() {
    isolated(|| unsafe {
        let mut word: c_int = 0;
        assert_eq!(libc::syscall(libc::SYS_set_tid_address, &raw mut word), c_long::from(libc::gettid()));
    });
}

#[test]
fn unshare_files_ends_the_sharing() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        std::thread::spawn(move || {
            ok(libc::unshare(libc::CLONE_FILES));
            close(fd);
        })
        .join()
        .unwrap();
        ok(libc::fcntl(fd, libc::F_GETFD));
    });
}

#[test]
fn orphan_gets_another_parent() {
    isolated(|| unsafe {
        let parents: &[AtomicI32; 2] = shared();
        let (reader, writer) = pipe();
        let pid = child(|| {
            let first = libc::getpid();
            if libc::fork() == 0 {
                eventually(|| libc::getppid() != first);
                parents[0].store(first, Ordering::SeqCst);
                parents[1].store(libc::getppid(), Ordering::SeqCst);
                write(writer, b"x");
                libc::_exit(0);
            }
            0
        });
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(read_some(reader, 1), b"x");
        assert_eq!(parents[0].load(Ordering::SeqCst), pid);
        assert_ne!(parents[1].load(Ordering::SeqCst), pid);
    });
}

#[test]
fn subreaper_inherits_orphans() {
    isolated(|| unsafe {
        ok(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1));
        let mut set: c_int = 0;
        ok(libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut set));
        assert_eq!(set, 1);
        let reaper = libc::getpid();
        let grandchild: &AtomicI32 = shared();
        let pid = child(|| {
            let pid = libc::fork();
            if pid == 0 {
                eventually(|| libc::getppid() == reaper);
                libc::_exit(17);
            }
            grandchild.store(pid, Ordering::SeqCst);
            0
        });
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(wait(grandchild.load(Ordering::SeqCst)), Status::Exited(17));
    });
}

#[test]
fn parent_death_signal_is_delivered() {
    isolated(|| unsafe {
        ok(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1));
        let (ready, readied) = pipe();
        let grandchild: &AtomicI32 = shared();
        let pid = child(|| {
            let pid = libc::fork();
            if pid == 0 {
                ok(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR1));
                let mut signal: c_int = 0;
                ok(libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal));
                assert_eq!(signal, libc::SIGUSR1);
                write(readied, b"x");
                loop {
                    libc::pause();
                }
            }
            grandchild.store(pid, Ordering::SeqCst);
            read_some(ready, 1);
            0
        });
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(wait(grandchild.load(Ordering::SeqCst)), Status::Killed(libc::SIGUSR1));
    });
}

#[test]
fn parent_death_signal_is_not_inherited() {
    isolated(|| unsafe {
        ok(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR1));
        let pid = libc::fork();
        if pid == 0 {
            let mut signal: c_int = -1;
            libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal);
            libc::_exit(signal);
        }
        assert_eq!(wait(pid), Status::Exited(0));
        fails(libc::prctl(libc::PR_SET_PDEATHSIG, 65), libc::EINVAL);
    });
}

#[test]
fn thread_name_is_cut_at_fifteen_bytes() {
    isolated(|| unsafe {
        ok(libc::prctl(libc::PR_SET_NAME, c"0123456789abcdefgh".as_ptr()));
        let mut name = [0u8; 16];
        ok(libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()));
        assert_eq!(&name, b"0123456789abcde\0");
        assert_eq!(std::fs::read_to_string("/proc/self/comm").unwrap(), "0123456789abcde\n");
    });
}

#[test]
fn dumpable_is_kept_and_checked() {
    isolated(|| unsafe {
        assert_eq!(libc::prctl(libc::PR_GET_DUMPABLE), 1);
        ok(libc::prctl(libc::PR_SET_DUMPABLE, 0));
        assert_eq!(libc::prctl(libc::PR_GET_DUMPABLE), 0);
        fails(libc::prctl(libc::PR_SET_DUMPABLE, 2), libc::EINVAL);
        fails(libc::prctl(0x7fff_0000), libc::EINVAL);
    });
}

#[test]
fn setsid_makes_a_leader_of_session_and_group() {
    isolated(|| unsafe {
        let session = ok(libc::setsid());
        let pid = libc::getpid();
        assert_eq!((session, libc::getsid(0), libc::getpgrp()), (pid, pid, pid));
        fails(libc::setsid(), libc::EPERM);
        in_child(|| assert_eq!((libc::getsid(0), libc::getpgrp()), (session, session)));
    });
}

#[test]
fn setsid_of_a_group_leader_gives_eperm() {
    isolated(|| unsafe {
        ok(libc::setpgid(0, 0));
        fails(libc::setsid(), libc::EPERM);
    });
}

#[test]
fn setpgid_moves_between_groups_of_one_session() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let first = child(|| read(reader, &mut [0]) as c_int);
        let second = child(|| read(reader, &mut [0]) as c_int);
        ok(libc::setpgid(first, 0));
        assert_eq!(ok(libc::getpgid(first)), first);
        ok(libc::setpgid(second, first));
        assert_eq!(ok(libc::getpgid(second)), first);
        write(writer, b"xx");
        assert_eq!(wait(first), Status::Exited(1));
        assert_eq!(wait(second), Status::Exited(1));
    });
}

#[test]
fn setpgid_errors() {
    isolated(|| unsafe {
        fails(libc::setpgid(0, -1), libc::EINVAL);
        fails(libc::setpgid(-1, 0), libc::EINVAL);
        fails(libc::setpgid(libc::getppid(), 0), libc::ESRCH);
        fails(libc::setpgid(0, 0x3f_ffff), libc::EPERM);
        ok(libc::setsid());
        fails(libc::setpgid(0, 0), libc::EPERM);
        fails(libc::getpgid(-1), libc::ESRCH);
        fails(libc::getsid(0x3f_ffff), libc::ESRCH);
    });
}

#[test]
fn setpgid_after_the_childs_exec_gives_eacces() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let (told, tell) = pipe_with(libc::O_CLOEXEC);
        let pid = child(|| {
            close(tell - 1);
            ok(libc::dup2(reader, 0));
            close(writer);
            libc::execl(c"/bin/sh".as_ptr(), c"sh".as_ptr(), c"-c".as_ptr(), c"read x".as_ptr(), ptr::null::<u8>());
            1
        });
        close(tell);
        assert_eq!(read_some(told, 1), b"", "the exec closed the other end");
        fails(libc::setpgid(pid, pid), libc::EACCES);
        write(writer, b"x\n");
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn setpgid_of_a_session_leader_gives_eperm() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let (told, tell) = pipe();
        let pid = child(|| {
            ok(libc::setsid());
            write(tell, b"x");
            read(reader, &mut [0]) as c_int
        });
        read_some(told, 1);
        fails(libc::setpgid(pid, pid), libc::EPERM);
        fails(libc::setpgid(pid, libc::getpgrp()), libc::EPERM);
        write(writer, b"x");
        assert_eq!(wait(pid), Status::Exited(1));
    });
}

#[test]
fn kill_of_a_group_reaches_all_members() {
    isolated(|| unsafe {
        let first = child(|| libc::pause());
        ok(libc::setpgid(first, first));
        let second = child(|| libc::pause());
        ok(libc::setpgid(second, first));
        ok(libc::kill(-first, libc::SIGTERM));
        assert_eq!(wait(first), Status::Killed(libc::SIGTERM));
        assert_eq!(wait(second), Status::Killed(libc::SIGTERM));
        fails(libc::kill(-first, 0), libc::ESRCH);
    });
}

#[test]
fn pidfd_open_errors() {
    isolated(|| unsafe {
        let pidfd_open = |pid: pid_t, flags: u32| libc::syscall(libc::SYS_pidfd_open, pid, flags);
        fails(pidfd_open(0, 0), libc::EINVAL);
        fails(pidfd_open(-1, 0), libc::EINVAL);
        fails(pidfd_open(libc::getpid(), 0x8000_0000), libc::EINVAL);
        fails(pidfd_open(0x3f_ffff, 0), libc::ESRCH);
        let fd = ok(pidfd_open(libc::getpid(), 0)) as c_int;
        assert_eq!(libc::fcntl(fd, libc::F_GETFD), libc::FD_CLOEXEC);
    });
}

#[test]
fn pidfd_send_signal_kills_and_then_finds_nothing() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        let fd = ok(libc::syscall(libc::SYS_pidfd_open, pid, 0)) as c_int;
        let send = |signal: c_int| libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, 0, 0);
        ok(send(0));
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        assert_eq!(ok(libc::poll(&mut poll, 1, 0)), 0);
        ok(send(libc::SIGKILL));
        assert_eq!(ok(libc::poll(&mut poll, 1, -1)), 1);
        assert_eq!(wait(pid), Status::Killed(libc::SIGKILL));
        fails(send(0), libc::ESRCH);
    });
}

#[test]
fn pidfd_getfd_copies_a_descriptor() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let own = ok(libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0)) as c_int;
        let copy = ok(libc::syscall(libc::SYS_pidfd_getfd, own, writer, 0)) as c_int;
        assert_eq!(write(copy, b"hi"), 2);
        assert_eq!(read_some(reader, 9), b"hi");
        fails(libc::syscall(libc::SYS_pidfd_getfd, own, 499, 0), libc::EBADF);
    });
}
