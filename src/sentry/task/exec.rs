//! `execve(2)`: another program in the same process.
//!
//! Up to the point of no return nothing has changed. There the other threads are ended and waited for; then the memory is
//! replaced, and what a program does not pass on is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{Errno, Result};
use crate::platform::placement;
use crate::sentry::creds::{Caps, Credentials};
use crate::sentry::loader::{self, CommitArgs, ExecArgs, ExecFiles, HostAux, Prepared};
use crate::sentry::signal::AltStack;
use crate::sentry::syscalls;
use crate::sentry::syscalls::fs::fd::close_all;
use crate::sentry::syscalls::process::creds::{KEEP_CAPS, NOROOT};
use crate::sentry::task::tree::ExitStatus;
use crate::sentry::task::{Attention, Current, ThreadGroup};
use crate::vfs::deny::deny_write;
use crate::vfs::file::OpenFile;
use crate::vfs::inode::NodeType;
use crate::vfs::perm::{Access, may};
use crate::vfs::walk::LookupFlags;
use crate::vfs::{MountFlags, Path, Walk};

/// What to run.
pub struct Exec {
    /// The file.
    pub file: Arc<OpenFile>,
    /// Its name, as the program sees it.
    pub path: Vec<u8>,
    /// The arguments.
    pub argv: Vec<Vec<u8>>,
    /// The environment.
    pub envp: Vec<Vec<u8>>,
    /// The name leads nowhere once descriptors are closed.
    pub path_inaccessible: bool,
}

/// Opens a file to run it. `EACCES` unless it is a regular file that may be executed.
pub fn open_exec(walk: &Walk<'_>, path: &[u8], flags: LookupFlags) -> Result<Arc<OpenFile>> {
    let found = walk.lookup(path, flags)?;
    let attr = found.attr()?;
    if attr.kind == NodeType::Symlink {
        return Err(Errno::ELOOP);
    }
    if attr.kind != NodeType::Regular || found.mount.flags().contains(MountFlags::NOEXEC) {
        return Err(Errno::EACCES);
    }
    may(&attr, walk.creds, Access::EXEC)?;
    let inode = found.inode()?.clone();
    let denied = deny_write(&inode)?;
    // Being allowed to run it suffices: the sentry reads it, the program does not.
    let object = inode.open(libc::O_RDONLY)?;
    let file = OpenFile::executable(object, found, denied);
    file.notify(libc::IN_OPEN);
    Ok(file)
}

struct Files<'a>(&'a Current);

impl ExecFiles for Files<'_> {
    fn open_exec(&mut self, path: &[u8]) -> Result<Arc<OpenFile>> {
        let (fs, creds) = (self.0.fs().get(), self.0.creds());
        let walk =
            Walk { root: &fs.root, start: &fs.cwd, creds: &creds, umask: fs.umask, devices: &self.0.kernel.devices };
        open_exec(&walk, path, LookupFlags::FOLLOW)
    }
}

/// Runs another program. After the point of no return a failure ends the process: `Ok` is returned all the same.
pub fn exec(cur: &mut Current, exec: Exec) -> Result<()> {
    let limits = cur.mem_limits();
    let name = exec.path.clone();
    let args = ExecArgs {
        file: exec.file,
        path: exec.path,
        argv: exec.argv,
        envp: exec.envp,
        limits,
        path_inaccessible: exec.path_inaccessible,
    };
    let prepared = loader::prepare(args, &mut Files(cur))?;
    let exe = prepared.exe.clone();
    let creds = new_credentials(cur, &exe)?;
    if !end_other_threads(cur) {
        return Err(Errno::EINTR); // killed meanwhile
    }
    if let Err(error) = replace(cur, prepared, creds) {
        log::debug!("executing {} failed past the point of no return: {error}", name.escape_ascii());
        cur.group.end(ExitStatus::Killed { signal: libc::SIGSEGV, core: false });
    }
    cur.registers_set = true;
    Ok(())
}

