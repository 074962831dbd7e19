//! `runsc delete`: removes what is left of a container that has ended, or with `--force` ends it.

use super::args::{DeleteArgs, Globals};
use crate::container::life::{self, Container};
use crate::container::state::Status;
use crate::container::{Error, Result};

/// Deletes each of the containers; goes on after a failure, which is returned.
pub fn run(globals: &Globals, args: &DeleteArgs) -> Result<i32> {
    let outcomes: Vec<Result<()>> = args.ids.iter().map(|id| delete(globals, id, args.force)).collect();
    outcomes.into_iter().collect::<Result<Vec<()>>>().map(|_| 0)
}

fn delete(globals: &Globals, id: &str, force: bool) -> Result<()> {
    let root = globals.state_root();
    let container = match Container::open(&root, id) {
        Err(Error::NotFound(_)) if force => return Ok(()),
        Err(Error::Io { .. }) if force => {
            return life::destroy_damaged(&root, id, globals.systemd_cgroup());
        }
        container => container?,
    };
    if !force {
        match container.status() {
            // With the lock held, one that is being created was left by a command that was killed.
            Status::Stopped | Status::Created | Status::Creating => {}
            status => {
                return Err(Error::Usage(format!("cannot delete container {id:?} that is not stopped: {status}")));
            }
        }
    }
    container.destroy()
}
