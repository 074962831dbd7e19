//! Against a real gofer on a directory of the host's.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::GoferFs;
use crate::errno::{Errno, Result};
use crate::gofer::{Export, RootFile, serve};
use crate::io::SliceSink;
use crate::vfs::inode::{Caching, FileSystem, Inode, NewNode, NodeType, RenameFlags, SetAttr};

pub(super) fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

pub(super) fn export(root: &Path, socket: OwnedFd, writable: bool) -> Export {
    let fd = nix::fcntl::open(root, nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty()).unwrap();
    let open = |write| fs::File::options().read(true).write(write).open(root).unwrap().into();
    let root_file = root.is_file().then(|| RootFile { read: open(false), write: writable.then(|| open(true)) });
    Export { socket, root: fd, root_file, writable, follows: false }
}

/// The tree at `root`; the gofer ends with the file system.
fn mount(root: &Path, writable: bool, caching: Caching) -> Arc<GoferFs> {
    let (ours, theirs) = pair();
    let export = export(root, theirs, writable);
    std::thread::spawn(move || serve(vec![export]));
    GoferFs::connect(ours, !writable, caching).unwrap()
}

fn immutable(root: &Path) -> Arc<GoferFs> {
    mount(root, false, Caching::Forever)
}

fn shared(root: &Path) -> Arc<GoferFs> {
    mount(root, true, Caching::Revalidate)
}

/// Walks as the VFS does, but for links.
fn walk(fs: &GoferFs, path: &str) -> Result<Arc<dyn Inode>> {
    let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
    fs.root().prefetch(&names, false);
    names.iter().try_fold(fs.root(), |dir, name| dir.lookup(name))
}

fn trips<T>(fs: &GoferFs, work: impl FnOnce() -> T) -> (u64, T) {
    let before = fs.round_trips();
    let result = work();
    (fs.round_trips() - before, result)
}

fn new(kind: NodeType) -> NewNode<'static> {
    NewNode { kind, perm: 0o640, uid: 0, gid: 0, rdev: 0, target: b"" }
}

fn content(inode: Arc<dyn Inode>) -> Vec<u8> {
    let file = inode.open(libc::O_RDONLY).unwrap();
    let mut buf = [0; 64];
    let mut sink = SliceSink::new(&mut buf);
    let n = file.read(0, &mut sink).unwrap();
    buf[..n].to_vec()
}

fn names(dir: Arc<dyn Inode>) -> Vec<Vec<u8>> {
    let file = dir.open(libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    let mut all = Vec::new();
    let mut pos = 0;
    loop {
        let before = pos;
        // A few at a time, as getdents64 does.
        let mut room = 7;
        let mut emit = |entry: crate::vfs::file::DirEntry<'_>| {
            if room == 0 {
                return false;
            }
            room -= 1;
            all.push(entry.name.to_vec());
            pos = entry.next;
            true
        };
        file.read_dir(before, &mut emit).unwrap();
        if pos == before {
            return all;
        }
    }
}

#[test]
fn attributes_are_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "12345").unwrap();
    fs::hard_link(dir.path().join("f"), dir.path().join("g")).unwrap();
    fs::set_permissions(dir.path().join("f"), fs::Permissions::from_mode(0o4711)).unwrap();
    let host = fs::metadata(dir.path().join("f")).unwrap();
    for fs in [immutable(dir.path()), shared(dir.path())] {
        let f = walk(&fs, "f").unwrap();
        let attr = f.attr().unwrap();
        assert_eq!((attr.ino, attr.nlink, attr.size), (host.ino(), 2, 5));
        assert_eq!((attr.mode(), attr.uid, attr.gid), (host.mode(), host.uid(), host.gid()));
        assert_eq!((attr.mtime.sec, i64::from(attr.mtime.nsec)), (host.mtime(), host.mtime_nsec()));
        assert!(Arc::ptr_eq(&f, &walk(&fs, "g").unwrap()), "two names, one inode");
    }
}

