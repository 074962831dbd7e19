//! Terminals of processes whose other end is the operator's: a pseudoterminal of the sandbox's own, so that sessions,
//! process groups and editing of lines are the sandbox's. The host's terminal, which is raw, is but a keyboard and a screen.
//!
//! ```text
//! host terminal ── thread console-in ──▶ Master ── Tty ── Slave: 0, 1, 2 of the process
//!               ◀── thread console-out ──
//! ```
//!
//! The two threads end, and let go of the host's terminal, when that hangs up, or when the process has ended and nobody has
//! the slave open any more.

use std::any::Any;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::io::SliceSink;
use crate::sentry::fdtable::FdTable;
use crate::sentry::kernel::Kernel;
use crate::vfs::file::{File, IoctlMemory, OpenFile};
use crate::vfs::host::HostFile;
use crate::vfs::inode::SetAttr;
use crate::vfs::tty::{DevPts, Master, Tty};
use crate::vfs::walk::{LookupFlags, Walk};
use crate::wait::{Events, Parker};

/// Host memory for the stack of a thread.
const STACK: usize = 128 << 10;
/// How much is moved at once.
const CHUNK: usize = 4096;
/// How long the operator's terminal may take for what was written last.
const PATIENCE: Duration = Duration::from_secs(2);

/// The terminal of a process.
pub struct Console {
    tty: Arc<Tty>,
    relay: Arc<Relay>,
    /// Ends when everything is shown.
    shown: Mutex<Receiver<()>>,
}

/// Which of the standard descriptors become the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// All three: the process asked for a terminal.
    All,
    /// Those that are a terminal of the host's.
    Terminals,
}

/// What the two threads and the [`Console`] share.
struct Relay {
    /// The keyboard, the screen and the master, until the relay has ended.
    ends: Mutex<Option<Ends>>,
    typing: Arc<Parker>,
    showing: Arc<Parker>,
    /// The process has ended: what others write is still shown, but nobody need wait for it.
    ending: AtomicBool,
    /// The relay is over.
    over: AtomicBool,
}

#[derive(Clone)]
struct Ends {
    keyboard: Arc<OpenFile>,
    screen: Arc<OpenFile>,
    master: Arc<dyn File>,
}

impl Console {
    /// Makes the pair and replaces standard descriptors by the slave, which belongs to `walk`'s user. It controls no session
    /// yet: [`Console::give_to`].
    pub fn attach(ptys: &DevPts, files: &Arc<FdTable>, walk: &Walk<'_>, replace: Replace) -> Result<Console> {
        let master = ptys.open_ptmx()?;
        master.ioctl(&Memory::default(), libc::TIOCSPTLCK as u32, 0)?;
        let tty = master.as_any().downcast_ref::<Master>().ok_or(Errno::EIO)?.tty().clone();
        let ends = Ends { keyboard: files.get(0)?, screen: files.get(1)?, master };
        // Its name, if the container has one for it.
        let path = walk.lookup(pts_name(&tty).as_bytes(), LookupFlags::FOLLOW).ok();
        if let Some(inode) = path.as_ref().and_then(|path| path.inode().ok()) {
            inode.set_attr(&SetAttr { uid: Some(walk.creds.ruid), ..SetAttr::default() })?;
        }
        let slave = OpenFile::new(tty.open_slave(libc::O_RDWR | libc::O_NOCTTY)?, path, libc::O_RDWR);
        for number in 0..3 {
            if replace == Replace::All || is_terminal(&*files.get(number)?) {
                files.replace(number, slave.clone(), false, 3)?;
            }
        }
        let console = Console::start(tty, ends)?;
        console.take_size();
        Ok(console)
    }

