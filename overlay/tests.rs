//! Over a lower layer that is a tmpfs filled first.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::OverlayFs;
use crate::errno::Errno;
use crate::vfs::inode::{FileSystem, Inode, NewNode, NodeType, RenameFlags, SetAttr, TimeSpec};
use crate::vfs::tmpfs::TmpFs;
use crate::vfs::tmpfs::tests::{file, list, list_some, mkdir, new_node, read, read_file, tmpfs, write};

/// An upper layer.
pub(super) fn tmp() -> Arc<TmpFs> {
    tmpfs(4, 10_000)
}

/// An overlay over what `fill` makes, and its root.
fn overlay(fill: impl FnOnce(&Arc<dyn Inode>)) -> (Arc<OverlayFs>, Arc<dyn Inode>) {
    let lower = tmpfs(3, 10_000);
    fill(&lower.root());
    let overlay = OverlayFs::new(lower, tmp()).unwrap();
    let root = overlay.root();
    (overlay, root)
}

fn free_pages(fs: &OverlayFs) -> u64 {
    fs.statfs().unwrap().bfree
}

const PLAIN: RenameFlags = RenameFlags::empty();

#[test]
fn attributes_are_copied_without_data_and_data_once() {
    let (fs, root) = overlay(|root| {
        let lower = file(root, "f", &[5; 100_000]);
        lower.set_xattr(b"user.k", b"v", 0).unwrap();
        let old = TimeSpec { sec: 77, nsec: 1 };
        lower.set_attr(&SetAttr { mtime: Some(old), uid: Some(3), ..Default::default() }).unwrap();
    });
    let node = root.lookup(b"f").unwrap();
    let before = node.attr().unwrap();
    assert_eq!(before.dev, 4);
    let all = free_pages(&fs);
    node.set_attr(&SetAttr { gid: Some(9), ..Default::default() }).unwrap();
    let after = node.attr().unwrap();
    assert_eq!((after.ino, after.size, after.mtime, after.uid, after.gid), (before.ino, 100_000, before.mtime, 3, 9));
    assert_eq!(node.get_xattr(b"user.k").unwrap(), b"v");
    assert_eq!(free_pages(&fs), all - 1, "only the extended attribute takes a page");
    write(&node, b"new");
    assert_eq!(free_pages(&fs), all - 1 - 25);
    assert_eq!((node.attr().unwrap().ino, &read(&node)[..4]), (before.ino, &b"new\x05"[..]));
    drop(node);
    assert_eq!(read(&root.lookup(b"f").unwrap()).len(), 100_000);
}

