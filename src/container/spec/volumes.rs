//! Volumes of a pod that its annotations describe, as gVisor's shim writes them for `emptyDir`s:
//! `dev.gvisor.spec.mount.NAME.FIELD`, on the pod's first container.
//!
//! | field | |
//! | --- | --- |
//! | `source` | the host path that mounts of the volume have as their source |
//! | `type` | `tmpfs` or `bind` |
//! | `share` | who sees it: one `container`, the `pod`, or others too (`shared`) |
//! | `options` | of the mount, separated by commas: what no mount of it may go beyond, and tmpfs's own |
//!
//! A description that lacks one of the first three, or has an unknown field or value, is left out with a warning, as gVisor
//! does: it says how a volume is kept best, and its mounts say the rest.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::sentry::boot::mounts::options;
use crate::vfs::tmpfs::TmpfsOptions;

/// What all keys begin with.
pub const PREFIX: &str = "dev.gvisor.spec.mount.";

/// How a volume is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In memory, by the sentry.
    Tmpfs,
    /// On the host.
    Bind,
}

/// Who sees a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// One container.
    Container,
    /// The containers of the pod.
    Pod,
    /// Others too.
    Shared,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name in the pod.
    pub name: String,
    /// The source of its mounts.
    pub source: PathBuf,
    /// How it is kept.
    pub kind: Kind,
    /// Who sees it.
    pub share: Share,
    /// Mount options; with those that the root directory of one in memory gets from the directory on the host.
    pub options: Vec<String>,
}

/// The volumes that a specification describes.
pub fn volumes(spec: &Spec) -> Result<Vec<Volume>, Problem> {
    let mut described: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for (key, value) in spec.annotations().iter().flatten() {
        let Some(rest) = key.strip_prefix(PREFIX) else { continue };
        match rest.split_once('.') {
            Some((name, field)) if !name.is_empty() && !field.contains('.') => {
                described.entry(name).or_default().insert(field, value);
            }
            _ => return Err(Problem::new(of_key(key), format!("is not {PREFIX}NAME.FIELD"))),
        }
    }
    let mut volumes: Vec<Volume> = Vec::new();
    for (name, fields) in described {
        match volume(name, &fields) {
            Ok(volume) => volumes.push(volume),
            Err(problem) => {
                log::warn!("{}: {}: the volume is not treated specially", problem.field, problem.text);
                continue;
            }
        }
    }
    volumes.iter().enumerate().try_for_each(|(index, volume)| {
        let same = volumes[..index].iter().find(|other| other.source == volume.source);
        check(volume, same)
    })?;
    Ok(volumes)
}

fn of_key(key: &str) -> String {
    format!("annotations[{key:?}]")
}

fn of_field(name: &str, field: &str) -> String {
    of_key(&format!("{PREFIX}{name}.{field}"))
}

fn volume(name: &str, fields: &BTreeMap<&str, &str>) -> Result<Volume, Problem> {
    if let Some((field, _)) = fields.iter().find(|(field, _)| !["source", "type", "share", "options"].contains(field)) {
        log::warn!("{}: is not known", of_field(name, field));
    }
    let get = |field: &str| {
        let value = fields.get(field).copied().filter(|value| !value.is_empty());
        value.ok_or_else(|| Problem::new(of_field(name, field), "is missing"))
    };
    let unknown = |field: &str, value: &str, known: &str| {
        Problem::new(of_field(name, field), format!("{value:?} is not one of {known}"))
    };
    let source = PathBuf::from(get("source")?);
    let kind = match get("type")? {
        "tmpfs" => Kind::Tmpfs,
        "bind" => Kind::Bind,
        other => return Err(unknown("type", other, "tmpfs, bind")),
    };
    let share = match get("share")? {
        "container" => Share::Container,
        "pod" => Share::Pod,
        "shared" => Share::Shared,
        other => return Err(unknown("share", other, "container, pod, shared")),
    };
    let given = fields.get("options").copied().unwrap_or_default().split(',').filter(|option| !option.is_empty());
    let mut options: Vec<String> = if kind == Kind::Tmpfs { root_of(&source) } else { Vec::new() };
    options.extend(given.map(str::to_owned));
    Ok(Volume { name: name.to_owned(), source, kind, share, options })
}

