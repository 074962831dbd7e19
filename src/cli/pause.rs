//! `runsc pause` and `runsc resume`: stop every process of a container, without their notice, and let them go on.

use super::args::{Globals, IdArgs};
use crate::container::control::{Request, State};
use crate::container::state::{self, StateDir, Status};
use crate::container::{Error, Result};

/// Returns once no process of the container runs.
pub fn pause(globals: &Globals, args: &IdArgs) -> Result<i32> {
    change(globals, &args.id, Status::Paused)
}

/// Lets a paused container go on.
pub fn resume(globals: &Globals, args: &IdArgs) -> Result<i32> {
    change(globals, &args.id, Status::Running)
}

/// With the container's lock held all the time: what the state says is what the sandbox does.
fn change(globals: &Globals, id: &str, wanted: Status) -> Result<i32> {
    let root = globals.state_root();
    let directory = StateDir::open(&root, id)?;
    let mut record = directory.load()?;
    let request = match (record.status(), wanted) {
        (Status::Running | Status::Created, Status::Paused) => Request::Pause { id: id.into() },
        (Status::Paused, Status::Running) => Request::Resume { id: id.into() },
        (status, Status::Paused) => {
            return Err(Error::Usage(format!("container not running: {id:?} is {status}")));
        }
        (status, _) => return Err(Error::Usage(format!("container not paused: {id:?} is {status}"))),
    };
    let mut client = state::connect(&root, &record)?;
    client.call::<()>(&request)?;
    // One that was paused before it was started is not running now.
    record.status = client.call::<State>(&Request::State { id: id.into() })?.status;
    directory.save(&record)?;
    Ok(0)
}