#[test]
fn truncation_copies_no_data() {
    let (fs, root) = overlay(|root| drop(file(root, "f", &[5; 100_000])));
    let all = free_pages(&fs);
    root.lookup(b"f").unwrap().open(libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!((read(&root.lookup(b"f").unwrap()), free_pages(&fs)), (vec![], all));
}

#[test]
fn a_full_upper_leaves_the_lower_visible() {
    let lower = tmpfs(3, 10_000);
    file(&lower.root(), "f", &[5; 100_000]);
    let overlay = OverlayFs::new(lower, tmpfs(4, 10)).unwrap();
    let node = overlay.root().lookup(b"f").unwrap();
    assert_eq!(node.clone().open(libc::O_RDWR).err(), Some(Errno::ENOSPC));
    assert_eq!((read(&node), free_pages(&overlay)), (vec![5; 100_000], 10));
}

#[test]
fn readers_see_the_copy_and_mappings_keep_the_lower() {
    let (_fs, root) = overlay(|root| drop(file(root, "f", &[5; 20_000])));
    let node = root.lookup(b"f").unwrap();
    let reader = node.clone().open(libc::O_RDONLY).unwrap();
    let mapping = reader.mapping(false, true).unwrap();
    assert!(!mapping.writable);
    write(&node, b"new");
    assert_eq!(&read_file(reader.as_ref()).unwrap()[..3], b"new");
    let mut buf = [0; 3];
    crate::io::host_read(mapping.fd.as_fd(), &mut buf, Some(0)).unwrap();
    assert_eq!(buf, [5; 3]);
    let shared = node.open(libc::O_RDWR).unwrap().mapping(true, true).unwrap();
    assert!(shared.writable);
    crate::io::host_read(shared.fd.as_fd(), &mut buf, Some(0)).unwrap();
    assert_eq!(&buf, b"new");
}

#[test]
fn holes_are_kept() {
    let (fs, root) = overlay(|root| {
        let lower = file(root, "f", b"start");
        lower.set_attr(&SetAttr { size: Some(1 << 30), ..Default::default() }).unwrap();
    });
    let all = free_pages(&fs);
    let open = root.lookup(b"f").unwrap().open(libc::O_RDWR).unwrap();
    assert_eq!((open.size(), free_pages(&fs)), (Ok(1 << 30), all - 1));
}

#[test]
fn a_removed_directory_comes_back_empty() {
    let (_fs, root) = overlay(|root| drop(file(&mkdir(root, "d"), "f", b"x")));
    assert_eq!(root.rmdir(b"d"), Err(Errno::ENOTEMPTY));
    let old = root.lookup(b"d").unwrap();
    old.unlink(b"f").unwrap();
    root.rmdir(b"d").unwrap();
    assert_eq!((root.lookup(b"d").err(), list(&root).len()), (Some(Errno::ENOENT), 0));
    assert_eq!(old.create(b"g", &new_node(NodeType::Regular, 0)).err(), Some(Errno::ENOENT));
    let new = mkdir(&root, "d");
    assert_eq!((new.lookup(b"f").err(), list(&new).len()), (Some(Errno::ENOENT), 0));
    assert_ne!(new.attr().unwrap().ino, old.attr().unwrap().ino);
}

#[test]
fn a_renamed_directory_keeps_what_the_lower_has() {
    let (fs, root) = overlay(|root| {
        let dir = mkdir(root, "d");
        file(&mkdir(&dir, "sub"), "f", &[1; 50_000]);
        file(&dir, "gone", b"");
        mkdir(root, "other");
    });
    let all = free_pages(&fs);
    let dir = root.lookup(b"d").unwrap();
    dir.unlink(b"gone").unwrap();
    root.rename(b"d", &root.lookup(b"other").unwrap(), b"moved", PLAIN).unwrap();
    assert_eq!(free_pages(&fs), all);
    assert_eq!(root.lookup(b"d").err(), Some(Errno::ENOENT));
    drop(dir);
    let moved = root.lookup(b"other").unwrap().lookup(b"moved").unwrap();
    assert_eq!(list(&moved).into_keys().collect::<Vec<_>>(), ["sub"]);
    assert_eq!(read(&moved.lookup(b"sub").unwrap().lookup(b"f").unwrap()).len(), 50_000);
    mkdir(&root, "d");
    root.rename(b"d", &root.lookup(b"other").unwrap(), b"d", PLAIN).unwrap();
    assert_eq!(root.lookup(b"d").err(), Some(Errno::ENOENT));
}

#[test]
fn hard_links_stay_linked() {
    let (_fs, root) = overlay(|root| {
        let node = file(root, "a", b"old");
        mkdir(root, "d").link(b"b", &node).unwrap();
    });
    write(&root.lookup(b"a").unwrap(), b"new");
    // Nobody holds either name's node here.
    let b = root.lookup(b"d").unwrap().lookup(b"b").unwrap();
    assert_eq!((read(&b), b.attr().unwrap().nlink), (b"new".to_vec(), 2));
    root.unlink(b"a").unwrap();
    assert_eq!(b.attr().unwrap().nlink, 1);
    root.lookup(b"d").unwrap().unlink(b"b").unwrap();
    assert_eq!((b.attr().unwrap().nlink, read(&b)), (0, b"new".to_vec()));
    let node = b.as_any().downcast_ref::<super::Node>().unwrap();
    assert!(node.fs.pinned.lock().is_empty());
}

#[test]
fn nodes_are_the_same_while_used_and_forgotten_after() {
    let (fs, root) = overlay(|root| {
        let mut dir = root.clone();
        for _ in 0..50_000 {
            dir = mkdir(&dir, "d");
        }
        let fifo = dir.create(b"p", &new_node(NodeType::Fifo, 0o600)).unwrap();
        assert_eq!(fifo.attr().unwrap().nlink, 1);
    });
    let mut dir = root.clone();
    for _ in 0..50_000 {
        dir = dir.lookup(b"d").unwrap();
    }
    let fifo = dir.lookup(b"p").unwrap();
    assert!(Arc::ptr_eq(&fifo, &dir.lookup(b"p").unwrap()));
    assert_eq!(fifo.clone().open(libc::O_RDONLY).err(), Some(Errno::ENXIO));
    fifo.attachments().unwrap().set(Arc::new(5u8));
    drop(dir);
    assert_eq!(fs.shared.nodes.lock().len(), 50_001);
    drop(fifo);
    assert_eq!(fs.shared.nodes.lock().len(), 0);
}

#[test]
fn removing_needs_no_room() {
    let lower = tmpfs(3, 100);
    file(&lower.root(), "f", b"x");
    let options = crate::vfs::tmpfs::TmpfsOptions { inodes: Some(2), ..Default::default() };
    let overlay = OverlayFs::new(lower, TmpFs::new(4, &options, 1 << 20)).unwrap();
    let root = overlay.root();
    let open = root.lookup(b"f").unwrap().open(libc::O_RDONLY).unwrap();
    root.unlink(b"f").unwrap();
    assert_eq!(read_file(open.as_ref()).unwrap(), b"x");
    assert_eq!(root.create(b"g", &new_node(NodeType::Regular, 0)).err(), Some(Errno::ENOSPC));
}

#[test]
fn a_listing_goes_on_over_copies_and_removals() {
    let (_fs, root) = overlay(|root| {
        for i in 0..600 {
            file(root, &format!("l{i}"), b"");
        }
    });
    for i in 0..300 {
        file(&root, &format!("u{i}"), b"");
    }
    let open = root.clone().open(libc::O_RDONLY).unwrap();
    let (mut seen, mut pos, mut round) = (Vec::new(), 0, 0);
    loop {
        let (names, next) = list_some(open.as_ref(), pos, 100);
        if names.is_empty() {
            break;
        }
        seen.extend(names.into_iter().map(|(name, _)| name));
        pos = next;
        // Copies up, removes and makes again: one that was listed, one that was not.
        for i in [round * 60, 599 - round * 30] {
            write(&root.lookup(format!("l{i}").as_bytes()).unwrap(), b"x");
            root.unlink(format!("l{}", i ^ 1).as_bytes()).unwrap();
            file(&root, &format!("l{}", i ^ 1), b"again");
        }
        round += 1;
    }
    seen.sort();
    let mut expected: Vec<String> = list(&root).into_keys().collect();
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(seen.len(), 900);
}

#[test]
fn layers_merge_and_hide() {
    let (top, bottom) = (tmpfs(3, 100), tmpfs(3, 100));
    let (t, b) = (top.root(), bottom.root());
    for root in [&t, &b] {
        mkdir(root, "both");
        file(root, "f", b"x");
    }
    write(&t.lookup(b"f").unwrap(), b"y");
    file(&t.lookup(b"both").unwrap(), "t", b"");
    file(&b.lookup(b"both").unwrap(), "b", b"");
    file(&b, "hidden", b"");
    t.create(b"hidden", &NewNode { rdev: 0, ..new_node(NodeType::CharDevice, 0) }).unwrap();
    file(&mkdir(&b, "opaque"), "b", b"");
    mkdir(&t, "opaque").set_xattr(b"trusted.overlay.opaque", b"y", 0).unwrap();
    let overlay = OverlayFs::layered(&[top, bottom], tmp()).unwrap();
    let root = overlay.root();
    assert_eq!(list(&root).into_keys().collect::<Vec<_>>(), ["both", "f", "opaque"]);
    assert_eq!(root.lookup(b"hidden").err(), Some(Errno::ENOENT));
    assert_eq!(list(&root.lookup(b"both").unwrap()).into_keys().collect::<Vec<_>>(), ["b", "t"]);
    assert_eq!(list(&root.lookup(b"opaque").unwrap()).len(), 0);
    assert_eq!(read(&root.lookup(b"f").unwrap()), b"y");
    root.rmdir(b"opaque").unwrap();
    assert_eq!(root.rmdir(b"both"), Err(Errno::ENOTEMPTY));
    assert_eq!(root.lookup(b"both").unwrap().attr().unwrap().nlink, 1);
}

#[test]
fn two_threads_copy_one_file_up_once() {
    for _ in 0..50 {
        let (fs, root) = overlay(|root| drop(file(&mkdir(root, "d"), "f", &[5; 200_000])));
        let all = free_pages(&fs);
        std::thread::scope(|scope| {
            for at in 0..4u64 {
                let root = root.clone();
                scope.spawn(move || {
                    let node = root.lookup(b"d").unwrap().lookup(b"f").unwrap();
                    node.open(libc::O_WRONLY).unwrap().write(at * 1000, &mut &[at as u8 + 10][..]).unwrap();
                });
            }
        });
        let content = read(&root.lookup(b"d").unwrap().lookup(b"f").unwrap());
        assert_eq!([0, 1000, 2000, 3000].map(|at| content[at]), [10, 11, 12, 13]);
        assert_eq!((content.len(), free_pages(&fs)), (200_000, all - 49));
    }
}

#[test]
fn threads_that_rename_and_remove_do_not_lose_names() {
    let (_fs, root) = overlay(|root| {
        for dir in ["p", "q"] {
            let dir = mkdir(root, dir);
            for i in 0..50 {
                file(&dir, &format!("f{i}"), b"x");
            }
        }
    });
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let root = root.clone();
            scope.spawn(move || {
                let (p, q) = (root.lookup(b"p").unwrap(), root.lookup(b"q").unwrap());
                for i in (thread..50).step_by(4) {
                    let name = format!("f{i}");
                    q.unlink(name.as_bytes()).unwrap();
                    p.rename(name.as_bytes(), &q, name.as_bytes(), PLAIN).unwrap();
                    list(&q);
                }
            });
        }
    });
    assert_eq!(list(&root.lookup(b"p").unwrap()).len(), 0);
    assert_eq!(list(&root.lookup(b"q").unwrap()).len(), 50);
}

