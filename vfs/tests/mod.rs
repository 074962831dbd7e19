pub mod memory;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::memory::{Counter, Memory};
use crate::errno::{Errno, Result};
use crate::sentry::creds::{Caps, Credentials};
use crate::sentry::namespaces::Pid;
use crate::vfs::file::OpenFile;
use crate::vfs::inode::{Caching, NodeType, RenameFlags};
use crate::vfs::mount::UmountFlags;
use crate::vfs::perm::{Access, may};
use crate::vfs::walk::Last;
use crate::vfs::*;

struct World {
    ns: Arc<MountNamespace>,
    root: Path,
    cwd: Path,
    creds: Credentials,
    devices: DeviceTable,
    lookups: Arc<Counter>,
}

impl World {
    fn new(caching: Caching) -> World {
        let (fs, lookups) = Memory::with_counter(caching);
        let ns = MountNamespace::new(&fs, MountFlags::empty(), "none").unwrap();
        let root = ns.root();
        let world =
            World { ns, cwd: root.clone(), root, creds: Credentials::root(), devices: DeviceTable::new(), lookups };
        for dir in ["/a", "/a/b", "/a/b/c", "/mnt", "/tmp"] {
            world.walk().mkdir(dir.as_bytes(), 0o755).unwrap();
        }
        world.walk().mknod(b"/a/f", NodeType::Regular, 0o644, 0).unwrap();
        for (target, link) in
            [("/a/b", "/abs"), ("b/c", "/a/rel"), ("loop", "/loop"), ("../..", "/a/b/up"), ("/new", "/dangling")]
        {
            world.walk().symlink(target.as_bytes(), link.as_bytes()).unwrap();
        }
        world
    }

    fn walk(&self) -> Walk<'_> {
        Walk { root: &self.root, start: &self.cwd, creds: &self.creds, umask: 0o022, devices: &self.devices }
    }

    fn find(&self, path: &str, flags: LookupFlags) -> std::result::Result<String, Errno> {
        self.walk().lookup(path.as_bytes(), flags).map(|found| self.text(&found))
    }

    fn text(&self, path: &Path) -> String {
        String::from_utf8(path_string(&self.root, path)).unwrap()
    }

    fn open(&self, path: &str, flags: i32) -> Result<Arc<OpenFile>> {
        match self.walk().open(path.as_bytes(), &OpenHow { flags, mode: 0o666, resolve: LookupFlags::empty() })? {
            Opened::File(file) => Ok(file),
            Opened::Fifo(_) => Err(Errno::EAGAIN),
        }
    }

    fn rename(&self, old: &str, new: &str, flags: RenameFlags) -> Result<()> {
        self.walk().rename(old.as_bytes(), &self.walk(), new.as_bytes(), flags)
    }
}

const FOLLOW: LookupFlags = LookupFlags::FOLLOW;

#[test]
fn paths_lead_where_linux_takes_them() {
    let world = World::new(Caching::Forever);
    let none = LookupFlags::empty();
    let long = format!("/{}", "n".repeat(256));
    let longest = "/a/..".repeat(820);
    let table: &[(&str, LookupFlags, std::result::Result<&str, Errno>)] = &[
        ("/", none, Ok("/")),
        ("//a///b/", none, Ok("/a/b")),
        ("a/./b/../b/c/.", none, Ok("/a/b/c")),
        ("../../a", none, Ok("/a")),
        ("/abs", none, Ok("/abs")),
        ("/abs", FOLLOW, Ok("/a/b")),
        ("/abs/", none, Ok("/a/b")),
        ("/abs/c", none, Ok("/a/b/c")),
        ("/a/rel", FOLLOW, Ok("/a/b/c")),
        ("/a/b/up/a/rel/..", none, Ok("/a/b")),
        ("/loop", FOLLOW, Err(Errno::ELOOP)),
        ("/loop/x", none, Err(Errno::ELOOP)),
        ("/a/f/", none, Err(Errno::ENOTDIR)),
        ("/a/f/x", none, Err(Errno::ENOTDIR)),
        ("/a/f/..", none, Err(Errno::ENOTDIR)),
        ("/no/x", none, Err(Errno::ENOENT)),
        ("/a/no/", none, Err(Errno::ENOENT)),
        ("/dangling", FOLLOW, Err(Errno::ENOENT)),
        ("", none, Err(Errno::ENOENT)),
        ("", LookupFlags::EMPTY_PATH, Ok("/")),
        ("/a/f", LookupFlags::DIRECTORY, Err(Errno::ENOTDIR)),
        ("/abs", FOLLOW.union(LookupFlags::NO_SYMLINKS), Err(Errno::ELOOP)),
        ("/a", LookupFlags::BENEATH, Err(Errno::EXDEV)),
        ("a/../..", LookupFlags::BENEATH, Err(Errno::EXDEV)),
        ("a/../a", LookupFlags::BENEATH, Ok("/a")),
        (&long, none, Err(Errno::ENAMETOOLONG)),
        (&longest, none, Err(Errno::ENAMETOOLONG)),
    ];
    for (path, flags, expected) in table {
        assert_eq!(world.find(path, *flags).as_deref(), expected.as_ref().copied(), "{path:.40} {flags:?}");
    }
}

