//! `net/ipv4/conf` and `net/ipv6/conf`: the parameters of each interface, of `all` that there are, and by `default` of those to
//! come.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::sentry::kernel::Kernel;
use crate::vfs::inode::{Inode, NodeType};
use crate::vfs::kernfs::{Content, Dir, EmitEntry, Entries, Tree};

const IPV4: [(&str, &str); 6] = [
    ("accept_redirects", "0"),
    ("accept_source_route", "0"),
    ("arp_ignore", "0"),
    ("forwarding", "0"),
    ("rp_filter", "0"),
    ("send_redirects", "0"),
];

const IPV6: [(&str, &str); 4] = [("accept_ra", "0"), ("forwarding", "0"), ("hop_limit", "64"), ("use_tempaddr", "0")];

/// Both directories, where they lie in `/proc/sys`, and what in them never changes.
const DIRECTORIES: [(&str, &[(&str, &str)]); 2] = [("net/ipv4", &IPV4), ("net/ipv6", &IPV6)];

/// Those beside the interfaces.
const EVERYWHERE: [&str; 2] = ["all", "default"];

/// The longest name of an interface, with a byte for its end.
const NAME_SIZE: usize = libc::IFNAMSIZ;

/// Adds the directories to `/proc/sys`.
pub fn add(sys: &Arc<Dir>, kernel: &Weak<Kernel>) {
    for (parent, fixed) in DIRECTORIES {
        let (tree, kernel) = (sys.tree().clone(), kernel.clone());
        let v6 = parent == "net/ipv6";
        let entries = Conf { tree, kernel, fixed, v6, made: Mutex::default() };
        sys.make_dirs(parent).add("conf", Dir::new(sys.tree(), 0o555, Some(Arc::new(entries))));
    }
}

/// The value of a parameter that never changes, by its path beneath `/proc/sys`; of an interface that may be one to come.
pub fn fixed(path: &str) -> Option<&'static str> {
    DIRECTORIES.iter().find_map(|(parent, fixed)| {
        let (interface, name) = path.strip_prefix(parent)?.strip_prefix("/conf/")?.split_once('/')?;
        let known = fixed.iter().find(|(known, _)| *known == name).filter(|_| is_name(interface));
        known.map(|(_, value)| *value)
    })
}

/// The interface (or `all`, `default`) of which `path` beneath `/proc/sys` is `disable_ipv6`.
pub fn v6_off(path: &str) -> Option<&str> {
    let name = path.strip_prefix("net/ipv6/conf/")?.strip_suffix("/disable_ipv6")?;
    is_name(name).then_some(name)
}

/// Whether an interface may be called so.
fn is_name(name: &str) -> bool {
    (1..NAME_SIZE).contains(&name.len()) && !name.contains('/')
}

struct Conf {
    tree: Arc<Tree>,
    kernel: Weak<Kernel>,
    fixed: &'static [(&'static str, &'static str)],
    v6: bool,
    /// What was looked up once, by name. Leaf lock.
    made: Mutex<BTreeMap<String, Arc<Dir>>>,
}

impl Conf {
    /// The names that there are now.
    fn names(&self) -> Vec<String> {
        let kernel = self.kernel.upgrade();
        let interfaces = kernel.iter().flat_map(|kernel| kernel.net.interfaces().iter().map(|one| one.name.clone()));
        EVERYWHERE.iter().map(|&name| name.to_owned()).chain(interfaces).collect()
    }

    fn directory(&self, name: &str) -> Arc<Dir> {
        let make = || {
            let dir = Dir::new(&self.tree, 0o555, None);
            for (parameter, value) in self.fixed {
                dir.add_text(parameter, 0o444, &format!("{value}\n"));
            }
            if self.v6 {
                let off = V6Off { kernel: self.kernel.clone(), name: name.to_owned() };
                dir.add_content("disable_ipv6", 0o644, Arc::new(off));
            }
            dir
        };
        self.made.lock().entry(name.to_owned()).or_insert_with(make).clone()
    }
}

impl Entries for Conf {
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let known = self.names().into_iter().find(|known| known.as_bytes() == name).ok_or(Errno::ENOENT)?;
        Ok(self.directory(&known))
    }

    fn list(&self, from: u64, emit: &mut EmitEntry<'_>) {
        for (at, name) in (0u64..).zip(self.names()).skip_while(|(at, _)| *at < from) {
            let ino = self.directory(&name).attr().map_or(0, |attr| attr.ino);
            if !emit(name.as_bytes(), ino, NodeType::Directory, at + 1) {
                return;
            }
        }
    }
}

/// `disable_ipv6`.
struct V6Off {
    kernel: Weak<Kernel>,
    name: String,
}

impl Content for V6Off {
    fn read(&self) -> Result<Vec<u8>> {
        let kernel = self.kernel.upgrade().ok_or(Errno::EIO)?;
        let off = kernel.net.interfaces().v6_is_off(&self.name).ok_or(Errno::ENOENT)?;
        Ok(format!("{}\n", u8::from(off)).into_bytes())
    }

    /// `EINVAL`.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if offset > 0 {
            return Ok(());
        }
        let kernel = self.kernel.upgrade().ok_or(Errno::EIO)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?;
        let value: i32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
        kernel.net.interfaces().set_v6_off(&self.name, value != 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_paths() {
        assert_eq!(fixed("net/ipv4/conf/eth7/rp_filter"), Some("0"));
        assert_eq!(fixed("net/ipv6/conf/all/hop_limit"), Some("64"));
        assert_eq!(fixed("net/ipv6/conf/all/disable_ipv6"), None);
        assert_eq!(fixed("net/ipv6/conf/a/b/hop_limit"), None);
        assert_eq!(v6_off("net/ipv6/conf/lo/disable_ipv6"), Some("lo"));
        for wrong in ["net/ipv6/conf//disable_ipv6", "net/ipv6/conf/sixteen-letters-/disable_ipv6", "net/ipv6/conf/lo"]
        {
            assert_eq!(v6_off(wrong), None, "{wrong}");
        }
    }
}