#[test]
fn a_cold_path_costs_one_round_trip_and_a_known_one_none() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("usr/lib/x")).unwrap();
    fs::write(dir.path().join("usr/lib/x/so"), "elf").unwrap();
    let fs = immutable(dir.path());
    let (cold, bytes) = trips(&fs, || content(walk(&fs, "usr/lib/x/so").unwrap()));
    assert_eq!((cold, &bytes[..]), (1, &b"elf"[..]), "walk, attributes and descriptor");
    let (again, bytes) = trips(&fs, || content(walk(&fs, "usr/lib/x/so").unwrap()));
    assert_eq!((again, &bytes[..]), (0, &b"elf"[..]));
    let (cold, missing) = trips(&fs, || walk(&fs, "usr/lib/x/none").err());
    assert_eq!((cold, missing), (1, Some(Errno::ENOENT)));
    let (again, missing) = trips(&fs, || walk(&fs, "usr/lib/x/none").err());
    assert_eq!((again, missing), (0, Some(Errno::ENOENT)));
    // A path that ends early teaches what it met.
    let (cold, missing) = trips(&fs, || walk(&fs, "usr/share/locale/de").err());
    assert_eq!((cold, missing), (1, Some(Errno::ENOENT)));
    let (again, _) = trips(&fs, || walk(&fs, "usr/share").err());
    assert_eq!(again, 0);
    // From what is known, the rest is asked at once.
    fs::create_dir_all(dir.path().join("usr/lib/other/deep")).unwrap();
    let (cold, found) = trips(&fs, || walk(&fs, "usr/lib/other/deep").map(drop));
    assert_eq!((cold, found), (1, Ok(())));
}

#[test]
fn many_lookups_turn_into_a_listing() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..100 {
        fs::write(dir.path().join(format!("f{n}")), "").unwrap();
    }
    let fs = immutable(dir.path());
    let root = fs.root();
    let (cost, ()) = trips(&fs, || {
        for n in 0..100 {
            root.lookup(format!("f{n}").as_bytes()).unwrap();
            assert_eq!(root.lookup(format!("g{n}").as_bytes()).err(), Some(Errno::ENOENT));
        }
    });
    assert_eq!(cost, u64::from(super::inode::LOOKUPS) + 1);
}

#[test]
fn ten_thousand_names_cost_few_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..10_000 {
        fs::write(dir.path().join(format!("name-{n:05}")), "").unwrap();
    }
    let expected: HashSet<Vec<u8>> =
        (0..10_000).map(|n| format!("name-{n:05}").into_bytes()).chain([b".".to_vec(), b"..".to_vec()]).collect();
    let fs = immutable(dir.path());
    let (cost, found) = trips(&fs, || names(fs.root()));
    assert_eq!(found.len(), expected.len(), "each once");
    assert_eq!(found.into_iter().collect::<HashSet<_>>(), expected);
    assert!(cost <= 12, "{cost} round trips");
    let (cost, ()) = trips(&fs, || {
        names(fs.root());
        let root = fs.root();
        for n in 0..10_000 {
            root.lookup(format!("name-{n:05}").as_bytes()).unwrap().attr().unwrap();
        }
        assert_eq!(root.lookup(b"absent").err(), Some(Errno::ENOENT));
    });
    assert_eq!(cost, 0, "a listing answers everything");
    assert_eq!(names(shared(dir.path()).root()).len(), expected.len());
}

#[test]
fn links_give_their_text() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc/passwd", dir.path().join("l")).unwrap();
    for fs in [immutable(dir.path()), shared(dir.path())] {
        let (cost, text) = trips(&fs, || walk(&fs, "l").unwrap().read_link());
        assert_eq!((cost, text.unwrap()), (1, b"/etc/passwd".to_vec()));
        assert_eq!(walk(&fs, "l/x").err(), Some(Errno::ENOTDIR));
        assert_eq!(walk(&fs, "l").unwrap().open(libc::O_RDONLY).err(), Some(Errno::ELOOP));
        assert_eq!(fs.root().lookup(b"..").err(), Some(Errno::EINVAL));
        assert_eq!(fs.root().read_link().err(), Some(Errno::EINVAL));
    }
}

