//! `runsc state`: the container's state as the OCI runtime specification has it.

use super::args::{Globals, IdArgs};
use crate::container::{Context, Result, life, state};

/// Prints the document.
pub fn run(globals: &Globals, args: &IdArgs) -> Result<i32> {
    let root = globals.state_root();
    let mut record = state::load(&root, &args.id)?;
    record.status = life::status(&root, &record);
    let text =
        serde_json::to_string_pretty(&record.document()).map_err(std::io::Error::from).doing(|| "print the state")?;
    super::print(&(text + "\n"))?;
    Ok(0)
}
