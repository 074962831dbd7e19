//! Copy-up: attributes on any change, data on the first open for writing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::dir::Slot;
use super::node::Node;
use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::vfs::inode::{Inode, NewNode, NodeType};
use crate::vfs::tmpfs::{MemFile, TmpNode};

/// Bytes of a read from a lower file that has no descriptor to copy from.
const CHUNK: usize = 256 << 10;

impl Node {
    /// Copies the attributes up, and those of the directories above it first. Returns what holds them. `ENOSPC`, and
    /// errors of the lower.
    pub(super) fn copy_up(&self) -> Result<&Arc<TmpNode>> {
        if let Some(upper) = self.upper.get() {
            return Ok(upper);
        }
        let mut chain = vec![self.arc()?];
        while let Some(parent) = chain.last().and_then(|node| node.lower_parent()) {
            chain.push(parent);
        }
        for node in chain.iter().rev() {
            node.copy_attributes()?;
        }
        self.upper.get().ok_or(Errno::EIO)
    }

    /// The directory above it, if that has not been copied up either.
    fn lower_parent(&self) -> Option<Arc<Node>> {
        let origin = self.origin.lock();
        origin.as_ref().map(|(parent, _)| parent).filter(|parent| parent.upper.get().is_none()).cloned()
    }

    /// Copies this node's own attributes; the directory above has been copied up.
    fn copy_attributes(&self) -> Result<()> {
        if self.upper.get().is_some() {
            return Ok(());
        }
        let upper = self.upper_of_lower()?;
        let me = self.arc()?;
        let _tree = self.fs.tree.lock();
        if self.upper.get().is_some() {
            return Ok(());
        }
        if self.gone.load(Ordering::Relaxed) {
            upper.with_attr(|attr| attr.nlink = 0);
        }
        if let Some(key) = self.key.filter(|_| self.hard) {
            self.fs.pinned.lock().insert(key, me.clone());
        }
        let origin = self.origin.lock().take();
        if let Some((parent, name)) = origin {
            let mut entries = parent.dir()?.write();
            // A slot that is there is a whiteout: the node was removed.
            if entries.slots.get(&name).is_none() {
                entries.slots.insert(&name, Slot { node: Some(me), over_lower: true });
            }
        }
        // After the slot: who sees this may rely on that.
        let _ = self.upper.set(upper);
        Ok(())
    }

    /// A tmpfs node with the attributes and extended attributes of the lower.
    fn upper_of_lower(&self) -> Result<Arc<TmpNode>> {
        let lower = self.lower_inode()?;
        let from = lower.attr()?;
        let target = if from.kind == NodeType::Symlink { lower.read_link()? } else { Vec::new() };
        let node = NewNode {
            kind: from.kind,
            perm: from.perm,
            uid: from.uid,
            gid: from.gid,
            rdev: from.rdev,
            target: &target,
        };
        let upper = self.fs.upper.node(Some(self.ino()), &node)?;
        for name in lower.list_xattr().unwrap_or_default() {
            if name.starts_with(b"trusted.overlay.") {
                continue;
            }
            let copied = lower.get_xattr(&name).and_then(|value| upper.set_xattr(&name, &value, 0));
            match copied {
                Err(Errno::ENOSPC) => return Err(Errno::ENOSPC),
                Err(error) => log::debug!("overlay: {} is not copied up: {error}", name.escape_ascii()),
                Ok(()) => {}
            }
        }
        upper.with_attr(|attr| {
            (attr.atime, attr.mtime, attr.ctime, attr.btime) = (from.atime, from.mtime, from.ctime, from.btime);
            (attr.nlink, attr.size, attr.blocks) = (from.nlink, from.size, from.blocks);
        });
        Ok(upper)
    }

    /// Copies the first `keep` bytes of a regular file up, where its data has not been copied; returns what holds it.
    /// A thread that comes while another copies waits for it. `ENOSPC`, and errors of the lower.
    pub(super) fn copy_data(&self, keep: u64) -> Result<&Arc<TmpNode>> {
        let upper = self.copy_up()?;
        if self.is_copied() {
            return Ok(upper);
        }
        let _copying = self.copying.lock();
        if self.is_copied() {
            return Ok(upper);
        }
        let lower = self.lower_inode()?;
        let attr = lower.attr()?;
        let len = attr.size.min(keep);
        if len > 0 {
            let file = lower.clone().open(libc::O_RDONLY)?;
            let sparse = attr.blocks.saturating_mul(512) < attr.size;
            let content = upper.content()?;
            fill(content, file.as_ref(), len, sparse).inspect_err(|_| {
                // What was copied is given back.
                let _ = content.truncate(0);
            })?;
        }
        self.copied.store(true, Ordering::Release);
        Ok(upper)
    }
}

/// One `sendfile(2)` where the lower file has a descriptor, else reads and writes.
fn fill(content: &MemFile, from: &dyn File, len: u64, sparse: bool) -> Result<()> {
    if let Ok(mapping) = from.mapping(false, false) {
        match content.fill_from_fd(&mapping.fd, len, sparse) {
            Err(error) if error != Errno::ENOSPC => {
                log::debug!("overlay: copying through sendfile: {error}");
                content.truncate(0)?;
            }
            done => return done,
        }
    }
    let mut buf = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
    let mut at = 0;
    while at < len {
        let limit = usize::try_from(len - at).unwrap_or(CHUNK).min(buf.len());
        let mut sink = crate::io::SliceSink::new(&mut buf[..limit]);
        let n = from.read(at, &mut sink)?;
        if n == 0 {
            break;
        }
        let mut left = &buf[..n];
        while !left.is_empty() {
            let (_, written) = content.write(Some(at), &mut left)?;
            at += written as u64;
        }
    }
    Ok(())
}
