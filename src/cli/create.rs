//! `runsc create`: makes a container from a bundle. Its program is loaded and waits for `start`.

use super::args::{CreateArgs, Globals};
use crate::container::sandbox::Sandbox;
use crate::container::spec::Bundle;
use crate::container::state::check_id;
use crate::container::{Error, Result};

/// Makes it and leaves it.
pub fn run(globals: &Globals, args: &CreateArgs) -> Result<i32> {
    create(globals, args, false)?.detach();
    Ok(0)
}

/// Makes it and writes its process number down.
pub fn create(globals: &Globals, args: &CreateArgs, attached: bool) -> Result<Sandbox> {
    if args.console_socket.is_some() {
        return Err(Error::Usage("--console-socket: terminals made by the runtime are not supported yet".into()));
    }
    check_id(&args.id)?;
    let options = globals.options(attached)?;
    let bundle = Bundle::load(&args.bundle, globals.leniency())?;
    let sandbox = Sandbox::create(&args.id, &bundle, &options)?;
    if let Some(file) = &args.pid_file {
        super::write_pid(file, sandbox.pid())?;
    }
    Ok(sandbox)
}
