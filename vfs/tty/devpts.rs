//! devpts: the file system of pseudoterminals, one instance a mount: `devpts` in `mount(8)`.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Master, Terminals, Tty, slave_rdev};
use crate::errno::{Errno, Result};
use crate::vfs::file::{DirEntry, File};
use crate::vfs::inode::{Attachments, Attr, Caching, FileSystem, Inode, NodeType, SetAttr, StatFs};

/// `DEVPTS_SUPER_MAGIC`.
const MAGIC: i64 = 0x1cd1;
const ROOT_INO: u64 = 1;
const PTMX_INO: u64 = 2;
/// The number of slave 0.
const FIRST_INO: u64 = 3;

/// Mount options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevPtsOptions {
    /// `uid=`: the owner of new slaves; `None` is who opens the master.
    pub uid: Option<u32>,
    /// `gid=`: their group; `None` is 0.
    pub gid: Option<u32>,
    /// `mode=`: their permissions.
    pub mode: u32,
    /// `ptmxmode=`: the permissions of `ptmx` here.
    pub ptmx_mode: u32,
    /// `max=`: how many pairs there may be.
    pub max: u32,
}

impl Default for DevPtsOptions {
    fn default() -> Self {
        DevPtsOptions { uid: None, gid: None, mode: 0o600, ptmx_mode: 0, max: 4096 }
    }
}

impl DevPtsOptions {
    /// From the data of `mount(2)`: `gid=5,mode=620,ptmxmode=666`. `EINVAL` for what is unknown or has no such value.
    pub fn parse(data: &str) -> Result<DevPtsOptions> {
        let mut options = DevPtsOptions::default();
        for option in data.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let number = || value.parse().map_err(|_| Errno::EINVAL);
            let mode = || u32::from_str_radix(value, 8).map_err(|_| Errno::EINVAL).map(|mode| mode & 0o7777);
            match name {
                "uid" => options.uid = Some(number()?),
                "gid" => options.gid = Some(number()?),
                "mode" => options.mode = mode()?,
                "ptmxmode" => options.ptmx_mode = mode()?,
                "max" => options.max = number()?.min(DevPtsOptions::default().max),
                // Every instance is its own since Linux 4.7.
                "newinstance" => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(options)
    }
}

/// What the nodes of one instance share.
pub(super) struct Instance {
    dev: u64,
    /// Leaf lock.
    options: Mutex<DevPtsOptions>,
    terminals: Arc<Terminals>,
    slaves: Mutex<BTreeMap<u32, Arc<SlaveNode>>>,
    root_attr: Mutex<Attr>,
    ptmx_attr: Mutex<Attr>,
}

impl Instance {
    /// A new pair, with the lowest free number. `ENOSPC` when there are as many as there may be.
    fn open_master(self: &Arc<Self>) -> Result<Arc<dyn File>> {
        let owner = self.terminals.processes.caller().map_or(0, |caller| caller.uid);
        let mut slaves = self.slaves.lock();
        let options = *self.options.lock();
        let index = (0..options.max).find(|index| !slaves.contains_key(index)).ok_or(Errno::ENOSPC)?;
        let tty = Tty::new(index, self.terminals.clone());
        let ino = FIRST_INO + u64::from(index);
        let mut attr = Attr::new(self.dev, ino, NodeType::CharDevice, options.mode);
        attr.uid = options.uid.unwrap_or(owner);
        attr.gid = options.gid.unwrap_or(0);
        attr.rdev = slave_rdev(index);
        let node = SlaveNode { tty: tty.clone(), attr: Mutex::new(attr), attachments: Attachments::default() };
        slaves.insert(index, Arc::new(node));
        drop(slaves);
        Ok(Arc::new(Master::new(tty, self.clone())))
    }

    /// The master is closed: the name goes.
    pub(super) fn release(&self, index: u32) {
        let gone = self.slaves.lock().remove(&index);
        drop(gone);
    }
}

/// A devpts file system.
pub struct DevPts {
    instance: Arc<Instance>,
}

impl DevPts {
    /// An empty instance with device number `dev`.
    pub fn new(dev: u64, options: DevPtsOptions, terminals: Arc<Terminals>) -> DevPts {
        let mut ptmx = Attr::new(dev, PTMX_INO, NodeType::CharDevice, options.ptmx_mode);
        ptmx.rdev = libc::makedev(5, 2);
        let instance = Instance {
            dev,
            options: Mutex::new(options),
            terminals,
            slaves: Mutex::default(),
            root_attr: Mutex::new(Attr::new(dev, ROOT_INO, NodeType::Directory, 0o755)),
            ptmx_attr: Mutex::new(ptmx),
        };
        DevPts { instance: Arc::new(instance) }
    }

