//! One connection: receive, carry out, answer.

use std::os::fd::{AsFd, OwnedFd};

use super::Export;
use super::codec::Put;
use super::protocol::{Op, Request, VERSION};
use super::tree::Tree;
use super::wire::{self, MAX_MESSAGE};
use crate::errno::{Errno, Result};

/// What a request leads to: the reply's fields are appended to the message; a descriptor goes along.
pub type Answer = Result<Option<OwnedFd>>;

/// Bytes of a reply before its fields.
const HEADER: usize = 6;

/// Serves until the other end closes. `EPROTO` when it does not follow the protocol.
pub fn serve(export: Export) -> Result<()> {
    let Export { socket, root, root_file, writable, follows } = export;
    let mut tree = Tree::new(root, root_file, (writable, follows))?;
    let mut buf = vec![0; MAX_MESSAGE];
    let mut reply = Vec::with_capacity(MAX_MESSAGE);
    loop {
        let (n, _) = match wire::receive(socket.as_fd(), &mut buf, false) {
            // A sentry that ended with a reply unread.
            Err(Errno::ECONNRESET) => return Ok(()),
            received => received?,
        };
        if n == 0 {
            return Ok(());
        }
        let request = buf.get(..n).and_then(|message| Request::decode(message).ok()).ok_or(Errno::EPROTO)?;
        if let Request::Forget(nodes) = request {
            nodes.into_iter().for_each(|node| tree.forget(node));
            continue;
        }
        let fd = answer(&mut tree, &request, &mut reply);
        match wire::send(socket.as_fd(), &reply, fd.as_ref().map(AsFd::as_fd)) {
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(()),
            sent => sent?,
        }
    }
}

/// Carries out `request` and makes the reply.
fn answer(tree: &mut Tree, request: &Request<'_>, reply: &mut Vec<u8>) -> Option<OwnedFd> {
    start(reply, request.op(), 0);
    let refused = request.changes() && !tree.writable();
    let answer = if refused { Err(Errno::EROFS) } else { carry_out(tree, request, reply) };
    match answer {
        Ok(fd) => fd,
        Err(error) => {
            start(reply, request.op(), error.raw() as u32);
            None
        }
    }
}

fn start(reply: &mut Vec<u8>, op: Op, errno: u32) {
    reply.clear();
    reply.u8(VERSION);
    reply.u8(op as u8);
    reply.u32(errno);
    debug_assert_eq!(reply.len(), HEADER);
}

fn carry_out(tree: &mut Tree, request: &Request<'_>, reply: &mut Vec<u8>) -> Answer {
    match request {
        Request::Walk { from, path, keep, open } => tree.walk(from, path, (*keep, *open), reply),
        Request::Open { target, write } => tree.open_file(target, *write).map(Some),
        Request::Attr(target) => tree.attr(target, reply),
        Request::ReadDir { target, cookie } => tree.read_dir(target, *cookie, reply),
        Request::ReadLink(target) => tree.read_link(target, reply),
        Request::StatFs => tree.statfs(reply),
        Request::GetXattr(target, name) => tree.get_xattr(target, name, reply),
        Request::ListXattr(target) => tree.list_xattr(target, reply),
        Request::Sync(target) => tree.sync(target.as_ref()),
        Request::Create(entry, new) => tree.create(entry, new, reply),
        Request::Link(entry, target) => tree.link(entry, target, reply),
        Request::Unlink(entry, directory) => tree.unlink(entry, *directory),
        Request::Rename(old, new, flags) => tree.rename(old, new, *flags, reply),
        Request::SetAttr(target, set) => tree.set_attr(target, set, reply),
        Request::SetXattr { target, name, value, flags } => tree.set_xattr(target, name, value, *flags),
        Request::RemoveXattr(target, name) => tree.remove_xattr(target, name),
        // Has no answer; not passed here.
        Request::Forget(_) => Err(Errno::EINVAL),
    }
}
