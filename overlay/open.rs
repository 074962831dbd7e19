//! Open files and directories of an overlay.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use super::lower::LowerNames;
use super::node::Node;
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::vfs::file::{DirEntry, File, Mapping};
use crate::vfs::inode::NodeType;
use crate::vfs::tmpfs::{BATCH, FIRST, TmpNode, emit_dots};

/// An open regular file: the lower's until its data has been copied up, by whichever descriptor, then the upper's.
pub struct OverlayFile {
    node: Arc<Node>,
    /// Open for reading since before the copy.
    lower: Option<Arc<dyn File>>,
    noatime: bool,
}

impl OverlayFile {
    /// Opens it: data is copied up for writing, and none with `O_TRUNC`.
    pub(super) fn open(node: Arc<Node>, flags: i32) -> Result<OverlayFile> {
        let (trunc, noatime) = (flags & libc::O_TRUNC != 0, flags & libc::O_NOATIME != 0);
        if flags & libc::O_ACCMODE != libc::O_RDONLY || trunc {
            node.copy_data(if trunc { 0 } else { u64::MAX })?;
        }
        let lower = if node.is_copied() { None } else { Some(node.lower_inode()?.clone().open(libc::O_RDONLY)?) };
        Ok(OverlayFile { node, lower, noatime })
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The lower file, as long as it holds the data.
    fn lower(&self) -> Option<&dyn File> {
        self.lower.as_deref().filter(|_| !self.node.is_copied())
    }

    /// What holds the data, copied up if it must be.
    fn upper(&self) -> Result<&Arc<TmpNode>> {
        self.node.copy_data(u64::MAX)
    }
}

impl File for OverlayFile {
    fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        match self.lower() {
            Some(lower) => lower.read(offset, sink),
            None => self.upper()?.read_at(offset, sink, self.noatime),
        }
    }

    fn write(&self, offset: u64, source: &mut dyn Source) -> Result<usize> {
        self.upper()?.write_at(Some(offset), source).map(|(_, n)| n)
    }

    fn append(&self, source: &mut dyn Source) -> Result<(u64, usize)> {
        self.upper()?.write_at(None, source)
    }

    fn advise(&self, offset: i64, len: i64, advice: i32) -> Result<()> {
        // What is in memory is where it should be.
        self.lower().map_or(Ok(()), |lower| lower.advise(offset, len, advice))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        match self.lower() {
            Some(_) => Ok(self.node.stat()?.size),
            None => Ok(self.upper()?.content()?.size()),
        }
    }

    fn seek_data(&self, offset: u64, data: bool) -> Result<u64> {
        match self.lower() {
            Some(lower) => lower.seek_data(offset, data),
            None => self.upper()?.content()?.seek_data(offset, data),
        }
    }

    /// The lower's pages for what cannot be stored to; those mappings keep them after a copy-up.
    fn mapping(&self, shared: bool, writable: bool) -> Result<Mapping> {
        match self.lower().filter(|_| !(shared && writable)) {
            Some(lower) => {
                let mapping = lower.mapping(shared, false)?;
                Ok(Mapping { writable: false, ..mapping })
            }
            None => self.upper()?.content()?.mapping(shared, writable),
        }
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.upper()?.allocate(mode, offset, len)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An open directory.
pub struct OverlayDir {
    node: Arc<Node>,
    noatime: bool,
    /// The lower's names, from the first listing on.
    names: OnceLock<Arc<LowerNames>>,
}

/// Where the positions of names that the lower does not have begin.
const UPPER: u64 = 1 << 40;

/// An entry looked up under the lock and given out without it.
type Listed = (Arc<[u8]>, u64, NodeType, u64);

impl OverlayDir {
    pub(super) fn new(node: Arc<Node>, flags: i32) -> OverlayDir {
        OverlayDir { node, noatime: flags & libc::O_NOATIME != 0, names: OnceLock::new() }
    }

    fn names(&self) -> Result<&Arc<LowerNames>> {
        if let Some(names) = self.names.get() {
            return Ok(names);
        }
        let names = self.node.lower_names()?;
        Ok(self.names.get_or_init(|| names))
    }

    /// The lower's names from `pos` on, with what they mean now; returns whether to go on.
    fn list_lower(&self, pos: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<bool> {
        let names = self.names()?;
        let from = usize::try_from(pos - FIRST).unwrap_or(usize::MAX).min(names.len());
        let mut next = FIRST + from as u64;
        for batch in names[from..].chunks(BATCH) {
            let entries = self.node.dir()?.read();
            let now: Vec<Option<(u64, NodeType)>> = batch
                .iter()
                .map(|lower| match entries.slots.get(&lower.name) {
                    Some(slot) => slot.node.as_ref().map(|node| (node.ino(), node.kind())),
                    None => Some((lower.ino, lower.kind)),
                })
                .collect();
            drop(entries);
            for (lower, now) in batch.iter().zip(now) {
                next += 1;
                if now.is_some_and(|(ino, kind)| !emit(DirEntry { name: &lower.name, ino, kind, next })) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The names that the lower does not have, from `cookie` on.
    fn list_upper(&self, mut cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        loop {
            let entries = self.node.dir()?.read();
            let batch: Vec<Listed> = entries
                .slots
                .from(cookie)
                .filter(|(_, _, slot)| !slot.over_lower)
                .filter_map(|(cookie, name, slot)| {
                    let node = slot.node.as_ref()?;
                    Some((name.clone(), node.ino(), node.kind(), cookie + 1))
                })
                .take(BATCH)
                .collect();
            drop(entries);
            if batch.is_empty() {
                return Ok(());
            }
            for (name, ino, kind, after) in batch {
                cookie = after;
                if !emit(DirEntry { name: &name, ino, kind, next: UPPER + cookie }) {
                    return Ok(());
                }
            }
        }
    }
}

impl File for OverlayDir {
    fn read(&self, _offset: u64, _sink: &mut dyn Sink) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        Ok(self.node.stat()?.size)
    }

    /// Positions: 0 and 1 are the two dots; then the lower's names in their order, whatever they mean now; from `UPPER`
    /// on the others, in the order of their making.
    fn read_dir(&self, pos: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        if let Some(upper) = self.node.upper.get().filter(|_| !self.noatime) {
            upper.accessed();
        }
        if !emit_dots(pos, self.node.ino(), emit) {
            return Ok(());
        }
        let pos = pos.max(FIRST);
        if pos < UPPER && !self.list_lower(pos, emit)? {
            return Ok(());
        }
        self.list_upper(pos.saturating_sub(UPPER), emit)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
