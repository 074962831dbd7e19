//! A model check: random changes to an overlay and to a tmpfs with the same content must not be told apart.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::OverlayFs;
use super::tests::tmp;
use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::vfs::inode::{FileSystem, Inode, NodeType, RenameFlags, SetAttr};
use crate::vfs::tmpfs::tests::{file, list, mkdir, new_node, read, read_file, tmpfs};

/// Few names, so that they meet often.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }

    /// A path of one to three names.
    fn path(&mut self) -> Vec<&'static str> {
        (0..=self.below(3)).map(|_| NAMES[self.below(NAMES.len())]).collect()
    }
}

/// What both begin with: directories two deep, files of several sizes, hard links.
fn fill(root: &Arc<dyn Inode>) {
    for (depth, name) in ["a", "b"].into_iter().enumerate() {
        let dir = mkdir(root, name);
        file(&dir, "a", b"one");
        file(&dir, "c", &vec![depth as u8; 40_000]);
        let sub = mkdir(&dir, "b");
        file(&sub, "a", b"deep");
        sub.link(b"d", &dir.lookup(b"a").unwrap()).unwrap();
        dir.lookup(b"c").unwrap().set_xattr(b"user.x", b"y", 0).unwrap();
    }
    root.link(b"c", &root.lookup(b"a").unwrap().lookup(b"c").unwrap()).unwrap();
    let link = crate::vfs::inode::NewNode { target: b"a/b", ..new_node(NodeType::Symlink, 0o777) };
    root.create(b"d", &link).unwrap();
}

