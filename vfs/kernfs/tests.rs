use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::io::SliceSink;

fn tree() -> KernFs {
    KernFs::new("sysfs", 0x6265_6572, 5, Caching::Forever)
}

fn read(file: &dyn File, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    let n = file.read(offset, &mut SliceSink::new(&mut buf)).unwrap();
    buf.truncate(n);
    buf
}

#[test]
fn one_description_sees_one_state_until_it_begins_again() {
    let fs = tree();
    let count = Arc::new(AtomicUsize::new(10));
    let counted = count.clone();
    fs.dir().add_file("n", 0o444, move || counted.fetch_add(1, Ordering::Relaxed).to_string().into_bytes());
    let file = fs.dir().lookup(b"n").unwrap().open(0).unwrap();
    assert_eq!(read(&*file, 0, 1), b"1");
    assert_eq!(read(&*file, 1, 9), b"0");
    assert_eq!(read(&*file, 2, 9), b"");
    assert_eq!(read(&*file, 0, 9), b"11");
}

struct Slots;

impl Entries for Slots {
    fn lookup(&self, _name: &[u8]) -> Result<Arc<dyn Inode>> {
        Err(Errno::ENOENT)
    }
    fn list(&self, from: u64, emit: &mut EmitEntry<'_>) {
        for at in from..3 {
            if !emit(format!("dyn{at}").as_bytes(), 100 + at, NodeType::Directory, at + 1) {
                return;
            }
        }
    }
}

#[test]
fn a_listing_in_pieces_gives_every_name_once() {
    let fs = tree();
    let dir = Dir::new(fs.dir().tree(), 0o555, Some(Arc::new(Slots)));
    dir.add_text("b", 0o444, "x");
    dir.add_link("a", "b");
    let open = dir.open(0).unwrap();
    let (mut pos, mut names) = (0, Vec::new());
    loop {
        let before = names.len();
        open.read_dir(pos, &mut |entry| {
            let first = names.len() == before;
            if first {
                names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                pos = entry.next;
            }
            first
        })
        .unwrap();
        if names.len() == before {
            break;
        }
    }
    assert_eq!(names, [".", "..", "a", "b", "dyn0", "dyn1", "dyn2"]);
}
