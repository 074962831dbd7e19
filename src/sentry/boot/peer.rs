//! Waiting on behalf of somebody outside, who may leave first.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wait::{Events, Parker, WaitQueue};

/// Waits until `is_so`, whose change wakes `queue`, or until `peer` closes its end. Returns whether it is so.
pub fn wait_for(queue: &WaitQueue, is_so: impl Fn() -> bool, peer: Option<BorrowedFd<'_>>) -> bool {
    let parker = Arc::new(Parker::new());
    let key = queue.add(parker.clone(), Events::READ, false);
    let mut left = false;
    while !is_so() && !left {
        let Some(peer) = peer else {
            parker.park(None);
            continue;
        };
        let outside = parker.park_with(|event| {
            let mut fds = [PollFd::new(event, PollFlags::POLLIN), PollFd::new(peer.as_fd(), PollFlags::empty())];
            let polled = poll(&mut fds, PollTimeout::NONE);
            left = polled.is_ok() && fds[1].any() == Some(true);
            fds[0].any() == Some(true)
        });
        if let Err(error) = outside {
            log::warn!("wait for an end: {error}");
            parker.park(None);
        }
    }
    queue.remove(key);
    is_so()
}
