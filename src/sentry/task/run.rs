//! The life of a task on its sentry thread: run user code, answer, look up, again.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::platform::{Answer, Event, Seed};
use crate::sentry::mm::user::UserPtr;
use crate::sentry::mm::{ForkImage, MemoryManager};
use crate::sentry::signal::frame::Trap;
use crate::sentry::signal::{AltStack, SigInfo, Signal};
use crate::sentry::syscalls;
use crate::sentry::task::exec::{self, Exec};
use crate::sentry::task::tree::ExitStatus;
use crate::sentry::task::{CURRENT, Current, Task, crew, exit};
use crate::wait::Events;

/// How a task begins.
pub struct Birth {
    /// The stack pointer, if not the parent's.
    pub stack_top: Option<u64>,
    /// `CLONE_SETTLS`.
    pub tls: Option<u64>,
    /// `CLONE_CHILD_SETTID`: where the task stores its id.
    pub set_tid: Option<u64>,
    /// The map of its memory, when that is a copy of its parent's.
    pub memory: Option<ForkImage>,
    /// The alternate stack.
    pub altstack: AltStack,
}

/// Starts a task that runs on from where its parent is. `EAGAIN` when the host gives no thread.
pub fn start(task: Arc<Task>, seed: Seed, birth: Birth) -> Result<()> {
    crew::employ(Box::new(move || {
        CURRENT.set(Some(task.clone()));
        match begin(task.clone(), seed, birth) {
            Ok(cur) => run_guarded(cur),
            Err(error) => {
                log::error!("task {} could not start: {error}", task.tid());
                exit::abandon(&task);
            }
        }
        CURRENT.set(None);
    }))
}

/// Starts a process of the runtime's making with its program. Returns once that is loaded, the first process to run when the
/// kernel's gate is opened; an error otherwise, with nothing run and the task ended.
pub fn start_program(task: Arc<Task>, seed: Seed, exec: Exec) -> Result<()> {
    let (loaded, outcome) = std::sync::mpsc::channel();
    let threadless = task.clone();
    let main = move || {
        CURRENT.set(Some(task.clone()));
        match load(&task, seed, exec) {
            Ok(cur) => {
                let _ = loaded.send(Ok(()));
                run_guarded(cur);
            }
            Err(error) => {
                exit::abandon(&task);
                let _ = loaded.send(Err(error));
            }
        }
        CURRENT.set(None);
    };
    crew::employ(Box::new(main)).inspect_err(|_| exit::abandon(&threadless))?;
    outcome.recv().map_err(|_| Errno::EAGAIN)?
}

fn load(task: &Arc<Task>, seed: Seed, exec: Exec) -> Result<Current> {
    let user = seed.attach()?;
    task.kernel.take_in(user.space().host_pid());
    // `execve` goes out from a memory, which is empty here.
    *task.mm.write() = Some(MemoryManager::new(user.space().clone()));
    let mut cur = Current::new(task.clone(), user, AltStack::default());
    exec::exec(&mut cur, exec)?;
    cur.registers_set = false;
    Ok(cur)
}

fn begin(task: Arc<Task>, seed: Seed, birth: Birth) -> Result<Current> {
    let user = seed.attach()?;
    let mut cur = Current::new(task, user, birth.altstack);
    if let Some(image) = birth.memory {
        let mm = MemoryManager::from_image(image, cur.user.space().clone());
        *cur.task.mm.write() = Some(mm.clone());
        mm.after_fork_in_child(&mut *cur.user)?;
    }
    let regs = cur.user.regs_mut();
    if let Some(top) = birth.stack_top {
        regs.rsp = top;
    }
    if let Some(tls) = birth.tls {
        regs.fs_base = tls;
    }
    if let Some(addr) = birth.set_tid {
        let tid = cur.tid();
        // Linux does not fail for a bad pointer here.
        let _ = UserPtr::new(addr).write(cur.space(), &tid);
    }
    Ok(cur)
}

/// Runs a task to its end. A fault of the sentry's own kills the process that hit on it, and nothing else.
fn run_guarded(cur: Current) {
    let task = cur.task.clone();
    if catch_unwind(AssertUnwindSafe(|| run(cur))).is_err() {
        log::error!("process {} is killed for a fault of the sentry", task.pid());
        exit::abandon(&task);
    }
}

/// Waits until the container is started. False when it is ended before.
fn wait_for_start(cur: &mut Current) -> bool {
    let kernel = cur.task.kernel.clone();
    let is_open = || if kernel.gate.is_open() { Ok(()) } else { Err(Errno::EAGAIN) };
    loop {
        match cur.task.wait_on(&kernel.gate.queue, Events::READ, None, &mut &is_open) {
            Ok(()) => return true,
            Err(_) if cur.look_up() => {}
            Err(_) => return false,
        }
    }
}

