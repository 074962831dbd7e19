//! Reading `config.json` and refusing what cannot be run, by the name of the field.
//!
//! What the sandbox cannot honour yet is refused rather than ignored where ignoring it would leave the operator with
//! less isolation, or another program, than was asked for.

use std::fs;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Process, Spec};
use serde::Deserialize;

#[cfg(test)]
mod docker;
mod linux;
pub mod volumes;

use super::error::{Context, Error, Result};
use crate::sentry::boot::mounts::options;
use crate::vfs::tmpfs::TmpfsOptions;

/// The newest version of the specification that is known.
pub const MAX_VERSION: &str = "1.1.0";

/// Longest host name, `sethostname(2)`.
const HOST_NAME_MAX: usize = 64;

/// A bundle that can be run.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Its directory, absolute.
    pub path: PathBuf,
    /// Its `config.json`; `root.path` and the sources of bind mounts are absolute.
    pub spec: Spec,
}

/// What the operator allows to go unheeded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leniency {
    /// `--ignore-cgroups`: run without the resource limits of the specification.
    pub ignore_cgroups: bool,
}

impl Bundle {
    /// Reads and checks the bundle in `directory`. `look` is shown the specification first, and may change it.
    pub fn load<T>(
        directory: &Path,
        leniency: Leniency,
        look: impl FnOnce(&mut Spec) -> std::result::Result<T, Problem>,
    ) -> Result<(Bundle, T)> {
        let path = fs::canonicalize(directory).doing(|| format!("bundle {}", directory.display()))?;
        let file = path.join("config.json");
        let text = fs::read(&file).doing(|| format!("read {}", file.display()))?;
        let mut spec = parse(&text).map_err(|problem| problem.at(&file))?;
        let seen = look(&mut spec).map_err(|problem| problem.at(&file))?;
        Ok((Bundle::new(path, spec, leniency).map_err(|problem| problem.at(&file))?, seen))
    }

    /// A bundle from a specification in memory, checked the same way.
    pub fn new(path: PathBuf, mut spec: Spec, leniency: Leniency) -> std::result::Result<Bundle, Problem> {
        check_version(&spec)?;
        check_process(spec.process().as_ref().ok_or_else(|| Problem::new("process", "is missing"))?)?;
        check_root(&path, &mut spec)?;
        check_mounts(&path, &mut spec)?;
        check_linux(&spec)?;
        if leniency.ignore_cgroups
            && let Some(linux) = spec.linux_mut()
        {
            linux.set_resources(None).set_cgroups_path(None);
        }
        check_rest(&spec)?;
        Ok(Bundle { path, spec })
    }

    /// The root file system, absolute.
    pub fn root(&self) -> &Path {
        self.spec.root().as_ref().map_or(Path::new("/"), |root| root.path())
    }

    /// Whether the container's process wants a terminal.
    pub fn terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false)
    }

    /// Whether `root.readonly` is set.
    pub fn root_read_only(&self) -> bool {
        self.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false)
    }

    /// The network namespace that the specification names, if any.
    pub fn network_namespace(&self) -> Option<&Path> {
        let namespaces = self.spec.linux().as_ref()?.namespaces().as_ref()?;
        namespaces.iter().find(|ns| ns.typ() == LinuxNamespaceType::Network)?.path().as_deref()
    }
}

/// A field and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path through the document, `mounts[2].source`.
    pub field: String,
    /// What is wrong.
    pub text: String,
}

impl Problem {
    /// Of `field`, in words.
    pub fn new(field: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem { field: field.into(), text: text.into() }
    }

    /// The error for the operator, who wants to know the file too.
    pub fn at(self, file: &Path) -> Error {
        Error::Spec { path: file.to_owned(), field: self.field, problem: self.text }
    }
}

type Check = std::result::Result<(), Problem>;

/// Whether a mount brings in a host directory or file: by its type or, as runtimes do, by its options.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// Parses a document; an error names the field that serde was at.
pub fn parse<T: for<'de> Deserialize<'de>>(text: &[u8]) -> std::result::Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let document = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => "document".to_owned(),
            path => path,
        };
        Problem::new(field, error.into_inner().to_string())
    })?;
    reader.end().map_err(|error| Problem::new("document", error.to_string()))?;
    Ok(document)
}

fn check_version(spec: &Spec) -> Check {
    let version = spec.version();
    match version.split('.').next() {
        Some("1") => Ok(()),
        _ if version.is_empty() => Err(Problem::new("ociVersion", "is missing")),
        _ => Err(Problem::new("ociVersion", format!("version {version:?} is not supported: 1.x is"))),
    }
}