#[test]
fn a_read_only_tree_is_erofs() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "x").unwrap();
    let fs = immutable(dir.path());
    let (root, f) = (fs.root(), walk(&fs, "f").unwrap());
    assert_eq!(root.create(b"n", &new(NodeType::Regular)).err(), Some(Errno::EROFS));
    assert_eq!(root.unlink(b"f"), Err(Errno::EROFS));
    assert_eq!(root.rename(b"f", &root, b"g", RenameFlags::empty()), Err(Errno::EROFS));
    assert_eq!(root.link(b"g", &f), Err(Errno::EROFS));
    assert_eq!(f.set_attr(&SetAttr { perm: Some(0), ..SetAttr::default() }), Err(Errno::EROFS));
    assert_eq!(f.set_xattr(b"user.x", b"", 0), Err(Errno::EROFS));
    assert_eq!(f.clone().open(libc::O_RDWR).err(), Some(Errno::EROFS));
    let file = f.open(libc::O_RDONLY).unwrap();
    assert_eq!(file.write(0, &mut &b"y"[..]), Err(Errno::EBADF));
    assert!(!file.mapping(false, true).unwrap().writable);
    assert_eq!(file.mapping(true, true).err(), Some(Errno::EACCES));
}

#[test]
fn what_is_written_is_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let fs = shared(dir.path());
    let made = NewNode { uid: 12, gid: 34, perm: 0o4750, ..new(NodeType::Regular) };
    let (cost, file) = trips(&fs, || {
        let f = fs.root().create(b"f", &made).unwrap();
        f.open(libc::O_RDWR).unwrap()
    });
    assert_eq!(cost, 1, "what was just made is open already");
    assert_eq!(file.write(3, &mut &b"abc"[..]), Ok(3));
    assert_eq!(file.append(&mut &b"tail"[..]), Ok((6, 4)));
    let host = dir.path().join("f");
    assert_eq!(fs::read(&host).unwrap(), b"\0\0\0abctail");
    let meta = fs::metadata(&host).unwrap();
    // Writing clears set-user-ID, except for the privileged: this test and the gofer may be.
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (12, 34, 0o750));
    let f = walk(&fs, "f").unwrap();
    let (cost, attr) = trips(&fs, || (0..3).map(|_| f.attr().unwrap().size).collect::<Vec<_>>());
    assert_eq!((cost, attr), (0, vec![10; 3]), "an open descriptor tells");
    f.set_attr(&SetAttr { size: Some(4), ..SetAttr::default() }).unwrap();
    let stamp = crate::vfs::inode::TimeSpec { sec: 1_000_000, nsec: 5 };
    let set = SetAttr { perm: Some(0o2604), uid: Some(1), mtime: Some(stamp), ..SetAttr::default() };
    f.set_attr(&set).unwrap();
    let meta = fs::metadata(&host).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o7777, meta.uid(), meta.gid()), (4, 0o2604, 1, 34));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000, 5));
    drop(file);
    f.set_attr(&SetAttr { size: Some(2), ..SetAttr::default() }).unwrap();
    assert_eq!(f.attr().unwrap().size, 2);
    assert_eq!(file_mapping(&f), b"\0\0");
}

/// The file's bytes through the descriptor that would be mapped.
fn file_mapping(inode: &Arc<dyn Inode>) -> Vec<u8> {
    let mapping = inode.clone().open(libc::O_RDONLY).unwrap().mapping(false, false).unwrap();
    let mut buf = vec![0; 64];
    let n = crate::io::host_read(mapping.fd.as_fd(), &mut buf, Some(0)).unwrap();
    buf.truncate(n);
    buf
}

#[test]
fn every_type_can_be_made_and_is_no_more_than_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let fs = shared(dir.path());
    let root = fs.root();
    for (name, kind) in [("p", NodeType::Fifo), ("s", NodeType::Socket)] {
        let made = root.create(name.as_bytes(), &new(kind)).unwrap();
        assert_eq!((made.attr().unwrap().kind, made.attr().unwrap().perm), (kind, 0o640));
        assert_eq!(made.open(libc::O_RDWR).err(), Some(Errno::ENXIO));
    }
    let link = root.create(b"l", &NewNode { target: b"to", ..new(NodeType::Symlink) }).unwrap();
    assert_eq!(link.read_link().unwrap(), b"to");
    let sub = root.create(b"d", &NewNode { perm: 0o3771, ..new(NodeType::Directory) }).unwrap();
    assert_eq!(sub.attr().unwrap().perm, 0o3771);
    assert_eq!(root.create(b"d", &new(NodeType::Directory)).err(), Some(Errno::EEXIST));
    sub.create(b"in", &new(NodeType::Regular)).unwrap();
    assert_eq!(root.rmdir(b"d"), Err(Errno::ENOTEMPTY));
    assert_eq!(root.unlink(b"d"), Err(Errno::EISDIR));
    assert_eq!(root.rmdir(b"p"), Err(Errno::ENOTDIR));
    assert_eq!(root.unlink(b"none"), Err(Errno::ENOENT));
    sub.unlink(b"in").unwrap();
    root.rmdir(b"d").unwrap();
    assert_eq!(walk(&fs, "d").err(), Some(Errno::ENOENT));
    fs.sync().unwrap();
}

