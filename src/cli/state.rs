//! `runsc state`: the container's state as the OCI runtime specification has it.

use super::args::{Globals, IdArgs};
use crate::container::{Context, Result, state};

/// Prints the document.
pub fn run(globals: &Globals, args: &IdArgs) -> Result<i32> {
    let state = state::load(&globals.state_root(), &args.id)?.document();
    let text = serde_json::to_string_pretty(&state).map_err(std::io::Error::from).doing(|| "print the state")?;
    super::print(&(text + "\n"))?;
    Ok(0)
}