/// Ends the other threads and waits until they are gone; takes the process's id. `false` when the process is to end.
fn end_other_threads(cur: &mut Current) -> bool {
    let group = cur.group.clone();
    {
        let mut signals = group.signals.lock();
        if signals.ending.is_some() || signals.execing {
            return false;
        }
        if signals.threads.len() == 1 {
            drop(signals);
            take_leaders_id(cur);
            return true;
        }
        signals.execing = true;
        for task in signals.threads.iter().filter(|task| !Arc::ptr_eq(task, &cur.task)) {
            task.notify(Attention::KILL);
        }
    }
    let alone = wait_alone(cur, &group);
    group.signals.lock().execing = false;
    if alone {
        take_leaders_id(cur);
    }
    alone
}

fn wait_alone(cur: &Current, group: &ThreadGroup) -> bool {
    cur.parker.reset();
    let key = group.thread_events.add(cur.parker.clone(), crate::wait::Events::READ, false);
    let alone = loop {
        if group.signals.lock().threads.len() == 1 {
            break true;
        }
        if cur.attention().contains(Attention::KILL) {
            break false;
        }
        let blocking = placement::blocking();
        cur.parker.park(None);
        drop(blocking);
    };
    group.thread_events.remove(key);
    alone
}

/// The one thread that is left is the leader from now on.
fn take_leaders_id(cur: &Current) {
    let (pid, tid) = (cur.pid(), cur.tid());
    if pid != tid {
        let mut tree = cur.kernel.tree.lock();
        tree.rename_thread(&cur.task, pid);
        cur.task.tid.store(pid, Ordering::Relaxed);
    }
}

fn replace(cur: &mut Current, prepared: Prepared, new: NewCredentials) -> Result<()> {
    // With the old memory still there: robust locks, CLONE_CHILD_CLEARTID.
    syscalls::futex::exit_thread(cur);
    cur.task.exiting.store(false, Ordering::SeqCst);
    let comm = prepared.comm.clone();
    let args = CommitArgs {
        creds: &new.creds,
        secure: new.secure,
        randomize: true,
        read_implies_exec: false,
        host: &HostAux::read(),
    };
    let stub = cur.user.space().host_pid();
    let loaded = prepared.commit(&mut *cur.user, &args);
    if cur.user.space().host_pid() != stub {
        cur.kernel.take_in(cur.user.space().host_pid());
    }
    *cur.task.interrupter.lock() = Some(cur.user.interrupter());
    let loaded = loaded?;
    let old = cur.task.mm.write().replace(loaded.mm);
    cur.task.release_vfork_parent();
    drop(old);
    cur.set_name(&comm);
    shed(cur, new)
}

/// Drops what a program does not pass on.
fn shed(cur: &mut Current, new: NewCredentials) -> Result<()> {
    let handlers = cur.group.handlers().fork();
    handlers.reset_for_exec();
    *cur.group.handlers.write() = Arc::new(handlers);
    cur.group.timers.clear();
    cur.altstack = AltStack::default();
    cur.restart_block = None;
    cur.saved_mask = None;
    {
        let mut tree = cur.kernel.tree.lock();
        if let Some(node) = tree.node_mut(cur.pid()) {
            node.executed = true;
            // A process that gained rights is not its parent's to end.
            if new.secure {
                node.death_signal = 0;
            }
            if node.exit_signal != 0 {
                node.exit_signal = libc::SIGCHLD;
            }
        }
    }
    // A thread that is not the first takes that one's id.
    cur.answers.set(None);
    // Descriptors last: who waits for one to close finds the process as it is from now on.
    close_on_exec(cur)?;
    if new.secure || !new.readable {
        cur.mm()?.set_dumpable(0);
    }
    if *cur.creds() != new.creds {
        cur.set_creds(new.creds);
    }
    Ok(())
}

/// A table that others share is left to them; its own keeps its record locks.
fn close_on_exec(cur: &Current) -> Result<()> {
    const OWN: usize = 2; // the task's and the one here
    let mut files = cur.files()?;
    if Arc::strong_count(&files) > OWN {
        files = files.fork();
        cur.task.replace_files(files.clone());
    }
    // What flushing fails with, nobody can be told.
    close_all(cur, &files, files.remove_cloexec());
    Ok(())
}

struct NewCredentials {
    creds: Credentials,
    /// `AT_SECURE`.
    secure: bool,
    /// Whether the caller may read the program's file.
    readable: bool,
}