    /// Changes the options, for pairs that are made from then on.
    pub fn set_options(&self, options: DevPtsOptions) {
        *self.instance.options.lock() = options;
        self.instance.ptmx_attr.lock().perm = options.ptmx_mode;
    }

    /// Opens a new pair's master: for a device node 5:2 beside this instance, such as `/dev/ptmx`.
    pub fn open_ptmx(&self) -> Result<Arc<dyn File>> {
        self.instance.open_master()
    }
}

impl FileSystem for DevPts {
    fn type_name(&self) -> &'static str {
        "devpts"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::new(Root { instance: self.instance.clone(), attachments: Attachments::default() })
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MAGIC, bsize: 4096, namelen: 255, ..StatFs::default() })
    }

    /// Names come with masters and go with them.
    fn caching(&self) -> Caching {
        Caching::Never
    }

    fn options(&self) -> String {
        let options = *self.instance.options.lock();
        let owner = |name: &str, id: Option<u32>| id.map_or(String::new(), |id| format!(",{name}={id}"));
        let ids = owner("uid", options.uid) + &owner("gid", options.gid);
        format!("{ids},mode={:03o},ptmxmode={:03o}", options.mode, options.ptmx_mode)
    }
}

fn change(attr: &Mutex<Attr>, set: &SetAttr) -> Result<()> {
    let mut attr = attr.lock();
    attr.perm = set.perm.map_or(attr.perm, |perm| perm & 0o7777);
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.atime = set.atime.unwrap_or(attr.atime);
    attr.mtime = set.mtime.unwrap_or(attr.mtime);
    attr.ctime = crate::vfs::inode::TimeSpec::now();
    Ok(())
}

struct Root {
    instance: Arc<Instance>,
    attachments: Attachments,
}

impl Inode for Root {
    fn attr(&self) -> Result<Attr> {
        Ok(*self.instance.root_attr.lock())
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        change(&self.instance.root_attr, set)
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if name == b"ptmx" {
            return Ok(Arc::new(Ptmx { instance: self.instance.clone() }));
        }
        let text = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let index: u32 = text.parse().map_err(|_| Errno::ENOENT)?;
        // "007" and "+7" are no names of 7.
        let found = self.instance.slaves.lock().get(&index).filter(|_| index.to_string() == text).cloned();
        found.map(|node| node as Arc<dyn Inode>).ok_or(Errno::ENOENT)
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        Ok(Arc::new(RootFile { instance: self.instance.clone() }))
    }

    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.attachments)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct RootFile {
    instance: Arc<Instance>,
}

impl File for RootFile {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, _offset: u64, _sink: &mut dyn crate::io::Sink) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    /// Positions: 0 and 1 are the two dots, 2 is `ptmx`, then the slaves by number.
    fn read_dir(&self, pos: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let fixed: [(&[u8], u64, NodeType); 3] = [
            (b".", ROOT_INO, NodeType::Directory),
            (b"..", ROOT_INO, NodeType::Directory),
            (b"ptmx", PTMX_INO, NodeType::CharDevice),
        ];
        for (at, (name, ino, kind)) in (0u64..).zip(fixed).skip_while(|(at, _)| *at < pos) {
            if !emit(DirEntry { name, ino, kind, next: at + 1 }) {
                return Ok(());
            }
        }
        let from = u32::try_from(pos.saturating_sub(FIRST_INO)).unwrap_or(u32::MAX);
        let indices: Vec<u32> = self.instance.slaves.lock().range(from..).map(|(&index, _)| index).collect();
        for index in indices {
            let ino = FIRST_INO + u64::from(index);
            let name = index.to_string();
            if !emit(DirEntry { name: name.as_bytes(), ino, kind: NodeType::CharDevice, next: ino + 1 }) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Ptmx {
    instance: Arc<Instance>,
}

impl Inode for Ptmx {
    fn attr(&self) -> Result<Attr> {
        Ok(*self.instance.ptmx_attr.lock())
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        change(&self.instance.ptmx_attr, set)
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        self.instance.open_master()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct SlaveNode {
    tty: Arc<Tty>,
    attr: Mutex<Attr>,
    attachments: Attachments,
}

impl Inode for SlaveNode {
    fn attr(&self) -> Result<Attr> {
        Ok(*self.attr.lock())
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        change(&self.attr, set)
    }

    fn open(self: Arc<Self>, flags: i32) -> Result<Arc<dyn File>> {
        self.tty.open_slave(flags)
    }

    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.attachments)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
