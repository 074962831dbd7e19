//! `startContainer` hooks: processes of the container, run to their end before its program is let go.
//!
//! They have the program's user, capabilities, limits and filter of system calls, the environment that they list, the
//! container's state on standard input and `/` as working directory: the bundle's does not exist in the container.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{Hook, Process, Spec, State};

use super::{Outcome, exec};
use crate::container::hooks::{Point, document, one_line};
use crate::sentry::kernel::Kernel;
use crate::sentry::task::tree::ExitStatus;

/// What is to be run before the program, and what it has of the program's.
pub struct StartHooks {
    hooks: Vec<Hook>,
    process: Process,
}

impl StartHooks {
    /// Those of the specification, if there are any.
    pub fn of(spec: &Spec) -> Option<StartHooks> {
        let hooks = Point::StartContainer.of(spec.hooks().as_ref()?).to_vec();
        let process = spec.process().clone()?;
        (!hooks.is_empty()).then_some(StartHooks { hooks, process })
    }
}

/// Runs the hooks of `kernel`'s container, one after the other. The first failure ends the list, in words. `state` tells
/// the container's id and bundle; its process number is 1, as the hooks see it.
pub fn run(kernel: &Arc<Kernel>, state: &State) -> Outcome<()> {
    let Some(start) = kernel.start_hooks.get() else { return Ok(()) };
    let mut state = state.clone();
    state.set_pid(Some(1));
    let document = document(Point::StartContainer, &state).map_err(|error| error.to_string())?;
    for (index, hook) in start.hooks.iter().enumerate() {
        run_one(kernel, hook, &start.process, &document).map_err(|problem| {
            format!("error running startContainer hook #{index} ({}): {problem}", hook.path().display())
        })?;
    }
    Ok(())
}

fn run_one(kernel: &Arc<Kernel>, hook: &Hook, program: &Process, document: &[u8]) -> Outcome<()> {
    let failed = |error: io::Error| format!("pass the state: {error}");
    let input = memory_file().map_err(failed)?;
    input.write_all_at(document, 0).map_err(failed)?;
    // This process's own is /dev/null.
    let output = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let errors = bounded_file().map_err(failed)?;
    let said = errors.try_clone().map_err(failed)?;
    let deadline = hook.timeout().map(|seconds| Instant::now() + Duration::from_secs(seconds.max(0) as u64));
    let owner = exec::start(kernel, &process(hook, program), vec![input.into(), output, errors.into()])?;
    let status = owner.process().wait_until(deadline);
    drop(owner); // kills what is left
    let problem = match status {
        Some(ExitStatus::Exited(0)) => return Ok(()),
        Some(ExitStatus::Exited(code)) => format!("exit status {code}"),
        Some(ExitStatus::Killed { signal, .. }) => format!("signal {signal}"),
        None => format!("killed after its timeout of {} s", hook.timeout().unwrap_or(0)),
    };
    let said = last_words(&said);
    Err(if said.is_empty() { problem } else { format!("{problem}: {said}") })
}

fn memory_file() -> io::Result<File> {
    Ok(memfd_create("hook", MFdFlags::MFD_CLOEXEC)?.into())
}

/// A file for what the hook says, which is full of zeros and cannot grow: the program may be hostile. Writing beyond its end
/// is `EPERM`, `fcntl(2)`.
fn bounded_file() -> io::Result<File> {
    const MOST: u64 = 64 << 10;
    let file = File::from(memfd_create("hook", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(MOST)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// The beginning of what the hook wrote to its standard error, as one line.
fn last_words(file: &File) -> String {
    let mut bytes = [0; 2048];
    let n = file.read_at(&mut bytes, 0).unwrap_or(0);
    one_line(bytes[..n].split(|&byte| byte == 0).next().unwrap_or_default())
}

/// The hook as a process.
fn process(hook: &Hook, program: &Process) -> Process {
    let mut process = program.clone();
    let mut args = hook.args().clone().unwrap_or_default();
    let path = hook.path().display().to_string();
    // Its own name for itself is not kept: the program is found by the first word.
    match args.first_mut() {
        Some(first) => *first = path,
        None => args.push(path),
    }
    process.set_args(Some(args)).set_env(Some(hook.env().clone().unwrap_or_default()));
    process.set_cwd(PathBuf::from("/")).set_terminal(Some(false));
    process
}