/// The capabilities of a file: `capabilities(7)`, "File capabilities".
#[derive(Clone, Copy)]
struct FileCaps {
    permitted: Caps,
    inheritable: Caps,
    effective: bool,
}

/// `struct vfs_cap_data`, revisions 2 and 3 (of the first user namespace).
fn parse_caps(bytes: &[u8]) -> Option<FileCaps> {
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    let word = |at: usize| bytes.get(at * 4..at * 4 + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    let magic = word(0)?;
    match magic & 0xff00_0000 {
        REVISION_2 if bytes.len() == 20 => {}
        REVISION_3 if bytes.len() == 24 && word(5)? == 0 => {}
        _ => return None,
    }
    let set = |low: usize| Some(Caps::from_bits_truncate(u64::from(word(low)?) | u64::from(word(low + 2)?) << 32));
    Some(FileCaps { permitted: set(1)?, inheritable: set(2)?, effective: magic & 1 != 0 })
}

fn file_caps(path: &Path) -> Option<FileCaps> {
    let bytes = path.inode().ok()?.get_xattr(b"security.capability").ok()?;
    parse_caps(&bytes)
}

/// What the program starts with: `execve(2)`, `capabilities(7)`. `EPERM`: the file's capabilities are more than the
/// bounding set allows.
fn new_credentials(cur: &Current, exe: &OpenFile) -> Result<NewCredentials> {
    let old = cur.creds();
    let mut creds = (*old).clone();
    creds.securebits &= !KEEP_CAPS;
    let Some(path) = exe.path() else { return Ok(NewCredentials { creds, secure: false, readable: true }) };
    let attr = path.attr()?;
    let nosuid = path.mount.flags().contains(MountFlags::NOSUID) || old.no_new_privs;
    if !nosuid {
        if attr.perm & libc::S_ISUID != 0 {
            creds.euid = attr.uid;
        }
        if attr.perm & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP {
            creds.egid = attr.gid;
        }
    }
    let set_id = creds.euid != old.euid || creds.egid != old.egid;
    (creds.suid, creds.fsuid, creds.sgid, creds.fsgid) = (creds.euid, creds.euid, creds.egid, creds.egid);
    let caps = if nosuid { None } else { file_caps(path) };
    let privileged_file = set_id || caps.is_some();
    creds.ambient = if privileged_file { Caps::empty() } else { old.ambient };
    let as_root = creds.securebits & NOROOT == 0 && (creds.euid == 0 || creds.ruid == 0);
    // A set-user-ID-root program with capabilities of its own, run by another user, has just those.
    let as_root = as_root && !(caps.is_some() && creds.euid == 0 && creds.ruid != 0);
    if as_root {
        creds.permitted = old.inheritable | old.bounding;
        creds.effective = if creds.euid == 0 { creds.permitted } else { creds.ambient };
    } else {
        let file = caps.unwrap_or(FileCaps { permitted: Caps::empty(), inheritable: Caps::empty(), effective: false });
        let granted = file.permitted & old.bounding;
        creds.permitted = (old.inheritable & file.inheritable) | granted | creds.ambient;
        if file.effective && !creds.permitted.contains(file.permitted) {
            return Err(Errno::EPERM);
        }
        creds.effective = if file.effective { creds.permitted } else { creds.ambient };
    }
    let gained = !as_root && caps.is_some_and(|caps| caps.effective || !caps.permitted.is_empty());
    let secure = set_id || creds.euid != creds.ruid || creds.egid != creds.rgid || (old.ruid != 0 && gained);
    let readable = may(&attr, &old, Access::READ).is_ok();
    Ok(NewCredentials { creds, secure, readable })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_capabilities_are_read_in_both_revisions() {
        let mut bytes = vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let caps = parse_caps(&bytes).unwrap();
        assert_eq!((caps.permitted, caps.effective), (Caps::NET_BIND_SERVICE | Caps::MAC_OVERRIDE, true));
        bytes[3] = 3;
        assert!(parse_caps(&bytes).is_none());
        bytes.extend([0; 4]);
        assert!(parse_caps(&bytes).is_some());
        bytes[20] = 1;
        assert!(parse_caps(&bytes).is_none(), "of another user namespace");
        assert!(parse_caps(&[]).is_none());
    }
}
