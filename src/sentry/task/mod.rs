//! Tasks (threads) and thread groups (processes).
//!
//! ```text
//! Kernel ── tree: who is whose parent, process groups, sessions
//!   └ ThreadGroup ── handlers, shared pending signals, limits, timers
//!       └ Task ── mm, fs, files, credentials, its own pending signals
//!           └ Current: the task on its own sentry thread, with the user thread that runs its code
//! ```
//!
//! Each task is run by one sentry thread ([`run`]), which alone has its [`Current`]. Others reach the [`Task`]: they queue
//! signals, set [`Attention`] bits and have it look ([`Task::notify`]).
//!
//! Lock order: `Kernel::tree` > `ThreadGroup::signals` > the handlers' lock > `Task::signals` > leaves (`mm`, `fs`, `files`,
//! `creds`, `limits`, parkers). None is held while a task blocks or runs user code.

pub mod access;
pub mod block;
pub mod clone;
pub mod cpu_limit;
mod crew;
pub mod exec;
pub mod exit;
pub mod freeze;
pub mod jobctl;
pub mod pidfd;
pub mod run;
pub mod signals;
pub mod stop;
pub mod timers;
pub mod tree;
pub mod usage;
pub mod wait;

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use bitflags::bitflags;
use parking_lot::{Mutex, RwLock};

use self::signals::{GroupSignals, TaskSignals};
use self::usage::Usage;
use crate::errno::{Errno, Result};
use crate::platform::placement::Scheduling;
use crate::platform::{AddressSpace, Interrupter, UserThread};
use crate::sentry::creds::{Caps, Credentials};
use crate::sentry::fdtable::{FdSlot, FdTable};
use crate::sentry::fs::FsContext;
use crate::sentry::kernel::Kernel;
use crate::sentry::limits::Limits;
use crate::sentry::mm::{MemLimits, MemoryManager};
use crate::sentry::namespaces::{Namespaces, Pid};
use crate::sentry::seccomp::Seccomp;
use crate::sentry::signal::frame::Trap;
use crate::sentry::signal::{AltStack, SigSet, SignalHandlers};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::timers::IntervalTimers;
use crate::sentry::time::PosixTimers;
use crate::vfs::file::OpenFile;
use crate::wait::{Parker, WaitQueue};

bitflags! {
    /// Why a task should look up before it runs user code again or goes on sleeping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Attention: u32 {
        /// A signal may be deliverable.
        const SIGNAL = 1;
        /// The thread must end.
        const KILL = 2;
        /// The thread group is stopped.
        const STOP = 4;
        /// The container is paused: no user code runs, and nobody can tell that it did not. No reason to end a wait.
        const FREEZE = 8;
    }
}

/// What a task is doing, as `/proc/PID/stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskState {
    /// Running, or about to.
    Running = b'R',
    /// In a system call that waits.
    Sleeping = b'S',
    /// Stopped by a signal.
    Stopped = b'T',
    /// Ended, not waited for.
    Zombie = b'Z',
}

/// A process.
pub struct ThreadGroup {
    pid: i32,
    /// The sandbox's kernel.
    pub kernel: Arc<Kernel>,
    /// Handlers, shared with `CLONE_SIGHAND`; replaced by `execve(2)`.
    handlers: RwLock<Arc<SignalHandlers>>,
    /// Shared pending signals, stops, the end of the group, and its threads.
    pub(super) signals: Mutex<GroupSignals>,
    /// Resource limits; leaf lock.
    pub limits: Mutex<Limits>,
    cpu_limit: cpu_limit::CpuLimit,
    /// Woken when a child ends, stops or continues.
    pub child_events: WaitQueue,
    /// Woken for each signal that becomes pending: `signalfd(2)`.
    pub signal_queue: WaitQueue,
    /// Woken when the process ends: pidfds.
    pub exit_queue: WaitQueue,
    /// Woken when a thread ends: `execve(2)` waits for the others.
    pub thread_events: WaitQueue,
    /// Set when the last thread is gone.
    pub exited: AtomicBool,
    /// What its threads use.
    pub(super) clocks: usage::GroupClocks,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: AtomicI32,
    /// `setitimer(2)`.
    pub itimers: IntervalTimers,
    /// `timer_create(2)`.
    pub timers: PosixTimers,
    /// The real user id of the thread that last changed its own, for who waits for it and for limits.
    uid: AtomicU32,
    /// When it was made: `CLOCK_BOOTTIME`, nanoseconds.
    pub start_ns: u64,
}

