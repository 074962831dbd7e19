//! What there is one of in a container: a kernel of its own, whose costly parts the containers of a sandbox share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use oci_spec::runtime::LinuxResources;
use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::netstack::stack::Stack;
use crate::platform::Platform;
use crate::sentry::boot::{Console, FurtherProcesses, StartHooks};
use crate::sentry::bootlog::BootLog;
use crate::sentry::counters::HostCounters;
use crate::sentry::creds::Caps;
use crate::sentry::futex::FutexTable;
use crate::sentry::home::Home;
use crate::sentry::ipc::Ipc;
use crate::sentry::seccomp::Filter;
use crate::sentry::signal::{PendingCount, SigInfo, Signal};
use crate::sentry::strace::Tracer;
use crate::sentry::task::freeze::Freezer;
use crate::sentry::task::signals::Origin;
use crate::sentry::task::tree::{ExitStatus, TaskTree};
use crate::sentry::task::{Task, ThreadGroup};
use crate::timer::TimerQueue;
use crate::vfs::DeviceTable;
use crate::vfs::tty::{DevPts, Terminals};
use crate::wait::{Events, Parker, WaitQueue};

/// What the first process of a container that has been created waits at until the container is started.
#[derive(Default)]
pub struct Gate {
    open: AtomicBool,
    /// Woken when it opens.
    pub queue: WaitQueue,
}

impl Gate {
    /// Whether it has been opened.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Opens it for good. False when it was open.
    pub fn open(&self) -> bool {
        let first = !self.open.swap(true, Ordering::SeqCst);
        self.queue.wake(Events::READ);
        first
    }
}

/// The kernel of a container.
pub struct Kernel {
    /// How container code is run.
    pub platform: Arc<dyn Platform>,
    /// Tells this kernel from the others of the sandbox.
    pub serial: u64,
    /// Processes; see [`task`](crate::sentry::task) for the lock order. Containers that share process numbers have one
    /// tree, in which each finds its own processes by [`Kernel::owns`].
    pub tree: Arc<Mutex<TaskTree>>,
    /// Whose numbers the tree has: [`Pid::namespace`](crate::sentry::namespaces::Pid).
    pub pid_namespace: u64,
    /// How many threads of the container are in the tree. Changed with the tree locked.
    pub(super) threads: AtomicUsize,
    /// The number of the container's first process, once there is one.
    first: OnceLock<i32>,
    /// Deadlines.
    pub timers: Arc<TimerQueue>,
    /// Futexes.
    pub futexes: Arc<FutexTable>,
    /// `dmesg(1)`.
    pub boot_log: Arc<BootLog>,
    /// TCP/IP.
    pub net: Arc<Stack>,
    /// System V IPC.
    pub ipc: Arc<Ipc>,
    /// What device nodes open.
    pub devices: Arc<DeviceTable>,
    /// Terminals and the sessions they control.
    pub terminals: Arc<Terminals>,
    /// `--strace`.
    pub tracer: Option<Arc<Tracer>>,
    /// How many threads there may be: the `pids` controller's limit. Set at any time, looked at when one is made.
    task_limit: AtomicUsize,
    /// Pending signals of each user; leaf lock.
    users: Mutex<HashMap<u32, Weak<PendingCount>>>,
    /// Where the first process waits to be started.
    pub gate: Gate,
    /// The container's exit status.
    ended: Mutex<Option<ExitStatus>>,
    /// Woken when the container has ended.
    pub ended_queue: WaitQueue,
    /// Whether the container is paused.
    pub(super) freezer: Freezer,
    /// Processes that `exec` has started.
    pub further: FurtherProcesses,
    /// The pseudoterminals of the container's `/dev/pts`.
    pub ptys: Arc<DevPts>,
    /// The first process's terminal, when that is a pair with the operator's terminal at its other end.
    pub console: OnceLock<Console>,
    /// The names of the interfaces that were handed over, and whether a name server was; of the sandbox's first container.
    /// Held while that is done.
    pub attached: Mutex<Option<(Vec<String>, bool)>>,
    /// `startContainer` hooks that are to be run, if any.
    pub start_hooks: OnceLock<StartHooks>,
    /// `linux.seccomp`: what every process that the runtime starts has.
    pub seccomp_profile: OnceLock<Arc<Filter>>,
    /// The limits that `/sys/fs/cgroup` shows: `linux.resources`, as last changed. Leaf lock.
    pub resources: Mutex<LinuxResources>,
    /// What the host counts for the container, if it has a cgroup to itself.
    pub counters: OnceLock<HostCounters>,
    /// The cgroup of the container's stubs, unless that is the sandbox's.
    pub home: OnceLock<Home>,
    /// `CLOCK_BOOTTIME` of the sandbox's start, in nanoseconds.
    pub boot_ns: u64,
}

