//! `runsc exec`: runs a further process in a running container.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxCapabilities, Process};

use super::args::{ExecArgs, Globals};
use super::preserved;
use crate::container::control::{Client, Request, Started};
use crate::container::spec::{check_process, parse};
use crate::container::stand_in::{self, Stood};
use crate::container::state::{self, StateDir, Status};
use crate::container::terminal::{self, Raw};
use crate::container::{Context, Error, Result};

/// Returns the process's exit status, or 0 when it is left running.
pub fn run(globals: &Globals, args: &ExecArgs) -> Result<i32> {
    let mut directory = StateDir::open(&globals.state_root(), &args.id)?;
    directory.unlock();
    let record = directory.load()?;
    match record.status() {
        Status::Stopped => return Err(Error::Usage("cannot exec in a stopped container".into())),
        Status::Creating => return Err(Error::Usage("cannot exec in a container that is being created".into())),
        _ => {}
    }
    let process = process(args, &directory)?;
    let terminal = process.terminal() == Some(true);
    terminal::check(terminal, args.detach, args.console_socket.as_deref())?;
    // From here on a signal is passed on, or read when there is somebody to pass it on to.
    let signals = stand_in::take_all_signals()?;
    let slave = args.console_socket.as_deref().map(|socket| terminal::make(&process, socket)).transpose()?;
    let _raw = if terminal && slave.is_none() { Raw::if_terminal()? } else { None };
    let sandbox = state::sandbox_directory(&globals.state_root(), &record)?;
    let socket = state::socket_in(&sandbox);
    let mut connection = Client::connect(&sandbox)?;
    let extra = preserved(0, args.preserve_fds)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut fds: Vec<BorrowedFd<'_>> = match &slave {
        Some(slave) => vec![slave.as_fd(); 3],
        None => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
    };
    fds.extend(extra);
    let request = Request::Exec { id: args.id.clone(), process: Box::new(process), ignore_paused: args.ignore_paused };
    let Started { pid } = connection.call_with_fds(&request, &fds)?;
    // On a terminal of the runtime's own, only its session's leader learns of new sizes.
    let stood = Stood { id: args.id.clone(), pid: Some(pid), connection, socket, terminal };
    if !args.detach {
        write_pid(args.pid_file.as_deref(), std::process::id() as i32)?;
        return stood.wait(&signals);
    }
    let child = stand_in::start(stood, &sandbox, slave.as_ref())?;
    write_pid(args.pid_file.as_deref(), child.pid())?;
    child.release();
    Ok(0)
}

fn write_pid(file: Option<&Path>, pid: i32) -> Result<()> {
    file.map_or(Ok(()), |file| super::write_pid(file, pid))
}

/// What to run: the file of `--process`, or the container's own process with the changes that the flags make.
fn process(args: &ExecArgs, directory: &StateDir) -> Result<Process> {
    let (process, file) = match &args.process {
        Some(file) => {
            let text = fs::read(file).doing(|| format!("read {}", file.display()))?;
            let process = parse(&text).map_err(|problem| problem.at(file))?;
            (process, file.clone())
        }
        None => {
            // Not the bundle's, which may have changed.
            let base = directory.spec()?.process().clone().unwrap_or_default();
            (with_flags(base, args)?, directory.path().join("spec.json"))
        }
    };
    check_process(&process).map_err(|problem| problem.at(&file))?;
    Ok(process)
}

