//! `runsc delete`: removes what is left of a container that has ended, or with `--force` ends it.

use super::args::{DeleteArgs, Globals};
use crate::container::life::Container;
use crate::container::state::{StateDir, Status};
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
            // A state that cannot be read leads to no processes.
            return StateDir::open(&root, id)?.remove();
        }
        container => container?,
    };
    match container.status() {
        // With the lock held, one that is being created was left by a command that was killed.
        Status::Stopped | Status::Created | Status::Creating => {}
        _ if force => {}
        status => {
            return Err(Error::Usage(format!("cannot delete container {id:?} that is not stopped: {status}")));
        }
    }
    container.destroy()
}