/// Runs a task to its end.
fn run(mut cur: Current) {
    let killed = ExitStatus::Killed { signal: libc::SIGKILL, core: false };
    let first = cur.pid() == cur.task.kernel.first_pid();
    if first && !cur.task.kernel.gate.is_open() && !wait_for_start(&mut cur) {
        return exit::end_thread(cur, killed);
    }
    let status = loop {
        let due = !cur.attention().is_empty() || cur.restart.is_some() || cur.saved_mask.is_some();
        if due && !cur.look_up() {
            break killed;
        }
        if cur.answers.get() != Some(cur.seccomp.changes()) {
            give_answers(&mut cur);
        }
        if let Some(near) = cur.user.wants_room() {
            lend_room(&mut cur, &near);
        }
        cur.clocks.runs();
        let event = cur.user.run();
        cur.clocks.stops();
        match event {
            Event::Syscall => {
                if let Some(status) = syscalls::dispatch(&mut cur) {
                    break status;
                }
            }
            Event::Fault(info) => fault(&mut cur, &info),
            Event::Interrupted => {}
            Event::Lost => {
                if cur.attention().is_empty() {
                    log::warn!("the host has taken the memory of process {} away", cur.pid());
                }
                break cur.group.end(ExitStatus::Killed { signal: libc::SIGKILL, core: false });
            }
        }
    };
    exit::end_thread(cur, status);
}

/// Tells the platform the answers that do not change but by calls of the task's own, as far as its filters have no say and
/// nobody wants to see the calls.
fn give_answers(cur: &mut Current) {
    let changes = cur.seccomp.changes();
    let creds = cur.creds();
    let answers = [
        (libc::SYS_getpid, Answer::Is(cur.pid() as u32)),
        (libc::SYS_gettid, Answer::Is(cur.tid() as u32)),
        (libc::SYS_getuid, Answer::Is(creds.ruid)),
        (libc::SYS_geteuid, Answer::Is(creds.euid)),
        (libc::SYS_getgid, Answer::Is(creds.rgid)),
        (libc::SYS_getegid, Answer::Is(creds.egid)),
        (libc::SYS_sched_yield, Answer::Platforms),
        (libc::SYS_clock_gettime, Answer::Platforms),
    ];
    let traced = cur.kernel.tracer.is_some();
    let allowed = |number: i64| !traced && cur.seccomp.allows_always(number as u32);
    let answers: Vec<(usize, Answer)> = answers
        .into_iter()
        .filter(|(number, _)| allowed(*number))
        .map(|(number, answer)| (number as usize, answer))
        .collect();
    cur.user.set_answers(&answers);
    cur.answers.set(Some(changes));
}

/// Lends the platform a piece of the container's address space. It can do without.
fn lend_room(cur: &mut Current, near: &std::ops::Range<u64>) {
    let Ok(mm) = cur.task.mm() else { return };
    if let Err(error) = mm.lend(&mut *cur.user, near) {
        log::debug!("no room near {near:x?}: {error}");
    }
}

fn fault(cur: &mut Current, host: &crate::platform::SigInfo) {
    let Ok(info) = SigInfo::from_fault(host) else { return };
    if info.signal() == Signal::SEGV {
        // The host does not say whether it was a store: growing for a load is harmless.
        let (mm, limits) = (cur.task.mm(), cur.mem_limits());
        if mm.is_ok_and(|mm| mm.handle_fault(&mut *cur.user, info.addr(), false, &limits)) {
            return;
        }
    }
    cur.trap = Trap::from_fault(&info, cur.trap);
    cur.task.force(info);
}

impl Current {
    /// The calling thread's task, which runs on `user`.
    pub(super) fn new(task: Arc<Task>, mut user: Box<dyn crate::platform::UserThread>, altstack: AltStack) -> Current {
        user.follow(task.scheduling.clone());
        *task.interrupter.lock() = Some(user.interrupter());
        task.clocks.started();
        task.group.clocks.enter(&task.clocks);
        Current {
            task,
            user,
            restart_block: None,
            saved_mask: None,
            registers_set: false,
            call_number: u64::MAX,
            restart: None,
            trap: Trap::default(),
            altstack,
            answers: Cell::new(None),
        }
    }
}

impl Current {
    /// A call begins.
    pub(in crate::sentry) fn set_call(&mut self, number: u64) {
        self.call_number = number;
    }

    /// A signal has ended the call.
    pub(in crate::sentry) fn set_restart(&mut self, errno: Errno) {
        self.restart = Some(errno);
    }
}
