//! Through the traits, as the rest of the sentry uses it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::*;
use crate::errno::{Errno, Result};
use crate::io::SliceSink;
use crate::vfs::file::File;
use crate::vfs::inode::{RenameFlags, SetAttr, TimeSpec};

/// A node to make, of user and group 0.
pub(crate) fn new_node(kind: NodeType, perm: u32) -> NewNode<'static> {
    NewNode { kind, perm, uid: 0, gid: 0, rdev: 0, target: b"" }
}

/// A tmpfs of at most `pages` pages.
pub(crate) fn tmpfs(dev: u64, pages: u64) -> Arc<TmpFs> {
    TmpFs::new(dev, &TmpfsOptions { size: Some(pages * PAGE), ..Default::default() }, 1 << 30)
}

/// Makes a file with this content.
pub(crate) fn file(dir: &Arc<dyn Inode>, name: &str, content: &[u8]) -> Arc<dyn Inode> {
    let made = dir.create(name.as_bytes(), &new_node(NodeType::Regular, 0o644)).unwrap();
    write(&made, content);
    made
}

/// Makes a directory.
pub(crate) fn mkdir(dir: &Arc<dyn Inode>, name: &str) -> Arc<dyn Inode> {
    dir.create(name.as_bytes(), &new_node(NodeType::Directory, 0o755)).unwrap()
}

/// Writes at the start.
pub(crate) fn write(inode: &Arc<dyn Inode>, mut content: &[u8]) {
    let len = content.len();
    assert_eq!(inode.clone().open(libc::O_RDWR).unwrap().write(0, &mut content), Ok(len));
}

/// All of an open file.
pub(crate) fn read_file(file: &dyn File) -> Result<Vec<u8>> {
    let mut buf = vec![0; usize::try_from(file.size()?).unwrap() + 1];
    let mut sink = SliceSink::new(&mut buf);
    let n = file.read(0, &mut sink)?;
    buf.truncate(n);
    Ok(buf)
}

/// All of a file.
pub(crate) fn read(inode: &Arc<dyn Inode>) -> Vec<u8> {
    read_file(inode.clone().open(libc::O_RDONLY).unwrap().as_ref()).unwrap()
}

/// At most `limit` entries of an open directory from `pos` on, without the dots, and where to go on.
pub(crate) fn list_some(dir: &dyn File, pos: u64, limit: usize) -> (Vec<(String, u64)>, u64) {
    let (mut names, mut at) = (Vec::new(), pos);
    dir.read_dir(pos, &mut |entry| {
        if names.len() == limit {
            return false;
        }
        at = entry.next;
        if entry.name != b"." && entry.name != b".." {
            names.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino));
        }
        true
    })
    .unwrap();
    (names, at)
}

/// A directory's entries by name, with their inode numbers; none may come twice.
pub(crate) fn list(dir: &Arc<dyn Inode>) -> BTreeMap<String, u64> {
    let open = dir.clone().open(libc::O_RDONLY).unwrap();
    let (names, _) = list_some(open.as_ref(), 0, usize::MAX);
    let count = names.len();
    let map: BTreeMap<String, u64> = names.into_iter().collect();
    assert_eq!(map.len(), count, "a name was listed twice");
    map
}

fn root_of(pages: u64) -> (Arc<TmpFs>, Arc<dyn Inode>) {
    let fs = tmpfs(7, pages);
    let root = fs.root();
    (fs, root)
}

fn free_pages(fs: &TmpFs) -> u64 {
    fs.statfs().unwrap().bfree
}

