//! The system-call table of x86_64: number, name, handler, how far it goes, and what is to be known of it. Dispatch, traces
//! and `docs/compatibility.md` come from here. What is not listed gives `ENOSYS`.

use std::sync::LazyLock;

use super::args::{Handler, IntoHandler};

/// How far a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As on Linux.
    Full,
    /// With the limits that the note tells.
    Partial,
    /// Answers as a Linux that is configured without it, or as the note tells.
    Refused,
}

/// One call.
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: &'static str,
    /// How far it goes.
    pub support: Support,
    /// What is to be known of it.
    pub note: &'static str,
    /// What answers it.
    pub handler: Box<dyn Handler + Send>,
}

/// No call of x86_64 has a higher number.
const MOST: usize = 512;

/// Calls by number.
pub struct Table(Vec<Option<Entry>>);

impl Table {
    fn add<A>(
        &mut self,
        number: u64,
        name: &'static str,
        support: Support,
        note: &'static str,
        function: impl IntoHandler<A>,
    ) {
        let entry = Entry { number, name, support, note, handler: function.into_handler() };
        let place = &mut self.0[number as usize];
        debug_assert!(place.is_none(), "{name} is in the table twice");
        *place = Some(entry);
    }

    /// All calls, in order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().flatten()
    }
}

/// The table.
pub static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table((0..MOST).map(|_| None).collect());
    files(&mut table);
    memory_calls(&mut table);
    processes(&mut table);
    signals(&mut table);
    waiting(&mut table);
    sockets(&mut table);
    clocks(&mut table);
    others(&mut table);
    table
});

/// The call with this number.
pub fn find(number: u64) -> Option<&'static Entry> {
    TABLE.0.get(usize::try_from(number).ok()?)?.as_ref()
}

macro_rules! rows {
    ($table:ident; $($number:literal $name:ident $support:ident $note:literal $handler:path;)*) => {
        $($table.add($number, stringify!($name), Support::$support, $note, $handler);)*
    };
}

/// Files, directories, descriptors.
fn files(table: &mut Table) {
    let _ = &table;
}

/// Memory.
fn memory_calls(table: &mut Table) {
    let _ = &table;
}

/// Processes, threads, credentials, limits.
fn processes(table: &mut Table) {
    let _ = &table;
}

/// Signals and futexes.
fn signals(table: &mut Table) {
    let _ = &table;
}

/// Waiting for several things: poll, select, epoll, and the descriptors made for it.
fn waiting(table: &mut Table) {
    let _ = &table;
}

/// Sockets.
fn sockets(table: &mut Table) {
    let _ = &table;
}

/// Clocks and timers.
fn clocks(table: &mut Table) {
    let _ = &table;
}

/// The machine, System V IPC, and what is refused.
fn others(table: &mut Table) {
    let _ = &table;
}