#[test]
fn in_root_makes_the_start_the_root() {
    let mut world = World::new(Caching::Forever);
    world.cwd = world.walk().lookup(b"/a", LookupFlags::empty()).unwrap();
    world.walk().symlink(b"/../b", b"/a/jail").unwrap();
    assert_eq!(world.find("/jail", FOLLOW | LookupFlags::IN_ROOT).as_deref(), Ok("/a/b"));
    assert_eq!(world.find("../../b", LookupFlags::IN_ROOT).as_deref(), Ok("/a/b"));
    assert_eq!(world.find("jail", FOLLOW), Err(Errno::ENOENT));
}

#[test]
fn a_warm_lookup_does_not_ask_the_file_system() {
    let world = World::new(Caching::Forever);
    world.find("/a/b/c", FOLLOW).unwrap();
    assert_eq!(world.find("/a/b/none", FOLLOW), Err(Errno::ENOENT));
    let before = world.lookups.0.load(Ordering::Relaxed);
    world.find("/a/b/c", FOLLOW | LookupFlags::CACHED).unwrap();
    assert_eq!(world.find("/a/b/none", FOLLOW | LookupFlags::CACHED), Err(Errno::ENOENT));
    assert_eq!(world.lookups.0.load(Ordering::Relaxed), before);
    assert_eq!(world.find("/a/b/unknown", LookupFlags::CACHED), Err(Errno::EAGAIN));
    dentry::shrink(Some(world.root.mount.superblock()));
    assert_eq!(world.find("/a/b", LookupFlags::CACHED), Err(Errno::EAGAIN), "unused names were let go");
}

#[test]
fn names_that_change_by_themselves_are_seen() {
    for caching in [Caching::Revalidate, Caching::Never] {
        let world = World::new(caching);
        let b = world.walk().lookup(b"/a/b", FOLLOW).unwrap();
        let a = world.walk().lookup(b"/a", FOLLOW).unwrap();
        b.inode().unwrap().rmdir(b"c").unwrap();
        assert_eq!(world.find("/a/b/c", FOLLOW), Err(Errno::ENOENT));
        a.inode().unwrap().rename(b"b", b.inode().unwrap(), b"x", RenameFlags::empty()).unwrap();
        assert_eq!(world.find("/a/b", FOLLOW), Err(Errno::ENOENT), "{caching:?}");
    }
}

#[test]
fn a_deep_tree_is_let_go_without_recursion() {
    let world = World::new(Caching::Forever);
    let mut at = world.walk().lookup(b"/tmp", FOLLOW).unwrap();
    for _ in 0..30_000 {
        let walk = Walk { start: &at, ..world.walk() };
        let next = walk.mkdir(b"d", 0o755).unwrap();
        at = next;
    }
    drop(at);
    dentry::shrink(Some(world.root.mount.superblock()));
    // The tree of nodes is the mock's own, and recursive.
    std::mem::forget(world.root.mount.fs().clone());
}

