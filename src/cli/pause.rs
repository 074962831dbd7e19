//! `runsc pause` and `runsc resume`: stop every process of a container, without their notice, and let them go on.

use oci_spec::runtime::ContainerState;

use super::args::{Globals, IdArgs};
use crate::container::control::{Client, Request, SOCKET};
use crate::container::state::StateDir;
use crate::container::{Error, Result};

/// Returns once no process of the container runs.
pub fn pause(globals: &Globals, args: &IdArgs) -> Result<i32> {
    change(globals, &args.id, ContainerState::Paused)
}

/// Lets a paused container go on.
pub fn resume(globals: &Globals, args: &IdArgs) -> Result<i32> {
    change(globals, &args.id, ContainerState::Running)
}

/// With the container's lock held all the time: what the state says is what the sandbox does.
fn change(globals: &Globals, id: &str, wanted: ContainerState) -> Result<i32> {
    let directory = StateDir::open(&globals.state_root(), id)?;
    let mut record = directory.load()?;
    let request = match (record.status(), wanted) {
        (ContainerState::Running | ContainerState::Created, ContainerState::Paused) => Request::Pause { id: id.into() },
        (ContainerState::Paused, ContainerState::Running) => Request::Resume { id: id.into() },
        (status, ContainerState::Paused) => {
            return Err(Error::Usage(format!("container not running: {id:?} is {status}")));
        }
        (status, _) => return Err(Error::Usage(format!("container not paused: {id:?} is {status}"))),
    };
    Client::connect(&directory.short_path(SOCKET))?.call::<()>(&request)?;
    record.status = wanted;
    directory.save(&record)?;
    Ok(0)
}