impl ThreadGroup {
    /// A process without threads, a child of `parent`'s making.
    pub(in crate::sentry) fn new(
        kernel: &Arc<Kernel>,
        pid: i32,
        handlers: Arc<SignalHandlers>,
        limits: Limits,
        uid: u32,
    ) -> Arc<ThreadGroup> {
        let group = Arc::new(ThreadGroup {
            pid,
            kernel: kernel.clone(),
            handlers: RwLock::new(handlers),
            signals: Mutex::default(),
            limits: Mutex::new(limits),
            cpu_limit: cpu_limit::CpuLimit::default(),
            child_events: WaitQueue::new(),
            signal_queue: WaitQueue::new(),
            exit_queue: WaitQueue::new(),
            thread_events: WaitQueue::new(),
            exited: AtomicBool::new(false),
            itimers: IntervalTimers::default(),
            timers: PosixTimers::new(),
            clocks: usage::GroupClocks::default(),
            oom_score_adj: AtomicI32::new(0),
            uid: AtomicU32::new(uid),
            start_ns: boottime_ns(),
        });
        group.watch_cpu_limit();
        group
    }

    /// Enters the first thread.
    pub(in crate::sentry) fn add_first(&self, task: &Arc<Task>) {
        self.signals.lock().threads.push(task.clone());
    }

    /// The real user id.
    pub fn uid(&self) -> u32 {
        self.uid.load(Ordering::Relaxed)
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whose it is what it has to undo of semaphores.
    pub fn sem_owner(&self) -> crate::sentry::ipc::sem::Owner {
        crate::sentry::ipc::sem::Owner { container: self.kernel.serial, pid: self.pid }
    }

    /// The handlers in force.
    pub fn handlers(&self) -> Arc<SignalHandlers> {
        self.handlers.read().clone()
    }

    /// The threads that have not ended.
    pub fn threads(&self) -> Vec<Arc<Task>> {
        self.signals.lock().threads.clone()
    }

    /// The thread whose id is the process id, or another one if that has ended.
    pub fn leader(&self) -> Option<Arc<Task>> {
        let signals = self.signals.lock();
        let leader = signals.threads.iter().find(|task| task.tid() == self.pid);
        leader.or(signals.threads.first()).cloned()
    }

    /// What all threads have used so far.
    pub fn usage(&self) -> Usage {
        self.clocks.usage()
    }
}

/// A thread, as others see it.
pub struct Task {
    /// Its id. Changes when a thread other than the leader calls `execve(2)`.
    tid: AtomicI32,
    /// The sandbox's kernel.
    pub kernel: Arc<Kernel>,
    /// Its process.
    pub group: Arc<ThreadGroup>,
    /// Its memory; `None` before it has started and once it has ended.
    mm: RwLock<Option<Arc<MemoryManager>>>,
    /// Root, working directory, umask; shared with `CLONE_FS`.
    fs: RwLock<Arc<FsContext>>,
    /// Descriptors; shared with `CLONE_FILES`. `None` once it has ended.
    files: RwLock<Option<Arc<FdTable>>>,
    /// Who it is. Only its own thread replaces them.
    creds: RwLock<Arc<Credentials>>,
    /// Its namespaces.
    namespaces: RwLock<Arc<Namespaces>>,
    /// `PR_SET_NAME`: up to 15 bytes.
    name: Mutex<Vec<u8>>,
    attention: AtomicU32,
    state: AtomicU8,
    /// Set when the thread has begun to end: it takes no more locks.
    exiting: AtomicBool,
    /// Whether it rests because the container is paused.
    rests: AtomicBool,
    /// Where its sentry thread sleeps.
    pub parker: Arc<Parker>,
    /// Whether it looks for a wake-up before it sleeps.
    pub(super) looks: block::Looks,
    /// What stops its user code. `None` before it has started.
    interrupter: Mutex<Option<Arc<dyn Interrupter>>>,
    /// Its own pending signals and its mask.
    pub(super) signals: Mutex<TaskSignals>,
    /// `CLONE_CHILD_CLEARTID`.
    pub clear_child_tid: AtomicU64,
    /// `set_robust_list(2)`.
    pub robust_list: AtomicU64,
    /// Who waits for a `vfork(2)` child to let go of the memory.
    vfork_done: Mutex<Option<Arc<clone::VforkDone>>>,
    /// CPU clocks of its two host threads.
    pub clocks: Arc<usage::TaskClocks>,
    /// When it was made: `CLOCK_BOOTTIME`, nanoseconds.
    pub start_ns: u64,
    /// `PR_SET_TIMERSLACK`, in nanoseconds.
    pub timer_slack: AtomicU64,
    /// On which CPUs it runs and with what share of them.
    pub scheduling: Arc<Scheduling>,
    /// `set_mempolicy(2)`: mode and nodes.
    pub memory_policy: Mutex<(i32, u64)>,
    /// Whose count it is in: guarded by the tree's lock.
    pub(super) counted_uid: AtomicU32,
    /// `ioprio_set(2)`.
    pub io_priority: AtomicI32,
    /// `seccomp(2)`.
    pub seccomp: Seccomp,
}

impl Task {
    /// The thread id.
    pub fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.group.pid
    }

