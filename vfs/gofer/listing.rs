//! What is known of a directory's names.

use std::collections::HashMap;

use crate::errno::{Errno, Result};
use crate::gofer::codec::{Get, Stat, is_name};
use crate::gofer::protocol::{Request, Target};
use crate::vfs::gofer::connection::Connection;

/// The most that one listing may take, names and attributes.
const MAX_BYTES: usize = 256 << 20;

/// The most single names that are kept of a directory that has not been listed.
const MAX_SINGLE: usize = 1024;

/// A directory as it was read: all its names, with their attributes.
#[derive(Default)]
pub struct Listing {
    names: Vec<u8>,
    entries: Vec<Listed>,
    /// Indices into `entries`, by name.
    sorted: Vec<u32>,
}

struct Listed {
    start: u32,
    len: u8,
    stat: Stat,
}

impl Listing {
    /// Reads the directory, with at most `max_trips` round trips; `None` when it takes more.
    pub fn read(connection: &Connection, target: Target<'_>, max_trips: usize) -> Result<Option<Listing>> {
        let mut listing = Listing::default();
        let mut cookie = 0;
        for _ in 0..max_trips {
            let reply = connection.call(&Request::ReadDir { target, cookie })?;
            let (next, end) = reply.parse(|fields| {
                let position = (fields.u64()?, fields.bool()?);
                while !fields.is_empty() {
                    let stat = Stat::get(fields)?;
                    listing.push(fields, stat)?;
                }
                Ok(position)
            })?;
            if end {
                listing.sort();
                return Ok(Some(listing));
            }
            if listing.bytes() > MAX_BYTES {
                return Err(Errno::ENOMEM);
            }
            cookie = next;
        }
        Ok(None)
    }

    fn push(&mut self, fields: &mut Get<'_>, stat: Stat) -> crate::gofer::codec::Decoded<()> {
        let name = fields.bytes()?;
        if !is_name(name) {
            return Err(crate::gofer::codec::Malformed);
        }
        self.entries.push(Listed { start: self.names.len() as u32, len: name.len() as u8, stat });
        self.names.extend_from_slice(name);
        Ok(())
    }

    fn sort(&mut self) {
        let mut sorted: Vec<u32> = (0..self.entries.len() as u32).collect();
        sorted.sort_unstable_by(|&a, &b| self.name(a as usize).cmp(self.name(b as usize)));
        self.sorted = sorted;
    }

    fn bytes(&self) -> usize {
        self.names.len() + self.entries.len() * size_of::<Listed>()
    }

    fn name(&self, index: usize) -> &[u8] {
        let Some(entry) = self.entries.get(index) else { return &[] };
        let start = entry.start as usize;
        self.names.get(start..start + usize::from(entry.len)).unwrap_or_default()
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entry by index, in the host's order.
    pub fn get(&self, index: usize) -> Option<(&[u8], &Stat)> {
        self.entries.get(index).map(|entry| (self.name(index), &entry.stat))
    }

    /// Entry by name.
    pub fn find(&self, name: &[u8]) -> Option<&Stat> {
        let at = self.sorted.binary_search_by(|&index| self.name(index as usize).cmp(name)).ok()?;
        self.entries.get(*self.sorted.get(at)? as usize).map(|entry| &entry.stat)
    }
}

/// What is known of an immutable directory's names: all of them, or single ones that were asked for.
#[derive(Default)]
pub struct Names {
    /// All names.
    pub listing: Option<std::sync::Arc<Listing>>,
    /// Names that exist and names that do not.
    single: HashMap<Box<[u8]>, Option<Stat>>,
    /// How many lookups had to ask the gofer.
    pub asked: u32,
    /// It is too big to be listed for the sake of lookups.
    pub too_big: bool,
}

impl Names {
    /// What the name means: `None` when that is not known, `Some(None)` when it does not exist.
    pub fn find(&self, name: &[u8]) -> Option<Option<Stat>> {
        match &self.listing {
            Some(listing) => Some(listing.find(name).copied()),
            None => self.single.get(name).copied(),
        }
    }

    /// Keeps what a name means. Whether that takes space which was not taken before.
    pub fn learn(&mut self, name: &[u8], meaning: Option<Stat>) -> bool {
        if self.listing.is_some() {
            return false;
        }
        if self.single.len() >= MAX_SINGLE {
            self.single.clear();
        }
        self.single.insert(name.into(), meaning).is_none()
    }

    /// Keeps all names.
    pub fn learn_all(&mut self, listing: std::sync::Arc<Listing>) {
        self.single = HashMap::new();
        self.listing = Some(listing);
    }
}
