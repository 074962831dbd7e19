//! `runsc delete`: removes what is left of a container that has ended, or with `--force` ends it.

use super::args::{DeleteArgs, Globals};
use crate::container::state::{StateDir, Status};
use crate::container::{Error, Result, spawn};

/// Deletes each of the containers; goes on after a failure, which is returned.
pub fn run(globals: &Globals, args: &DeleteArgs) -> Result<i32> {
    let outcomes: Vec<Result<()>> = args.ids.iter().map(|id| delete(globals, id, args.force)).collect();
    outcomes.into_iter().collect::<Result<Vec<()>>>().map(|_| 0)
}

fn delete(globals: &Globals, id: &str, force: bool) -> Result<()> {
    let directory = match StateDir::open(&globals.state_root(), id) {
        Err(Error::NotFound(_)) if force => return Ok(()),
        directory => directory?,
    };
    match directory.load() {
        Ok(record) => {
            // With the lock held, one that is being created without a sentry was left by a command that was killed.
            let stopped = record.status() == Status::Stopped || record.sentry.is_none();
            if !stopped && !force {
                let status = record.status();
                return Err(Error::Usage(format!("container {id:?} is {status}: stop it first, or use --force")));
            }
            for process in [record.sentry, record.gofer].into_iter().flatten() {
                spawn::kill_and_wait(process)?;
            }
            record.cgroup.destroy()?;
        }
        // Left by a command that was killed before it had started anything.
        Err(error) if !force => return Err(error),
        Err(_) => {}
    }
    directory.remove()
}