#[test]
fn a_file_stays_itself_when_its_name_changes() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("a"), "A").unwrap();
    fs::write(dir.path().join("b"), "B").unwrap();
    let fs = shared(dir.path());
    let (root, d, a, b) = (fs.root(), walk(&fs, "d").unwrap(), walk(&fs, "a").unwrap(), walk(&fs, "b").unwrap());
    root.rename(b"a", &d, b"moved", RenameFlags::empty()).unwrap();
    assert_eq!(content(a.clone()), b"A", "opened by its new name");
    assert!(Arc::ptr_eq(&d.lookup(b"moved").unwrap(), &a));
    assert!(!root.revalidate(b"a", &a) && d.revalidate(b"moved", &a));
    assert_eq!(d.rename(b"moved", &root, b"b", RenameFlags::NOREPLACE), Err(Errno::EEXIST));
    d.rename(b"moved", &root, b"b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((content(a.clone()), content(b.clone())), (b"A".to_vec(), b"B".to_vec()));
    // Replaced behind the sentry's back: the name means another file, and the old one cannot be opened any more.
    fs::write(dir.path().join("new"), "N").unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("b")).unwrap();
    assert!(!root.revalidate(b"b", &a));
    assert_eq!(a.clone().open(libc::O_RDONLY).err(), Some(Errno::ESTALE));
    assert_eq!(a.attr().unwrap().nlink, 0);
    assert_eq!(content(root.lookup(b"b").unwrap()), b"N");
    // What is open outlives its name.
    let open = b.clone().open(libc::O_RDWR).unwrap();
    d.unlink(b"moved").unwrap();
    assert_eq!(open.write(1, &mut &b"!"[..]), Ok(1));
    assert_eq!((content(b.clone()), b.attr().unwrap().nlink), (b"B!".to_vec(), 0));
    root.link(b"hard", &root.lookup(b"b").unwrap()).unwrap();
    assert_eq!(fs::metadata(dir.path().join("hard")).unwrap().nlink(), 2);
}

#[test]
fn revalidation_sees_the_host_with_one_round_trip_a_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("x/y")).unwrap();
    fs::write(dir.path().join("x/y/f"), "1").unwrap();
    let fs = shared(dir.path());
    let (x, y, f) = (walk(&fs, "x").unwrap(), walk(&fs, "x/y").unwrap(), walk(&fs, "x/y/f").unwrap());
    let root = fs.root();
    fs::write(dir.path().join("x/y/f"), "12345").unwrap();
    let (cost, size) = trips(&fs, || {
        root.prefetch(&[b"x", b"y", b"f"], true);
        assert!(root.revalidate(b"x", &x) && x.revalidate(b"y", &y) && y.revalidate(b"f", &f));
        f.attr().unwrap().size
    });
    assert_eq!((cost, size), (1, 5));
    // What was found is good once.
    fs::remove_file(dir.path().join("x/y/f")).unwrap();
    assert!(!y.revalidate(b"f", &f));
    root.prefetch(&[b"x", b"y"], true);
    fs::create_dir(dir.path().join("x/y/f")).unwrap();
    assert!(!y.revalidate(b"f", &f));
}

