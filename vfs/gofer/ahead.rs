//! What a walk of a shared or leased tree finds ahead of its single steps, with one round trip.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::inode::Walked;
use super::node::Node;
use super::{Asked, Key, Moment, Shared};
use crate::errno::{Errno, Result};
use crate::gofer::codec::Stat;
use crate::gofer::protocol::{NONE, Request};

/// The result of one [`Inode::prefetch`](crate::vfs::inode::Inode::prefetch).
pub(super) struct Ahead {
    moment: Moment,
    asked: Asked,
    steps: Vec<Step>,
    /// Directory and name where the path ended for there is no such name.
    missing: Option<(Key, Vec<u8>)>,
    /// The text of the last file, a symbolic link.
    text: Option<(Key, Vec<u8>)>,
    /// The last file, open for reading.
    opened: Option<(Key, OwnedFd)>,
}

/// A name that was found.
pub(super) struct Step {
    dir: Key,
    name: Vec<u8>,
    pub stat: Stat,
    /// The node that the gofer keeps, or [`NONE`]. Whoever takes the step must use it or give it back.
    pub node: u32,
    pub asked: Asked,
}

/// What was found at a name.
pub(super) enum Found {
    Step(Step),
    Missing,
}

impl Node {
    /// Walks several names down, for the lookups or revalidations that follow to find. Names that are not `known` will need
    /// nodes.
    pub(super) fn look_ahead(&self, names: &[&[u8]], known: bool) -> Result<()> {
        let (place, path) = (self.place()?, names.join(&b'/'));
        let open = self.shared.leased() && !known;
        let walk = Request::Walk { from: place.borrow(), path: &path, keep: !known, open };
        let asked = self.shared.ask();
        let walked = Walked::ask(&self.shared.connection, &walk)?;
        if walked.start.key() == self.key {
            self.saw(&walked.start, None, asked);
        }
        let nodes = walked.nodes.iter().copied().chain(std::iter::repeat(NONE));
        let mut dir = self.key;
        let mut steps = Vec::with_capacity(walked.stats.len());
        for ((name, stat), node) in names.iter().zip(&walked.stats).zip(nodes) {
            steps.push(Step { dir, name: name.to_vec(), stat: *stat, node, asked });
            dir = stat.key();
        }
        let missing = names.get(steps.len()).filter(|_| walked.stopped == Some(Errno::ENOENT));
        let ahead = Ahead {
            moment: self.shared.now(),
            asked,
            missing: missing.map(|name| (dir, name.to_vec())),
            text: (!walked.text.is_empty()).then_some((dir, walked.text)),
            opened: walked.fd.map(|fd| (dir, fd)),
            steps,
        };
        let before = self.shared.ahead.lock().replace(ahead);
        before.into_iter().flat_map(|ahead| ahead.steps).for_each(|step| self.shared.give_back(step.node));
        Ok(())
    }
}

impl Shared {
    /// What this thread has just found at a name; good once.
    pub(super) fn found_ahead(&self, dir: &Node, name: &[u8]) -> Option<Found> {
        let mut ahead = self.ahead.lock();
        let ahead = ahead.as_mut().filter(|ahead| self.is_good(ahead, dir))?;
        if ahead.missing.take_if(|(of, missing)| *of == dir.key && missing == name).is_some() {
            return Some(Found::Missing);
        }
        let at = ahead.steps.iter().position(|step| step.dir == dir.key && step.name == name)?;
        Some(Found::Step(ahead.steps.swap_remove(at)))
    }

    fn is_good(&self, ahead: &Ahead, dir: &Node) -> bool {
        match self.leased() {
            true => {
                ahead.moment.is_recent()
                    && self.leases.is_fresh(ahead.asked.stamp)
                    && dir.is_unchanged_since(ahead.asked)
            }
            false => self.is_now(ahead.moment),
        }
    }

    /// Gives a node what else was found of it: its text, its descriptor.
    pub(super) fn equip(&self, node: &Node) {
        let (text, opened) = {
            let mut ahead = self.ahead.lock();
            let Some(ahead) = ahead.as_mut() else { return };
            let mine = |(key, _): &mut (Key, Vec<u8>)| *key == node.key;
            (ahead.text.take_if(mine), ahead.opened.take_if(|(key, _)| *key == node.key))
        };
        node.learn_content(text.map(|(_, text)| text), opened.map(|(_, fd)| Arc::new(fd)));
    }
}
