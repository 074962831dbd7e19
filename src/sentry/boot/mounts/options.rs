//! The options of a mount of the specification: config.md, "Mounts". Each is known or refused by its name.

use crate::vfs::mount::MountFlags;

/// What the options of one mount say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags of the mount.
    pub flags: MountFlags,
    /// How it propagates, if that was said: `private`, `rslave`.
    pub propagation: Option<String>,
    /// The file system's own, separated by commas.
    pub data: String,
}

/// File systems that can be mounted, with their own options (the part before `=`). Those of `proc` that restrict what is
/// seen are not among them.
const FILE_SYSTEMS: [(&str, &[&str]); 9] = [
    ("proc", &[]),
    ("sysfs", &[]),
    ("devpts", &["newinstance", "ptmxmode", "mode", "uid", "gid", "max"]),
    ("tmpfs", TMPFS),
    ("ramfs", TMPFS),
    ("devtmpfs", TMPFS),
    ("mqueue", &[]),
    ("cgroup", CGROUP),
    ("cgroup2", CGROUP),
];

const TMPFS: &[&str] =
    &["size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol", "inode32", "inode64", "noswap"];

/// How the host accounts, which is the same for the view that the sandbox has: `cgroups(7)`.
const CGROUP: &[&str] = &["nsdelegate", "memory_recursiveprot", "memory_localevents", "favordynmods", "xattr"];

/// Parses the options of a mount of file system `kind`; of a bind mount with `None`. What is wrong, in words.
pub fn parse<'a>(kind: Option<&str>, options: impl Iterator<Item = &'a str>) -> Result<MountOptions, String> {
    let own: &[&str] = match kind {
        None => &[],
        Some(kind) => match FILE_SYSTEMS.iter().find(|(known, _)| *known == kind) {
            Some((_, own)) => own,
            None => return Err(format!("file system {kind:?} is not supported")),
        },
    };
    let mut parsed = MountOptions::default();
    let mut data = Vec::new();
    for option in options {
        if let Some((flag, on)) = flag(option) {
            parsed.flags.set(flag, on);
            continue;
        }
        match option {
            "bind" | "rbind" | "defaults" | "async" | "loud" | "silent" | "nomand" | "noiversion" | "nolazytime"
            | "" => {}
            "private" | "rprivate" | "slave" | "rslave" | "unbindable" | "runbindable" => {
                parsed.propagation = Some(option.to_owned());
            }
            "shared" | "rshared" if kind.is_none() => {
                return Err(format!("{option:?}: what the container mounts there cannot be seen on the host"));
            }
            "shared" | "rshared" => parsed.propagation = Some(option.to_owned()),
            other if own.contains(&other.split('=').next().unwrap_or(other)) => data.push(other),
            "idmap" | "ridmap" => return Err(format!("{option:?}: id-mapped mounts are not supported")),
            other => return Err(format!("option {other:?} is not supported")),
        }
    }
    parsed.data = data.join(",");
    Ok(parsed)
}

fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" => (MountFlags::STRICTATIME, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
        "symfollow" => (MountFlags::NOSYMFOLLOW, false),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_propagation_and_data_are_told_apart() {
        let options = ["nosuid", "noexec", "rslave", "mode=755", "size=64k", "ro", "rw"];
        let parsed = parse(Some("tmpfs"), options.into_iter()).unwrap();
        assert_eq!(parsed.flags, MountFlags::NOSUID | MountFlags::NOEXEC);
        assert_eq!(parsed.propagation.as_deref(), Some("rslave"));
        assert_eq!(parsed.data, "mode=755,size=64k");
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (kind, option) in [
            (Some("tmpfs"), "tmpcopyup"),
            (Some("proc"), "hidepid=2"),
            (Some("sysfs"), "size=1"),
            (None, "size=1"),
            (None, "idmap"),
            (None, "rro"),
            (None, "rshared"),
        ] {
            let problem = parse(kind, [option].into_iter()).unwrap_err();
            assert!(problem.contains(option), "{problem}");
        }
        assert!(parse(Some("ext4"), std::iter::empty()).unwrap_err().contains("ext4"));
    }
}
