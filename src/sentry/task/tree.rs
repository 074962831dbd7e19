//! The tree of processes: process ids, parents and children, process groups, sessions.
//!
//! One lock guards all of it ([`Kernel::tree`](crate::sentry::kernel::Kernel)), as forking, exiting, waiting and job control
//! each touch several processes at once. Nothing a program does often takes it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{Errno, Result};
use crate::sentry::task::usage::Usage;
use crate::sentry::task::{Task, ThreadGroup};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// `exit(2)`: the low eight bits.
    Exited(i32),
    /// Killed by a signal.
    Killed {
        /// The signal.
        signal: i32,
        /// Whether a core was written.
        core: bool,
    },
}

impl ExitStatus {
    /// As `wait4(2)` stores it.
    pub fn wait_status(self) -> i32 {
        match self {
            ExitStatus::Exited(code) => (code & 0xff) << 8,
            ExitStatus::Killed { signal, core } => signal | if core { 0x80 } else { 0 },
        }
    }

    /// As a shell, and the container's runtime, shows it.
    pub fn shell_status(self) -> i32 {
        match self {
            ExitStatus::Exited(code) => code & 0xff,
            ExitStatus::Killed { signal, .. } => 128 + signal,
        }
    }
}

/// What `wait4(2)` may report of a process that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReport {
    /// Stopped by this signal, not reported yet.
    Stopped(i32),
    /// Continued, not reported yet.
    Continued,
}

/// One process's place in the tree.
pub struct Node {
    /// The process.
    pub group: Arc<ThreadGroup>,
    /// Its parent; 0 for the first process.
    pub parent: i32,
    /// The thread that made it, for `PR_SET_PDEATHSIG` and `__WNOTHREAD`.
    pub parent_tid: i32,
    /// Its children, zombies included.
    pub children: BTreeSet<i32>,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// The signal that the parent gets at its end; 0 for none.
    pub exit_signal: i32,
    /// Set when the last thread is gone.
    pub zombie: Option<ExitStatus>,
    /// What is to be reported of a stop.
    pub report: Option<StopReport>,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// Whether it has executed a program since it was made: its parent may not set its process group any more.
    pub executed: bool,
    /// What its reaped children have used.
    pub children_usage: Usage,
    /// `PR_SET_PDEATHSIG`; 0 for none.
    pub death_signal: i32,
}

/// Tells a PID namespace from the others of the sandbox.
struct Serial(u64);

