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

/// Options that set a flag of the mount or take it away.
const FLAGS: [(&str, MountFlags, bool); 20] = [
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("nosymfollow", MountFlags::NOSYMFOLLOW, true),
    ("symfollow", MountFlags::NOSYMFOLLOW, false),
];

/// Options that ask for what there is anyway.
const USUAL: [&str; 9] = ["bind", "rbind", "defaults", "async", "loud", "silent", "nomand", "noiversion", "nolazytime"];

/// How a mount propagates: `mount_namespaces(7)`.
const PROPAGATION: [&str; 8] =
    ["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];

/// Every option that is known for any mount, in order: what `features` tells. A file system's own are not among them.
pub fn known() -> Vec<&'static str> {
    let flags = FLAGS.iter().map(|(name, _, _)| *name);
    let mut all: Vec<&str> = flags.chain(USUAL).chain(PROPAGATION).collect();
    all.sort_unstable();
    all
}

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
        if let Some(&(_, flag, on)) = FLAGS.iter().find(|(name, _, _)| *name == option) {
            parsed.flags.set(flag, on);
            continue;
        }
        match option {
            "" => {}
            usual if USUAL.contains(&usual) => {}
            "shared" | "rshared" if kind.is_none() => {
                return Err(format!("{option:?}: what the container mounts there cannot be seen on the host"));
            }
            how if PROPAGATION.contains(&how) => parsed.propagation = Some(option.to_owned()),
            other if own.contains(&other.split('=').next().unwrap_or(other)) => data.push(other),
            "idmap" | "ridmap" => return Err(format!("{option:?}: id-mapped mounts are not supported")),
            other => return Err(format!("option {other:?} is not supported")),
        }
    }
    parsed.data = data.join(",");
    Ok(parsed)
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
    fn what_is_known_is_taken() {
        let known = known();
        assert!(known.is_sorted() && known.windows(2).all(|pair| pair[0] != pair[1]), "{known:?}");
        for option in known {
            assert!(parse(Some("tmpfs"), [option].into_iter()).is_ok(), "{option}");
        }
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
