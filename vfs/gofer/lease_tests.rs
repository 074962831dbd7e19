//! A leased tree as the VFS uses it, against a real gofer: what is believed, for how long, and at which cost.

use std::fs;
use std::path::Path as HostPath;
use std::sync::Arc;

use super::GoferFs;
use super::tests::{export, pair};
use crate::errno::{Errno, Result};
use crate::gofer::serve;
use crate::io::SliceSink;
use crate::sentry::creds::Credentials;
use crate::vfs::file::OpenFile;
use crate::vfs::inode::{Caching, FileSystem, NodeType, RenameFlags};
use crate::vfs::lease::{LIFETIME, Leases};
use crate::vfs::{DeviceTable, LookupFlags, MountFlags, MountNamespace, OpenHow, Opened, Path, Walk};

struct World {
    dir: tempfile::TempDir,
    fs: Arc<GoferFs>,
    leases: Arc<Leases>,
    _ns: Arc<MountNamespace>,
    root: Path,
    creds: Credentials,
    devices: DeviceTable,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/lib/x")).unwrap();
        fs::write(dir.path().join("usr/lib/x/so"), "elf").unwrap();
        let (ours, theirs) = pair();
        let export = export(dir.path(), theirs, true);
        std::thread::spawn(move || serve(vec![export]));
        let leases = Leases::manual();
        let fs = GoferFs::with_leases(ours, false, Caching::Lease, leases.clone()).unwrap();
        let dynamic: Arc<dyn FileSystem> = fs.clone();
        let ns = MountNamespace::new(&dynamic, MountFlags::empty(), "none").unwrap();
        let root = ns.root();
        World { dir, fs, leases, _ns: ns, root, creds: Credentials::root(), devices: DeviceTable::new() }
    }

    fn walk(&self) -> Walk<'_> {
        Walk { root: &self.root, start: &self.root, creds: &self.creds, umask: 0, devices: &self.devices }
    }

    fn host(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(path)
    }

    fn open(&self, path: &str, flags: i32) -> Result<Arc<OpenFile>> {
        match self.walk().open(path.as_bytes(), &OpenHow { flags, mode: 0o644, resolve: LookupFlags::empty() })? {
            Opened::File(file) => Ok(file),
            Opened::Fifo(_) => Err(Errno::EAGAIN),
        }
    }

    fn read(&self, path: &str) -> Result<String> {
        let file = self.open(path, libc::O_RDONLY)?;
        let mut buf = [0; 64];
        let n = file.read(&mut SliceSink::new(&mut buf))?;
        Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
    }

    fn size(&self, path: &str) -> Result<u64> {
        self.walk().lookup(path.as_bytes(), LookupFlags::FOLLOW)?.attr().map(|attr| attr.size)
    }

    /// What `work` gives, and how many round trips it took.
    fn trips<T>(&self, work: impl FnOnce() -> T) -> (u64, T) {
        let before = self.fs.round_trips();
        let result = work();
        (self.fs.round_trips() - before, result)
    }
}

/// Puts another file at a path, as `docker cp` does.
fn replace(path: &HostPath, text: &str) {
    let aside = path.with_extension("aside");
    fs::write(&aside, text).unwrap();
    fs::rename(&aside, path).unwrap();
}

const SO: &str = "/usr/lib/x/so";

#[test]
fn a_path_costs_one_round_trip_when_it_is_cold_or_doubtful_and_none_otherwise() {
    let world = World::new();
    let read = || world.read(SO);
    assert_eq!(world.trips(read), (1, Ok("elf".into())), "walk, attributes and descriptor");
    assert_eq!(world.trips(read), (0, Ok("elf".into())));
    world.leases.advance(LIFETIME);
    assert_eq!(world.trips(read), (1, Ok("elf".into())), "the whole path is asked about at once");
    assert_eq!(world.trips(read), (0, Ok("elf".into())));
    world.leases.new_epoch();
    assert_eq!(world.trips(read), (1, Ok("elf".into())));
    // Names that are not there are known as well.
    let missing = || world.read("/usr/lib/x/none").err();
    assert_eq!(world.trips(missing), (1, Some(Errno::ENOENT)));
    assert_eq!(world.trips(missing), (0, Some(Errno::ENOENT)));
    world.leases.advance(LIFETIME);
    assert_eq!(world.trips(|| world.read("/usr/bin/far/away").err()), (2, Some(Errno::ENOENT)), "known, then unknown");
}

#[test]
fn what_was_changed_outside_is_seen_with_the_next_command() {
    let world = World::new();
    assert_eq!(world.read(SO), Ok("elf".into()));
    assert_eq!(world.read("/usr/new"), Err(Errno::ENOENT));
    replace(&world.host("usr/lib/x/so"), "other");
    fs::write(world.host("usr/new"), "new").unwrap();
    assert_eq!(world.read("/usr/new"), Err(Errno::ENOENT), "believed");
    world.leases.new_epoch();
    assert_eq!(world.read(SO), Ok("other".into()));
    assert_eq!(world.read("/usr/new"), Ok("new".into()));
    fs::remove_file(world.host("usr/new")).unwrap();
    world.leases.new_epoch();
    assert_eq!(world.read("/usr/new"), Err(Errno::ENOENT));
}

