//! Files whose content the sentry makes.

use std::any::Any;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Tree, change};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::vfs::file::File;
use crate::vfs::inode::{Attachments, Attr, Inode, NodeType, SetAttr};

/// Where a file's content comes from. Any function that returns bytes is one that is read only.
pub trait Content: Send + Sync {
    /// The whole content now.
    fn read(&self) -> Result<Vec<u8>>;

    /// What one `write(2)` brought (at most a page), with the offset it was written at. `EINVAL`.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let _ = (offset, bytes);
        Err(Errno::EINVAL)
    }
}

impl<F: Fn() -> Vec<u8> + Send + Sync> Content for F {
    fn read(&self) -> Result<Vec<u8>> {
        Ok(self())
    }
}

/// The longest write that is taken at once.
const WRITE_MAX: usize = 4096;

/// A file with content.
pub struct ContentFile {
    attr: Mutex<Attr>,
    content: Arc<dyn Content>,
    attachments: Attachments,
}

impl ContentFile {
    /// A file, not yet in a directory. Its size is 0, as Linux shows it.
    pub fn new(tree: &Tree, perm: u32, content: Arc<dyn Content>) -> Arc<ContentFile> {
        let attr = Mutex::new(tree.attr(NodeType::Regular, perm));
        Arc::new(ContentFile { attr, content, attachments: Attachments::default() })
    }
}

impl Inode for ContentFile {
    fn attr(&self) -> Result<Attr> {
        Ok(*self.attr.lock())
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        change(&self.attr, set);
        Ok(())
    }

    /// `EACCES`: to write what nobody may write, whatever the capabilities, as sysfs and sysctl have it.
    fn open(self: Arc<Self>, flags: i32) -> Result<Arc<dyn File>> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writes && self.attr.lock().perm & 0o222 == 0 {
            return Err(Errno::EACCES);
        }
        Ok(open_content(self.content.clone()))
    }

    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.attachments)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An open file with content, for nodes that are not in a tree of directories here.
pub fn open_content(content: Arc<dyn Content>) -> Arc<dyn File> {
    Arc::new(Open { content, text: Mutex::default() })
}

struct Open {
    content: Arc<dyn Content>,
    /// What was made at the last read of offset 0.
    text: Mutex<Option<Arc<[u8]>>>,
}

impl File for Open {
    fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let known = self.text.lock().clone().filter(|_| offset > 0);
        let text = match known {
            Some(text) => text,
            None => {
                let made: Arc<[u8]> = self.content.read()?.into();
                *self.text.lock() = Some(made.clone());
                made
            }
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        sink.put(&text[start..])
    }

    fn write(&self, offset: u64, source: &mut dyn Source) -> Result<usize> {
        let bytes = source.take_vec(WRITE_MAX)?;
        self.content.write(offset, &bytes)?;
        Ok(bytes.len())
    }

    fn append(&self, source: &mut dyn Source) -> Result<(u64, usize)> {
        self.write(0, source).map(|n| (0, n))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Err(Errno::EINVAL)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