#[test]
fn content_survives_the_move_from_the_heap_to_a_memfd() {
    let (fs, root) = root_of(100);
    let node = file(&root, "a", b"hello");
    let open = node.clone().open(libc::O_RDWR).unwrap();
    assert_eq!(free_pages(&fs), 99);
    assert_eq!(open.write(INLINE_MAX + 5, &mut &b"tail"[..]), Ok(4));
    let mut expected = vec![0; INLINE_MAX as usize + 9];
    expected[..5].copy_from_slice(b"hello");
    expected[INLINE_MAX as usize + 5..].copy_from_slice(b"tail");
    assert_eq!(read(&node), expected);
    assert_eq!((free_pages(&fs), node.attr().unwrap().blocks), (98, 16));
    assert_eq!(open.append(&mut &b"!"[..]), Ok((INLINE_MAX + 9, 1)));
    let mapping = open.mapping(false, false).unwrap();
    let mut buf = [0; 5];
    assert_eq!(crate::io::host_read(mapping.fd.as_fd(), &mut buf, Some(INLINE_MAX + 5)), Ok(5));
    assert_eq!(&buf, b"tail!");
    root.unlink(b"a").unwrap();
    assert_eq!(read_file(open.as_ref()).unwrap().len(), INLINE_MAX as usize + 10);
    assert_eq!(node.attr().unwrap().nlink, 0);
    drop((node, open));
    assert_eq!(free_pages(&fs), 100);
}

#[test]
fn a_full_file_system_takes_what_fits() {
    let (fs, root) = root_of(20);
    let node = file(&root, "a", b"");
    let open = node.clone().open(libc::O_RDWR).unwrap();
    let big = vec![7; 30 * PAGE as usize];
    assert_eq!(open.write(100, &mut &big[..]), Ok(20 * PAGE as usize - 100));
    assert_eq!(open.append(&mut &b"x"[..]), Err(Errno::ENOSPC));
    assert_eq!(file(&root, "b", b"").open(libc::O_RDWR).unwrap().write(0, &mut &b"x"[..]), Err(Errno::ENOSPC));
    open.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, PAGE - 1, 2 * PAGE + 1).unwrap();
    assert_eq!(free_pages(&fs), 2);
    assert_eq!(open.allocate(0, 0, 40 * PAGE), Err(Errno::ENOSPC));
    node.set_attr(&SetAttr { size: Some(PAGE + 1), ..Default::default() }).unwrap();
    assert_eq!(free_pages(&fs), 19);
    node.set_attr(&SetAttr { size: Some(1 << 40), ..Default::default() }).unwrap();
    assert_eq!((free_pages(&fs), node.attr().unwrap().size), (19, 1 << 40));
    assert_eq!(open.seek_data(PAGE, true), Err(Errno::ENXIO));
    assert_eq!(open.seek_data(5, false), Ok(5 + (PAGE - 5)));
}

#[test]
fn inodes_run_out() {
    let options = TmpfsOptions { inodes: Some(2), ..Default::default() };
    let fs = TmpFs::new(7, &options, 1 << 30);
    let root = fs.root();
    file(&root, "a", b"");
    assert_eq!(root.create(b"b", &new_node(NodeType::Fifo, 0)).err(), Some(Errno::ENOSPC));
    root.unlink(b"a").unwrap();
    file(&root, "b", b"");
}

#[test]
fn stores_through_a_shared_mapping_are_counted() {
    let (fs, root) = root_of(100);
    let node = file(&root, "a", b"");
    node.set_attr(&SetAttr { size: Some(50 * PAGE), ..Default::default() }).unwrap();
    let open = node.clone().open(libc::O_RDWR).unwrap();
    let mapping = open.mapping(true, true).unwrap();
    // What the container's store does.
    crate::io::host_write(mapping.fd.as_fd(), b"x", Some(20 * PAGE)).unwrap();
    assert_eq!(node.attr().unwrap().blocks, 8);
    assert_eq!(free_pages(&fs), 99);
    drop((node, open));
    root.unlink(b"a").unwrap();
    assert_eq!(free_pages(&fs), 100);
}

