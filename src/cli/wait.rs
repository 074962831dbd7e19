//! `runsc wait`: waits for a process of a container and tells how it ended, in gVisor's form.

use serde_json::json;

use super::args::{Globals, WaitArgs};
use crate::container::{Result, life};

/// Prints the document.
pub fn run(globals: &Globals, args: &WaitArgs) -> Result<i32> {
    let pid = args.pid.or(args.rootpid);
    let status = life::wait(&globals.state_root(), &args.id, pid)?;
    let mut document = json!({"id": args.id, "exitStatus": status});
    if let Some(pid) = pid {
        document["pid"] = pid.into();
    }
    super::print(&format!("{document}\n"))?;
    Ok(0)
}