#[test]
fn mounts_hide_and_dot_dot_leaves_them() {
    let world = World::new(Caching::Forever);
    let (fs, _) = Memory::with_counter(Caching::Forever);
    let mnt = world.walk().lookup(b"/mnt", FOLLOW).unwrap();
    world.ns.mount(&fs, &mnt, MountFlags::RDONLY | MountFlags::NODEV, "second").unwrap();
    let inner = world.walk().lookup(b"/mnt", FOLLOW).unwrap();
    assert!(inner != mnt);
    assert_eq!(world.text(&inner), "/mnt");
    assert_eq!(world.find("/mnt/../a", FOLLOW).as_deref(), Ok("/a"));
    assert_eq!(world.find("/mnt", LookupFlags::NO_XDEV), Err(Errno::EXDEV));
    assert_eq!(world.walk().mkdir(b"/mnt/x", 0o755).err(), Some(Errno::EROFS));
    assert_eq!(world.walk().rmdir(b"/mnt"), Err(Errno::EBUSY));
    assert_eq!(world.rename("/a/f", "/mnt/f", RenameFlags::empty()), Err(Errno::EXDEV));
    assert_eq!(world.ns.umount(world.walk().lookup(b"/mnt", FOLLOW).unwrap(), UmountFlags::empty()), Err(Errno::EBUSY));
    drop(inner);
    world.ns.umount(world.walk().lookup(b"/mnt", FOLLOW).unwrap(), UmountFlags::empty()).unwrap();
    assert!(world.walk().lookup(b"/mnt", FOLLOW).unwrap() == mnt);
    assert_eq!(world.ns.umount(mnt, UmountFlags::empty()), Err(Errno::EINVAL));
}

#[test]
fn a_mount_point_survives_where_names_are_not_cached() {
    let world = World::new(Caching::Never);
    let (fs, _) = Memory::with_counter(Caching::Forever);
    let at = world.walk().lookup(b"/a/b/c", FOLLOW).unwrap();
    world.ns.mount(&fs, &at, MountFlags::empty(), "mask").unwrap();
    drop(at);
    let found = world.walk().lookup(b"/a/b/c", FOLLOW).unwrap();
    assert_eq!(found.mount.source(), "mask");
}

#[test]
fn binds_copies_and_pivots() {
    let world = World::new(Caching::Forever);
    let (fs, _) = Memory::with_counter(Caching::Forever);
    let look = |path: &str| world.walk().lookup(path.as_bytes(), FOLLOW).unwrap();
    world.ns.mount(&fs, &look("/a/b/c"), MountFlags::empty(), "inner").unwrap();
    world.ns.bind(&look("/a"), &look("/mnt"), true).unwrap();
    assert_eq!(look("/mnt/b/c").mount.source(), "inner");
    world.ns.umount(look("/mnt"), UmountFlags::DETACH).unwrap();
    world.ns.bind(&look("/a"), &look("/mnt"), false).unwrap();
    assert_eq!(look("/mnt/b/c").mount.source(), "none");

    let mut cwd = look("/a/b/c");
    let copy = world.ns.copy(&mut [&mut cwd]).unwrap();
    assert_eq!(cwd.mount.source(), "inner");
    assert_eq!(world.ns.umount(cwd.clone(), UmountFlags::DETACH), Err(Errno::EINVAL), "it is the copy's");
    drop(copy);

    let new_root = look("/mnt");
    world.ns.pivot_root(&new_root, &look("/mnt/b"), &world.root).unwrap();
    assert!(world.ns.root() == new_root);
    let inside = Walk { root: &new_root, start: &new_root, ..world.walk() };
    let old = inside.lookup(b"/b/tmp", FOLLOW).unwrap();
    assert_eq!(path_string(&new_root, &old), b"/b/tmp");
    inside.lookup(b"/f", FOLLOW).unwrap();
    world.ns.umount(inside.lookup(b"/b", FOLLOW).unwrap(), UmountFlags::DETACH).unwrap();
    inside.lookup(b"/b/c", FOLLOW).unwrap();
    assert_eq!(path_string(&new_root, &old), b"(unreachable)/tmp");
}

/// What container runtimes do: `pivot_root(".", ".")` and `umount2(".", MNT_DETACH)`.
#[test]
fn the_old_root_can_be_put_over_the_new_one_and_detached() {
    let world = World::new(Caching::Forever);
    let (fs, _) = Memory::with_counter(Caching::Forever);
    let at = world.walk().lookup(b"/mnt", FOLLOW).unwrap();
    world.ns.mount(&fs, &at, MountFlags::empty(), "new").unwrap();
    let new_root = world.walk().lookup(b"/mnt", FOLLOW).unwrap();
    world.ns.pivot_root(&new_root, &new_root, &world.root).unwrap();
    let inside = Walk { root: &new_root, start: &new_root, ..world.walk() };
    let here = inside.lookup(b".", FOLLOW).unwrap();
    world.ns.umount(here, UmountFlags::DETACH).unwrap();
    assert_eq!(inside.lookup(b"/a", FOLLOW).err(), Some(Errno::ENOENT));
    assert!(inside.lookup(b"/..", FOLLOW).unwrap() == new_root);
    assert_eq!(world.ns.list(&new_root).len(), 1);
}