/// One operation, the same for both.
#[derive(Debug, Clone)]
enum Op {
    Create(Vec<&'static str>, NodeType),
    Link(Vec<&'static str>, Vec<&'static str>),
    Unlink(Vec<&'static str>),
    Rmdir(Vec<&'static str>),
    Rename(Vec<&'static str>, Vec<&'static str>, RenameFlags),
    Truncate(Vec<&'static str>, u64),
    Write(Vec<&'static str>, u64, Vec<u8>),
    Chmod(Vec<&'static str>, u32),
    Xattr(Vec<&'static str>),
    Open(Vec<&'static str>, i32),
    WriteOpen(usize, Vec<u8>),
    ReadOpen(usize),
    List(Vec<&'static str>),
}

fn random_op(random: &mut Random, open: usize) -> Op {
    let (path, other) = (random.path(), random.path());
    match random.below(16) {
        0 => Op::Create(path, NodeType::Directory),
        1 => Op::Create(path, NodeType::Regular),
        2 => Op::Link(path, other),
        3 => Op::Unlink(path),
        4 => Op::Rmdir(path),
        5..=7 => {
            let flags = [RenameFlags::empty(), RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
            Op::Rename(path, other, flags[random.below(4)])
        }
        8 => Op::Truncate(path, [0, 2, 5000, 30_000, 100_000][random.below(5)]),
        9 => Op::Write(path, random.below(20_000) as u64, vec![random.below(256) as u8; random.below(9000)]),
        10 => Op::Chmod(path, random.below(0o1000) as u32),
        11 => Op::Xattr(path),
        12 => Op::Open(path, [libc::O_RDONLY, libc::O_RDWR][random.below(2)]),
        13 if open > 0 => Op::WriteOpen(random.below(open), vec![random.below(256) as u8; random.below(3000)]),
        14 if open > 0 => Op::ReadOpen(random.below(open)),
        _ => Op::List(path),
    }
}

struct World {
    root: Arc<dyn Inode>,
    open: Vec<(Arc<dyn File>, bool)>,
}

impl World {
    fn walk(&self, path: &[&str]) -> Result<Arc<dyn Inode>> {
        path.iter().try_fold(self.root.clone(), |dir, name| dir.lookup(name.as_bytes()))
    }

    fn parent<'a>(&self, path: &[&'a str]) -> Result<(Arc<dyn Inode>, &'a [u8])> {
        let (last, above) = path.split_last().unwrap();
        let dir = self.walk(above)?;
        if dir.attr()?.kind != NodeType::Directory {
            return Err(Errno::ENOTDIR);
        }
        Ok((dir, last.as_bytes()))
    }

    /// What it did, as text; errors as they are.
    fn apply(&mut self, op: &Op) -> Result<Vec<u8>> {
        let nothing = |()| Vec::new();
        match op {
            Op::Create(path, kind) => {
                let (dir, name) = self.parent(path)?;
                dir.create(name, &new_node(*kind, 0o700)).map(|_| Vec::new())
            }
            Op::Link(old, new) => {
                let target = self.walk(old)?;
                let (dir, name) = self.parent(new)?;
                dir.link(name, &target).map(nothing)
            }
            Op::Unlink(path) => self.parent(path).and_then(|(dir, name)| dir.unlink(name)).map(nothing),
            Op::Rmdir(path) => self.parent(path).and_then(|(dir, name)| dir.rmdir(name)).map(nothing),
            Op::Rename(old, new, flags) => self.rename(old, new, *flags).map(nothing),
            Op::Truncate(path, size) => {
                self.walk(path)?.set_attr(&SetAttr { size: Some(*size), ..Default::default() }).map(nothing)
            }
            Op::Write(path, offset, bytes) => {
                let open = self.walk(path)?.open(libc::O_WRONLY)?;
                open.write(*offset, &mut &bytes[..]).map(|n| n.to_string().into_bytes())
            }
            Op::Chmod(path, perm) => {
                self.walk(path)?.set_attr(&SetAttr { perm: Some(*perm), ..Default::default() }).map(nothing)
            }
            Op::Xattr(path) => self.walk(path)?.set_xattr(b"user.n", b"v", 0).map(nothing),
            Op::Open(path, flags) => {
                let inode = self.walk(path)?;
                if inode.attr()?.kind == NodeType::Regular {
                    self.open.push((inode.open(*flags)?, *flags == libc::O_RDWR));
                }
                Ok(Vec::new())
            }
            Op::WriteOpen(index, bytes) => match &self.open[*index] {
                (open, true) => open.append(&mut &bytes[..]).map(|(at, n)| format!("{at} {n}").into_bytes()),
                _ => Ok(Vec::new()),
            },
            Op::ReadOpen(index) => read_file(self.open[*index].0.as_ref()),
            Op::List(path) => {
                let dir = self.walk(path)?;
                match dir.attr()?.kind {
                    NodeType::Directory => Ok(list(&dir).into_keys().collect::<Vec<_>>().join("/").into_bytes()),
                    _ => Err(Errno::ENOTDIR),
                }
            }
        }
    }

    /// With what the caller of [`Inode::rename`] checks: `rename(2)`.
    fn rename(&self, old: &[&str], new: &[&str], flags: RenameFlags) -> Result<()> {
        let exchange = flags == RenameFlags::EXCHANGE;
        let (from, old_name) = self.parent(old)?;
        let (to, new_name) = self.parent(new)?;
        from.lookup(old_name)?;
        match to.lookup(new_name) {
            Ok(_) if flags == RenameFlags::NOREPLACE => return Err(Errno::EEXIST),
            Err(error) if exchange => return Err(error),
            _ => {}
        }
        if new.len() > old.len() && new.starts_with(old) {
            return Err(Errno::EINVAL);
        }
        if old.len() > new.len() && old.starts_with(new) {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        from.rename(old_name, &to, new_name, flags)
    }

    /// Everything that can be seen.
    fn dump(&self) -> String {
        let mut text = String::new();
        dump_dir(&self.root, "", &mut text);
        text
    }
}

fn dump_dir(dir: &Arc<dyn Inode>, at: &str, text: &mut String) {
    for (name, ino) in list(dir) {
        let inode = dir.lookup(name.as_bytes()).unwrap();
        let attr = inode.attr().unwrap();
        assert_eq!(attr.ino, ino, "the listing of {at}/{name} has another inode number");
        let xattrs = inode.list_xattr().unwrap();
        let (kind, perm, nlink) = (attr.kind, attr.perm, attr.nlink);
        *text += &format!("{at}/{name} {kind:?} {perm:o} {nlink} {xattrs:?}");
        match kind {
            NodeType::Regular => {
                let content = read(&inode);
                assert_eq!(content.len() as u64, attr.size);
                let sum = content.iter().fold(7u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
                *text += &format!(" {} {sum}\n", attr.size);
            }
            NodeType::Symlink => *text += &format!(" {:?}\n", inode.read_link().unwrap()),
            _ => {
                *text += "\n";
                dump_dir(&inode, &format!("{at}/{name}"), text);
            }
        }
    }
}

#[test]
fn an_overlay_cannot_be_told_from_a_tmpfs() {
    for seed in 0..80 {
        let lower = tmpfs(3, 10_000);
        fill(&lower.root());
        let before = World { root: lower.root(), open: Vec::new() }.dump();
        let plain = tmp();
        fill(&plain.root());
        let overlay = OverlayFs::new(lower.clone(), tmp()).unwrap();
        let mut worlds = [overlay.root(), plain.root()].map(|root| World { root, open: Vec::new() });
        let mut random = Random(seed);
        for step in 0..300 {
            let op = random_op(&mut random, worlds[0].open.len());
            let [ours, theirs] = worlds.each_mut().map(|world| world.apply(&op));
            assert_eq!(ours, theirs, "seed {seed}, step {step}: {op:?}");
            if step % 10 == 0 {
                assert_eq!(worlds[0].dump(), worlds[1].dump(), "seed {seed}, step {step}: {op:?}");
            }
        }
        assert_eq!(World { root: lower.root(), open: Vec::new() }.dump(), before, "the lower layer changed");
    }
}

/// Removes everything below a directory.
fn clear(dir: &Arc<dyn Inode>) {
    for name in list(dir).into_keys() {
        let inode = dir.lookup(name.as_bytes()).unwrap();
        if inode.attr().unwrap().kind == NodeType::Directory {
            clear(&inode);
            dir.rmdir(name.as_bytes()).unwrap();
        } else {
            dir.unlink(name.as_bytes()).unwrap();
        }
    }
}

#[test]
fn threads_leave_a_whole_tree_and_no_debts() {
    for seed in 0..20 {
        let lower = tmpfs(3, 10_000);
        fill(&lower.root());
        let overlay = OverlayFs::new(lower, tmp()).unwrap();
        let free = overlay.statfs().unwrap().bfree;
        // Renames are in order by the caller: else a directory may get beneath itself.
        let renames = parking_lot::Mutex::new(());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (root, renames) = (overlay.root(), &renames);
                scope.spawn(move || {
                    let mut world = World { root, open: Vec::new() };
                    let mut random = Random(seed * 4 + thread);
                    for _ in 0..500 {
                        let op = random_op(&mut random, world.open.len());
                        let guard = matches!(op, Op::Rename(..)).then(|| renames.lock());
                        let _ = world.apply(&op);
                        drop(guard);
                    }
                });
            }
        });
        World { root: overlay.root(), open: Vec::new() }.dump();
        clear(&overlay.root());
        assert_eq!(list(&overlay.root()).len(), 0);
        assert_eq!(overlay.statfs().unwrap().bfree, free);
        assert_eq!((overlay.shared.nodes.lock().len(), overlay.shared.pinned.lock().len()), (0, 0));
    }
}

/// A directory of the host, through the host's own calls.
struct Host(tempfile::TempDir);

impl Host {
    fn path(&self, path: &[&str]) -> PathBuf {
        path.iter().fold(self.0.path().to_owned(), |at, name| at.join(name))
    }

    fn apply(&self, op: &Op) -> Result<Vec<u8>> {
        let done = match op {
            Op::Create(path, NodeType::Directory) => fs::DirBuilder::new().mode(0o700).create(self.path(path)),
            Op::Create(path, _) => {
                fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(self.path(path)).map(drop)
            }
            Op::Link(old, new) => fs::hard_link(self.path(old), self.path(new)),
            Op::Unlink(path) => return Ok(nix::unistd::unlink(&self.path(path)).map(|()| Vec::new())?),
            Op::Rmdir(path) => fs::remove_dir(self.path(path)),
            Op::Rename(old, new, flags) => {
                let flags = nix::fcntl::RenameFlags::from_bits_retain(flags.bits());
                let (old, new) = (self.path(old), self.path(new));
                let at = nix::fcntl::AT_FDCWD;
                return Ok(nix::fcntl::renameat2(at, &old, at, &new, flags).map(|()| Vec::new())?);
            }
            Op::Truncate(path, size) => {
                let size = i64::try_from(*size).unwrap();
                return Ok(nix::unistd::truncate(&self.path(path), size).map(|()| Vec::new())?);
            }
            Op::Write(path, offset, bytes) => {
                let open = fs::OpenOptions::new().write(true).open(self.path(path))?;
                return Ok(open.write_at(bytes, *offset)?.to_string().into_bytes());
            }
            Op::Chmod(path, perm) => fs::set_permissions(self.path(path), fs::Permissions::from_mode(*perm)),
            _ => return Err(Errno::ENOSYS),
        };
        Ok(done.map(|()| Vec::new())?)
    }

    /// Like [`outline`].
    fn outline(&self, at: &Path, text: &mut String) {
        let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = at.join(&name);
            let stat = fs::symlink_metadata(&path).unwrap();
            *text += &format!("{} {:o} ", name.display(), stat.mode());
            if stat.is_dir() {
                *text += "[";
                self.outline(&path, text);
                *text += "]\n";
            } else {
                *text += &format!("{} {:?}\n", stat.nlink(), fs::read(&path).unwrap());
            }
        }
    }
}

/// Names, modes, links and content below a directory; not what depends on the file system (a directory's links).
fn outline(dir: &Arc<dyn Inode>, text: &mut String) {
    for name in list(dir).into_keys() {
        let inode = dir.lookup(name.as_bytes()).unwrap();
        let attr = inode.attr().unwrap();
        *text += &format!("{name} {:o} ", attr.mode());
        if attr.kind == NodeType::Directory {
            *text += "[";
            outline(&inode, text);
            *text += "]\n";
        } else {
            *text += &format!("{} {:?}\n", attr.nlink, read(&inode));
        }
    }
}

#[test]
fn a_tmpfs_answers_as_the_host_does() {
    let mut successes = 0;
    for seed in 1000..1030 {
        let host = Host(tempfile::tempdir().unwrap());
        let plain = tmp();
        let mut world = World { root: plain.root(), open: Vec::new() };
        let mut random = Random(seed);
        for step in 0..300 {
            let op = match random_op(&mut random, 0) {
                Op::Xattr(path) | Op::Open(path, _) | Op::List(path) => Op::Create(path, NodeType::Directory),
                // The owner must get on without being the superuser.
                Op::Chmod(path, perm) => Op::Chmod(path, perm | 0o700),
                Op::Write(path, offset, bytes) => Op::Write(path, offset % 100, bytes[..bytes.len().min(50)].into()),
                Op::Truncate(path, size) => Op::Truncate(path, size % 100),
                op => op,
            };
            let (ours, theirs) = (world.apply(&op), host.apply(&op));
            assert_eq!(ours, theirs, "seed {seed}, step {step}: {op:?}");
            successes += usize::from(ours.is_ok());
            if step % 20 == 0 {
                outlines(&world, &host, seed);
            }
        }
        outlines(&world, &host, seed);
    }
    assert!(successes > 1000, "only {successes} operations did something");
}

fn outlines(world: &World, host: &Host, seed: u64) {
    let (mut ours, mut theirs) = (String::new(), String::new());
    outline(&world.root, &mut ours);
    host.outline(host.0.path(), &mut theirs);
    assert_eq!(ours, theirs, "seed {seed}");
}