/// A process that is to run in a container.
pub fn check_process(process: &Process) -> Check {
    let args = process.args().as_deref().unwrap_or_default();
    match args.first() {
        None => return Err(Problem::new("process.args", "is missing or empty")),
        Some(first) if first.is_empty() => return Err(Problem::new("process.args[0]", "is empty")),
        Some(_) => {}
    }
    no_nul("process.args", args)?;
    let env = process.env().as_deref().unwrap_or_default();
    no_nul("process.env", env)?;
    linux::check_process(process)?;
    if let Some(bad) = env.iter().position(|entry| !entry.contains('=')) {
        return Err(Problem::new(format!("process.env[{bad}]"), format!("{:?} is not NAME=VALUE", env[bad])));
    }
    if !process.cwd().is_absolute() {
        return Err(Problem::new("process.cwd", format!("{:?} is not an absolute path", process.cwd())));
    }
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (index, limit) in limits.iter().enumerate() {
        if limit.soft() > limit.hard() {
            return Err(Problem::new(format!("process.rlimits[{index}].soft"), "is above the hard limit"));
        }
        if limits[..index].iter().any(|earlier| earlier.typ() == limit.typ()) {
            return Err(Problem::new(format!("process.rlimits[{index}].type"), format!("{} twice", limit.typ())));
        }
    }
    Ok(())
}

fn no_nul(field: &str, words: &[String]) -> Check {
    match words.iter().position(|word| word.contains('\0')) {
        Some(index) => Err(Problem::new(format!("{field}[{index}]"), "contains a NUL byte")),
        None => Ok(()),
    }
}

fn check_root(bundle: &Path, spec: &mut Spec) -> Check {
    let root = spec.root_mut().as_mut().ok_or_else(|| Problem::new("root", "is missing"))?;
    if root.path().as_os_str().is_empty() {
        return Err(Problem::new("root.path", "is missing or empty"));
    }
    let path = bundle.join(root.path());
    let path = fs::canonicalize(&path)
        .doing(|| path.display().to_string())
        .map_err(|error| Problem::new("root.path", error.to_string()))?;
    if !path.is_dir() {
        return Err(Problem::new("root.path", format!("{} is not a directory", path.display())));
    }
    root.set_path(path);
    Ok(())
}

fn check_mounts(bundle: &Path, spec: &mut Spec) -> Check {
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let destination = mount.destination();
        // Old specifications have relative destinations, which OCI says are relative to "/".
        let destination = Path::new("/").join(destination);
        if destination.components().any(|part| part == Component::ParentDir) {
            let text = format!("{} leads upwards", destination.display());
            return Err(Problem::new(format!("mounts[{index}].destination"), text));
        }
        if is_bind(mount) {
            let field = || format!("mounts[{index}].source");
            let source = mount.source().as_ref().ok_or_else(|| Problem::new(field(), "is missing"))?;
            let source = bundle.join(source);
            let source = fs::canonicalize(&source)
                .doing(|| source.display().to_string())
                .map_err(|error| Problem::new(field(), error.to_string()))?;
            mount.set_source(Some(source));
        } else if mount.typ().is_none() {
            return Err(Problem::new(format!("mounts[{index}].type"), "is missing"));
        }
        let kind = if is_bind(mount) { None } else { mount.typ().as_deref() };
        let options = mount.options().iter().flatten().map(String::as_str);
        let parsed =
            options::parse(kind, options).map_err(|text| Problem::new(format!("mounts[{index}].options"), text))?;
        if kind == Some("tmpfs") {
            TmpfsOptions::parse(&parsed.data, u64::MAX).map_err(|_| {
                Problem::new(format!("mounts[{index}].options"), format!("{:?}: bad value", parsed.data))
            })?;
        }
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            return Err(Problem::new(format!("mounts[{index}].uidMappings"), "id-mapped mounts are not supported"));
        }
        mount.set_destination(destination);
    }
    Ok(())
}

fn check_linux(spec: &Spec) -> Check {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    for (index, namespace) in namespaces.iter().enumerate() {
        let typ = namespace.typ();
        let field = |what: &str| format!("linux.namespaces[{index}].{what}");
        if namespaces[..index].iter().any(|earlier| earlier.typ() == typ) {
            return Err(Problem::new(field("type"), format!("{typ} twice")));
        }
        match (typ, namespace.path()) {
            (LinuxNamespaceType::User, _) => {
                return Err(Problem::new(field("type"), "user namespaces are not supported yet"));
            }
            (LinuxNamespaceType::Network, Some(path)) => {
                let found = fs::metadata(path).doing(|| path.display().to_string());
                found.map_err(|error| Problem::new(field("path"), error.to_string()))?;
            }
            (LinuxNamespaceType::Time, None) => {} // without offsets its clocks are those of any
            (_, Some(path)) if !path.as_os_str().is_empty() => {
                return Err(Problem::new(field("path"), format!("joining another {typ} namespace is not supported")));
            }
            _ => {}
        }
    }
    linux::check(linux)
}