impl Default for Serial {
    fn default() -> Serial {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Serial(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// All processes.
#[derive(Default)]
pub struct TaskTree {
    serial: Serial,
    nodes: HashMap<i32, Node>,
    threads: HashMap<i32, Arc<Task>>,
    /// Process groups and their members, zombies included.
    groups: HashMap<i32, BTreeSet<i32>>,
    /// How many process groups a session has.
    sessions: HashMap<i32, usize>,
    /// How many threads and zombies each real user has: `RLIMIT_NPROC`.
    users: HashMap<u32, u64>,
    last_id: i32,
}

/// `pid_max`.
pub const PID_MAX: i32 = 32768;

/// Ids below this are not given out again after the first round.
const RESERVED: i32 = 300;

impl TaskTree {
    /// What its numbers' [`Pid`](crate::sentry::namespaces::Pid)s have as their namespace.
    pub fn namespace(&self) -> u64 {
        self.serial.0
    }

    /// An id that nothing uses: not a thread, a process group or a session. `EAGAIN` when there is none; `ENOMEM` when the
    /// first process has ended, with which all others end: `pid_namespaces(7)`.
    pub fn allocate_id(&mut self) -> Result<i32> {
        if self.nodes.get(&1).is_some_and(|first| first.zombie.is_some()) {
            return Err(Errno::ENOMEM);
        }
        for _ in 0..PID_MAX {
            self.last_id = if self.last_id + 1 >= PID_MAX { RESERVED } else { self.last_id + 1 };
            let id = self.last_id;
            let used = self.threads.contains_key(&id)
                || self.nodes.contains_key(&id)
                || self.groups.contains_key(&id)
                || self.sessions.contains_key(&id);
            if !used {
                return Ok(id);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Enters a process whose leader is `task`, as a child of `parent` (0: of nobody), in the process group and session of
    /// `like` or, without one, in its own.
    pub fn add_process(&mut self, task: &Arc<Task>, parent: (i32, i32), like: Option<i32>, exit_signal: i32) {
        let pid = task.group.pid();
        let (parent, parent_tid) = parent;
        let like = like.and_then(|like| self.nodes.get(&like));
        let (pgid, sid) = like.map_or((pid, pid), |node| (node.pgid, node.sid));
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.insert(pid);
        }
        self.enter_thread(pid, task);
        let node = Node {
            group: task.group.clone(),
            parent,
            parent_tid,
            children: BTreeSet::new(),
            pgid,
            sid,
            exit_signal,
            zombie: None,
            report: None,
            subreaper: false,
            executed: false,
            children_usage: Usage::default(),
            death_signal: 0,
        };
        self.nodes.insert(pid, node);
        self.join_group(pid, pgid, sid);
    }

    /// Enters a further thread of a process.
    pub fn add_thread(&mut self, task: &Arc<Task>) {
        self.enter_thread(task.tid(), task);
    }

    fn enter_thread(&mut self, tid: i32, task: &Arc<Task>) {
        let uid = task.creds().ruid;
        task.counted_uid.store(uid, Ordering::Relaxed);
        *self.users.entry(uid).or_default() += 1;
        task.kernel.threads.fetch_add(1, Ordering::Relaxed);
        self.threads.insert(tid, task.clone());
    }

    /// Removes a thread's id.
    pub fn remove_thread(&mut self, tid: i32) {
        if let Some(task) = self.threads.remove(&tid) {
            self.discount(task.counted_uid.load(Ordering::Relaxed));
            task.kernel.threads.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A thread that calls `execve(2)` takes the id of its process's leader, which has ended.
    pub fn rename_thread(&mut self, task: &Arc<Task>, tid: i32) {
        self.remove_thread(tid);
        self.threads.remove(&task.tid());
        self.threads.insert(tid, task.clone());
    }

    fn discount(&mut self, uid: u32) {
        if let Some(count) = self.users.get_mut(&uid) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&uid);
            }
        }
    }

    /// A thread has another real user now.
    pub fn recount(&mut self, task: &Task, uid: u32) {
        let old = task.counted_uid.swap(uid, Ordering::Relaxed);
        self.discount(old);
        *self.users.entry(uid).or_default() += 1;
    }

    /// How many threads and zombies a real user has.
    pub fn tasks_of(&self, uid: u32) -> u64 {
        self.users.get(&uid).copied().unwrap_or(0)
    }

    /// A thread by its id.
    pub fn thread(&self, tid: i32) -> Option<&Arc<Task>> {
        self.threads.get(&tid)
    }

    /// Every thread: for pausing and listing them.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.threads.values()
    }

    /// All threads' ids.
    pub fn thread_count(&self) -> usize {
        self.threads.len()
    }

    /// The id that was given out last: `/proc/loadavg`.
    pub fn last_id(&self) -> i32 {
        self.last_id
    }

    /// A process by its id, zombies included.
    pub fn node(&self, pid: i32) -> Option<&Node> {
        self.nodes.get(&pid)
    }

    /// A process by its id, to change.
    pub fn node_mut(&mut self, pid: i32) -> Option<&mut Node> {
        self.nodes.get_mut(&pid)
    }

    /// Every process: for `kill(-1)` and listings of `/proc`.
    pub fn nodes(&self) -> impl Iterator<Item = (i32, &Node)> {
        self.nodes.iter().map(|(&pid, node)| (pid, node))
    }

    /// The members of a process group, zombies included.
    pub fn members(&self, pgid: i32) -> impl Iterator<Item = &Node> {
        self.groups.get(&pgid).into_iter().flatten().filter_map(|pid| self.nodes.get(pid))
    }

    /// The session of a process group that has members.
    pub fn session_of(&self, pgid: i32) -> Option<i32> {
        self.members(pgid).next().map(|node| node.sid)
    }

    /// Takes a reaped process off the tree.
    pub fn remove_process(&mut self, pid: i32) -> Option<Node> {
        let node = self.nodes.remove(&pid)?;
        self.remove_thread(pid);
        self.leave_group(pid, node.pgid, node.sid);
        if let Some(parent) = self.nodes.get_mut(&node.parent) {
            parent.children.remove(&pid);
        }
        Some(node)
    }

    fn leave_group(&mut self, pid: i32, pgid: i32, sid: i32) {
        let Some(members) = self.groups.get_mut(&pgid) else { return };
        members.remove(&pid);
        if members.is_empty() {
            self.groups.remove(&pgid);
            if let Some(count) = self.sessions.get_mut(&sid) {
                *count -= 1;
                if *count == 0 {
                    self.sessions.remove(&sid);
                }
            }
        }
    }

    fn join_group(&mut self, pid: i32, pgid: i32, sid: i32) {
        let members = self.groups.entry(pgid).or_default();
        if members.is_empty() {
            *self.sessions.entry(sid).or_default() += 1;
        }
        members.insert(pid);
        if let Some(node) = self.nodes.get_mut(&pid) {
            (node.pgid, node.sid) = (pgid, sid);
        }
    }

    /// `setsid(2)`: `EPERM` when the caller leads a process group.
    pub fn set_sid(&mut self, pid: i32) -> Result<i32> {
        if self.groups.contains_key(&pid) {
            return Err(Errno::EPERM);
        }
        let node = self.nodes.get(&pid).ok_or(Errno::ESRCH)?;
        let (pgid, sid) = (node.pgid, node.sid);
        self.leave_group(pid, pgid, sid);
        self.join_group(pid, pid, pid);
        Ok(pid)
    }

    /// `setpgid(2)`: `caller` moves `pid` to `pgid`. `ESRCH`, `EACCES`, `EPERM`, `EINVAL`.
    pub fn set_pgid(&mut self, caller: i32, pid: i32, pgid: i32) -> Result<()> {
        let pid = if pid == 0 { caller } else { pid };
        let pgid = if pgid == 0 { pid } else { pgid };
        if pgid < 0 {
            return Err(Errno::EINVAL);
        }
        let own_sid = self.nodes.get(&caller).ok_or(Errno::ESRCH)?.sid;
        let node = self.nodes.get(&pid).ok_or(Errno::ESRCH)?;
        if pid != caller {
            if node.parent != caller {
                return Err(Errno::ESRCH);
            }
            if node.sid != own_sid {
                return Err(Errno::EPERM);
            }
            if node.executed {
                return Err(Errno::EACCES);
            }
        }
        let (old, sid) = (node.pgid, node.sid);
        if sid == pid {
            return Err(Errno::EPERM);
        }
        if pgid != pid && self.session_of(pgid) != Some(sid) {
            return Err(Errno::EPERM);
        }
        if old != pgid {
            self.leave_group(pid, old, sid);
            self.join_group(pid, pgid, sid);
        }
        Ok(())
    }

    /// Whether no member of a group has a parent in another group of the same session, which could continue it. `leaving`
    /// is a process to be looked through, as it is about to end.
    pub fn is_orphaned(&self, pgid: i32, leaving: Option<i32>) -> bool {
        !self.members(pgid).any(|node| {
            Some(node.group.pid()) != leaving
                && node.zombie.is_none()
                && node.parent != 0
                && self.nodes.get(&node.parent).is_some_and(|parent| parent.pgid != pgid && parent.sid == node.sid)
        })
    }

    /// Who takes over the children of `pid`: the nearest ancestor that is a subreaper, else the first process.
    pub fn reaper_of(&self, pid: i32) -> i32 {
        let mut at = self.nodes.get(&pid).map_or(1, |node| node.parent);
        while let Some(node) = self.nodes.get(&at) {
            if node.subreaper && node.zombie.is_none() {
                return at;
            }
            at = node.parent;
        }
        1
    }
}