#[test]
fn extended_attributes_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let fs = shared(dir.path());
    let f = walk(&fs, "f").unwrap();
    match f.set_xattr(b"user.a", b"value", libc::XATTR_CREATE) {
        // Not every file system that holds temporary files has them.
        Err(Errno::EOPNOTSUPP) => return,
        set => set.unwrap(),
    }
    assert_eq!(f.set_xattr(b"user.a", b"", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(f.get_xattr(b"user.a").unwrap(), b"value");
    assert_eq!(f.get_xattr(b"user.b").err(), Some(Errno::ENODATA));
    let lower = immutable(dir.path());
    let same = walk(&lower, "f").unwrap();
    assert_eq!(same.list_xattr().unwrap(), [b"user.a".to_vec()]);
    let (cost, missing) = trips(&lower, || same.get_xattr(b"security.capability").err());
    assert_eq!((cost, missing), (0, Some(Errno::ENODATA)));
    assert_eq!(same.get_xattr(b"user.a").unwrap(), b"value");
    f.remove_xattr(b"user.a").unwrap();
    assert!(f.list_xattr().unwrap().is_empty());
}

#[test]
fn a_tree_may_be_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hosts");
    fs::write(&path, "localhost").unwrap();
    let fs = shared(&path);
    assert_eq!(fs.root().attr().unwrap().kind, NodeType::Regular);
    assert_eq!(content(fs.root()), b"localhost");
    assert_eq!(fs.root().open(libc::O_RDWR).unwrap().write(0, &mut &b"LOCAL"[..]), Ok(5));
    assert_eq!(fs.root().lookup(b"x").err(), Some(Errno::ENOTDIR));
    fs.root().set_attr(&SetAttr { size: Some(5), ..SetAttr::default() }).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"LOCAL");
    let read_only = immutable(&path);
    assert_eq!(content(read_only.root()), b"LOCAL");
    assert_eq!(read_only.root().open(libc::O_WRONLY).err(), Some(Errno::EROFS));
}

#[test]
fn deep_trees_are_reached_and_let_go() {
    let dir = tempfile::tempdir().unwrap();
    for fs in [shared(dir.path()), immutable(dir.path())] {
        let writable = fs.caching() == Caching::Revalidate;
        let name = [b'd'; 200];
        let mut at = fs.root();
        // Longer than PATH_MAX, as a program that changes its directory step by step can make it.
        for _ in 0..60 {
            if writable {
                at.create(&name, &new(NodeType::Directory)).unwrap();
            }
            at = at.lookup(&name).unwrap();
        }
        assert_eq!(at.attr().unwrap().kind, NodeType::Directory);
        assert_eq!(names(at), [&b"."[..], b".."]);
    }
}

#[test]
fn nodes_are_given_back() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..2000 {
        fs::write(dir.path().join(n.to_string()), "").unwrap();
    }
    let fs = shared(dir.path());
    let root = fs.root();
    for round in 0..2 {
        for n in 0..2000 {
            root.lookup(n.to_string().as_bytes()).unwrap();
        }
        assert_eq!(fs.shared.nodes.lock().len(), 1, "round {round}");
    }
    // The lowest free number is given out again, so the gofer's table is not larger than what was held at once.
    let walk = super::Request::Walk { from: super::Place { node: 0, path: b"" }, path: b"7", keep: true, open: false };
    let walked = super::inode::Walked::ask(&fs.shared.connection, &walk).unwrap();
    assert!(walked.nodes[0] < 1000, "{:?}", walked.nodes);
}

#[test]
fn a_gofer_that_is_gone_is_eio() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "x").unwrap();
    let (ours, theirs) = pair();
    let export = export(dir.path(), theirs, false);
    let kept = ours.try_clone().unwrap();
    let gofer = std::thread::spawn(move || serve(vec![export]));
    let fs = GoferFs::connect(ours, true, Caching::Forever).unwrap();
    let f = walk(&fs, "f").unwrap();
    nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&kept), nix::sys::socket::Shutdown::Both).unwrap();
    gofer.join().unwrap();
    assert_eq!(walk(&fs, "other").err(), Some(Errno::EIO));
    assert_eq!(content(f), b"x", "what is open stays so");
}

#[test]
fn two_trees_of_a_file_share_what_hangs_on_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/f"), "x").unwrap();
    let (whole, part, read_only) =
        (shared(dir.path()), shared(&dir.path().join("sub")), mount(dir.path(), false, Caching::Revalidate));
    let files = [walk(&whole, "sub/f"), walk(&part, "f"), walk(&read_only, "sub/f")].map(Result::unwrap);
    files[0].attachments().unwrap().set(Arc::new(7u8));
    for file in &files {
        assert_eq!(file.attachments().unwrap().get::<u8>().as_deref(), Some(&7));
        let (one, other) = (file.attr().unwrap(), files[0].attr().unwrap());
        assert_eq!((one.dev, one.ino), (other.dev, other.ino));
    }
    // It goes with the last of them, and no tree that does not change has part in it.
    assert!(walk(&immutable(dir.path()), "sub/f").unwrap().attachments().unwrap().get::<u8>().is_none());
    drop((files, whole, part, read_only));
    assert!(walk(&shared(dir.path()), "sub/f").unwrap().attachments().unwrap().get::<u8>().is_none());
}
