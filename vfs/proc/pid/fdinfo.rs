//! `/proc/PID/fdinfo`: `proc_pid_fdinfo(5)`.

use std::any::Any;
use std::fmt::Write;
use std::sync::Arc;

use super::{attr_of, fd};
use crate::errno::{Errno, Result};
use crate::sentry::task::pidfd::PidFd;
use crate::timer::clock::Clock;
use crate::vfs::epoll::Epoll;
use crate::vfs::eventfd::EventFd;
use crate::vfs::file::{File, OpenFile};
use crate::vfs::inode::{Attr, Inode, NodeType};
use crate::vfs::inotify::Inotify;
use crate::vfs::kernfs::{Content, open_content};
use crate::vfs::proc::number;
use crate::vfs::proc::subject::Subject;
use crate::vfs::signalfd::SignalFd;
use crate::vfs::timerfd::TimerFd;

/// A name in `fdinfo`.
pub fn lookup(subject: &Subject, name: &[u8]) -> Result<Arc<dyn Inode>> {
    let number = number(name).ok_or(Errno::ENOENT)?;
    fd::find(subject, number)?;
    Ok(Arc::new(FdInfo { subject: subject.clone(), fd: number }))
}

struct FdInfo {
    subject: Subject,
    fd: i32,
}

impl Inode for FdInfo {
    fn attr(&self) -> Result<Attr> {
        attr_of(&self.subject, fd::slot(self.fd, false), NodeType::Regular, 0o444)
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        self.subject.traceable()?;
        Ok(open_content(self))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Content for FdInfo {
    fn read(&self) -> Result<Vec<u8>> {
        let task = self.subject.task()?;
        let files = task.files().map_err(|_| Errno::ENOENT)?;
        let (file, cloexec) = files.get_with_flags(self.fd).map_err(|_| Errno::ENOENT)?;
        let mut text = common(&file, cloexec);
        special(&mut text, &file);
        Ok(text.into_bytes())
    }
}

fn common(file: &OpenFile, cloexec: bool) -> String {
    let position = if file.is_path_only() { 0 } else { file.seek(0, libc::SEEK_CUR).unwrap_or(0) };
    // The kernel's own O_LARGEFILE, which every file of a 64-bit program has but anonymous ones.
    const LARGEFILE: i32 = 0o100_000;
    let large = if file.path().is_some() && !file.is_path_only() { LARGEFILE } else { 0 };
    let flags = file.flags() | large | if cloexec { libc::O_CLOEXEC } else { 0 };
    let mount = file.path().map_or(0, |path| path.mount.id());
    let attr = file.path().and_then(|path| path.attr().ok()).or_else(|| file.object().anonymous_attr());
    let ino = attr.map_or(0, |attr| attr.ino);
    format!("pos:\t{position}\nflags:\t0{flags:o}\nmnt_id:\t{mount}\nino:\t{ino}\n")
}

/// What certain files add.
fn special(text: &mut String, file: &OpenFile) {
    // Writing to a String cannot fail.
    if let Some(event) = file.downcast::<EventFd>() {
        let _ = writeln!(text, "eventfd-count: {:16x}", event.count());
    } else if let Some(signals) = file.downcast::<SignalFd>() {
        let _ = writeln!(text, "sigmask:\t{:016x}", signals.mask());
    } else if let Some(epoll) = file.downcast::<Epoll>() {
        for watched in epoll.watched() {
            let (fd, events, data) = (watched.fd, watched.events, watched.data);
            let _ = writeln!(text, "tfd: {fd:8} events: {events:8x} data: {data:16x}  pos:0 ino:0 sdev:0");
        }
    } else if let Some(timer) = file.downcast::<TimerFd>() {
        let clock = match timer.clock() {
            Clock::Realtime => libc::CLOCK_REALTIME,
            Clock::Monotonic => libc::CLOCK_MONOTONIC,
            Clock::Boottime => libc::CLOCK_BOOTTIME,
        };
        let (ticks, flags) = timer.unread();
        let spec = timer.get();
        let pair = |ns: u64| format!("({}, {})", ns / 1_000_000_000, ns % 1_000_000_000);
        let _ = write!(
            text,
            "clockid: {clock}\nticks: {ticks}\nsettime flags: 0{flags:o}\nit_value: {}\nit_interval: {}\n",
            pair(spec.value),
            pair(spec.interval)
        );
    } else if let Some(inotify) = file.downcast::<Inotify>() {
        for (wd, inode) in inotify.watched() {
            let Ok(attr) = inode.attr() else { continue };
            let dev = libc::major(attr.dev) << 20 | libc::minor(attr.dev);
            let _ = writeln!(text, "inotify wd:{wd:x} ino:{:x} sdev:{dev:x} mask:fce ignored_mask:0 ", attr.ino);
        }
    } else if let Some(pidfd) = file.downcast::<PidFd>() {
        let ended = pidfd.group().exited.load(std::sync::atomic::Ordering::SeqCst);
        let pid =
            if ended && pidfd.group().kernel.process(pidfd.group().pid()).is_err() { -1 } else { pidfd.group().pid() };
        let _ = write!(text, "Pid:\t{pid}\nNSpid:\t{pid}\n");
    }
}