#[test]
fn seals_bind() {
    let memfd = anonymous("x", (1, 2), 0o777, true).unwrap();
    assert_eq!(memfd.anonymous_name().unwrap(), "/memfd:x (deleted)");
    memfd.write(0, &mut &b"abc"[..]).unwrap();
    let content = memfd.node().content().unwrap();
    memfd.node().add_seals(libc::F_SEAL_SHRINK | libc::F_SEAL_GROW).unwrap();
    assert_eq!(memfd.write(1, &mut &b"xyz"[..]), Err(Errno::EPERM));
    assert_eq!(memfd.write(1, &mut &b"x"[..]), Ok(1));
    assert_eq!(content.truncate(1), Err(Errno::EPERM));
    memfd.node().add_seals(libc::F_SEAL_WRITE | libc::F_SEAL_SEAL).unwrap();
    assert_eq!(memfd.write(1, &mut &b"x"[..]), Err(Errno::EPERM));
    assert_eq!(memfd.mapping(true, true).err(), Some(Errno::EPERM));
    assert!(!memfd.mapping(true, false).unwrap().writable);
    assert_eq!(memfd.node().add_seals(libc::F_SEAL_GROW), Err(Errno::EPERM));
    assert_eq!(read_file(memfd.as_ref()).unwrap(), b"axc");
    let other = anonymous("y", (1, 2), 0o777, false).unwrap();
    assert_eq!(other.node().content().unwrap().seals(), libc::F_SEAL_SEAL);
}

#[test]
fn a_listing_goes_on_whatever_comes_and_goes() {
    let (_fs, root) = root_of(100);
    for i in 0..1000 {
        file(&root, &format!("f{i}"), b"");
    }
    let open = root.clone().open(libc::O_RDONLY).unwrap();
    let (mut seen, mut pos, mut round) = (Vec::new(), 0, 0);
    loop {
        let (names, next) = list_some(open.as_ref(), pos, 300);
        if names.is_empty() {
            break;
        }
        seen.extend(names.into_iter().map(|(name, _)| name));
        pos = next;
        root.unlink(format!("f{}", round * 7).as_bytes()).unwrap();
        root.unlink(format!("f{}", 999 - round).as_bytes()).unwrap();
        round += 1;
    }
    seen.sort();
    let count = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), count);
    assert!(count >= 996, "{count}");
    assert!(seen.contains(&"f500".to_string()));
}

