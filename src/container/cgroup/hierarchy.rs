//! Which cgroup hierarchies this host has, and where: `/proc/self/mountinfo` and `/proc/self/cgroup`, `cgroups(7)`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::container::error::{Context, Error, Result};

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where it is mounted.
    pub point: PathBuf,
    /// The cgroup that is mounted there, as the hierarchy has it.
    pub root: PathBuf,
    /// This process's cgroup in it, relative to the mount.
    pub own: PathBuf,
}

/// The hierarchies of a host that can be written to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// cgroup v1: by controller, or by `name=NAME`. Controllers that are mounted together lead to one place.
    pub v1: BTreeMap<String, Mounted>,
    /// cgroup v2.
    pub v2: Option<Mounted>,
}

impl Hierarchies {
    /// Those of this process's mount namespace.
    pub fn detect() -> Result<Hierarchies> {
        let read = |path: &str| fs::read_to_string(path).doing(|| format!("read {path}"));
        Ok(Hierarchies::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, is_seen))
    }

    /// From the two files' text. A hierarchy that is mounted read-only is left out: nothing can be made there; and so is
    /// what is not `seen`, as something else is mounted above it.
    pub fn parse(mountinfo: &str, own: &str, seen: impl Fn(&Mount) -> bool) -> Hierarchies {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).filter(seen).collect();
        let mut found = Hierarchies::default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            if controllers.is_empty() {
                let mount = mounts.iter().find(|mount| mount.v2);
                found.v2 = mount.map(|mount| mount.mounted(path));
                continue;
            }
            for controller in controllers.split(',') {
                let here = |mount: &&Mount| !mount.v2 && mount.options.split(',').any(|option| option == controller);
                if let Some(mount) = mounts.iter().find(here) {
                    found.v1.insert(controller.to_owned(), mount.mounted(path));
                }
            }
        }
        found
    }

    /// Whether v2 is all there is.
    pub fn unified(&self) -> bool {
        self.v1.is_empty() && self.v2.is_some()
    }
}

impl Mounted {
    /// The directory of `path` (`linux.cgroupsPath`): below the mount when absolute, else below this process's own cgroup,
    /// or that one's parent where `beside`: v2 lets a cgroup with processes have no children with controllers.
    pub fn leaf(&self, path: &Path, beside: bool) -> PathBuf {
        match path.strip_prefix("/") {
            Ok(absolute) => self.point.join(absolute),
            Err(_) if beside => self.point.join(self.own.parent().unwrap_or(Path::new(""))).join(path),
            Err(_) => self.point.join(&self.own).join(path),
        }
    }

    /// The directory of a cgroup that is told as `/proc/PID/cgroup` tells it.
    pub fn of_group(&self, group: &Path) -> PathBuf {
        let below = group.strip_prefix(&self.root).or_else(|_| group.strip_prefix("/")).unwrap_or(group);
        self.point.join(below)
    }
}

/// Whether a mount is what is found at its place: another may lie above it, or above a directory on the way. mountinfo lists
/// both.
fn is_seen(mount: &Mount) -> bool {
    let Ok(path) = CString::new(mount.point.as_os_str().as_bytes()) else { return false };
    // SAFETY: all zeroes is a value of this plain structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero, and `found` has room for the answer.
    let done = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_MNT_ID, &mut found) };
    if done != 0 {
        return false;
    }
    if found.stx_mask & libc::STATX_MNT_ID != 0 {
        found.stx_mnt_id == mount.id
    } else {
        // Before Linux 5.8: at least it is the same hierarchy.
        (found.stx_dev_major, found.stx_dev_minor) == mount.device
    }
}

/// A line of mountinfo.
pub(super) struct Mount {
    id: u64,
    /// Of the super block: major and minor number.
    device: (u32, u32),
    root: PathBuf,
    point: PathBuf,
    /// Of the super block: its controllers are among them.
    options: String,
    v2: bool,
}

