//! `runsc run`: makes a container from a bundle and runs it to its end, or leaves it running.

use super::args::{Globals, RunArgs};
use super::create::create;
use crate::container::Result;

/// Returns the container's exit status, or 0 when it is left running.
pub fn run(globals: &Globals, args: &RunArgs) -> Result<i32> {
    // The command's own terminal is as it was when `_raw` goes, after the sandbox.
    let (_raw, mut sandbox) = create(globals, &args.create, !args.detach)?;
    sandbox.start()?;
    if args.detach {
        sandbox.detach();
        return Ok(0);
    }
    sandbox.wait(args.keep)
}
