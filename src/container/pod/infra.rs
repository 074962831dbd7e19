//! The sandbox of a pod whose first container nobody makes.
//!
//! CRI-O drops a pod's first container ("infra") where it has nothing to do but to keep namespaces, which are pinned: of the
//! pod's containers each names it, and none is it. The first of them that is made has its sandbox made, with a container of
//! the pod's name that only pauses, in a cgroup beside its own; the last one that is deleted takes it along.
//!
//! No lock is held from one step to the next, as a command may be killed between any two. A container's record is there, and
//! names the pod, before it looks for the sandbox; and both who makes and who ends the sandbox have its lock, and look at
//! the records with it.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::json;

use super::ANNOTATIONS;
use super::pinned::Pinned;
use crate::container::error::{Context, Error, Result};
use crate::container::life::Container;
use crate::container::sandbox::{Options, Sandbox};
use crate::container::spec::{Bundle, volumes};
use crate::container::state::{self, Record, StateDir, Status};

/// A sandbox that is there, or is to be made.
#[derive(Debug)]
pub struct Infra {
    /// The pod's name, which is the sandbox's.
    pub name: String,
    /// What its sentry joins.
    pub pinned: Pinned,
}

/// The directory in the state directory that is its root file system.
const ROOTFS: &str = "rootfs";

impl Infra {
    /// The record of the sandbox, which runs, for a container that is being made and is written down.
    pub fn ready(self, bundle: &Bundle, options: &Options) -> Result<Record> {
        let root = &options.state_root;
        loop {
            match StateDir::open(root, &self.name) {
                Ok(directory) => {
                    let container = Container { record: directory.load()?, directory };
                    if !container.record.infra {
                        return Err(Error::Usage(format!("container {:?} is not the first of a pod", self.name)));
                    }
                    // With the lock held nobody is making it.
                    if matches!(container.status(), Status::Running | Status::Paused) {
                        return self.check(container.record);
                    }
                    container.destroy()?;
                }
                Err(Error::NotFound(_)) => match self.make(bundle, options) {
                    // Another container's command came first.
                    Err(Error::Exists(_)) => {}
                    made => return made,
                },
                Err(error) => return Err(error),
            }
        }
    }

    fn check(&self, record: Record) -> Result<Record> {
        match record.sentry {
            Some(sentry) if self.pinned.are_of(sentry.pid) => Ok(record),
            _ => Err(Error::Usage(format!("linux.namespaces: of another pod than {:?}", self.name))),
        }
    }

    fn make(&self, bundle: &Bundle, options: &Options) -> Result<Record> {
        let root = std::path::absolute(&options.state_root).doing(|| "find --root")?;
        let path = root.join(&self.name);
        let spec = specification(&self.name, &path.join(ROOTFS), bundle)?;
        let infra = Bundle { path, spec };
        let options = Options {
            attached: false,
            console: false,
            console_socket: None,
            preserved: Vec::new(),
            listening: 0,
            infra: true,
            ..options.clone()
        };
        let mut sandbox = Sandbox::create(&self.name, &infra, &options, &self.pinned)?;
        sandbox.start()?;
        sandbox.detach();
        state::load(&options.state_root, &self.name)
    }
}

/// A container that pauses in the pod's network. What the pod's annotations say of volumes is on each of its containers.
fn specification(name: &str, rootfs: &Path, bundle: &Bundle) -> Result<Spec> {
    let [_, (kind, id)] = ANNOTATIONS;
    let mut annotations: HashMap<String, String> =
        [(kind.to_owned(), "sandbox".to_owned()), (id.to_owned(), name.to_owned())].into();
    let of_pod = bundle.spec.annotations().iter().flatten().filter(|(key, _)| key.starts_with(volumes::PREFIX));
    annotations.extend(of_pod.map(|(key, value)| (key.clone(), value.clone())));
    let network = match bundle.network_namespace() {
        Some(path) => json!({"type": "network", "path": path}),
        None => json!({"type": "network"}),
    };
    let document = json!({
        "ociVersion": bundle.spec.version(),
        "hostname": bundle.spec.hostname(),
        "domainname": bundle.spec.domainname(),
        "annotations": annotations,
        "root": {"path": rootfs, "readonly": true},
        "process": {"user": {"uid": 0, "gid": 0}, "args": [format!("/{PAUSE}")], "cwd": "/"},
        "linux": {
            "cgroupsPath": beside(bundle, name),
            "namespaces": [network, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
    });
    serde_json::from_value(document).map_err(std::io::Error::from).doing(|| "make the pod's first container")
}

/// A cgroup beside the container's, where it has one: that above both may have no processes.
fn beside(bundle: &Bundle, name: &str) -> Option<PathBuf> {
    let path = bundle.spec.linux().as_ref()?.cgroups_path().clone()?;
    Some(path.parent()?.join(format!("runsc-{name}")))
}

/// The program's name.
const PAUSE: &str = "pause";

/// Makes the root file system: a directory with a program that sleeps for ever.
pub fn make_root(directory: &StateDir) -> Result<()> {
    let rootfs = directory.path().join(ROOTFS);
    let make = || {
        DirBuilder::new().mode(0o755).create(&rootfs)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(rootfs.join(PAUSE))?;
        file.write_all(&program())
    };
    make().doing(|| format!("make {}", rootfs.display()))
}

/// An ELF file for x86_64, elf(5): `pause(2)` again and again.
fn program() -> Vec<u8> {
    /// `mov eax, 34; syscall; jmp` to the start.
    const CODE: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // ET_EXEC, EM_X86_64, version; entry, program headers, no sections; flags, sizes and counts.
    [2u16, 62].iter().for_each(|half| put(&half.to_le_bytes()));
    put(&1u32.to_le_bytes());
    [BASE + HEADERS, 64, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    put(&0u32.to_le_bytes());
    [64u16, 56, 1, 64, 0, 0].iter().for_each(|half| put(&half.to_le_bytes()));
    // PT_LOAD, readable and executable: the whole file.
    let len = HEADERS + CODE.len() as u64;
    [1u32, 5].iter().for_each(|word| put(&word.to_le_bytes()));
    [0, BASE, BASE, len, len, 0x1000].iter().for_each(|word| put(&word.to_le_bytes()));
    put(&CODE);
    file
}

/// Ends sandboxes that were made for their containers, and have none any more.
pub fn retire(root: &Path) -> Result<()> {
    let sandboxes: Vec<Record> = state::list(root)?.into_iter().filter(|record| record.infra).collect();
    for Record { id, .. } in sandboxes {
        if may_have_members(root, &id) {
            continue;
        }
        let directory = match StateDir::open(root, &id) {
            Err(Error::NotFound(_)) => continue,
            directory => directory?,
        };
        let record = directory.load()?;
        if record.infra && !may_have_members(root, &id) {
            Container { directory, record }.destroy()?;
        }
    }
    Ok(())
}

/// Whether a container is in the sandbox, or has a record that does not tell.
fn may_have_members(root: &Path, sandbox: &str) -> bool {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let containers = names.filter(|name| state::check_id(name).is_ok() && root.join(name).is_dir());
    let is_member = |name: String| match state::load(root, &name) {
        Ok(record) => record.sandbox.as_deref() == Some(sandbox),
        Err(_) => root.join(&name).is_dir(),
    };
    containers.into_iter().any(is_member)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_one_that_the_host_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(PAUSE);
        fs::write(&path, program()).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        let stat = || fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap_or_default();
        for _ in 0..1000 {
            if stat().contains("pause") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
