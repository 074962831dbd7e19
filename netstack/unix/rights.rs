//! Open files in flight: `SCM_RIGHTS` messages that nobody has received.
//!
//! A socket that is in flight inside its own queue, or two that are in each other's, would stay for ever once their last
//! descriptors are closed. So sockets in flight are registered, and [`collect`] looks for those that only messages refer
//! to and that no reachable queue holds, and empties their queues, when a socket is closed or many are in flight.
//!
//! Lock order: the registry > a side's lock. Receiving never takes the registry under a side's lock: it duplicates the
//! references first, and the collector looks at the reference counts again when it has made up its mind, so that it
//! cannot mistake a message that is just being received for garbage.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::UnixSocket;
use super::side::{Message, Phase, Side};
use crate::errno::{Errno, Result};
use crate::vfs::file::OpenFile;

/// The most files of one message: `SCM_MAX_FD`.
pub const MAX_FILES: usize = 253;

/// The most files in flight in the sandbox; beyond, `ETOOMANYREFS`. (Linux counts by user, against `RLIMIT_NOFILE`.)
pub const MAX_IN_FLIGHT: usize = 16_384;

/// With fewer sockets in flight, garbage may wait until one is closed.
const COLLECT_ABOVE: usize = 256;

static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);

/// With so many sockets in flight, sending another looks for garbage first: twice what was left the last time, so that
/// sockets that are rightly in flight do not make each sending slow.
static NEXT_COLLECT: AtomicUsize = AtomicUsize::new(COLLECT_ABOVE);

/// UNIX sockets in flight, by the address of their open file.
static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

type Registry = HashMap<usize, InFlight>;

struct InFlight {
    file: Weak<OpenFile>,
    /// In how many messages it is.
    count: usize,
}

fn is_socket(file: &OpenFile) -> bool {
    file.downcast::<UnixSocket>().is_some()
}

/// The files of one message.
pub(super) struct Rights {
    files: Vec<Arc<OpenFile>>,
}

/// Keeps the collector out while a message with sockets goes into a queue.
pub(super) struct Posting {
    _registry: Option<MutexGuard<'static, Option<Registry>>>,
}

impl Rights {
    /// Puts `files` in flight. The guard is to be kept until the message is in its queue. `EINVAL` (more than
    /// [`MAX_FILES`]), `ETOOMANYREFS`.
    pub fn post(files: Vec<Arc<OpenFile>>) -> Result<(Option<Rights>, Posting)> {
        if files.is_empty() {
            return Ok((None, Posting { _registry: None }));
        }
        if files.len() > MAX_FILES {
            return Err(Errno::EINVAL);
        }
        let n = files.len();
        let within = |count: usize| (count + n <= MAX_IN_FLIGHT).then_some(count + n);
        if IN_FLIGHT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
            collect();
            IN_FLIGHT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).map_err(|_| Errno::ETOOMANYREFS)?;
        }
        if !files.iter().any(|file| is_socket(file)) {
            return Ok((Some(Rights { files }), Posting { _registry: None }));
        }
        if in_flight() >= NEXT_COLLECT.load(Ordering::Relaxed) {
            collect();
            NEXT_COLLECT.store((in_flight() * 2).max(COLLECT_ABOVE), Ordering::Relaxed);
        }
        let mut registry = REGISTRY.lock();
        let table = registry.get_or_insert_default();
        for file in files.iter().filter(|file| is_socket(file)) {
            let entry = table.entry(Arc::as_ptr(file).addr());
            entry.or_insert_with(|| InFlight { file: Arc::downgrade(file), count: 0 }).count += 1;
        }
        Ok((Some(Rights { files }), Posting { _registry: Some(registry) }))
    }

    /// References for the receiver. To be taken before the message leaves its queue.
    pub fn duplicate(&self) -> Vec<Arc<OpenFile>> {
        self.files.clone()
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        IN_FLIGHT.fetch_sub(self.files.len(), Ordering::Relaxed);
        if self.files.iter().any(|file| is_socket(file)) {
            let mut registry = REGISTRY.lock();
            let table = registry.get_or_insert_default();
            for file in self.files.iter().filter(|file| is_socket(file)) {
                let key = Arc::as_ptr(file).addr();
                if let Some(entry) = table.get_mut(&key) {
                    entry.count -= 1;
                    if entry.count == 0 {
                        table.remove(&key);
                    }
                }
            }
        }
        discard(std::mem::take(&mut self.files));
    }
}

thread_local! {
    /// Files to be closed by this thread; `None` while nobody does so.
    static DISCARDED: RefCell<Option<Vec<Arc<OpenFile>>>> = const { RefCell::new(None) };
}

