//! Showing a container's files to `runsc mount`: the answering side of [`crate::container::files`].
//!
//! Files are looked at as the container's first process would see them with every right, without a trace: no access times of
//! names, no events for who watches them. Only directories and regular files are opened, so that nothing is set off.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Outcome;
use super::containers::Container;
use crate::container::files::{Entry, MAX_CONTENT, MAX_OPEN, Request, put_entry};
use crate::errno::{Errno, Result};
use crate::gofer::codec::{Put, Stat};
use crate::gofer::wire::{self, MAX_MESSAGE};
use crate::io::SliceSink;
use crate::sentry::creds::Credentials;
use crate::vfs::file::File;
use crate::vfs::inode::{Attr, NodeType};
use crate::vfs::{LookupFlags, Path, Walk, ops, xattr};

/// Host memory for the stack of the thread that answers.
const STACK: usize = 128 << 10;

/// Answers on `socket` until the other end closes it.
pub fn serve(container: Arc<Container>, socket: OwnedFd) -> Outcome<()> {
    let main = move || {
        if let Err(error) = (View { container, open: HashMap::new(), last: 0 }).answer_all(&socket) {
            log::warn!("showing files: {error}");
        }
    };
    let started = std::thread::Builder::new().name("files".into()).stack_size(STACK).spawn(main);
    started.map(drop).map_err(|error| format!("start showing files: {error}"))
}

/// One connection.
struct View {
    container: Arc<Container>,
    open: HashMap<u64, Arc<dyn File>>,
    /// The number of the file that was opened last.
    last: u64,
}

impl View {
    fn answer_all(&mut self, socket: &OwnedFd) -> Result<()> {
        let mut message = vec![0; MAX_MESSAGE];
        let mut answer = Vec::with_capacity(MAX_MESSAGE);
        loop {
            let (n, _) = wire::receive(socket.as_fd(), &mut message, false)?;
            if n == 0 {
                return Ok(());
            }
            let request = Request::decode(&message[..n]).map_err(|_| Errno::EPROTO)?;
            if let Request::Close(file) = request {
                self.open.remove(&file);
                continue;
            }
            answer.clear();
            answer.u32(0);
            if let Err(error) = self.answer(&request, &mut answer) {
                answer.clear();
                answer.u32(error.raw() as u32);
            }
            match wire::send(socket.as_fd(), &answer, None) {
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(()),
                sent => sent?,
            }
        }
    }

    fn answer(&mut self, request: &Request<'_>, answer: &mut Vec<u8>) -> Result<()> {
        match *request {
            Request::Attr(path) => stat(&self.find(path)?.attr()?).put(answer),
            Request::ReadLink(path) => {
                let link = self.find(path)?;
                if link.dentry.kind() != Some(NodeType::Symlink) {
                    return Err(Errno::EINVAL);
                }
                answer.bytes(&link.inode()?.read_link()?);
            }
            Request::Open(path) => answer.u64(self.open(path)?),
            Request::ReadDir { file, from } => self.read_dir(file, from, answer)?,
            Request::Read { file, offset, len } => {
                let mut content = vec![0; (len as usize).min(MAX_CONTENT)];
                let n = self.file(file)?.read(offset, &mut SliceSink::new(&mut content))?;
                answer.bytes(content.get(..n).ok_or(Errno::EIO)?);
            }
            Request::StatFs(path) => {
                let (found, _) = ops::statfs(&self.find(path)?)?;
                for number in [found.magic as u64, found.bsize as u64, found.blocks, found.bfree, found.bavail] {
                    answer.u64(number);
                }
                for number in [found.files, found.ffree, found.namelen as u64] {
                    answer.u64(number);
                }
            }
            Request::GetXattr(path, name) => {
                answer.bytes(&xattr::get(&self.find(path)?, &Credentials::root(), name)?);
            }
            Request::ListXattr(path) => {
                let names = xattr::list(&self.find(path)?, &Credentials::root())?;
                answer.bytes(&names.iter().flat_map(|name| name.iter().copied().chain([0])).collect::<Vec<u8>>());
            }
            // Has no answer; not passed here.
            Request::Close(_) => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// What is at a path from the root of the container's first process. `ESRCH` when that has ended.
    fn find(&self, path: &[u8]) -> Result<Path> {
        let kernel = &self.container.kernel;
        let process = kernel.first_process()?;
        let root = process.threads().first().ok_or(Errno::ESRCH)?.fs().get().root;
        let creds = Credentials::root();
        let walk = Walk { root: &root, start: &root, creds: &creds, umask: 0, devices: &kernel.devices };
        // A file of /proc that belongs to whoever looks at it has nobody here.
        walk.lookup(path, LookupFlags::EMPTY_PATH | LookupFlags::NO_SYMLINKS)
    }

    fn open(&mut self, path: &[u8]) -> Result<u64> {
        if self.open.len() >= MAX_OPEN {
            return Err(Errno::ENFILE);
        }
        let found = self.find(path)?;
        let flags = match found.dentry.kind() {
            Some(NodeType::Regular) => libc::O_RDONLY,
            Some(NodeType::Directory) => libc::O_RDONLY | libc::O_DIRECTORY,
            _ => return Err(Errno::ENXIO),
        };
        let object = found.inode()?.clone().open(flags | libc::O_NONBLOCK)?;
        self.last += 1;
        self.open.insert(self.last, object);
        Ok(self.last)
    }

    fn file(&self, number: u64) -> Result<&Arc<dyn File>> {
        self.open.get(&number).ok_or(Errno::EBADF)
    }

    fn read_dir(&self, number: u64, from: u64, answer: &mut Vec<u8>) -> Result<()> {
        self.file(number)?.read_dir(from, &mut |entry| {
            let fits = answer.len() + Entry::MAX_LEN <= MAX_MESSAGE;
            if fits && entry.kind != NodeType::Anonymous {
                put_entry(answer, &entry);
            }
            fits
        })
    }
}

fn stat(attr: &Attr) -> Stat {
    Stat {
        dev: attr.dev,
        ino: attr.ino,
        kind: attr.kind,
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        size: attr.size,
        blksize: attr.blksize,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        btime: attr.btime,
    }
}