fn with_flags(mut process: Process, args: &ExecArgs) -> Result<Process> {
    if args.command.is_empty() {
        return Err(Error::Usage("process args cannot be empty".into()));
    }
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    process.set_console_size(None);
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    for entry in &args.env {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        env.retain(|earlier| earlier.split_once('=').is_none_or(|(earlier, _)| earlier != name));
        env.push(entry.clone());
    }
    process.set_env(Some(env));
    if let Some(user) = &args.user {
        set_user(&mut process, user)?;
    }
    if !args.additional_gids.is_empty() {
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        groups.extend(&args.additional_gids);
        process.user_mut().set_additional_gids(Some(groups));
    }
    if !args.cap.is_empty() {
        let sets = process.capabilities().clone().unwrap_or_else(|| {
            let mut none = LinuxCapabilities::default();
            let empty = || Some(Default::default());
            none.set_bounding(empty()).set_effective(empty()).set_permitted(empty()).set_inheritable(empty());
            none.set_ambient(empty());
            none
        });
        process.set_capabilities(Some(with_capabilities(sets, &args.cap)?));
    }
    if let Some(no_new_privs) = args.no_new_privs {
        process.set_no_new_privileges(Some(no_new_privs));
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    Ok(process)
}

/// `--user=UID[:GID]`: numbers only, as names are the caller's to look up.
fn set_user(process: &mut Process, user: &str) -> Result<()> {
    let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
    let number = |what: &str, text: &str| {
        text.parse::<u32>().map_err(|error| Error::Usage(format!("--user={user}: bad {what}: {error}")))
    };
    let uid = number("uid", uid)?;
    process.user_mut().set_uid(uid);
    if let Some(gid) = gid {
        process.user_mut().set_gid(number("gid", gid)?);
    }
    Ok(())
}

/// Adds capabilities to the sets that a program has without having been given them by anybody: bounding, effective and
/// permitted.
fn with_capabilities(mut sets: LinuxCapabilities, names: &[String]) -> Result<LinuxCapabilities> {
    let mut bounding = sets.bounding().clone().unwrap_or_default();
    let mut effective = sets.effective().clone().unwrap_or_default();
    let mut permitted = sets.permitted().clone().unwrap_or_default();
    for name in names {
        let problem = |error| Error::Usage(format!("--cap={name}: {error}"));
        let text = serde_json::Value::from(name.as_str());
        let capability: oci_spec::runtime::Capability = serde_json::from_value(text).map_err(problem)?;
        bounding.insert(capability);
        effective.insert(capability);
        permitted.insert(capability);
    }
    sets.set_bounding(Some(bounding)).set_effective(Some(effective)).set_permitted(Some(permitted));
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args() -> ExecArgs {
        ExecArgs { id: "c".into(), command: vec!["id".into()], ..ExecArgs::default() }
    }

    fn base() -> Process {
        let text = json!({
            "user": {"uid": 1, "gid": 2, "additionalGids": [3]}, "args": ["x"], "cwd": "/w", "env": ["A=1", "B=2"],
            "terminal": true, "capabilities": {"bounding": ["CAP_KILL"]},
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn flags_change_the_containers_process() {
        let args = ExecArgs {
            env: vec!["A=3".into()],
            user: Some("7:8".into()),
            additional_gids: vec![9],
            cap: vec!["CAP_CHOWN".into()],
            no_new_privs: Some(true),
            ..args()
        };
        let process = with_flags(base(), &args).unwrap();
        assert_eq!(process.args().as_deref(), Some(&["id".to_owned()][..]));
        assert_eq!(process.env().as_deref(), Some(&["B=2".to_owned(), "A=3".to_owned()][..]));
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[3, 9][..]));
        assert_eq!((process.terminal(), process.no_new_privileges()), (Some(false), Some(true)));
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 2);
        assert_eq!(capabilities.effective().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let user = |user: &str| with_flags(base(), &ExecArgs { user: Some(user.into()), ..args() }).unwrap_err();
        assert!(user("root").to_string().contains("--user=root: bad uid"), "{}", user("root"));
        assert!(user("0:wheel").to_string().contains("bad gid"));
        let cap = with_flags(base(), &ExecArgs { cap: vec!["CAP_FLY".into()], ..args() }).unwrap_err();
        assert!(cap.to_string().starts_with("--cap=CAP_FLY"), "{cap}");
        let none = with_flags(base(), &ExecArgs { command: Vec::new(), ..args() }).unwrap_err();
        assert_eq!(none.to_string(), "process args cannot be empty");
    }
}