/// The parts that are made before the kernel.
pub struct KernelParts {
    /// The processes that it joins.
    pub tree: Arc<Mutex<TaskTree>>,
    /// See [`Kernel`].
    pub platform: Arc<dyn Platform>,
    /// See [`Kernel`].
    pub timers: Arc<TimerQueue>,
    /// See [`Kernel`].
    pub futexes: Arc<FutexTable>,
    /// See [`Kernel`].
    pub boot_log: Arc<BootLog>,
    /// See [`Kernel`].
    pub net: Arc<Stack>,
    /// See [`Kernel`].
    pub devices: Arc<DeviceTable>,
    /// See [`Kernel`].
    pub terminals: Arc<Terminals>,
    /// See [`Kernel`].
    pub ptys: Arc<DevPts>,
    /// See [`Kernel`].
    pub ipc: Arc<Ipc>,
    /// See [`Kernel`].
    pub tracer: Option<Arc<Tracer>>,
}

impl Kernel {
    /// A kernel without tasks.
    pub fn new(parts: KernelParts) -> Arc<Kernel> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let pid_namespace = parts.tree.lock().namespace();
        Arc::new(Kernel {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            platform: parts.platform,
            pid_namespace,
            tree: parts.tree,
            threads: AtomicUsize::new(0),
            first: OnceLock::new(),
            timers: parts.timers,
            futexes: parts.futexes,
            boot_log: parts.boot_log,
            net: parts.net,
            ipc: parts.ipc,
            devices: parts.devices,
            terminals: parts.terminals,
            tracer: parts.tracer,
            task_limit: AtomicUsize::new(usize::MAX),
            users: Mutex::default(),
            gate: Gate::default(),
            ended: Mutex::new(None),
            ended_queue: WaitQueue::new(),
            freezer: Freezer::default(),
            further: FurtherProcesses::default(),
            ptys: parts.ptys,
            console: OnceLock::new(),
            attached: Mutex::new(None),
            start_hooks: OnceLock::new(),
            seccomp_profile: OnceLock::new(),
            resources: Mutex::default(),
            counters: OnceLock::new(),
            home: OnceLock::new(),
            boot_ns: crate::sentry::task::boottime_ns(),
        })
    }

    /// The count of signals pending for a user.
    pub fn pending_signals(&self, uid: u32) -> Arc<PendingCount> {
        let mut users = self.users.lock();
        if let Some(count) = users.get(&uid).and_then(Weak::upgrade) {
            return count;
        }
        users.retain(|_, count| count.strong_count() > 0);
        let count = PendingCount::new();
        users.insert(uid, Arc::downgrade(&count));
        count
    }

    /// Puts a fresh stub into the container's cgroup, by [`host_pid`](crate::platform::AddressSpace::host_pid).
    pub fn take_in(&self, pid: i32) {
        if let Some(home) = self.home.get() {
            home.take_in(pid);
        }
    }

    /// Sets the limits of the container; `pids` is the one that the sentry itself keeps. A limit of 0 is none, as in the
    /// specification.
    pub fn set_resources(&self, resources: LinuxResources) {
        let limit = resources.pids().and_then(|pids| usize::try_from(pids.limit()).ok()).filter(|&limit| limit > 0);
        self.task_limit.store(limit.unwrap_or(usize::MAX), Ordering::Relaxed);
        *self.resources.lock() = resources;
    }

    /// The limit of memory in bytes, if there is one.
    pub fn memory_limit(&self) -> Option<u64> {
        let limit = self.resources.lock().memory().and_then(|memory| memory.limit());
        limit.and_then(|limit| u64::try_from(limit).ok()).filter(|&limit| limit > 0)
    }

    /// The limit of swap alone in bytes, if there is one: the specification counts it with the memory, as cgroup v1 did.
    pub fn swap_limit(&self) -> Option<u64> {
        let both = self.resources.lock().memory().and_then(|memory| memory.swap());
        let both = both.and_then(|both| u64::try_from(both).ok()).filter(|&both| both > 0)?;
        Some(both.saturating_sub(self.memory_limit().unwrap_or(0)))
    }

    /// Memory in use, in bytes: as the host counts it, or else what the processes have mapped.
    pub fn memory_in_use(&self) -> u64 {
        self.counters.get().and_then(HostCounters::memory).unwrap_or_else(|| {
            let groups = self.processes();
            let memories = groups.iter().filter_map(|(group, _)| group.leader()?.mm().ok());
            memories.map(|mm| mm.sizes().resident).sum()
        })
    }

    /// An id for a task that `parent` makes. `EAGAIN`: its user has too many (`RLIMIT_NPROC`), the container has (the
    /// `pids` controller's limit), or there is none left.
    pub fn allocate_id(&self, tree: &mut TaskTree, parent: &Task) -> Result<i32> {
        let creds = parent.creds();
        let exempt = creds.ruid == 0 || creds.has(Caps::SYS_ADMIN) || creds.has(Caps::SYS_RESOURCE);
        if !exempt && tree.tasks_of(creds.ruid) >= parent.limit(libc::RLIMIT_NPROC) {
            return Err(Errno::EAGAIN);
        }
        if self.thread_count() >= self.task_limit.load(Ordering::Relaxed) {
            return Err(Errno::EAGAIN);
        }
        tree.allocate_id()
    }

    /// How many threads the container has, zombies included.
    pub fn thread_count(&self) -> usize {
        self.threads.load(Ordering::Relaxed)
    }

    /// The number of the container's first process; 0 before there is one.
    pub fn first_pid(&self) -> i32 {
        self.first.get().copied().unwrap_or(0)
    }

    /// Says which is the container's first process, once. With the tree locked, before it runs.
    pub(super) fn set_first_pid(&self, pid: i32) {
        let _ = self.first.set(pid); // there is one
    }

    /// The container's first process. `ESRCH` when there is none yet or any more.
    pub fn first_process(&self) -> Result<Arc<ThreadGroup>> {
        self.process(self.first_pid()).ok().filter(|group| self.owns(group)).ok_or(Errno::ESRCH)
    }

    /// Whether a process is one of the container's.
    pub fn owns(&self, group: &ThreadGroup) -> bool {
        std::ptr::eq(&*group.kernel, self)
    }

    /// A process by its id. `ESRCH`; a zombie is found.
    pub fn process(&self, pid: i32) -> Result<Arc<ThreadGroup>> {
        self.tree.lock().node(pid).map(|node| node.group.clone()).ok_or(Errno::ESRCH)
    }

    /// A thread by its id. `ESRCH`.
    pub fn thread(&self, tid: i32) -> Result<Arc<Task>> {
        self.tree.lock().thread(tid).cloned().ok_or(Errno::ESRCH)
    }

    /// The first process has ended: so does the container, with everything in it. The end of number 1 is that of all who
    /// share its process numbers: `pid_namespaces(7)`.
    pub(super) fn container_ended(&self, status: ExitStatus) {
        let all = self.first_pid() == 1;
        let groups: Vec<_> = {
            let tree = self.tree.lock();
            let wanted = tree.nodes().filter(|(_, node)| all || self.owns(&node.group));
            wanted.map(|(_, node)| node.group.clone()).collect()
        };
        for group in groups {
            group.end(ExitStatus::Killed { signal: libc::SIGKILL, core: false });
        }
        *self.ended.lock() = Some(status);
        self.ended_queue.wake(Events::READ);
    }

    /// Kills the container.
    pub fn kill(&self) {
        if let Ok(group) = self.first_process() {
            group.end(ExitStatus::Killed { signal: libc::SIGKILL, core: false });
        }
    }

    /// Forgets the processes of a container that has ended, which hold on to the kernel.
    pub fn forget_processes(&self) {
        let mut tree = self.tree.lock();
        let own: Vec<i32> = tree.nodes().filter(|(_, node)| self.owns(&node.group)).map(|(pid, _)| pid).collect();
        let gone: Vec<_> = own.into_iter().map(|pid| tree.remove_process(pid)).collect();
        drop(tree);
        drop(gone);
    }

    /// Sleeps until the container has ended.
    pub fn wait_ended(&self) -> ExitStatus {
        loop {
            if let Some(status) = self.wait_ended_until(None) {
                return status;
            }
        }
    }

    /// As [`Kernel::wait_ended`], but not beyond `deadline`, if there is one.
    pub fn wait_ended_until(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        let parker = Arc::new(Parker::new());
        let key = self.ended_queue.add(parker.clone(), Events::READ, false);
        while self.ended().is_none() && parker.park(deadline) {}
        self.ended_queue.remove(key);
        self.ended()
    }

    /// The container's exit status, once it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.ended.lock()
    }

    /// Sends a signal to the first process, or to all. `ESRCH`, `EINVAL`.
    pub fn signal_container(&self, signal: i32, all: bool, origin: Origin) -> Result<()> {
        let info = SigInfo::user(Signal::new(signal)?, 0, 0);
        let groups: Vec<_> = {
            let tree = self.tree.lock();
            let own = tree.nodes().filter(|(_, node)| self.owns(&node.group));
            let wanted = own.filter(|(pid, _)| all || *pid == self.first_pid());
            wanted.map(|(_, node)| node.group.clone()).collect()
        };
        if groups.is_empty() {
            return Err(Errno::ESRCH);
        }
        groups.iter().try_for_each(|group| group.try_send(info, None, origin))
    }

    /// The processes that have not ended, each with its parent's id.
    pub fn processes(&self) -> Vec<(Arc<ThreadGroup>, i32)> {
        let tree = self.tree.lock();
        let live = tree.nodes().filter(|(_, node)| node.zombie.is_none() && self.owns(&node.group));
        live.map(|(_, node)| (node.group.clone(), node.parent)).collect()
    }

    /// Sends a signal from outside to one process. `ESRCH`, `EINVAL`.
    pub fn signal_process(&self, pid: i32, signal: i32) -> Result<()> {
        let info = SigInfo::user(Signal::new(signal)?, 0, 0);
        let group = self.process(pid).ok().filter(|group| self.owns(group)).ok_or(Errno::ESRCH)?;
        group.try_send(info, None, Origin::Outside)
    }

    /// Sends a signal from the runtime to the foreground process group of the first process's terminal; without a terminal
    /// to the first process's own group. `ESRCH`, `EINVAL`.
    pub fn signal_foreground(&self, signal: i32) -> Result<()> {
        if let Some(console) = self.console.get().filter(|_| signal == libc::SIGWINCH) {
            // A new size makes the signal.
            console.take_size();
            return Ok(());
        }
        let info = SigInfo::user(Signal::new(signal)?, 0, 0);
        let (sid, own) = {
            let tree = self.tree.lock();
            let node = tree.node(self.first_pid()).ok_or(Errno::ESRCH)?;
            (node.sid, node.pgid)
        };
        let pgid = self.terminals.controlling(sid).and_then(|tty| tty.foreground()).unwrap_or(own);
        let groups: Vec<_> = self.tree.lock().members(pgid).map(|node| node.group.clone()).collect();
        groups.iter().try_for_each(|group| group.try_send(info, None, Origin::Runtime))
    }
}
