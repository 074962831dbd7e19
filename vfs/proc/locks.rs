//! `/proc/locks`: `proc_locks(5)`.
//!
//! A lock lives no longer than a descriptor of its holder's, so the tables of descriptors lead to all of them (but those of a
//! description that is nowhere but in a message on its way): nothing keeps a list for this file, and reading it looks at every
//! descriptor.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;

use crate::sentry::kernel::Kernel;
use crate::sentry::syscalls::fs::path::attr_of;
use crate::vfs::file::OpenFile;
use crate::vfs::inode::Attr;
use crate::vfs::locks::{FileLocks, Lock, LockKind, LockOwner};

/// The text.
pub fn text(kernel: &Kernel) -> String {
    let mut text = String::new();
    let mut number = 0;
    for (file, locks) in all(kernel) {
        let Ok(attr) = attr_of(&file) else { continue };
        for (held, waiters) in locks.show() {
            // As on Linux those of other namespaces are not shown: another container has the file too.
            let pid = |lock: &Lock| lock.pid_seen_from(kernel.pid_namespace);
            if pid(&held) == 0 {
                continue;
            }
            number += 1;
            line(&mut text, (number, "", pid(&held)), &held, &attr);
            for waiter in waiters.iter().filter(|waiter| pid(waiter) != 0) {
                line(&mut text, (number, "-> ", pid(waiter)), waiter, &attr);
            }
        }
    }
    text
}

/// The locks of all open files, once each, with one of the files.
fn all(kernel: &Kernel) -> Vec<(Arc<OpenFile>, Arc<FileLocks>)> {
    let tasks: Vec<_> = kernel.tree.lock().tasks().cloned().collect();
    let (mut tables, mut seen, mut found) = (HashSet::new(), HashSet::new(), Vec::new());
    for files in tasks.iter().filter_map(|task| task.files().ok()) {
        if !tables.insert(files.id()) {
            continue;
        }
        for file in files.list().into_iter().filter_map(|fd| files.get(fd).ok()) {
            if let Some(locks) = file.known_locks()
                && seen.insert(Arc::as_ptr(&locks))
            {
                found.push((file, locks));
            }
        }
    }
    found
}

fn line(text: &mut String, (number, mark, pid): (usize, &str, i32), lock: &Lock, attr: &Attr) {
    let (class, kind, start, last) = match lock {
        Lock::Whole { kind, .. } => ("FLOCK ", *kind, 0, i64::MAX as u64),
        Lock::Record(lock) => {
            let class = if matches!(lock.owner, LockOwner::Process(_)) { "POSIX " } else { "OFDLCK" };
            (class, lock.kind, lock.start, lock.last)
        }
    };
    let kind = if kind == LockKind::Shared { "READ" } else { "WRITE" };
    let (major, minor, ino) = (libc::major(attr.dev), libc::minor(attr.dev), attr.ino);
    let last = if last >= i64::MAX as u64 { "EOF".to_owned() } else { last.to_string() };
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "{number}: {mark}{class} ADVISORY  {kind} {pid} {major:02x}:{minor:02x}:{ino} {start} {last}");
}
