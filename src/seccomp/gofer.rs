//! The gofer's allow-list: files beneath the trees that it holds, the connections that it has, its own memory and
//! threads. It opens paths through `openat2(2)` alone, whose confinement its code asks for at one place.
//!
//! There is no making of sockets, mounts, namespaces or processes, no program to run, no other process to look at.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::container::{Context, Result};

/// Allowed whatever the arguments.
const ALLOWED: &[libc::c_long] = &[
    // Connections, the log, the reports.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_poll,
    // Looking at files.
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_fstatfs,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_close,
    // Changing them.
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_syncfs,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat2,
    libc::SYS_utimensat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fsetxattr,
    libc::SYS_fremovexattr,
    // Memory and threads.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
];

/// What libraries try and can do without: glibc's `pthread_create` goes on to `clone`, whose flags can be looked at; a
/// backtrace wants the program and the working directory.
const SOFT: &[libc::c_long] = &[
    libc::SYS_clone3,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_getcwd,
    libc::SYS_read,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
];

/// A thread: everything is shared.
const THREAD: u64 =
    (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;

/// No namespace is new.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Installs the filter in the calling thread, and so in all threads made from it. `no_new_privs` must be set.
pub fn install() -> Result<()> {
    let doing = || "install the gofer's seccomp filter";
    for program in [soft_program(), program()] {
        let program = program.map_err(io::Error::other).doing(doing)?;
        seccompiler::apply_filter(&program).map_err(io::Error::other).doing(doing)?;
    }
    Ok(())
}

fn soft_program() -> std::result::Result<BpfProgram, BackendError> {
    let rules = SOFT.iter().map(|&number| (number, Vec::new())).collect();
    let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, no_such_call, TargetArch::x86_64)?.try_into()
}

