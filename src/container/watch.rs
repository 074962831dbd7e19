//! Watching over a sandbox: reports of its processes, their ends, and signals for the container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::control::{Client, Request, SOCKET, Target};
use super::error::{Context, Error, Result};
use super::report::{Reader, Report};
use super::sandbox::Sandbox;
use super::state::Status;

/// How long a sentry whose gofer has gone may take to go itself, and how long it may take to accept a signal.
const GRACE: Duration = Duration::from_secs(1);

/// The signals that are passed on to the container.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// What the reports have told so far.
#[derive(Default)]
pub(super) struct Progress {
    started: bool,
    exited: Option<i32>,
    sentry_failed: Option<String>,
    gofer_failed: Option<String>,
    /// Whether the sentry is gone and reaped.
    ended: bool,
}

/// Something that happened.
enum Event {
    Signal,
    SentryReport,
    GoferReport,
    SentryEnded,
    GoferEnded,
}

/// Blocks the signals that are forwarded and reads them from a descriptor instead.
pub(super) fn take_signals() -> Result<SignalFd> {
    let doing = || "prepare to forward signals";
    let mut set = SigSet::empty();
    FORWARDED.into_iter().for_each(|signal| set.add(signal));
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(io::Error::from).doing(doing)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(io::Error::from).doing(doing)
}

impl Sandbox {
    /// Returns when the container's program is about to run, or has already ended.
    pub(super) fn wait_started(&mut self) -> Result<()> {
        while !self.progress.started && !self.progress.ended {
            self.step()?;
        }
        Ok(())
    }

    /// Passes signals on until the container ends, and returns its exit status (128 plus the signal that killed it).
    /// Nothing of the sandbox is left afterwards, except with `keep` a stopped container.
    pub fn wait(mut self, keep: bool) -> Result<i32> {
        while !self.progress.ended {
            self.step()?;
        }
        if keep {
            self.claim.container()?.save_status(Status::Stopped)?;
            self.claim.give_up();
        }
        self.progress.exited.ok_or(Error::Process { process: "sentry", problem: "told no exit status".into() })
    }

    /// Deals with one event.
    fn step(&mut self) -> Result<()> {
        match self.next_event()? {
            None => Ok(()),
            Some(Event::Signal) => self.forward_signal(),
            Some(Event::SentryReport) => {
                self.read_sentry_report();
                Ok(())
            }
            Some(Event::GoferReport) => {
                self.read_gofer_report();
                Ok(())
            }
            Some(Event::SentryEnded) => self.sentry_ended(),
            Some(Event::GoferEnded) => self.gofer_ended(),
        }
    }

    /// The next event; reports come before ends, so that what a process said last is not lost.
    fn next_event(&self) -> Result<Option<Event>> {
        let mut sources: Vec<(Event, BorrowedFd<'_>)> = vec![(Event::Signal, self.signals.as_fd())];
        sources.extend(self.sentry_reports.as_ref().map(|reader| (Event::SentryReport, reader.as_fd())));
        sources.extend(self.gofer_reports.as_ref().map(|reader| (Event::GoferReport, reader.as_fd())));
        sources.push((Event::SentryEnded, self.sentry.pidfd().as_fd()));
        sources.push((Event::GoferEnded, self.gofer.pidfd().as_fd()));
        let mut fds: Vec<PollFd<'_>> = sources.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => return Ok(None),
            ready => ready.map_err(io::Error::from).doing(|| "wait for the sandbox")?,
        };
        let first = fds.iter().position(|fd| fd.any() == Some(true));
        Ok(first.map(|index| sources.swap_remove(index).0))
    }

    fn read_sentry_report(&mut self) {
        for report in read(&mut self.sentry_reports) {
            match report {
                Report::Started => self.progress.started = true,
                Report::Exited(status) => self.progress.exited = Some(status & 0xff),
                Report::Failed(problem) => self.progress.sentry_failed = Some(problem),
            }
        }
    }

    fn read_gofer_report(&mut self) {
        for report in read(&mut self.gofer_reports) {
            if let Report::Failed(problem) = report {
                self.progress.gofer_failed = Some(problem);
            }
        }
    }

    /// The sentry is gone, and its stubs with it, since it was the first process of their namespace.
    fn sentry_ended(&mut self) -> Result<()> {
        let end = self.sentry.wait()?;
        self.progress.ended = true;
        if self.progress.exited.is_some() && self.progress.sentry_failed.is_none() {
            return Ok(());
        }
        // A sentry whose gofer could not start fails too: the gofer's is the reason to tell.
        let sentry = self.progress.sentry_failed.take();
        let gofer = self.progress.gofer_failed.take();
        Err(match (gofer, sentry) {
            (Some(problem), _) => Error::Process { process: "gofer", problem },
            (None, Some(problem)) => Error::Process { process: "sentry", problem },
            (None, None) => Error::Process { process: "sentry", problem: end },
        })
    }

    /// The gofer ends by itself when the sentry does; before that, the container cannot go on.
    fn gofer_ended(&mut self) -> Result<()> {
        let end = self.gofer.wait()?;
        let mut fds = [PollFd::new(self.sentry.pidfd().as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(GRACE).unwrap_or(PollTimeout::MAX);
        let sentry_ends = self.progress.gofer_failed.is_none() && matches!(poll(&mut fds, timeout), Ok(1));
        if sentry_ends {
            self.read_sentry_report();
            return self.sentry_ended();
        }
        let problem = self.progress.gofer_failed.take().unwrap_or(end);
        Err(Error::Process { process: "gofer", problem })
    }

    /// Passes one signal on. A sandbox that cannot be told dies of the signals that mean death.
    fn forward_signal(&mut self) -> Result<()> {
        let info = self.signals.read_signal().map_err(io::Error::from).doing(|| "read a signal")?;
        let Some(signal) = info.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok()) else { return Ok(()) };
        match self.send(signal) {
            Ok(()) => Ok(()),
            Err(error) => {
                log::warn!("forward {signal} to the container: {error}");
                if !matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGWINCH) {
                    self.sentry.kill();
                }
                Ok(())
            }
        }
    }

    fn send(&mut self, signal: Signal) -> Result<()> {
        // The interrupt and quit keys, and a new window size, mean whatever runs in the foreground, the rest means the container.
        let target = match signal {
            Signal::SIGINT | Signal::SIGQUIT | Signal::SIGWINCH => Target::Foreground,
            _ => Target::Attached,
        };
        let container = self.claim.container()?;
        let mut client = Client::connect_within(&container.directory.short_path(SOCKET), GRACE)?;
        client.call(&Request::Signal { id: container.record.id.clone(), signal: signal as i32, target })
    }
}

/// What has come from a process; closes the pipe when it has nothing more to say or talks nonsense.
fn read(reader: &mut Option<Reader>) -> Vec<Report> {
    match reader.as_mut().map(Reader::read) {
        Some(Ok(Some(reports))) => reports,
        Some(outcome) => {
            if let Err(error) = outcome {
                log::warn!("a report of the sandbox: {error}");
            }
            *reader = None;
            Vec::new()
        }
        None => Vec::new(),
    }
}
