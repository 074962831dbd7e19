//! `runsc do`: runs a command over the host's root file system, whose changes are discarded.

use std::path::Path;
use std::{env, fs, io};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::isatty;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::args::{DoArgs, Globals, ID_PREFIX};
use crate::container::life::Container;
use crate::container::pod::pinned::Pinned;
use crate::container::sandbox::Sandbox;
use crate::container::spec::Bundle;
use crate::container::state::{StateDir, Status};
use crate::container::terminal::Raw;
use crate::container::{Context, Error, Result};

/// Runs it as the container `id`; returns the command's exit status.
pub fn run(globals: &Globals, args: &DoArgs, id: &str) -> Result<i32> {
    let mut options = globals.options(true)?;
    if globals.overlay2.as_deref() == Some("none") {
        return Err(Error::Usage("--overlay2=none: do never changes the host's files".into()));
    }
    options.overlay = true;
    // There is no bundle: relative paths are relative to where the command was given.
    let directory = env::current_dir().doing(|| "current directory")?;
    let bundle = Bundle::new(directory, specification(args)?, globals.leniency())
        .map_err(|problem| Error::Usage(format!("do: {}: {}", problem.field, problem.text)))?;
    options.console = isatty(io::stdin()) == Ok(true) && isatty(io::stdout()) == Ok(true);
    // Before anything reads from it: an end of file that was typed by then would pass for the end of the terminal.
    let _raw = if options.console { Some(Raw::new()?) } else { None };
    sweep(&options.state_root);
    let mut sandbox = Sandbox::create(id, &bundle, &options, &Pinned::default())?;
    sandbox.start()?;
    sandbox.wait(false)
}

/// Removes what earlier commands have left that were killed: the sandbox dies with its command, the state does not.
fn sweep(root: &Path) {
    let names =
        fs::read_dir(root).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for id in names.filter(|name| name.starts_with(ID_PREFIX)) {
        let left = StateDir::open_idle(root, &id).and_then(|directory| match directory {
            Some(directory) => Ok(Some(Container { record: directory.load()?, directory })),
            None => Ok(None),
        });
        let removed = left.and_then(|container| match container {
            Some(container) if matches!(container.record.status(), Status::Stopped | Status::Creating) => {
                container.destroy()
            }
            _ => Ok(()),
        });
        if let Err(error) = removed {
            log::warn!("left by an earlier command: {error}");
        }
    }
}

/// The command with this process's working directory, environment, user, groups and limits.
fn specification(args: &DoArgs) -> Result<Spec> {
    let cwd = match &args.cwd {
        Some(cwd) => std::path::absolute(cwd).doing(|| format!("--cwd={}", cwd.display()))?,
        None => env::current_dir().doing(|| "current directory")?,
    };
    let groups: Vec<u32> = nix::unistd::getgroups().unwrap_or_default().into_iter().map(|gid| gid.as_raw()).collect();
    let hostname = nix::unistd::gethostname().doing(|| "host name")?;
    let document = json!({
        "ociVersion": "1.1.0",
        "hostname": hostname.to_string_lossy(),
        "root": {"path": args.root, "readonly": false},
        "process": {
            "args": args.command,
            "cwd": cwd,
            "env": environment(&args.env)?,
            "user": {
                "uid": nix::unistd::getuid().as_raw(),
                "gid": nix::unistd::getgid().as_raw(),
                "additionalGids": groups,
            },
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "rlimits": limits(),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "mode=0620", "ptmxmode=0666", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
        ],
    });
    serde_json::from_value(document).map_err(std::io::Error::from).doing(|| "do")
}

/// This process's variables, replaced or followed by those of `--env`.
fn environment(extra: &[String]) -> Result<Vec<String>> {
    let mut variables: Vec<String> = Vec::new();
    for (name, value) in env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => variables.push(format!("{name}={value}")),
            // A specification is JSON, which holds text only.
            (name, _) => log::warn!("the variable {name:?} is not UTF-8 and is left out"),
        }
    }
    for entry in extra {
        let (name, _) = entry.split_once('=').ok_or_else(|| Error::Usage(format!("--env={entry}: not NAME=VALUE")))?;
        variables.retain(|variable| variable.split_once('=').is_none_or(|(earlier, _)| earlier != name));
        variables.push(entry.clone());
    }
    Ok(variables)
}

fn limits() -> Value {
    let all = [
        ("RLIMIT_CPU", Resource::RLIMIT_CPU),
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
        ("RLIMIT_DATA", Resource::RLIMIT_DATA),
        ("RLIMIT_STACK", Resource::RLIMIT_STACK),
        ("RLIMIT_CORE", Resource::RLIMIT_CORE),
        ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
        ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
        ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
        ("RLIMIT_AS", Resource::RLIMIT_AS),
        ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
        ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
        ("RLIMIT_NICE", Resource::RLIMIT_NICE),
        ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ];
    let known = all.into_iter().filter_map(|(name, resource)| Some((name, getrlimit(resource).ok()?)));
    known.map(|(name, (soft, hard))| json!({"type": name, "soft": soft, "hard": hard})).collect()
}

/// What root has: every capability, inside the sandbox.
pub(super) const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::Leniency;

    fn args() -> DoArgs {
        DoArgs { root: "/".into(), cwd: None, env: vec!["A_NAME=b=c".into()], quiet: false, command: vec!["x".into()] }
    }

    #[test]
    fn the_specification_is_one_that_would_be_accepted() {
        let spec = specification(&args()).unwrap();
        let bundle = Bundle::new("/".into(), spec, Leniency::default()).unwrap();
        let process = bundle.spec.process().as_ref().unwrap();
        assert_eq!(process.cwd(), &env::current_dir().unwrap());
        assert!(process.env().as_ref().unwrap().contains(&"A_NAME=b=c".to_owned()));
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.effective().as_ref().unwrap().len(), CAPABILITIES.len());
    }

    #[test]
    fn given_variables_replace_inherited_ones() {
        let path = environment(&["PATH=/only".into()]).unwrap();
        assert_eq!(path.iter().filter(|variable| variable.starts_with("PATH=")).collect::<Vec<_>>(), ["PATH=/only"]);
        assert!(environment(&["PATH".into()]).is_err());
    }
}