fn program() -> std::result::Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(SOFT).map(|&number| (number, Vec::new())).collect();
    let rule = |argument, op, value| SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, op, value)?]);
    rules.insert(libc::SYS_clone, vec![rule(0, Op::MaskedEq(THREAD | NAMESPACES), THREAD)?]);
    // No new code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, Op::MaskedEq(libc::PROT_EXEC as u64), 0)?]);
    }
    // A root that is a file is donated as a duplicate.
    rules.insert(
        libc::SYS_fcntl,
        vec![rule(1, Op::Eq, libc::F_DUPFD_CLOEXEC as u64)?, rule(1, Op::Eq, libc::F_GETFD as u64)?],
    );
    // The name of a thread.
    rules.insert(
        libc::SYS_prctl,
        vec![rule(0, Op::Eq, libc::PR_SET_NAME as u64)?, rule(0, Op::Eq, libc::PR_SET_VMA as u64)?],
    );
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::gofer::{Export, RootFile, serve};
    use crate::vfs::gofer::GoferFs;
    use crate::vfs::inode::{Caching, FileSystem, NewNode, NodeType, RenameFlags, SetAttr, TimeSpec};

    /// An error that nothing else gives, as the sign that the work was done.
    const REACHED: i32 = 4242;

    /// Does `work` in a process behind the filter; how that ended.
    fn filtered(mut work: impl FnMut() + Send + Sync + 'static) -> io::Result<std::process::ExitStatus> {
        let mut command = Command::new("/bin/true");
        let filter_and_work = move || {
            install().map_err(io::Error::other)?;
            work();
            Err(io::Error::from_raw_os_error(REACHED))
        };
        // SAFETY: what runs in the child allocates and makes threads; glibc makes that safe after fork(2).
        unsafe { command.pre_exec(filter_and_work) };
        command.spawn().and_then(|mut child| child.wait())
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn export(root: &std::path::Path, socket: OwnedFd) -> Export {
        let fd = nix::fcntl::open(root, nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty()).unwrap();
        let file = |write| std::fs::File::options().read(true).write(write).open(root).unwrap().into();
        let root_file = root.is_file().then(|| RootFile { read: file(false), write: Some(file(true)) });
        Export { socket, root: fd, root_file, writable: true, follows: false }
    }

    fn use_everything(fs: &GoferFs) {
        let root = fs.root();
        let make = |name: &[u8], kind, target| {
            root.create(name, &NewNode { kind, perm: 0o2750, uid: 0, gid: 0, rdev: 0, target }).unwrap()
        };
        let file = make(b"f", NodeType::Regular, b"");
        make(b"d", NodeType::Directory, b"");
        make(b"p", NodeType::Fifo, b"");
        assert_eq!(make(b"l", NodeType::Symlink, b"f").read_link().unwrap(), b"f");
        let time = TimeSpec { sec: 1, nsec: 2 };
        let set = SetAttr {
            perm: Some(0o600),
            uid: Some(1),
            gid: Some(1),
            size: Some(3),
            atime: Some(time),
            mtime: Some(time),
        };
        file.set_attr(&set).unwrap();
        assert_eq!(file.attr().unwrap().size, 3);
        // Not every file system has them; the call is made in any case.
        let _ = file.set_xattr(b"user.a", b"b", 0);
        let _ = (file.list_xattr(), file.get_xattr(b"user.a"), file.remove_xattr(b"user.a"));
        root.link(b"g", &file).unwrap();
        root.rename(b"g", &root, b"h", RenameFlags::NOREPLACE).unwrap();
        root.unlink(b"h").unwrap();
        root.rmdir(b"d").unwrap();
        let dir = root.clone().open(libc::O_RDONLY).unwrap();
        let mut count = 0;
        dir.read_dir(0, &mut |_| {
            count += 1;
            true
        })
        .unwrap();
        assert_eq!(count, 5);
        dir.sync(false).unwrap();
        fs.sync().unwrap();
        fs.statfs().unwrap();
        file.open(libc::O_RDWR).unwrap();
    }

    #[test]
    fn everything_that_is_served_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let one = dir.path().join("one");
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        std::fs::write(&one, "1").unwrap();
        let (tree_ours, tree_theirs) = pair();
        let (one_ours, one_theirs) = pair();
        let mut exports = Some(vec![export(&dir.path().join("tree"), tree_theirs), export(&one, one_theirs)]);
        let to_close = [std::os::fd::AsRawFd::as_raw_fd(&tree_ours), std::os::fd::AsRawFd::as_raw_fd(&one_ours)];
        let client = std::thread::spawn(move || {
            let fs = GoferFs::connect(tree_ours, false, Caching::Revalidate).unwrap();
            use_everything(&fs);
            let fs = GoferFs::connect(one_ours, false, Caching::Revalidate).unwrap();
            fs.root().open(libc::O_RDWR).unwrap();
        });
        let outcome = filtered(move || {
            // SAFETY: the child's copies of the client's ends, which nothing in the child uses.
            to_close.iter().for_each(|&fd| unsafe {
                libc::close(fd);
            });
            serve(exports.take().unwrap_or_default());
        });
        client.join().unwrap();
        assert_eq!(outcome.err().and_then(|error| error.raw_os_error()), Some(REACHED));
    }

    #[test]
    fn what_is_not_served_ends_the_process() {
        let forbidden: [fn(); 3] = [
            // SAFETY: no memory is passed.
            || unsafe {
                libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            },
            // SAFETY: no memory is passed.
            || unsafe {
                libc::unshare(libc::CLONE_NEWUSER);
            },
            // SAFETY: maps anonymous memory, which nothing uses.
            || unsafe {
                let (prot, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
            },
        ];
        for call in forbidden {
            assert_eq!(filtered(call).unwrap().signal(), Some(libc::SIGSYS));
        }
        let opened = filtered(|| assert!(std::fs::File::open("/etc/passwd").is_err()));
        assert_eq!(opened.err().and_then(|error| error.raw_os_error()), Some(REACHED));
    }
}
