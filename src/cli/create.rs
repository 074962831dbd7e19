//! `runsc create`: makes a container from a bundle. Its program is loaded and waits for `start`.

use super::args::{CreateArgs, Globals};
use crate::container::Result;
use crate::container::sandbox::Sandbox;
use crate::container::spec::Bundle;
use crate::container::state::check_id;
use crate::container::terminal::{self, Raw};

/// Makes it and leaves it.
pub fn run(globals: &Globals, args: &CreateArgs) -> Result<i32> {
    let (_, sandbox) = create(globals, args, false)?;
    sandbox.detach();
    Ok(0)
}

/// Makes it and writes its process number down. When it is attached to this command and has a terminal, that appears on the
/// command's own, which passes every key on as long as the first value is there.
pub fn create(globals: &Globals, args: &CreateArgs, attached: bool) -> Result<(Option<Raw>, Sandbox)> {
    check_id(&args.id)?;
    let mut options = globals.options(attached)?;
    let bundle = Bundle::load(&args.bundle, globals.leniency())?;
    terminal::check(bundle.terminal(), !attached, args.console_socket.as_deref())?;
    options.console_socket.clone_from(&args.console_socket);
    options.console = bundle.terminal() && attached;
    let raw = if options.console { Raw::if_terminal()? } else { None };
    let sandbox = Sandbox::create(&args.id, &bundle, &options)?;
    if let Some(file) = &args.pid_file {
        super::write_pid(file, sandbox.pid())?;
    }
    Ok((raw, sandbox))
}
