//! What device nodes open: a table by device number, as drivers register themselves in Linux.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::vfs::inode::NodeType;

/// Opens one device: its number (`st_rdev`) and the flags of `open(2)`.
pub type DeviceOpener = Arc<dyn Fn(u64, i32) -> Result<Arc<dyn File>> + Send + Sync>;

type Range = (RangeInclusive<u32>, DeviceOpener);

/// Character and block devices. A node of any file system opens what is registered here for its number.
#[derive(Default)]
pub struct DeviceTable {
    /// By kind (block or not) and major number; few ranges of minor numbers each.
    majors: RwLock<HashMap<(bool, u32), Vec<Range>>>,
}

impl DeviceTable {
    /// An empty table.
    pub fn new() -> DeviceTable {
        DeviceTable::default()
    }

    /// Registers an opener for minors of one major; a later one wins over an earlier one.
    pub fn register(&self, block: bool, major: u32, minors: RangeInclusive<u32>, opener: DeviceOpener) {
        self.majors.write().entry((block, major)).or_default().push((minors, opener));
    }

    /// Whether there is such a device.
    pub fn is_served(&self, kind: NodeType, rdev: u64) -> bool {
        let majors = self.majors.read();
        let ranges = majors.get(&(kind == NodeType::BlockDevice, libc::major(rdev)));
        ranges.is_some_and(|ranges| ranges.iter().any(|(minors, _)| minors.contains(&libc::minor(rdev))))
    }

    /// Opens device `rdev`. `ENXIO` when there is no such device.
    pub fn open(&self, kind: NodeType, rdev: u64, flags: i32) -> Result<Arc<dyn File>> {
        let (major, minor) = (libc::major(rdev), libc::minor(rdev));
        let opener = {
            let majors = self.majors.read();
            let ranges = majors.get(&(kind == NodeType::BlockDevice, major)).ok_or(Errno::ENXIO)?;
            let range = ranges.iter().rev().find(|(minors, _)| minors.contains(&minor));
            range.map(|(_, opener)| opener.clone()).ok_or(Errno::ENXIO)?
        };
        opener(rdev, flags)
    }
}