#[test]
fn renames() {
    let (_fs, root) = root_of(100);
    let (a, b) = (mkdir(&root, "a"), mkdir(&root, "b"));
    file(&a, "x", b"x");
    file(&b, "y", b"y");
    assert_eq!(a.rename(b"x", &b, b"y", RenameFlags::NOREPLACE), Err(Errno::EEXIST));
    a.rename(b"x", &b, b"y", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(read(&a.lookup(b"x").unwrap()), b"y");
    assert_eq!(root.rename(b"a", &root, b"b", RenameFlags::empty()), Err(Errno::ENOTEMPTY));
    assert_eq!(a.rename(b"x", &root, b"b", RenameFlags::empty()), Err(Errno::EISDIR));
    assert_eq!(root.rename(b"a", &b, b"y", RenameFlags::empty()), Err(Errno::ENOTDIR));
    assert_eq!(root.attr().unwrap().nlink, 4);
    b.unlink(b"y").unwrap();
    root.rename(b"a", &root, b"b", RenameFlags::WHITEOUT).unwrap();
    assert_eq!(root.attr().unwrap().nlink, 3);
    let whiteout = root.lookup(b"a").unwrap().attr().unwrap();
    assert_eq!((whiteout.kind, whiteout.rdev), (NodeType::CharDevice, 0));
    assert_eq!(b.create(b"z", &new_node(NodeType::Regular, 0)).err(), Some(Errno::ENOENT));
    assert_eq!(read(&root.lookup(b"b").unwrap().lookup(b"x").unwrap()), b"y");
}

#[test]
fn links_and_unnamed_files() {
    let (_fs, root) = root_of(100);
    let tmp = root.create_unnamed(&new_node(NodeType::Regular, 0o600)).unwrap();
    assert_eq!(tmp.attr().unwrap().nlink, 0);
    root.link(b"named", &tmp).unwrap();
    root.link(b"again", &tmp).unwrap();
    assert_eq!(tmp.attr().unwrap().nlink, 2);
    root.unlink(b"named").unwrap();
    root.unlink(b"again").unwrap();
    assert_eq!(root.link(b"back", &tmp), Err(Errno::ENOENT));
    let dir = mkdir(&root, "d");
    assert_eq!(root.link(b"e", &dir), Err(Errno::EPERM));
    let other = tmpfs(8, 1).root();
    assert_eq!(other.link(b"named", &tmp), Err(Errno::EXDEV));
}

#[test]
fn a_set_group_id_directory_hands_its_group_on() {
    let (_fs, root) = root_of(100);
    let dir = mkdir(&root, "d");
    dir.set_attr(&SetAttr { perm: Some(0o2755), gid: Some(9), ..Default::default() }).unwrap();
    let (sub, made) = (mkdir(&dir, "s").attr().unwrap(), file(&dir, "f", b"").attr().unwrap());
    assert_eq!((sub.gid, sub.perm, made.gid, made.perm), (9, 0o2755, 9, 0o644));
}

#[test]
fn extended_attributes_are_bounded_and_counted() {
    let (fs, root) = root_of(100);
    let node = file(&root, "a", b"");
    node.set_xattr(b"user.a", b"1", 0).unwrap();
    assert_eq!(node.set_xattr(b"user.a", b"2", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(node.set_xattr(b"user.b", b"2", libc::XATTR_REPLACE), Err(Errno::ENODATA));
    assert_eq!(node.set_xattr(b"other.b", b"2", 0), Err(Errno::EOPNOTSUPP));
    node.set_xattr(b"user.big", &[0; 60000], 0).unwrap();
    assert_eq!(free_pages(&fs), 85);
    node.set_xattr(b"user.big2", &[0; 60000], 0).unwrap();
    assert_eq!(node.set_xattr(b"user.big3", &[0; 60000], 0), Err(Errno::ENOSPC));
    assert_eq!(node.list_xattr().unwrap().len(), 3);
    node.remove_xattr(b"user.big").unwrap();
    assert_eq!(node.get_xattr(b"user.big"), Err(Errno::ENODATA));
    root.unlink(b"a").unwrap();
    drop(node);
    assert_eq!(free_pages(&fs), 100);
}

#[test]
fn times_follow_use() {
    let (_fs, root) = root_of(100);
    let node = file(&root, "a", b"abc");
    let old = TimeSpec { sec: 1000, nsec: 5 };
    node.set_attr(&SetAttr { atime: Some(old), mtime: Some(old), ..Default::default() }).unwrap();
    let before = node.attr().unwrap();
    assert_eq!((before.atime, before.mtime), (old, old));
    assert!(before.ctime > old);
    read(&node);
    let after = node.attr().unwrap();
    assert!(after.atime > old && after.mtime == old && after.ctime == before.ctime);
    write(&node, b"x");
    assert!(node.attr().unwrap().mtime > old);
}

#[test]
fn a_deep_tree_goes_without_deep_recursion() {
    let (fs, root) = root_of(100);
    let mut dir = root.clone();
    for _ in 0..100_000 {
        dir = mkdir(&dir, "d");
    }
    drop((dir, root));
    drop(fs);
}

#[test]
fn a_remount_changes_the_limits() {
    let (fs, root) = root_of(10);
    file(&root, "a", &[1; 5 * PAGE as usize]);
    assert_eq!(fs.remount("size=16k"), Err(Errno::EINVAL));
    assert_eq!(fs.remount("size=0"), Err(Errno::EINVAL));
    fs.remount("size=24k,mode=700").unwrap();
    assert_eq!((free_pages(&fs), fs.options().as_str()), (1, ",size=24k,inode64"));
    assert_eq!(root.attr().unwrap().perm, 0o1777);
}