    fn start(tty: Arc<Tty>, ends: Ends) -> Result<Console> {
        let (done, shown) = channel();
        let relay = Arc::new(Relay {
            ends: Mutex::new(Some(ends.clone())),
            typing: Arc::default(),
            showing: Arc::default(),
            ending: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let (own, from) = (relay.clone(), ends.clone());
        spawn("console-out", move || {
            own.show(&from, done);
            own.end();
        })?;
        let (own, hung_up) = (relay.clone(), tty.clone());
        let started = spawn("console-in", move || {
            own.type_in(&ends);
            // A pipe that has nothing more to say is no terminal that has gone.
            if is_terminal(&ends.keyboard) && !own.over.load(Ordering::SeqCst) {
                hung_up.hang_up();
                own.end();
            }
        });
        started.inspect_err(|_| relay.end())?;
        Ok(Console { tty, relay, shown: Mutex::new(shown) })
    }

    /// Makes it the controlling terminal of a session that is about to begin.
    pub fn give_to(&self, session: i32) {
        self.tty.give_to(session);
    }

    /// The path of the slave, where devpts is mounted as usual.
    pub fn path(&self) -> String {
        pts_name(&self.tty)
    }

    /// Takes over the size of the host's terminal.
    pub fn take_size(&self) {
        let Some(ends) = self.relay.ends.lock().clone() else { return };
        let memory = Memory::default();
        let get = |file: &OpenFile| file.object().ioctl(&memory, libc::TIOCGWINSZ as u32, 0);
        let taken = get(&ends.keyboard).or_else(|_| get(&ends.screen));
        if let Err(error) = taken.and_then(|_| ends.master.ioctl(&memory, libc::TIOCSWINSZ as u32, 0)) {
            log::debug!("size of the terminal: {error}");
        }
    }

    /// Sets the size.
    pub fn set_size(&self, rows: u16, columns: u16) -> Result<()> {
        let Some(ends) = self.relay.ends.lock().clone() else { return Ok(()) };
        let memory = Memory::default();
        memory.write(0, &[rows, columns, 0, 0].map(u16::to_ne_bytes).concat())?;
        ends.master.ioctl(&memory, libc::TIOCSWINSZ as u32, 0).map(drop)
    }

    /// The process has ended. Returns when all that the container has written is shown, or the host's terminal does not take
    /// it.
    pub fn finish(&self) {
        self.let_go();
        let _ = self.shown.lock().recv_timeout(PATIENCE);
    }

    /// The process has ended: the relay ends when nobody has the slave open any more.
    pub fn let_go(&self) {
        self.relay.ending.store(true, Ordering::SeqCst);
        self.relay.showing.unpark();
    }

    /// Nobody looks any more: as when the host's terminal hangs up.
    pub fn hang_up(&self) {
        self.tty.hang_up();
        self.relay.end();
    }
}

/// Keeps the signal of a new size for `watch_size`. Before any other thread exists.
pub fn hold_back_new_sizes() -> crate::container::Result<()> {
    use crate::container::Context;
    let held = SigSet::from(Signal::SIGWINCH);
    held.thread_block().map_err(std::io::Error::from).doing(|| "hold back SIGWINCH")
}

/// Starts a thread that has the first process's terminal follow the size of the host's, which is this process's own
/// controlling terminal.
pub fn watch_size(kernel: &Arc<Kernel>) -> Result<()> {
    let kernel = kernel.clone();
    spawn("console-size", move || {
        let sizes = SigSet::from(Signal::SIGWINCH);
        while sizes.wait().is_ok() {
            let Some(console) = kernel.console.get() else { return };
            console.take_size();
        }
    })
}

fn pts_name(tty: &Tty) -> String {
    format!("/dev/pts/{}", tty.index())
}

impl Relay {
    /// Has both threads end and lets go of the host's terminal.
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        let ends = self.ends.lock().take();
        drop(ends);
        self.typing.unpark();
        self.showing.unpark();
    }

    /// Moves what is typed until there is no more.
    fn type_in(&self, ends: &Ends) {
        let keyboard = &**ends.keyboard.object();
        let mut buf = [0; CHUNK];
        loop {
            let typed = self
                .when_ready(keyboard, Events::READ, &self.typing, || keyboard.read(0, &mut SliceSink::new(&mut buf)));
            match typed {
                Ok(typed @ 1..) if self.put(&*ends.master, &buf[..typed], &self.typing).is_ok() => {}
                _ => return,
            }
        }
    }

    /// Shows what is written until the process has ended and nobody can write any more. `shown` is dropped when the process
    /// has ended and all that was written by then is shown.
    fn show(&self, ends: &Ends, shown: Sender<()>) {
        let (master, host) = (&*ends.master, &**ends.screen.object());
        let mut shown = Some(shown);
        let mut buf = [0; CHUNK];
        loop {
            let written = self.when_ready(master, Events::READ, &self.showing, || {
                let ending = self.ending.load(Ordering::SeqCst);
                let outcome = master.read(0, &mut SliceSink::new(&mut buf));
                if ending && outcome.is_err() {
                    shown = None;
                }
                match outcome {
                    // Nobody has the slave open now; somebody may open it again.
                    Err(Errno::EIO) if !ending => Err(Errno::EAGAIN),
                    done => done,
                }
            });
            match written {
                Ok(written) if self.put(host, &buf[..written], &self.showing).is_ok() => {}
                _ => return,
            }
        }
    }

    /// Writes all of it.
    fn put(&self, file: &dyn File, mut bytes: &[u8], parker: &Arc<Parker>) -> Result<()> {
        while !bytes.is_empty() {
            let done = self.when_ready(file, Events::WRITE, parker, || file.write(0, &mut &*bytes))?;
            bytes = bytes.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    /// Makes `attempt` until it gives something other than `EAGAIN`. `EINTR` when the relay is over.
    fn when_ready<T>(
        &self,
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
            let over = self.over.load(Ordering::SeqCst);
            if matches!(second, Err(Errno::EAGAIN)) && !over {
                parker.park(None);
            }
            queue.remove(key);
            match second {
                Err(Errno::EAGAIN) if over => return Err(Errno::EINTR),
                Err(Errno::EAGAIN) => {}
                done => return done,
            }
        }
    }
}

/// Whether a descriptor is a terminal of the host's.
fn is_terminal(file: &OpenFile) -> bool {
    file.object().as_any().downcast_ref::<HostFile>().is_some_and(HostFile::is_terminal)
}

fn spawn(name: &str, main: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(main).map(drop).map_err(Errno::from)
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
