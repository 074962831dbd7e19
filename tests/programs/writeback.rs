//! What a program writes back of a host's file, seen from the host: as much as it asked for.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use serde_json::json;

use crate::common::Sandbox;

/// The file's length: of many folios, whose pages the host writes together.
const LEN: u64 = 32 << 20;

/// `SYS_cachestat`, of Linux 6.5.
const SYS_CACHESTAT: libc::c_long = 451;

/// How many bytes of the file wait to be written back.
fn dirty(path: &Path) -> u64 {
    let file = File::open(path).expect("the file");
    let (range, mut counts) = ([0u64, LEN], [0u64; 5]);
    // SAFETY: `struct cachestat_range` is two such numbers, `struct cachestat` five.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0) };
    assert_eq!(result, 0, "cachestat (of Linux 6.5): {}", std::io::Error::last_os_error());
    counts[1] * 4096
}

/// How much is dirty after a program has stored to all of a file and then run `sync`, Python with `f`, `map` and `libc`.
fn left_dirty(sync: &str) -> u64 {
    // Beside the executables, as temporary files may lie in memory, where nothing is written back.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = directory.path().join("file");
    fs::write(&path, vec![1u8; LEN as usize]).expect("the file");
    File::open(&path).and_then(|file| file.sync_all()).expect("it is on disk");
    let script = format!(
        "import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
f = open('/data/file', 'r+b', buffering=0)
assert f.write(bytes({LEN})) == {LEN}
map = mmap.mmap(f.fileno(), {LEN})
{sync}
print('done')"
    );
    let data = json!({"destination": "/data", "type": "bind", "source": directory.path(), "options": ["rbind", "rw"]});
    let output = Sandbox::new(["/usr/bin/python3", "-c", &script]).mount(data).run();
    assert_eq!(output.stdout, "done\n", "{}", output.report());
    dirty(&path)
}

#[test]
fn a_part_of_a_mapping() {
    assert!(left_dirty("map.flush(8192, 4096)") >= LEN / 2);
    assert_eq!(left_dirty("map.flush()"), 0);
}

#[test]
fn a_range_of_a_file() {
    let range = |offset: u64, len: u64| {
        let call = format!("libc.sync_file_range(f.fileno(), ctypes.c_long({offset}), ctypes.c_long({len}), 7)");
        format!("assert {call} == 0, ctypes.get_errno()")
    };
    assert!(left_dirty(&range(8192, 4096)) >= LEN / 2);
    assert_eq!(left_dirty(&range(0, 0)), 0);
}
