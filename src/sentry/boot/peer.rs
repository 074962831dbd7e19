//! Waiting on behalf of a command that may be gone before what it waits for comes.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wait::{Events, Parker, WaitQueue};

/// Waits until `done`, looking whenever `queue` is woken. False when `peer`, if there is one, closes its end before.
pub fn wait_unless_closed(queue: &WaitQueue, peer: Option<BorrowedFd<'_>>, done: impl Fn() -> bool) -> bool {
    let parker = Arc::new(Parker::new());
    let key = queue.add(parker.clone(), Events::READ, false);
    let mut left = false;
    while !done() && !left {
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
            log::warn!("waiting for a command that may close its connection: {error}");
            parker.park(None);
        }
    }
    queue.remove(key);
    done()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn whichever_comes_first_ends_it() {
        let (queue, ended) = (WaitQueue::new(), AtomicBool::new(false));
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        thread::scope(|scope| {
            let wait = || wait_unless_closed(&queue, Some(ours.as_fd()), || ended.load(Ordering::SeqCst));
            let waiting = scope.spawn(wait);
            drop(theirs);
            assert!(!waiting.join().expect("no panic"), "the peer is gone");
            let waiting = scope.spawn(|| wait_unless_closed(&queue, None, || ended.load(Ordering::SeqCst)));
            ended.store(true, Ordering::SeqCst);
            queue.wake(Events::READ);
            assert!(waiting.join().expect("no panic"));
            assert!(wait(), "what has ended before is known");
        });
    }
}