    /// The process id, and in which namespace it counts: for who may be a process of another container.
    pub fn scoped_pid(&self) -> Pid {
        Pid { number: self.pid(), namespace: self.kernel.pid_namespace }
    }

    /// Its memory. `ESRCH` once it has ended.
    pub fn mm(&self) -> Result<Arc<MemoryManager>> {
        self.mm.read().clone().ok_or(Errno::ESRCH)
    }

    /// Root, working directory and umask.
    pub fn fs(&self) -> Arc<FsContext> {
        self.fs.read().clone()
    }

    /// Its descriptors. `ESRCH` once it has ended.
    pub fn files(&self) -> Result<Arc<FdTable>> {
        self.files.read().clone().ok_or(Errno::ESRCH)
    }

    /// Who it is.
    pub fn creds(&self) -> Arc<Credentials> {
        self.creds.read().clone()
    }

    /// Its namespaces.
    pub fn namespaces(&self) -> Arc<Namespaces> {
        self.namespaces.read().clone()
    }

    /// `unshare(2)`: a view of its own.
    pub fn replace_fs(&self, fs: Arc<FsContext>) {
        *self.fs.write() = fs;
    }

    /// `unshare(2)` and `execve(2)`: a descriptor table of its own. The old one is let go of without locks.
    pub fn replace_files(&self, files: Arc<FdTable>) {
        let old = self.files.write().replace(files);
        drop(old);
    }

    /// `unshare(2)`, `setns(2)`.
    pub fn replace_namespaces(&self, namespaces: Namespaces) {
        *self.namespaces.write() = Arc::new(namespaces);
    }

    /// `comm`.
    pub fn name(&self) -> Vec<u8> {
        self.name.lock().clone()
    }

    /// `PR_SET_NAME`, and what `execve(2)` does: cut to 15 bytes.
    pub fn set_name(&self, name: &[u8]) {
        *self.name.lock() = name[..name.len().min(15)].to_vec();
    }

    /// Whether the thread has begun to end.
    pub fn is_exiting(&self) -> bool {
        self.exiting.load(Ordering::SeqCst)
    }

    pub(in crate::sentry) fn set_exiting(&self) {
        self.exiting.store(true, Ordering::SeqCst);
    }

    /// What it is doing.
    pub fn state(&self) -> TaskState {
        match self.state.load(Ordering::Relaxed) {
            b'S' => TaskState::Sleeping,
            b'T' => TaskState::Stopped,
            b'Z' => TaskState::Zombie,
            _ => TaskState::Running,
        }
    }