#[test]
fn what_was_changed_outside_is_seen_after_a_second() {
    let world = World::new();
    assert_eq!(world.size(SO), Ok(3));
    replace(&world.host("usr/lib/x/so"), "longer");
    world.leases.advance(LIFETIME - 1);
    assert_eq!(world.size(SO), Ok(3));
    world.leases.advance(1);
    assert_eq!(world.size(SO), Ok(6));
    fs::remove_dir_all(world.host("usr/lib")).unwrap();
    world.leases.advance(LIFETIME);
    assert_eq!(world.size(SO), Err(Errno::ENOENT));
}

#[test]
fn what_is_changed_inside_is_seen_at_once() {
    let world = World::new();
    let (walk, dir) = (world.walk(), b"/usr/lib/x".as_slice());
    let links = |path: &[u8]| walk.lookup(path, LookupFlags::empty()).and_then(|found| found.attr()).map(|a| a.nlink);
    assert_eq!((world.size(SO), links(dir)), (Ok(3), Ok(2)));
    // Content, through a descriptor that is closed afterwards.
    let file = world.open(SO, libc::O_WRONLY | libc::O_APPEND).unwrap();
    file.write(&mut &b"!!"[..]).unwrap();
    assert_eq!(world.size(SO), Ok(5));
    drop(file);
    assert_eq!((world.size(SO), world.read(SO)), (Ok(5), Ok("elf!!".into())));
    world.open(SO, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(world.size(SO), Ok(0));
    // Names.
    assert_eq!(world.size("/usr/lib/x/new"), Err(Errno::ENOENT));
    walk.mkdir(b"/usr/lib/x/new", 0o755).unwrap();
    assert_eq!(links(dir), Ok(3));
    let source = walk.lookup(SO.as_bytes(), LookupFlags::empty()).unwrap();
    walk.link(&source, b"/usr/hard").unwrap();
    assert_eq!(links(SO.as_bytes()), Ok(2));
    walk.unlink(b"/usr/hard").unwrap();
    assert_eq!((links(SO.as_bytes()), links(b"/usr/hard")), (Ok(1), Err(Errno::ENOENT)));
    walk.mknod(b"/usr/other", NodeType::Regular, 0o600, 0).unwrap();
    let other = walk.lookup(b"/usr/other", LookupFlags::empty()).unwrap();
    walk.rename(SO.as_bytes(), &walk, b"/usr/other", RenameFlags::empty()).unwrap();
    assert_eq!((links(SO.as_bytes()), other.attr().map(|attr| attr.nlink)), (Err(Errno::ENOENT), Ok(0)));
    assert_eq!(world.read("/usr/other"), Ok(String::new()));
    walk.rmdir(b"/usr/lib/x/new").unwrap();
    assert_eq!(links(dir), Ok(2));
}

#[test]
fn a_believed_absence_does_not_stop_a_file_from_being_opened() {
    let world = World::new();
    assert_eq!(world.size("/usr/late"), Err(Errno::ENOENT));
    fs::write(world.host("usr/late"), "late").unwrap();
    let file = world.open("/usr/late", libc::O_RDWR | libc::O_CREAT).unwrap();
    let mut buf = [0; 8];
    assert_eq!(file.read(&mut SliceSink::new(&mut buf)), Ok(4));
    // For exclusive creation it is there, whatever was believed.
    fs::write(world.host("usr/later"), "").unwrap();
    assert_eq!(world.open("/usr/later", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).err(), Some(Errno::EEXIST));
}

#[test]
fn a_file_that_was_replaced_is_opened_anew() {
    let world = World::new();
    assert_eq!(world.size(SO), Ok(3));
    replace(&world.host("usr/lib/x/so"), "other");
    // For writing it must be opened by its name, which is another file's now.
    let file = world.open(SO, libc::O_RDWR).unwrap();
    let mut buf = [0; 8];
    assert_eq!(file.read(&mut SliceSink::new(&mut buf)), Ok(5));
    assert_eq!(world.size(SO), Ok(5));
}

/// Threads that change a file and look at it: nobody sees less than it has been seen to be.
#[test]
fn answers_that_cross_a_change_are_not_believed() {
    let world = World::new();
    let rounds = 300;
    let done = std::sync::atomic::AtomicU64::new(3);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seen = 0;
                while seen < rounds {
                    let least = done.load(std::sync::atomic::Ordering::SeqCst);
                    seen = world.size(SO).unwrap();
                    assert!(seen >= least, "{seen} after {least}");
                }
            });
        }
        for size in 4..=rounds {
            let file = world.open(SO, libc::O_WRONLY | libc::O_APPEND).unwrap();
            file.write(&mut &b"x"[..]).unwrap();
            drop(file);
            done.store(size, std::sync::atomic::Ordering::SeqCst);
            if size % 5 == 0 {
                world.leases.advance(LIFETIME);
            }
        }
    });
}
