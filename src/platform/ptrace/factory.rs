//! Fresh stub processes.
//!
//! The first stub, the template, never runs container code: it stays stopped, traced by one thread of the sentry, and is
//! cloned on demand. Asking that thread costs two hand-overs between CPUs, some 50 us; so a few stubs wait ready, and the
//! thread refills the stock behind the asker's back.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::errno::{Errno, Result};
use crate::platform::Regs;
use crate::platform::ptrace::space::StubProcess;
use crate::platform::ptrace::stub::{self, CLONE_ADDR, USER_RANGE};
use crate::platform::ptrace::thread::zero_regs;
use crate::platform::ptrace::trace;
use crate::seccomp::stub::{CLONE_PROCESS, filter};
use crate::seccomp::trap::Seal;

/// Stubs that wait ready: enough for a shell's pipeline.
const STOCK: usize = 3;

#[derive(Default)]
struct State {
    ready: VecDeque<Arc<StubProcess>>,
    /// Those who found the stock empty.
    waiting: usize,
    /// The template is gone: no more stubs can be made.
    broken: Option<Errno>,
    closed: bool,
}

/// What the stubs are for.
pub enum Kind {
    /// To be traced whenever they run.
    Traced,
    /// To run without a tracer too.
    Free {
        /// What tells the sentry's calls from the container's.
        seal: Seal,
        /// Their filter.
        filter: seccompiler::BpfProgram,
        /// The signal handler's address.
        handler: u64,
        /// What the container may map.
        range: Range<u64>,
    },
}

/// Makes stub processes.
pub struct Factory {
    state: Mutex<State>,
    refill: Condvar,
    filled: Condvar,
    vdso: (Range<u64>, u64),
    range: Range<u64>,
    seal: Option<Seal>,
}

impl Factory {
    /// Forks the template and starts the thread that keeps it.
    pub fn start(kind: Kind) -> Result<Arc<Factory>> {
        let (seal, program, handler, range) = match kind {
            Kind::Traced => (None, filter().map_err(|_| Errno::EINVAL)?, None, USER_RANGE),
            Kind::Free { seal, filter, handler, range } => (Some(seal), filter, Some(handler), range),
        };
        let here = stub::vdso_range()?;
        let vdso = stub::place_below(&here, range.end);
        let factory = Arc::new(Factory {
            state: Mutex::default(),
            refill: Condvar::new(),
            filled: Condvar::new(),
            vdso: vdso.clone(),
            range,
            seal,
        });
        let keeper = factory.clone();
        let (started, outcome) = std::sync::mpsc::channel();
        let main = move || match Template::new(&program, handler, &here.0, &vdso.0, &keeper) {
            Ok(template) => {
                let _ = started.send(Ok(()));
                keeper.keep(template);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        };
        std::thread::Builder::new().name("stubs".into()).stack_size(64 << 10).spawn(main)?;
        outcome.recv().map_err(|_| Errno::EAGAIN)??;
        Ok(factory)
    }

    /// The vDSO's place in every fresh stub.
    pub fn vdso(&self) -> (Range<u64>, u64) {
        self.vdso.clone()
    }

    /// What the container may map.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The arguments of a call that the sentry has a stub make, as the stub's filter wants them.
    pub fn mark(&self, number: i64, args: [u64; 6]) -> [u64; 6] {
        self.seal.map_or(args, |seal| seal.mark(number, args))
    }

    /// A stub process that holds nothing, waiting in its loop.
    pub fn take(&self) -> Result<Arc<StubProcess>> {
        let mut state = self.state.lock();
        loop {
            if let Some(process) = state.ready.pop_front() {
                if state.ready.len() < STOCK / 2 + 1 {
                    self.refill.notify_one();
                }
                return Ok(process);
            }
            if let Some(error) = state.broken {
                return Err(error);
            }
            state.waiting += 1;
            self.refill.notify_one();
            self.filled.wait(&mut state);
            state.waiting -= 1;
        }
    }

    /// No more stubs are wanted.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.ready.clear();
        self.refill.notify_one();
    }

    fn keep(&self, mut template: Template) {
        let mut state = self.state.lock();
        while !state.closed {
            if state.ready.len() >= STOCK {
                self.refill.wait(&mut state);
                continue;
            }
            drop(state);
            let made = template.clone_stub(self);
            state = self.state.lock();
            match made {
                Ok(process) => state.ready.push_back(process),
                Err(error) => {
                    // The thread stays: stubs may end with it.
                    log::error!("the template of stub processes failed: {error}");
                    state.broken = Some(error);
                    self.filled.notify_all();
                    while !state.closed {
                        self.refill.wait(&mut state);
                    }
                }
            }
            self.filled.notify_one();
        }
    }
}

/// The process that all others are cloned from, stopped.
struct Template {
    process: Arc<StubProcess>,
    regs: Regs,
}

impl Template {
    fn new(
        program: &seccompiler::BpfProgram,
        handler: Option<u64>,
        here: &Range<u64>,
        vdso: &Range<u64>,
        factory: &Factory,
    ) -> Result<Template> {
        let pid = stub::spawn_template(program, handler)?;
        let process = StubProcess::new(pid);
        wait_until_in_loop(pid)?;
        let mut regs = zero_regs();
        trace::get_regs(pid, &mut regs)?;
        let call = |number, args| trace::syscall(pid, &regs, number, factory.mark(number, args), &mut false);
        let unmap = |gap: Range<u64>| call(libc::SYS_munmap, [gap.start, gap.end - gap.start, 0, 0, 0, 0]);
        for gap in [USER_RANGE.start..here.start, here.end..USER_RANGE.end] {
            unmap(gap)?;
        }
        if here != vdso {
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            for part in stub::vdso_parts()? {
                let (len, to) = (part.end - part.start, part.start - here.start + vdso.start);
                call(libc::SYS_mremap, [part.start, len, len, flags, to, 0])?;
            }
        }
        Ok(Template { process, regs: Regs { fs_base: 0, gs_base: 0, ..regs } })
    }

    fn clone_stub(&mut self, factory: &Factory) -> Result<Arc<StubProcess>> {
        let args = factory.mark(libc::SYS_clone, [CLONE_PROCESS, 0, 0, 0, 0, 0]);
        let regs = trace::call_regs(&self.regs, CLONE_ADDR, libc::SYS_clone, args);
        let pid = trace::call(self.process.pid, &regs, &mut false).and_then(trace::result)?;
        Ok(StubProcess::new(pid as i32))
    }
}

/// Traces the new process and lets it run until it waits in the stub's loop, with its filter in force.
fn wait_until_in_loop(pid: i32) -> Result<()> {
    trace::seize(pid)?;
    let mut regs = zero_regs();
    loop {
        trace::get_regs(pid, &mut regs)?;
        if (stub::STUB..stub::STUB + 16).contains(&regs.rip) {
            // Stopped at the entry of a call, where the filter is still to be asked: out of that, into the call itself.
            return trace::interrupt(pid);
        }
        // One system call further: the next stop is at an entry or an exit.
        trace::resume(libc::PTRACE_SYSCALL, pid)?;
        if trace::wait(pid) == trace::Stop::Gone {
            return Err(Errno::ESRCH);
        }
    }
}