    pub(super) fn set_state(&self, state: TaskState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Changes how it is scheduled; user code that runs meanwhile is stopped once, to go on so.
    pub fn reschedule(&self, change: impl FnOnce(&Scheduling)) {
        change(&self.scheduling);
        self.kick();
    }

    /// Stops its user code once, if it runs: it goes on at once, by what holds then.
    pub fn kick(&self) {
        if let Some(interrupter) = &*self.interrupter.lock() {
            interrupter.interrupt();
        }
    }

    /// Has the task look at `why`: wakes it from a wait, or stops its user code.
    pub fn notify(&self, why: Attention) {
        self.attention.fetch_or(why.bits(), Ordering::SeqCst);
        self.parker.unpark();
        self.kick();
    }

    /// What it is to look at.
    pub fn attention(&self) -> Attention {
        Attention::from_bits_truncate(self.attention.load(Ordering::SeqCst))
    }

    pub(super) fn clear_attention(&self, what: Attention) {
        self.attention.fetch_and(!what.bits(), Ordering::SeqCst);
    }

    /// Whether all of `caps` are in force.
    pub fn has_cap(&self, caps: Caps) -> bool {
        self.creds.read().has(caps)
    }

    /// The limits that concern memory.
    pub fn mem_limits(&self) -> MemLimits {
        let limits = self.group.limits.lock();
        MemLimits {
            address_space: limits.soft(libc::RLIMIT_AS),
            data: limits.soft(libc::RLIMIT_DATA),
            stack: limits.soft(libc::RLIMIT_STACK),
            memlock: limits.soft(libc::RLIMIT_MEMLOCK),
            ipc_lock: self.has_cap(Caps::IPC_LOCK),
        }
    }

    /// What a child has from its parent besides the parts that may be shared.
    pub(super) fn inherit(&self, parent: &Task) {
        *self.name.lock() = parent.name();
        self.signals.lock().blocked = parent.blocked();
        self.timer_slack.store(parent.timer_slack.load(Ordering::Relaxed), Ordering::Relaxed);
        self.scheduling.inherit(&parent.scheduling);
        *self.memory_policy.lock() = *parent.memory_policy.lock();
        self.io_priority.store(parent.io_priority.load(Ordering::Relaxed), Ordering::Relaxed);
        self.seccomp.inherit(&parent.seccomp);
    }

    /// `PR_SET_NO_NEW_PRIVS` for another thread of the group, with `TSYNC`.
    pub(in crate::sentry) fn impose_no_new_privs(&self) {
        self.seccomp.no_new_privs.store(true, Ordering::SeqCst);
        let mut creds = self.creds.write();
        if !creds.no_new_privs {
            let mut changed = (**creds).clone();
            changed.no_new_privs = true;
            *creds = Arc::new(changed);
        }
    }

    /// `EPERM` unless all of `caps` are in force.
    pub fn require(&self, caps: Caps) -> Result<()> {
        if self.has_cap(caps) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// A soft resource limit.
    pub fn limit(&self, which: libc::__rlimit_resource_t) -> u64 {
        self.group.limits.lock().soft(which)
    }

    /// What it has used so far.
    pub fn usage(&self) -> Usage {
        self.clocks.usage()
    }
}

/// What a new task begins with.
pub(in crate::sentry) struct Parts {
    /// `None` until the task has a copy of its parent's.
    pub mm: Option<Arc<MemoryManager>>,
    pub fs: Arc<FsContext>,
    pub files: Arc<FdTable>,
    pub creds: Arc<Credentials>,
    pub namespaces: Arc<Namespaces>,
}

impl Task {
    /// A task that does not run yet.
    ///
    /// It has the specification's filter of system calls; a child has its parent's from [`Task::inherit`] on.
    pub(in crate::sentry) fn new(tid: i32, group: Arc<ThreadGroup>, parts: Parts) -> Task {
        let seccomp = Seccomp::default();
        if let Some(profile) = group.kernel.seccomp_profile.get() {
            seccomp.install(profile.clone());
        }
        Task {
            tid: AtomicI32::new(tid),
            kernel: group.kernel.clone(),
            group,
            mm: RwLock::new(parts.mm),
            fs: RwLock::new(parts.fs),
            files: RwLock::new(Some(parts.files)),
            creds: RwLock::new(parts.creds),
            namespaces: RwLock::new(parts.namespaces),
            name: Mutex::default(),
            attention: AtomicU32::new(0),
            state: AtomicU8::new(TaskState::Running as u8),
            exiting: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            parker: Arc::default(),
            looks: block::Looks::default(),
            interrupter: Mutex::new(None),
            signals: Mutex::default(),
            clear_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            vfork_done: Mutex::new(None),
            clocks: Arc::default(),
            start_ns: boottime_ns(),
            timer_slack: AtomicU64::new(50_000),
            scheduling: Arc::default(),
            memory_policy: Mutex::default(),
            counted_uid: AtomicU32::new(0),
            io_priority: AtomicI32::new(0),
            seccomp,
        }
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds.
pub fn boottime_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Task>>> = const { RefCell::new(None) };
}

/// The task that the calling sentry thread runs; `None` on the sentry's other threads. For what is reached through a file
/// system's interface and depends on its caller: terminals, `/proc/self`. What has a [`Current`] uses that.
pub fn current() -> Option<Arc<Task>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Goes on with a call that was interrupted by a signal without a handler: `restart_syscall(2)`.
pub type RestartBlock = Box<dyn FnOnce(&mut Current) -> SysResult>;

/// A task on its own thread.
pub struct Current {
    /// The task.
    pub task: Arc<Task>,
    /// What runs its code.
    pub user: Box<dyn UserThread>,
    /// What `restart_syscall(2)` does.
    pub restart_block: Option<RestartBlock>,
    /// The mask to go back to after the signals of a call that replaced it (`ppoll(2)`, `sigsuspend(2)`).
    pub(super) saved_mask: Option<SigSet>,
    /// Set by calls that leave the registers as they are to be: `rt_sigreturn(2)`, `execve(2)`.
    pub registers_set: bool,
    /// The number of the call being made, to make it again.
    pub(super) call_number: u64,
    /// Set when a signal ended the call: decided once it is known whether a handler runs.
    pub(super) restart: Option<Errno>,
    /// The thread's last fault.
    pub(super) trap: Trap,
    /// `sigaltstack(2)`.
    pub(super) altstack: AltStack,
    /// For which state of its filters the platform has answers of its own; `None`: it must be told again.
    pub(super) answers: Cell<Option<u32>>,
}

impl Deref for Current {
    type Target = Arc<Task>;

    fn deref(&self) -> &Arc<Task> {
        &self.task
    }
}

impl Current {
    /// Its memory.
    pub fn space(&self) -> &dyn AddressSpace {
        &**self.user.space()
    }

    /// The open file behind a descriptor. `EBADF`.
    pub fn file(&self, fd: Fd) -> Result<Arc<OpenFile>> {
        let files = self.task.files.read();
        files.as_ref().ok_or(Errno::EBADF)?.get(fd.0)
    }

    /// The open file behind a descriptor that is good for I/O. `EBADF`, also with `O_PATH`.
    pub fn io_file(&self, fd: Fd) -> Result<Arc<OpenFile>> {
        self.file(fd).and_then(|file| if file.is_path_only() { Err(Errno::EBADF) } else { Ok(file) })
    }

    /// Sets the lowest free descriptor aside for a file that is to be made. `EMFILE`.
    pub fn reserve_fd(&self) -> Result<FdSlot> {
        self.files()?.reserve(self.limit(libc::RLIMIT_NOFILE))
    }

    /// The lowest free descriptor for `file`. `EMFILE`.
    pub fn add_file(&self, file: Arc<OpenFile>, cloexec: bool) -> SysResult {
        let limit = self.limit(libc::RLIMIT_NOFILE);
        self.files()?.add(file, cloexec, 0, limit).map(|fd| fd as u64)
    }

    /// Replaces the credentials.
    pub fn set_creds(&self, mut creds: Credentials) {
        if creds.ruid != self.creds().ruid {
            self.kernel.tree.lock().recount(&self.task, creds.ruid);
            self.group.uid.store(creds.ruid, Ordering::Relaxed);
        }
        let mut place = self.task.creds.write();
        // Another thread may have set it meanwhile.
        creds.no_new_privs |= self.seccomp.no_new_privs.load(Ordering::SeqCst);
        *place = Arc::new(creds);
        self.answers.set(None);
    }
}