fn check_rest(spec: &Spec) -> Check {
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if name.as_ref().is_some_and(|name| name.len() > HOST_NAME_MAX) {
            return Err(Problem::new(field, format!("is longer than {HOST_NAME_MAX} bytes")));
        }
    }
    linux::check_hooks(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn good() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
            "root": {"path": "/"},
        })
    }

    /// The field that is refused when `change` is merged into a good document at the JSON pointer `at`.
    fn refused(at: &str, change: Value) -> String {
        let mut document = good();
        let (parent, name) = at.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[name] = change;
        let text = serde_json::to_vec(&document).unwrap();
        let outcome = parse(&text).and_then(|spec| Bundle::new("/".into(), spec, Leniency::default()));
        outcome.expect_err("accepted").field
    }

    #[test]
    fn a_small_bundle_is_accepted() {
        let spec = parse(&serde_json::to_vec(&good()).unwrap()).unwrap();
        let bundle = Bundle::new("/".into(), spec, Leniency::default()).unwrap();
        assert_eq!(bundle.root(), Path::new("/"));
        assert!(!bundle.root_read_only());
    }

    #[test]
    fn types_are_checked_by_field() {
        assert_eq!(refused("/process/user", json!({"uid": "root"})), "process.user.uid");
        assert_eq!(refused("/process/args", json!(["a", 1])), "process.args[1]");
        assert_eq!(refused("/process/env", json!("A=b")), "process.env");
        assert_eq!(parse::<Spec>(b"[").unwrap_err().field, "document");
        assert_eq!(parse::<Spec>(b"{} x").unwrap_err().field, "document");
    }

    #[test]
    fn values_are_checked_by_field() {
        assert_eq!(refused("/ociVersion", json!("2.0.0")), "ociVersion");
        assert_eq!(refused("/process/args", json!([])), "process.args");
        assert_eq!(refused("/process/args", json!(["a", "b\0"])), "process.args[1]");
        assert_eq!(refused("/process/env", json!(["A=b", "C"])), "process.env[1]");
        assert_eq!(refused("/process/cwd", json!("tmp")), "process.cwd");
        assert_eq!(refused("/root", json!({"path": "/no such"})), "root.path");
        assert_eq!(refused("/root", json!({"path": "/proc/self/stat"})), "root.path");
        assert_eq!(refused("/hostname", json!("h".repeat(65))), "hostname");
        assert_eq!(refused("/hooks", json!({"prestart": [{"path": "bin/true"}]})), "hooks.prestart[0].path");
        let hooks = json!({"poststop": [{"path": "/a"}, {"path": "/b", "timeout": 0}]});
        assert_eq!(refused("/hooks", hooks), "hooks.poststop[1].timeout");
    }

    #[test]
    fn limits_are_checked() {
        let nofile = json!({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2});
        assert_eq!(refused("/process/rlimits", json!([nofile, nofile])), "process.rlimits[1].type");
        let above = json!({"type": "RLIMIT_NOFILE", "soft": 3, "hard": 2});
        assert_eq!(refused("/process/rlimits", json!([above])), "process.rlimits[0].soft");
    }

    #[test]
    fn mounts_are_checked_by_index() {
        let proc = json!({"destination": "/proc", "type": "proc"});
        let missing = json!({"destination": "/x", "type": "bind", "source": "/no such"});
        assert_eq!(refused("/mounts", json!([proc, missing])), "mounts[1].source");
        assert_eq!(refused("/mounts", json!([{"destination": "/x"}])), "mounts[0].type");
        let upwards = json!({"destination": "/a/../../x", "type": "tmpfs"});
        assert_eq!(refused("/mounts", json!([upwards])), "mounts[0].destination");
    }

    #[test]
    fn namespaces_are_checked_by_index() {
        let twice = json!({"namespaces": [{"type": "pid"}, {"type": "pid"}]});
        assert_eq!(refused("/linux", twice), "linux.namespaces[1].type");
        assert_eq!(refused("/linux", json!({"namespaces": [{"type": "user"}]})), "linux.namespaces[0].type");
        let joined = json!({"namespaces": [{"type": "ipc", "path": "/proc/self/ns/ipc"}]});
        assert_eq!(refused("/linux", joined), "linux.namespaces[0].path");
        let gone = json!({"namespaces": [{"type": "network", "path": "/no such"}]});
        assert_eq!(refused("/linux", gone), "linux.namespaces[0].path");
    }
}
