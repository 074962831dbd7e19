//! `runsc run`: makes a container from a bundle and runs it to its end, or leaves it running.

use std::fs;

use super::args::{Globals, RunArgs};
use crate::container::sandbox::Sandbox;
use crate::container::spec::Bundle;
use crate::container::state::check_id;
use crate::container::terminal::{self, Raw};
use crate::container::{Context, Result};

/// Returns the container's exit status, or 0 when it is left running.
pub fn run(globals: &Globals, args: &RunArgs) -> Result<i32> {
    check_id(&args.id)?;
    let mut options = globals.options(!args.detach)?;
    let bundle = Bundle::load(&args.bundle, globals.leniency())?;
    terminal::check(bundle.terminal(), args.detach, args.console_socket.as_deref())?;
    options.console_socket.clone_from(&args.console_socket);
    options.console = bundle.terminal() && !args.detach;
    let _raw = if options.console { Raw::if_terminal()? } else { None };
    let sandbox = Sandbox::start(&args.id, &bundle, &options)?;
    if let Some(file) = &args.pid_file {
        fs::write(file, sandbox.pid().to_string()).doing(|| format!("write {}", file.display()))?;
    }
    if args.detach {
        sandbox.detach();
        return Ok(0);
    }
    sandbox.wait()
}