/// Closes `files`. A closed socket's queue may hold further sockets, and so on as deep as somebody cared to build it: so
/// the outermost call closes them all one after the other, and inner calls only add to its list.
fn discard(files: Vec<Arc<OpenFile>>) {
    let mut files = Some(files);
    let outermost = DISCARDED.try_with(|list| {
        let mut list = list.borrow_mut();
        let outermost = list.is_none();
        list.get_or_insert_default().extend(files.take().unwrap_or_default());
        outermost
    });
    // When the thread is ending its list may be gone: `files` are closed right here.
    if outermost == Ok(true) {
        while let Some(file) = DISCARDED.with_borrow_mut(|list| list.as_mut().and_then(Vec::pop)) {
            drop(file);
        }
        DISCARDED.set(None);
    }
}

/// Whether this thread is closing files from queues.
fn is_discarding() -> bool {
    DISCARDED.try_with(|list| list.borrow().is_some()).unwrap_or(true)
}

/// How many sockets are in flight.
fn in_flight() -> usize {
    REGISTRY.lock().as_ref().map_or(0, HashMap::len)
}

/// After a socket was closed: others may now be unreachable. A look costs as much as there are sockets in flight, so with
/// many of them only every so many closings pay for one.
pub(super) fn after_close() {
    static CLOSED: AtomicUsize = AtomicUsize::new(0);
    let in_flight = in_flight();
    if in_flight == 0 || is_discarding() {
        return;
    }
    if CLOSED.fetch_add(1, Ordering::Relaxed) >= in_flight / 16 {
        CLOSED.store(0, Ordering::Relaxed);
        collect();
    }
}

/// Empties the queues of sockets that only unreachable messages refer to.
fn collect() {
    let registry = REGISTRY.lock();
    let Some(table) = registry.as_ref() else { return };
    let only_in_flight = |entry: &InFlight| entry.file.strong_count() == entry.count;
    // What something beside messages refers to is reachable, and so is what its queue holds, and so on.
    let mut reached: HashSet<usize> =
        table.iter().filter(|(_, entry)| !only_in_flight(entry)).map(|(&key, _)| key).collect();
    if reached.len() == table.len() {
        return;
    }
    // Queues of sockets that are not in flight at all are roots too: what they hold is counted as held from outside.
    let suspects: HashSet<usize> = table.keys().copied().filter(|key| !reached.contains(key)).collect();
    let inner = held_by(table, suspects.iter().copied());
    for (key, count) in counts_outside(table, &suspects, &inner) {
        if count > 0 {
            reached.insert(key);
        }
    }
    let mut front: Vec<usize> = reached.iter().copied().filter(|key| suspects.contains(key)).collect();
    while let Some(key) = front.pop() {
        for held in held_by(table, std::iter::once(key)).into_keys() {
            if suspects.contains(&held) && reached.insert(held) {
                front.push(held);
            }
        }
    }
    let garbage: Vec<usize> = suspects.into_iter().filter(|key| !reached.contains(key)).collect();
    // A message that was taken off a queue meanwhile shows in the count, since its receiver duplicated it before.
    if garbage.is_empty() || !garbage.iter().all(|key| only_in_flight(&table[key])) {
        return;
    }
    let files: Vec<Arc<OpenFile>> = garbage.iter().filter_map(|key| table[key].file.upgrade()).collect();
    let mut dropped = Vec::new();
    for side in files.iter().flat_map(|file| sides(file)) {
        let mut state = side.state.lock();
        state.bytes = 0;
        dropped.append(&mut state.messages.drain(..).collect::<Vec<Message>>());
    }
    drop(registry); // the destructors of rights take it
    drop(dropped);
    discard(files);
}

/// How many references to each of `suspects` are in queues other than those of suspects.
fn counts_outside(table: &Registry, suspects: &HashSet<usize>, inner: &HashMap<usize, usize>) -> Vec<(usize, usize)> {
    let outside = |key: &usize| table[key].count - inner.get(key).copied().unwrap_or(0).min(table[key].count);
    suspects.iter().map(|key| (*key, outside(key))).collect()
}

/// How often the queues of `keys` hold each socket.
fn held_by(table: &Registry, keys: impl Iterator<Item = usize>) -> HashMap<usize, usize> {
    let mut held = HashMap::new();
    for file in keys.filter_map(|key| table.get(&key)).filter_map(|entry| entry.file.upgrade()) {
        for side in sides(&file) {
            let state = side.state.lock();
            let rights = state.messages.iter().filter_map(|message| message.rights.as_ref());
            for inner in rights.flat_map(|rights| &rights.files) {
                *held.entry(Arc::as_ptr(inner).addr()).or_insert(0) += 1;
            }
        }
        // Never the last reference: messages hold it, and the registry's lock keeps them from going.
        drop(file);
    }
    held
}

/// The queues that go with a socket: its own, and those of connections that it has not accepted yet.
fn sides(file: &OpenFile) -> Vec<Arc<Side>> {
    let Some(socket) = file.downcast::<UnixSocket>() else { return Vec::new() };
    let mut all = vec![socket.side().clone()];
    if let Phase::Listening { pending, .. } = &socket.side().state.lock().phase {
        all.extend(pending.iter().map(|socket| socket.side().clone()));
    }
    all
}
