//! Waiting for children: `wait4` and `waitid` with their options.

use std::ptr;

use libc::{c_int, pid_t};

use crate::common::*;

unsafe fn waitid(kind: libc::idtype_t, id: u32, options: c_int) -> libc::siginfo_t {
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        ok(libc::waitid(kind, id, &mut info, options));
        info
    }
}

#[test]
fn wait_without_children_gives_echild() {
    isolated(|| unsafe {
        fails(libc::waitpid(-1, ptr::null_mut(), 0), libc::ECHILD);
        fails(libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG), libc::ECHILD);
        fails(libc::waitpid(libc::getpid(), ptr::null_mut(), 0), libc::ECHILD);
        fails(libc::waitid(libc::P_ALL, 0, ptr::null_mut(), libc::WEXITED), libc::ECHILD);
    });
}

#[test]
fn wait_for_another_processes_child_gives_echild() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        in_child(|| fails(libc::waitpid(pid, ptr::null_mut(), 0), libc::ECHILD));
        ok(libc::kill(pid, libc::SIGKILL));
        wait(pid);
    });
}

#[test]
fn wait_option_errors() {
    isolated(|| unsafe {
        fails(libc::waitpid(-1, ptr::null_mut(), 0x100), libc::EINVAL);
        fails(libc::waitid(libc::P_ALL, 0, ptr::null_mut(), 0), libc::EINVAL);
        fails(libc::waitid(9, 0, ptr::null_mut(), libc::WEXITED), libc::EINVAL);
        fails(libc::waitid(libc::P_PID, 0, ptr::null_mut(), libc::WEXITED), libc::EINVAL);
        fails(libc::waitid(libc::P_PIDFD, 77, ptr::null_mut(), libc::WEXITED), libc::EBADF);
    });
}

#[test]
fn wnohang_returns_zero_while_the_child_runs() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let pid = child(|| read(reader, &mut [0]) as c_int);
        assert_eq!(libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG), 0);
        let mut info: libc::siginfo_t = std::mem::zeroed();
        info.si_signo = 77;
        ok(libc::waitid(libc::P_PID, pid as u32, &mut info, libc::WEXITED | libc::WNOHANG));
        assert_eq!((info.si_signo, info.si_pid()), (0, 0));
        write(writer, b"x");
        assert_eq!(wait(pid), Status::Exited(1));
    });
}

#[test]
fn wait_takes_a_zombie_once() {
    isolated(|| unsafe {
        let pid = child(|| 3);
        eventually(|| state(pid) == Some('Z'));
        ok(libc::kill(pid, 0));
        assert_eq!(wait(pid), Status::Exited(3));
        fails(libc::waitpid(pid, ptr::null_mut(), 0), libc::ECHILD);
        fails(libc::kill(pid, 0), libc::ESRCH);
    });
}

#[test]
fn wnowait_leaves_the_zombie() {
    isolated(|| unsafe {
        let pid = child(|| 3);
        for _ in 0..2 {
            let info = waitid(libc::P_PID, pid as u32, libc::WEXITED | libc::WNOWAIT);
            assert_eq!((info.si_pid(), info.si_status(), info.si_code), (pid, 3, libc::CLD_EXITED));
            assert_eq!((info.si_signo, info.si_uid()), (libc::SIGCHLD, 0));
        }
        assert_eq!(wait(pid), Status::Exited(3));
    });
}

#[test]
fn wuntraced_and_wcontinued_report_stops() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        ok(libc::kill(pid, libc::SIGSTOP));
        assert_eq!(wait_for(pid, libc::WUNTRACED), Status::Stopped(libc::SIGSTOP));
        assert_eq!(libc::waitpid(pid, ptr::null_mut(), libc::WUNTRACED | libc::WNOHANG), 0, "reported once");
        ok(libc::kill(pid, libc::SIGCONT));
        assert_eq!(wait_for(pid, libc::WCONTINUED), Status::Continued);
        assert_eq!(libc::waitpid(pid, ptr::null_mut(), libc::WCONTINUED | libc::WNOHANG), 0, "reported once");
        ok(libc::kill(pid, libc::SIGKILL));
        assert_eq!(wait(pid), Status::Killed(libc::SIGKILL));
    });
}

#[test]
fn waitid_reports_stop_continue_and_kill() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        let id = pid as u32;
        ok(libc::kill(pid, libc::SIGSTOP));
        let info = waitid(libc::P_PID, id, libc::WSTOPPED);
        assert_eq!((info.si_code, info.si_status()), (libc::CLD_STOPPED, libc::SIGSTOP));
        ok(libc::kill(pid, libc::SIGCONT));
        let info = waitid(libc::P_PID, id, libc::WCONTINUED);
        assert_eq!((info.si_code, info.si_status()), (libc::CLD_CONTINUED, libc::SIGCONT));
        ok(libc::kill(pid, libc::SIGTERM));
        let info = waitid(libc::P_PID, id, libc::WEXITED);
        assert_eq!((info.si_code, info.si_status()), (libc::CLD_KILLED, libc::SIGTERM));
    });
}