impl Mount {
    /// A writable mount of a cgroup hierarchy: `proc_pid_mountinfo(5)`.
    fn parse(line: &str) -> Option<Mount> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mount: Vec<&str> = mount.split(' ').collect();
        let mut file_system = file_system.split(' ');
        let v2 = match file_system.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = file_system.nth(1)?.to_owned();
        let read_only = mount.get(5)?.split(',').chain(options.split(',')).any(|option| option == "ro");
        let (major, minor) = mount.get(2)?.split_once(':')?;
        let mount = Mount {
            id: mount.first()?.parse().ok()?,
            device: (major.parse().ok()?, minor.parse().ok()?),
            root: unescape(mount.get(3)?),
            point: unescape(mount.get(4)?),
            options,
            v2,
        };
        (!read_only).then_some(mount)
    }

    fn mounted(&self, own: &str) -> Mounted {
        // A process outside of what is mounted here, in a cgroup namespace say, counts as one at its top.
        let own = Path::new(own);
        let below = own.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let inside = below.components().all(|part| matches!(part, Component::Normal(_)));
        let own = if inside { below.to_owned() } else { PathBuf::new() };
        Mounted { point: self.point.clone(), root: self.root.clone(), own }
    }
}

/// Undoes `\040` for a space and the like.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = text.get(at + 1..at + 4).filter(|_| byte == b'\\').and_then(|code| u8::from_str_radix(code, 8).ok());
        plain.push(code.unwrap_or(byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(plain).into()
}

/// A `linux.cgroupsPath` that stays where it says.
pub(super) fn check_path(path: &Path) -> Result<()> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Error::Usage(format!("linux.cgroupsPath: {} leads upwards", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 /docker/a\\040b /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,name=systemd
";
    const OWN: &str = "5:cpu,cpuacct:/docker/a b/c\n4:memory:/x\n3:pids:/\n1:name=systemd:/../y\n0::/user/s\n";

    #[test]
    fn hierarchies_of_a_hybrid_host() {
        let found = Hierarchies::parse(HYBRID, OWN, |_| true);
        let names: Vec<&str> = found.v1.keys().map(String::as_str).collect();
        assert_eq!(names, ["cpu", "cpuacct", "name=systemd"], "memory is read-only, pids is not mounted");
        let cpu = Mounted { point: "/sys/fs/cgroup/cpu,cpuacct".into(), root: "/docker/a b".into(), own: "c".into() };
        assert_eq!(found.v1["cpu"], cpu);
        assert_eq!(found.v1["name=systemd"].own, Path::new(""), "outside of the mount");
        assert!(!found.unified());
        let v2 = found.v2.unwrap();
        assert_eq!(v2.leaf("a/b".as_ref(), false), Path::new("/sys/fs/cgroup/unified/user/s/a/b"));
        assert_eq!(v2.leaf("a/b".as_ref(), true), Path::new("/sys/fs/cgroup/unified/user/a/b"));
        assert_eq!(v2.leaf("/a/b".as_ref(), true), Path::new("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(cpu.leaf("a".as_ref(), false), Path::new("/sys/fs/cgroup/cpu,cpuacct/c/a"));
        assert_eq!(cpu.of_group("/docker/a b/x.slice".as_ref()), Path::new("/sys/fs/cgroup/cpu,cpuacct/x.slice"));
        assert_eq!(v2.of_group("/x.slice/y".as_ref()), Path::new("/sys/fs/cgroup/unified/x.slice/y"));
    }

    #[test]
    fn a_host_with_v2_alone() {
        let found = Hierarchies::parse("31 30 0:27 / /sys/fs/cgroup rw - cgroup2 none rw\n", "0::/\n", |_| true);
        assert!(found.unified());
        assert_eq!(found.v2.unwrap().leaf("a".as_ref(), true), Path::new("/sys/fs/cgroup/a"));
        assert!(!Hierarchies::parse("", "0::/\n", |_| true).unified());
    }

    #[test]
    fn what_is_mounted_over_is_not_there() {
        let found = Hierarchies::parse(HYBRID, OWN, |mount| mount.v2);
        assert!(found.unified() && found.v1.is_empty());
        // "/" is there, but as another mount.
        let other = "18446744073709551615 0 0:1 / / rw - cgroup2 none rw\n";
        assert_eq!(Hierarchies::parse(other, "0::/\n", is_seen), Hierarchies::default());
        let here = Hierarchies::detect().unwrap();
        assert!(here.v2.is_some() || !here.v1.is_empty(), "this host has cgroups");
    }

    #[test]
    fn paths_stay_below() {
        assert!(check_path("/a/../../b".as_ref()).is_err());
        check_path("/docker/c1".as_ref()).unwrap();
    }
}
