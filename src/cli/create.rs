//! `runsc create`: makes a container from a bundle. Its program is loaded and waits for `start`.

use std::os::fd::AsRawFd;

use super::args::{CreateArgs, Globals};
use super::preserved;
use crate::container::pod::{self, Member, Role};
use crate::container::sandbox::Sandbox;
use crate::container::spec::Bundle;
use crate::container::state::check_id;
use crate::container::terminal::{self, Raw};
use crate::container::{Error, Result};

/// A container that this command has made: in a sandbox of its own, or in that of its pod.
pub enum Made {
    Sandbox(Box<Sandbox>),
    Member(Box<Member>),
}

impl Made {
    /// Lets its program go.
    pub fn start(&mut self) -> Result<()> {
        match self {
            Made::Sandbox(sandbox) => sandbox.start(),
            Made::Member(member) => member.start(),
        }
    }

    /// The number of the process that stands for it on the host.
    fn pid(&self) -> i32 {
        match self {
            Made::Sandbox(sandbox) => sandbox.pid(),
            Made::Member(member) => member.pid(),
        }
    }

    /// Lets it run on without this command.
    pub fn detach(self) {
        match self {
            Made::Sandbox(sandbox) => sandbox.detach(),
            Made::Member(member) => member.detach(),
        }
    }

    /// Waits for its end and returns its exit status; with `keep` it can be asked about later.
    pub fn wait(self, keep: bool) -> Result<i32> {
        match self {
            Made::Sandbox(sandbox) => sandbox.wait(keep),
            Made::Member(member) => member.wait(keep),
        }
    }
}

/// Makes it and leaves it.
pub fn run(globals: &Globals, args: &CreateArgs) -> Result<i32> {
    let (_, made) = create(globals, args, false)?;
    made.detach();
    Ok(0)
}

/// How many sockets whoever started this command has handed to it, `sd_listen_fds(3)`: they are the container's.
fn listening() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let meant = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| meant).unwrap_or(0)
}

/// Makes it and writes its process number down. When it is attached to this command and has a terminal, that appears on the
/// command's own, which passes every key on as long as the first value is there.
pub fn create(globals: &Globals, args: &CreateArgs, attached: bool) -> Result<(Option<Raw>, Made)> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Usage("must be run as root: rootless sandboxes are not supported yet".into()));
    }
    check_id(&args.id)?;
    let mut options = globals.options(attached)?;
    let pod = |spec: &mut _| pod::role(&options.state_root, spec);
    let (bundle, role) = Bundle::load(&args.bundle, globals.leniency(), pod)?;
    terminal::check(bundle.terminal(), !attached, args.console_socket.as_deref())?;
    options.console_socket.clone_from(&args.console_socket);
    options.console = bundle.terminal() && attached;
    options.listening = listening();
    let passed_on = preserved(options.listening, args.preserve_fds)?;
    options.preserved = passed_on.iter().map(AsRawFd::as_raw_fd).collect();
    let raw = if options.console { Raw::if_terminal()? } else { None };
    let made = match role {
        Role::Member(membership) => Made::Member(Box::new(Member::create(&args.id, &bundle, &options, membership)?)),
        Role::First(pinned) => Made::Sandbox(Box::new(Sandbox::create(&args.id, &bundle, &options, &pinned)?)),
    };
    if let Some(file) = &args.pid_file {
        super::write_pid(file, made.pid())?;
    }
    Ok((raw, made))
}