/// A lower layer of one directory, which records what is announced to it.
struct Announced {
    inner: Arc<dyn Inode>,
    paths: Arc<parking_lot::Mutex<Vec<String>>>,
}

impl FileSystem for Announced {
    fn type_name(&self) -> &'static str {
        "announced"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::new(Announced { inner: self.inner.clone(), paths: self.paths.clone() })
    }

    fn statfs(&self) -> crate::errno::Result<crate::vfs::inode::StatFs> {
        Ok(Default::default())
    }
}

impl Inode for Announced {
    fn attr(&self) -> crate::errno::Result<crate::vfs::inode::Attr> {
        self.inner.attr()
    }

    fn lookup(&self, name: &[u8]) -> crate::errno::Result<Arc<dyn Inode>> {
        let inner = self.inner.lookup(name)?;
        Ok(Arc::new(Announced { inner, paths: self.paths.clone() }))
    }

    fn prefetch(&self, components: &[&[u8]], _known: bool) {
        self.paths.lock().push(String::from_utf8_lossy(&components.join(&b'/')).into_owned());
    }

    fn open(self: Arc<Self>, flags: i32) -> crate::errno::Result<Arc<dyn crate::vfs::file::File>> {
        self.inner.clone().open(flags)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[test]
fn the_lower_learns_what_is_about_to_be_looked_up() {
    let lower = tmpfs(3, 100).root();
    mkdir(&mkdir(&lower, "a"), "b");
    mkdir(&lower, "gone");
    let paths = Arc::default();
    let root = OverlayFs::new(Arc::new(Announced { inner: lower, paths: Arc::clone(&paths) }), tmp()).unwrap().root();
    root.prefetch(&[b"a", b"b"], false);
    root.lookup(b"a").unwrap().set_attr(&SetAttr { perm: Some(0o700), ..Default::default() }).unwrap();
    root.prefetch(&[b"a", b"b", b"c"], false);
    root.rmdir(b"gone").unwrap();
    root.prefetch(&[b"gone", b"d"], false);
    assert_eq!(*paths.lock(), ["a/b", "b/c"]);
}
