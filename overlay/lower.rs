//! Looking into the lower layers.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use super::node::Node;
use crate::errno::{Errno, Result};
use crate::vfs::inode::{Attr, Inode, NodeType};

/// What identifies a node of the lower tree: the layer, its device number and its inode number.
pub(super) type Key = (usize, u64, u64);

/// Something that a lower layer has under a name.
pub(super) struct Hit {
    pub(super) layer: usize,
    pub(super) inode: Arc<dyn Inode>,
    pub(super) attr: Attr,
}

impl Hit {
    pub(super) fn new(layer: usize, inode: Arc<dyn Inode>) -> Result<Hit> {
        let attr = inode.attr()?;
        Ok(Hit { layer, inode, attr })
    }

    pub(super) fn key(&self) -> Key {
        (self.layer, self.attr.dev, self.attr.ino)
    }

    fn is_whiteout(&self) -> bool {
        self.attr.kind == NodeType::CharDevice && self.attr.rdev == 0
    }

    /// Whether it hides directories of the same name below.
    fn is_opaque(&self) -> bool {
        let names: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
        names.iter().any(|name| self.inode.get_xattr(name).is_ok_and(|value| value == b"y"))
    }
}

/// The inode number that a lower inode has in the overlay.
pub(super) fn overlay_ino(layer: usize, ino: u64) -> u64 {
    ino ^ ((layer as u64) << 54)
}

/// A name that the lower layers have.
pub(super) struct LowerName {
    pub(super) name: Box<[u8]>,
    pub(super) ino: u64,
    pub(super) kind: NodeType,
}

/// All names of a merged directory's lower layers, once each.
pub(super) type LowerNames = Vec<LowerName>;

/// The lower directories of a node, topmost first.
pub(super) type LowerDirs = Vec<(usize, Arc<dyn Inode>)>;

/// What `name` is in the lower directories: nothing, one node, or the directories that are merged, topmost first.
pub(super) fn lookup(dirs: &LowerDirs, name: &[u8]) -> Result<Vec<Hit>> {
    let mut hits: Vec<Hit> = Vec::new();
    for (layer, dir) in dirs {
        let hit = match dir.lookup(name) {
            Ok(inode) => Hit::new(*layer, inode)?,
            Err(Errno::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        if hit.is_whiteout() {
            break;
        }
        let directory = hit.attr.kind == NodeType::Directory;
        if !directory {
            if hits.is_empty() {
                hits.push(hit);
            }
            break;
        }
        let last = dirs.len() == 1 || hit.is_opaque();
        hits.push(hit);
        if last {
            break;
        }
    }
    Ok(hits)
}

impl Node {
    /// The names of its lower layers. Listed once for all that read the directory at one time.
    pub(super) fn lower_names(&self) -> Result<Arc<LowerNames>> {
        let dir = self.dir()?;
        if let Some(names) = dir.read().lower_names.upgrade() {
            return Ok(names);
        }
        let names = Arc::new(list(self.lower_dirs())?);
        let mut entries = dir.write();
        if let Some(earlier) = Weak::upgrade(&entries.lower_names) {
            return Ok(earlier);
        }
        entries.lower_names = Arc::downgrade(&names);
        Ok(names)
    }
}

fn list(dirs: &LowerDirs) -> Result<LowerNames> {
    let mut names = LowerNames::new();
    let mut seen: HashSet<Box<[u8]>> = HashSet::new();
    for (layer, dir) in dirs {
        let from = names.len();
        let file = dir.clone().open(libc::O_RDONLY | libc::O_DIRECTORY)?;
        file.read_dir(0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." && !seen.contains(entry.name) {
                let ino = overlay_ino(*layer, entry.ino);
                names.push(LowerName { name: entry.name.into(), ino, kind: entry.kind });
            }
            true
        })?;
        if dirs.len() > 1 {
            seen.extend(names[from..].iter().map(|name| name.name.clone()));
        }
        let is_whiteout = |name: &LowerName| {
            name.kind == NodeType::CharDevice
                && dir.lookup(&name.name).and_then(|inode| Hit::new(*layer, inode)).is_ok_and(|hit| hit.is_whiteout())
        };
        let mut index = 0;
        names.retain(|name| {
            index += 1;
            index <= from || !is_whiteout(name)
        });
    }
    Ok(names)
}