#[test]
fn stop_is_not_reported_without_wuntraced() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        ok(libc::kill(pid, libc::SIGSTOP));
        eventually(|| state(pid) == Some('T'));
        assert_eq!(libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG), 0);
        ok(libc::kill(pid, libc::SIGKILL));
        assert_eq!(wait(pid), Status::Killed(libc::SIGKILL));
    });
}

#[test]
fn wait_by_process_group() {
    isolated(|| unsafe {
        let grouped = child(|| libc::pause());
        ok(libc::setpgid(grouped, grouped));
        let other = child(|| 4);
        eventually(|| state(other) == Some('Z'));
        assert_eq!(libc::waitpid(-grouped, ptr::null_mut(), libc::WNOHANG), 0);
        let mut status = 0;
        assert_eq!(ok(libc::waitpid(0, &mut status, 0)), other);
        assert_eq!(Status::from_wait(status), Status::Exited(4));
        fails(libc::waitpid(0, ptr::null_mut(), 0), libc::ECHILD);
        ok(libc::kill(grouped, libc::SIGKILL));
        assert_eq!(ok(libc::waitpid(-grouped, ptr::null_mut(), 0)), grouped);
    });
}

#[test]
fn wait_by_pidfd() {
    isolated(|| unsafe {
        let pid = child(|| 12);
        let fd = ok(libc::syscall(libc::SYS_pidfd_open, pid, 0)) as u32;
        let info = waitid(libc::P_PIDFD, fd, libc::WEXITED);
        assert_eq!((info.si_pid(), info.si_status()), (pid, 12));
        fails(libc::waitid(libc::P_PIDFD, fd, ptr::null_mut(), libc::WEXITED), libc::ECHILD);
    });
}

#[test]
fn wait_on_a_nonblocking_pidfd_gives_eagain() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        let fd = ok(libc::syscall(libc::SYS_pidfd_open, pid, libc::O_NONBLOCK)) as u32;
        fails(libc::waitid(libc::P_PIDFD, fd, ptr::null_mut(), libc::WEXITED), libc::EAGAIN);
        ok(libc::kill(pid, libc::SIGKILL));
        wait(pid);
    });
}

#[test]
fn wait_any_collects_every_child() {
    isolated(|| unsafe {
        let mut expected: Vec<(pid_t, c_int)> = (0..20).map(|n| (child(move || n), n)).collect();
        while !expected.is_empty() {
            let mut status = 0;
            let pid = ok(libc::waitpid(-1, &mut status, 0));
            let at = expected.iter().position(|child| child.0 == pid).expect("a child");
            assert_eq!(Status::from_wait(status), Status::Exited(expected.swap_remove(at).1));
        }
        fails(libc::waitpid(-1, ptr::null_mut(), 0), libc::ECHILD);
    });
}

#[test]
fn wait4_gives_the_childs_usage() {
    isolated(|| unsafe {
        let pid = child(|| {
            let mut usage: libc::rusage = std::mem::zeroed();
            while usage.ru_utime.tv_usec + usage.ru_stime.tv_usec < 20_000 && usage.ru_utime.tv_sec == 0 {
                ok(libc::getrusage(libc::RUSAGE_SELF, &mut usage));
            }
            0
        });
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(ok(libc::wait4(pid, ptr::null_mut(), 0, &mut usage)), pid);
        let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
        assert!(micros(usage.ru_utime) + micros(usage.ru_stime) >= 15_000);
        let mut children: libc::rusage = std::mem::zeroed();
        ok(libc::getrusage(libc::RUSAGE_CHILDREN, &mut children));
        assert_eq!(micros(children.ru_utime), micros(usage.ru_utime));
    });
}

#[test]
fn any_thread_can_wait_for_the_processs_children() {
    isolated(|| unsafe {
        let pid = child(|| 2);
        std::thread::spawn(move || assert_eq!(wait(pid), Status::Exited(2))).join().unwrap();
        let forked = std::thread::spawn(|| {
            let pid = libc::fork();
            if pid == 0 {
                libc::_exit(3);
            }
            pid
        });
        assert_eq!(wait(forked.join().unwrap()), Status::Exited(3));
    });
}

#[test]
fn wnothread_sees_only_the_threads_own_children() {
    isolated(|| unsafe {
        let pid = child(|| 2);
        std::thread::spawn(move || {
            fails(libc::waitpid(pid, ptr::null_mut(), libc::__WNOTHREAD), libc::ECHILD);
        })
        .join()
        .unwrap();
        assert_eq!(wait(pid), Status::Exited(2));
    });
}

#[test]
fn child_without_exit_signal_needs_wclone() {
    isolated(|| unsafe {
        let pid = ok(libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0)) as pid_t;
        if pid == 0 {
            libc::_exit(3);
        }
        fails(libc::waitpid(pid, ptr::null_mut(), 0), libc::ECHILD);
        assert_eq!(wait_for(pid, libc::__WCLONE), Status::Exited(3));
    });
}

#[test]
fn ignored_sigchld_leaves_no_zombies() {
    isolated(|| unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        child(|| 0);
        child(|| 0);
        fails(libc::waitpid(-1, ptr::null_mut(), 0), libc::ECHILD);
    });
}
