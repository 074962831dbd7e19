//! What becomes of a system call that a signal has interrupted: `signal(7)`, "Interruption of system calls".

use super::SigAction;
use crate::errno::Errno;

/// How an interrupted system call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It returns `EINTR`.
    Eintr,
    /// It is made again: `rip` back over the instruction (two bytes), `rax` the call's number.
    Again,
    /// It goes on through `restart_syscall(2)`: as [`Restart::Again`], with that call's number in `rax`.
    RestartBlock,
}

/// Decides for a call that ended in `errno` ([`Errno::is_restart`]), when the signal has `handler` or, with `None`, none
/// runs: the signal stopped and continued the process, was ignored, or there was nothing after all. Of an errno that is
/// not a restart code there is nothing to decide: `None`.
pub fn restart_decision(errno: Errno, handler: Option<&SigAction>) -> Option<Restart> {
    let restarts = handler.map(|action| action.has(SigAction::RESTART));
    Some(match (errno, restarts) {
        (Errno::ERESTARTNOINTR, _) | (Errno::ERESTARTSYS, None | Some(true)) | (Errno::ERESTARTNOHAND, None) => {
            Restart::Again
        }
        (Errno::ERESTART_RESTARTBLOCK, None) => Restart::RestartBlock,
        (Errno::ERESTARTSYS | Errno::ERESTARTNOHAND | Errno::ERESTART_RESTARTBLOCK, Some(_)) => Restart::Eintr,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_rule() {
        let plain = SigAction { handler: 2, ..SigAction::default() };
        let restart = SigAction { flags: SigAction::RESTART, ..plain };
        let row = |errno| [None, Some(&plain), Some(&restart)].map(|handler| restart_decision(errno, handler));
        use Restart::{Again, Eintr, RestartBlock};
        assert_eq!(row(Errno::ERESTARTSYS), [Some(Again), Some(Eintr), Some(Again)]);
        assert_eq!(row(Errno::ERESTARTNOINTR), [Some(Again); 3]);
        assert_eq!(row(Errno::ERESTARTNOHAND), [Some(Again), Some(Eintr), Some(Eintr)]);
        assert_eq!(row(Errno::ERESTART_RESTARTBLOCK), [Some(RestartBlock), Some(Eintr), Some(Eintr)]);
        assert_eq!(row(Errno::EINTR), [None; 3]);
    }
}
