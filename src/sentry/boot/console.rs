//! The container's terminal when its command was given on one: a pseudoterminal of the sandbox's own, so that sessions,
//! process groups and editing of lines are the sandbox's. The operator's terminal, which the command has made raw, is but a
//! keyboard and a screen.
//!
//! ```text
//! host terminal ── thread console-in ──▶ Master ── Tty ── Slave: 0, 1, 2 of the first process
//!               ◀── thread console-out ──
//! ```

use std::any::Any;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::io::SliceSink;
use crate::sentry::fdtable::FdTable;
use crate::vfs::file::{File, IoctlMemory, OpenFile};
use crate::vfs::host::HostFile;
use crate::vfs::tty::{DevPts, Master, Tty};
use crate::vfs::walk::{LookupFlags, Walk};
use crate::wait::{Events, Parker};

/// Host memory for the stack of a thread.
const STACK: usize = 128 << 10;
/// How much is moved at once.
const CHUNK: usize = 4096;
/// How long the operator's terminal may take for what was written last.
const PATIENCE: Duration = Duration::from_secs(2);

/// The terminal of a container's first process.
pub struct Console {
    keyboard: Arc<OpenFile>,
    master: Arc<dyn File>,
    screen: Arc<Screen>,
    /// Ends when everything is shown.
    shown: Mutex<Receiver<()>>,
}

/// What the thread that writes to the operator's terminal waits on.
#[derive(Default)]
struct Screen {
    parker: Arc<Parker>,
    /// Nobody will open the slave again.
    ending: AtomicBool,
}

impl Console {
    /// Makes the pair, gives it to session 1 and replaces those of the standard descriptors that are the operator's
    /// terminal by the slave.
    pub fn attach(ptys: &DevPts, files: &Arc<FdTable>, walk: &Walk<'_>) -> Result<Console> {
        let master = ptys.open_ptmx()?;
        master.ioctl(&Memory::default(), libc::TIOCSPTLCK as u32, 0)?;
        let tty = master.as_any().downcast_ref::<Master>().ok_or(Errno::EIO)?.tty().clone();
        let (keyboard, screen) = (files.get(0)?, files.get(1)?);
        // Its name, if the container has one for it.
        let path = walk.lookup(format!("/dev/pts/{}", tty.index()).as_bytes(), LookupFlags::FOLLOW).ok();
        let slave = OpenFile::new(tty.open_slave(libc::O_RDWR | libc::O_NOCTTY)?, path, libc::O_RDWR);
        for number in 0..3 {
            if is_terminal(&*files.get(number)?) {
                files.replace(number, slave.clone(), false, 3)?;
            }
        }
        tty.give_to(1);
        let console = Console::start(tty, master, keyboard, screen)?;
        console.resize();
        Ok(console)
    }

    fn start(tty: Arc<Tty>, master: Arc<dyn File>, keyboard: Arc<OpenFile>, host: Arc<OpenFile>) -> Result<Console> {
        let (done, shown) = channel();
        let screen = Arc::new(Screen::default());
        let (from, state) = (master.clone(), screen.clone());
        spawn("console-out", move || {
            show(&*from, &**host.object(), &state);
            drop(done);
        })?;
        let (to, from) = (master.clone(), keyboard.clone());
        spawn("console-in", move || {
            type_in(&**from.object(), &*to);
            // The operator's terminal has gone.
            tty.hang_up();
        })?;
        Ok(Console { keyboard, master, screen, shown: Mutex::new(shown) })
    }

    /// Takes over the size of the operator's terminal.
    pub fn resize(&self) {
        let memory = Memory::default();
        let taken = self.keyboard.object().ioctl(&memory, libc::TIOCGWINSZ as u32, 0);
        if let Err(error) = taken.and_then(|_| self.master.ioctl(&memory, libc::TIOCSWINSZ as u32, 0)) {
            log::debug!("size of the terminal: {error}");
        }
    }

    /// Returns when all that the container has written is shown, or the operator's terminal does not take it.
    pub fn finish(&self) {
        self.screen.ending.store(true, Ordering::SeqCst);
        self.screen.parker.unpark();
        let _ = self.shown.lock().recv_timeout(PATIENCE);
    }
}

/// Whether a descriptor is a terminal of the host's.
fn is_terminal(file: &OpenFile) -> bool {
    file.object().as_any().downcast_ref::<HostFile>().is_some_and(HostFile::is_terminal)
}

fn spawn(name: &str, main: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(main).map(drop).map_err(Errno::from)
}

/// Moves what is typed until there is no more.
fn type_in(keyboard: &dyn File, master: &dyn File) {
    let parker = Arc::new(Parker::new());
    let mut buf = [0; CHUNK];
    loop {
        let typed = when_ready(keyboard, Events::READ, &parker, || keyboard.read(0, &mut SliceSink::new(&mut buf)));
        match typed {
            Ok(typed @ 1..) if put(master, &buf[..typed], &parker).is_ok() => {}
            _ => return,
        }
    }
}

/// Shows what is written until the container has ended and nothing is left.
fn show(master: &dyn File, host: &dyn File, screen: &Screen) {
    let mut buf = [0; CHUNK];
    loop {
        let written = when_ready(master, Events::READ, &screen.parker, || {
            match master.read(0, &mut SliceSink::new(&mut buf)) {
                // Nobody has the slave open now; somebody may open it again.
                Err(Errno::EIO) if !screen.ending.load(Ordering::SeqCst) => Err(Errno::EAGAIN),
                done => done,
            }
        });
        match written {
            Ok(written) if put(host, &buf[..written], &screen.parker).is_ok() => {}
            _ => return,
        }
    }
}

/// Writes all of it.
fn put(file: &dyn File, mut bytes: &[u8], parker: &Arc<Parker>) -> Result<()> {
    while !bytes.is_empty() {
        let done = when_ready(file, Events::WRITE, parker, || file.write(0, &mut &*bytes))?;
        bytes = bytes.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// Makes `attempt` until it gives something other than `EAGAIN`.
fn when_ready<T>(
    file: &dyn File,
    events: Events,
    parker: &Arc<Parker>,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let queue = file.wait_queue().ok_or(Errno::EAGAIN);
    loop {
        parker.reset();
        let first = attempt();
        if !matches!(first, Err(Errno::EAGAIN)) {
            return first;
        }
        let queue = queue?;
        let key = queue.add(parker.clone(), events, false);
        // It may have become possible before the queue was joined.
        let second = attempt();
        if matches!(second, Err(Errno::EAGAIN)) {
            parker.park(None);
        }
        queue.remove(key);
        if !matches!(second, Err(Errno::EAGAIN)) {
            return second;
        }
    }
}

/// The argument of an `ioctl(2)` that the sentry makes itself: 8 bytes at address 0.
#[derive(Default)]
struct Memory(Mutex<[u8; 8]>);

impl IoctlMemory for Memory {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.0.lock();
        let at = usize::try_from(addr).map_err(|_| Errno::EFAULT)?;
        buf.copy_from_slice(bytes.get(at..).and_then(|rest| rest.get(..buf.len())).ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<()> {
        let mut bytes = self.0.lock();
        let at = usize::try_from(addr).map_err(|_| Errno::EFAULT)?;
        let mut place = bytes.get_mut(at..).ok_or(Errno::EFAULT)?;
        place.write_all(buf).map_err(|_| Errno::EFAULT)
    }

    /// No task.
    fn caller(&self) -> &dyn Any {
        self
    }
}
