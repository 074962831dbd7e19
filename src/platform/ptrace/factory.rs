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

/// Makes stub processes.
pub struct Factory {
    state: Mutex<State>,
    refill: Condvar,
    filled: Condvar,
    vdso: (Range<u64>, u64),
}

impl Factory {
    /// Forks the template and starts the thread that keeps it.
    pub fn start() -> Result<Arc<Factory>> {
        let program = filter().map_err(|_| Errno::EINVAL)?;
        let factory = Arc::new(Factory {
            state: Mutex::default(),
            refill: Condvar::new(),
            filled: Condvar::new(),
            vdso: stub::vdso_range()?,
        });
        let keeper = factory.clone();
        let (started, outcome) = std::sync::mpsc::channel();
        let vdso = factory.vdso.0.clone();
        let main = move || match Template::new(&program, &vdso) {
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
            let made = template.clone_stub();
            state = self.state.lock();
            match made {
                Ok(process) => state.ready.push_back(process),
                Err(error) => {
                    log::error!("the template of stub processes failed: {error}");
                    state.broken = Some(error);
                    self.filled.notify_all();
                    return;
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
    fn new(program: &seccompiler::BpfProgram, vdso: &Range<u64>) -> Result<Template> {
        let pid = stub::spawn_template(program)?;
        let process = StubProcess::new(pid);
        wait_until_in_loop(pid)?;
        let mut regs = zero_regs();
        trace::get_regs(pid, &mut regs)?;
        let gaps = [USER_RANGE.start..vdso.start, vdso.end..USER_RANGE.end];
        for gap in gaps {
            let args = [gap.start, gap.end - gap.start, 0, 0, 0, 0];
            trace::syscall(pid, &regs, libc::SYS_munmap, args, &mut false)?;
        }
        Ok(Template { process, regs: Regs { fs_base: 0, gs_base: 0, ..regs } })
    }

    fn clone_stub(&mut self) -> Result<Arc<StubProcess>> {
        let regs = trace::call_regs(&self.regs, CLONE_ADDR, libc::SYS_clone, [CLONE_PROCESS, 0, 0, 0, 0, 0]);
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