#[test]
fn opening_says_what_linux_says() {
    let world = World::new(Caching::Forever);
    let (rd, wr, creat, excl) = (libc::O_RDONLY, libc::O_WRONLY, libc::O_CREAT, libc::O_EXCL);
    world.walk().mknod(b"/sock", NodeType::Socket, 0o666, 0).unwrap();
    world.walk().mknod(b"/dev", NodeType::CharDevice, 0o666, libc::makedev(1, 99)).unwrap();
    world.walk().mknod(b"/fifo", NodeType::Fifo, 0o666, 0).unwrap();
    let table = [
        ("/a/f", rd, None),
        ("/a/f", creat | excl | wr, Some(Errno::EEXIST)),
        ("/a", wr, Some(Errno::EISDIR)),
        ("/a", creat, Some(Errno::EISDIR)),
        ("/a/new/", creat | wr, Some(Errno::EISDIR)),
        ("/a/f", libc::O_DIRECTORY, Some(Errno::ENOTDIR)),
        ("/abs", libc::O_NOFOLLOW, Some(Errno::ELOOP)),
        ("/abs", libc::O_NOFOLLOW | libc::O_PATH, None),
        ("/dangling", creat | excl | wr, Some(Errno::EEXIST)),
        ("/dangling", creat | wr, None),
        ("/new", rd, None),
        ("/loop", creat | wr, Some(Errno::ELOOP)),
        ("/sock", rd, Some(Errno::ENXIO)),
        ("/dev", rd, Some(Errno::ENXIO)),
        ("/fifo", rd, Some(Errno::EAGAIN)),
        ("/fifo", wr | libc::O_NONBLOCK, Some(Errno::ENXIO)),
        ("/fifo", rd | libc::O_NONBLOCK, None),
        ("/tmp", libc::O_TMPFILE | libc::O_RDWR, None),
        ("/tmp", libc::O_TMPFILE, Some(Errno::EINVAL)),
        ("/a", creat | libc::O_DIRECTORY, Some(Errno::EINVAL)),
    ];
    for (path, flags, expected) in table {
        assert_eq!(world.open(path, flags).err(), expected, "{path} {flags:o}");
    }
}

#[test]
fn a_program_that_runs_cannot_be_written() {
    let world = World::new(Caching::Forever);
    let file = world.walk().lookup(b"/a/f", FOLLOW).unwrap();
    let writer = world.open("/a/f", libc::O_WRONLY).unwrap();
    assert_eq!(deny::deny_write(file.inode().unwrap()).err(), Some(Errno::ETXTBSY));
    drop(writer);
    let running = deny::deny_write(file.inode().unwrap()).unwrap();
    assert_eq!(world.open("/a/f", libc::O_WRONLY).err(), Some(Errno::ETXTBSY));
    assert_eq!(ops::truncate(&file, &world.creds, 0), Err(Errno::ETXTBSY));
    drop(running);
    world.open("/a/f", libc::O_WRONLY).unwrap();
}