/// What the root directory of a volume in memory is like: whoever made the directory on the host has given it to the pod's
/// group, as the kubelet does. Where there is none everybody may write.
fn root_of(source: &Path) -> Vec<String> {
    match fs::metadata(source) {
        Ok(meta) if meta.is_dir() => {
            vec![
                format!("mode={:o}", meta.mode() & 0o7777),
                format!("uid={}", meta.uid()),
                format!("gid={}", meta.gid()),
            ]
        }
        _ => vec!["mode=777".into()],
    }
}

fn check(volume: &Volume, same: Option<&Volume>) -> Result<(), Problem> {
    if let Some(other) = same {
        let text = format!("is that of {:?} too: {}", other.name, volume.source.display());
        return Err(Problem::new(of_field(&volume.name, "source"), text));
    }
    let wrong = |text: String| Problem::new(of_field(&volume.name, "options"), text);
    let kind = match volume.kind {
        Kind::Tmpfs => Some("tmpfs"),
        Kind::Bind => None,
    };
    let parsed = options::parse(kind, volume.options.iter().map(String::as_str)).map_err(wrong)?;
    if volume.kind == Kind::Tmpfs {
        TmpfsOptions::parse(&parsed.data, u64::MAX).map_err(|_| wrong(format!("{:?}: bad value", parsed.data)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(annotations: &[(&str, &str)]) -> Result<Vec<Volume>, Problem> {
        let named = annotations.iter().map(|(key, value)| (format!("{PREFIX}{key}"), json!(value)));
        let annotations: serde_json::Map<String, Value> = named.collect();
        let spec = json!({"ociVersion": "1.0.2", "annotations": annotations});
        volumes(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_complete_description_is_a_volume() {
        let found = of(&[
            ("cache.source", "/no such"),
            ("cache.type", "tmpfs"),
            ("cache.share", "pod"),
            ("cache.options", "rw,noexec,size=64k"),
            ("half.type", "tmpfs"),
            ("odd.source", "/odd"),
            ("odd.type", "nfs"),
            ("odd.share", "pod"),
        ]);
        let options = ["mode=777", "rw", "noexec", "size=64k"].map(str::to_owned).to_vec();
        let (name, source) = ("cache".to_owned(), "/no such".into());
        assert_eq!(found.unwrap(), [Volume { name, source, kind: Kind::Tmpfs, share: Share::Pod, options }]);
    }

    #[test]
    fn the_directory_on_the_host_says_whose_it_is() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let source = directory.path().to_str().unwrap();
        let found = of(&[("a.source", source), ("a.type", "tmpfs"), ("a.share", "container")]).unwrap();
        assert_eq!(found[0].options[0], "mode=700");
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_its_key() {
        let volume = |name: &str, options: &str| {
            let field = |field: &str, value: &str| (format!("{name}.{field}"), value.to_owned());
            [field("source", "/s"), field("type", "tmpfs"), field("share", "pod"), field("options", options)]
        };
        let refused = |all: Vec<(String, String)>| {
            let all: Vec<(&str, &str)> = all.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            of(&all).unwrap_err().field
        };
        let twice = [volume("a", ""), volume("b", "")].concat();
        assert_eq!(refused(twice), "annotations[\"dev.gvisor.spec.mount.b.source\"]");
        assert_eq!(refused(volume("a", "size=x").to_vec()), "annotations[\"dev.gvisor.spec.mount.a.options\"]");
        assert_eq!(refused(volume("a", "idmap").to_vec()), "annotations[\"dev.gvisor.spec.mount.a.options\"]");
        assert_eq!(of(&[("a", "x")]).unwrap_err().field, "annotations[\"dev.gvisor.spec.mount.a\"]");
    }
}
