//! `runsc mount`: shows a container's files in a directory of the host.

use super::args::{Globals, MountArgs};
use crate::container::{Result, mount};

/// Returns once they can be seen there.
pub fn run(globals: &Globals, args: &MountArgs) -> Result<i32> {
    mount::show(&globals.state_root(), &args.id, &args.directory)?;
    Ok(0)
}