#[test]
fn names_come_go_and_move() {
    let world = World::new(Caching::Forever);
    let walk = world.walk();
    let none = RenameFlags::empty();
    assert_eq!(walk.mkdir(b"/a", 0o755).err(), Some(Errno::EEXIST));
    assert_eq!(walk.rmdir(b"/a"), Err(Errno::ENOTEMPTY));
    assert_eq!(walk.rmdir(b"/a/f"), Err(Errno::ENOTDIR));
    assert_eq!(walk.rmdir(b"/a/."), Err(Errno::EINVAL));
    assert_eq!(walk.unlink(b"/a/b"), Err(Errno::EISDIR));
    assert_eq!(walk.unlink(b"/a/f/"), Err(Errno::ENOTDIR));
    assert_eq!(world.rename("/a", "/a/b/x", none), Err(Errno::EINVAL));
    assert_eq!(world.rename("/a/b", "/a", none), Err(Errno::ENOTEMPTY));
    assert_eq!(world.rename("/a/f", "/a/b", none), Err(Errno::EISDIR));
    assert_eq!(world.rename("/a/b", "/a/f", none), Err(Errno::ENOTDIR));
    assert_eq!(world.rename("/a/f", "/tmp/f/", none), Err(Errno::ENOTDIR));
    assert_eq!(world.rename("/a/f", "/tmp", RenameFlags::NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(world.rename("/a/f", "/tmp/no", RenameFlags::EXCHANGE), Err(Errno::ENOENT));

    let c = walk.lookup(b"/a/b/c", FOLLOW).unwrap();
    world.rename("/a/b", "/tmp/moved", none).unwrap();
    assert_eq!(world.text(&c), "/tmp/moved/c");
    assert_eq!(world.find("/a/b", FOLLOW), Err(Errno::ENOENT));
    assert_eq!(world.find("/tmp/moved/c/..", FOLLOW).as_deref(), Ok("/tmp/moved"));
    world.rename("/tmp/moved", "/a/f", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(world.text(&c), "/a/f/c");
    assert_eq!(walk.lookup(b"/tmp/moved", FOLLOW).unwrap().dentry.kind(), Some(NodeType::Regular));

    let file = walk.lookup(b"/tmp/moved", FOLLOW).unwrap();
    walk.link(&file, b"/tmp/second").unwrap();
    world.rename("/tmp/moved", "/tmp/second", none).unwrap();
    assert_eq!(world.find("/tmp/moved", FOLLOW).as_deref(), Ok("/tmp/moved"), "two names of one file stay");
    walk.unlink(b"/tmp/moved").unwrap();
    assert_eq!(world.text(&file), "/tmp/moved (deleted)");
    walk.unlink(b"/tmp/second").unwrap();
    assert_eq!(walk.link(&file, b"/tmp/third"), Err(Errno::ENOENT));
    walk.rmdir(b"/a/f/c").unwrap();
    let gone = Walk { start: &c, ..walk };
    assert_eq!(gone.mkdir(b"x", 0o755).err(), Some(Errno::ENOENT));
    assert_eq!(walk.lookup_parent(b"/tmp/x/", FOLLOW).unwrap().1, Last::Name(b"x".to_vec(), true));
}

#[test]
fn permissions_by_class_and_capability() {
    let attr = |kind, perm| {
        let mut attr = crate::vfs::inode::Attr::new(0, 1, kind, perm);
        (attr.uid, attr.gid) = (10, 20);
        attr
    };
    let user = |uid, gid, caps| Credentials::new(uid, gid, &[30], caps);
    let none = Caps::empty();
    let (file, dir) = (NodeType::Regular, NodeType::Directory);
    let table = [
        (file, 0o600, user(10, 1, none), Access::READ | Access::WRITE, true),
        (file, 0o077, user(10, 1, none), Access::READ, false),
        (file, 0o060, user(1, 20, none), Access::WRITE, true),
        (file, 0o006, user(1, 20, none), Access::READ, false),
        (file, 0o004, user(1, 30, none), Access::READ, true),
        (file, 0o000, user(1, 1, Caps::DAC_OVERRIDE), Access::READ | Access::WRITE, true),
        (file, 0o000, user(1, 1, Caps::DAC_OVERRIDE), Access::EXEC, false),
        (file, 0o100, user(1, 1, Caps::DAC_OVERRIDE), Access::EXEC, true),
        (file, 0o000, user(1, 1, Caps::DAC_READ_SEARCH), Access::READ, true),
        (file, 0o000, user(1, 1, Caps::DAC_READ_SEARCH), Access::WRITE, false),
        (dir, 0o000, user(1, 1, Caps::DAC_READ_SEARCH), Access::READ | Access::EXEC, true),
        (dir, 0o000, user(1, 1, Caps::DAC_OVERRIDE), Access::EXEC, true),
    ];
    for (kind, perm, creds, access, expected) in table {
        assert_eq!(may(&attr(kind, perm), &creds, access).is_ok(), expected, "{kind:?} {perm:o} {access:?}");
    }
}

#[test]
fn sticky_directories_keep_what_is_not_ones_own() {
    let mut world = World::new(Caching::Forever);
    let tmp = world.walk().lookup(b"/tmp", FOLLOW).unwrap();
    ops::chmod(&tmp, &world.creds, 0o1777).unwrap();
    world.creds = Credentials::new(5, 5, &[], Caps::empty());
    world.walk().mknod(b"/tmp/mine", NodeType::Regular, 0o644, 0).unwrap();
    world.creds = Credentials::new(6, 6, &[], Caps::empty());
    assert_eq!(world.walk().unlink(b"/tmp/mine"), Err(Errno::EPERM));
    assert_eq!(world.rename("/tmp/mine", "/tmp/other", RenameFlags::empty()), Err(Errno::EPERM));
    assert_eq!(world.walk().mkdir(b"/a/x", 0o755).err(), Some(Errno::EACCES));
    assert_eq!(world.walk().mknod(b"/tmp/d", NodeType::BlockDevice, 0, 1).err(), Some(Errno::EPERM));
    world.creds = Credentials::new(5, 5, &[], Caps::empty());
    let mine = world.walk().lookup(b"/tmp/mine", FOLLOW).unwrap();
    assert_eq!(ops::chown(&mine, &world.creds, Some(6), None), Err(Errno::EPERM));
    ops::chmod(&mine, &world.creds, 0o4755).unwrap();
    ops::chown(&mine, &world.creds, None, Some(5)).unwrap();
    assert_eq!(mine.attr().unwrap().perm, 0o755);
    world.walk().unlink(b"/tmp/mine").unwrap();
}

#[test]
fn locks_of_a_description_end_with_it() {
    let world = World::new(Caching::Forever);
    let (one, two) = (world.open("/a/f", 0).unwrap(), world.open("/a/f", 0).unwrap());
    let locks = locks::FileLocks::of(one.path().unwrap().inode().unwrap()).unwrap();
    one.note_lock();
    locks.flock(one.id(), locks::LockKind::Exclusive, Pid::default()).unwrap();
    assert_eq!(locks.flock(two.id(), locks::LockKind::Shared, Pid::default()), Err(Errno::EAGAIN));
    drop(one);
    locks.flock(two.id(), locks::LockKind::Shared, Pid::default()).unwrap();
}

#[test]
fn mounts_are_listed_as_linux_writes_them() {
    let world = World::new(Caching::Forever);
    let (fs, _) = Memory::with_counter(Caching::Forever);
    let spaced = world.walk().mkdir(b"/mnt/a b", 0o755).unwrap();
    let mount = world.ns.mount(&fs, &spaced, MountFlags::NOSUID | MountFlags::RDONLY, "two").unwrap();
    let from = world.walk().lookup(b"/a/b", FOLLOW).unwrap();
    let to = world.walk().lookup(b"/tmp", FOLLOW).unwrap();
    let bound = world.ns.bind(&from, &to, false).unwrap();
    let list = world.ns.list(&world.root);
    let lines: Vec<_> = list.iter().map(|info| String::from_utf8(info.mounts_line()).unwrap()).collect();
    assert_eq!(lines[0], "none / memory rw,relatime 0 0\n");
    assert_eq!(lines[1], "two /mnt/a\\040b memory ro,nosuid,relatime 0 0\n");
    let info = String::from_utf8(list[2].mountinfo_line()).unwrap();
    let parent = world.root.mount.id();
    assert_eq!(info, format!("{} {parent} 0:77 /a/b /tmp rw,relatime - memory none rw\n", bound.id()));
    let inside = world.ns.list(&Path::root_of(mount));
    assert_eq!(inside.len(), 1);
    assert_eq!(inside[0].mountpoint, b"/");
}

#[test]
fn attributes_follow_their_name_spaces() {
    let mut world = World::new(Caching::Forever);
    let file = world.walk().lookup(b"/a/f", FOLLOW).unwrap();
    // The file system of these tests has none, so EOPNOTSUPP means that the rules let it through.
    assert_eq!(xattr::get(&file, &world.creds, b"user.x"), Err(Errno::EOPNOTSUPP));
    assert_eq!(xattr::set(&file, &world.creds, b"user.", b"", 0), Err(Errno::EINVAL));
    world.creds = Credentials::new(5, 5, &[], Caps::empty());
    assert_eq!(xattr::set(&file, &world.creds, b"user.x", b"", 0), Err(Errno::EACCES));
    assert_eq!(xattr::set(&file, &world.creds, b"trusted.x", b"", 0), Err(Errno::EPERM));
    assert_eq!(xattr::get(&file, &world.creds, b"trusted.x"), Err(Errno::ENODATA));
    assert_eq!(xattr::set(&file, &world.creds, b"security.x", b"", 0), Err(Errno::EPERM));
    assert_eq!(xattr::get(&file, &world.creds, b"system.posix_acl_access"), Err(Errno::EOPNOTSUPP));
    assert_eq!(xattr::list(&file, &world.creds), Ok(Vec::new()));
}

/// The cost of the hot path, printed with `--nocapture`; run with `--ignored`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_warm_lookup() {
    let world = World::new(Caching::Forever);
    world.walk().mknod(b"/a/b/c/leaf", NodeType::Regular, 0o644, 0).unwrap();
    let start = std::time::Instant::now();
    for _ in 0..1_000_000 {
        std::hint::black_box(world.walk().lookup(b"/a/b/c/leaf", FOLLOW).unwrap());
    }
    println!("{} ns", start.elapsed().as_nanos() / 1_000_000);
}
