//! Opening, reading, writing, sizes and holes, descriptors.

use std::ffi::CString;
use std::fs;
use std::ptr;

use libc::{c_int, c_void};

use crate::common::*;

#[test]
fn open_flag_errors() {
    isolated(|| unsafe {
        file(c"f", b"x");
        ok(libc::mkdir(c"d".as_ptr(), 0o755));
        fails(open(c"missing", libc::O_RDONLY), libc::ENOENT);
        fails(open(c"", libc::O_RDONLY), libc::ENOENT);
        fails(open(c"f", libc::O_CREAT | libc::O_EXCL | libc::O_RDWR), libc::EEXIST);
        fails(open(c"f", libc::O_DIRECTORY), libc::ENOTDIR);
        fails(open(c"f/", libc::O_RDONLY), libc::ENOTDIR);
        fails(open(c"f/x", libc::O_RDONLY), libc::ENOTDIR);
        fails(open(c"d", libc::O_WRONLY), libc::EISDIR);
        fails(open(c"d", libc::O_RDWR), libc::EISDIR);
        fails(open(c"d", libc::O_CREAT | libc::O_RDWR), libc::EISDIR);
        fails(open(c"new/", libc::O_CREAT | libc::O_RDWR), libc::EISDIR);
        fails(open(c"missing/x", libc::O_CREAT | libc::O_RDWR), libc::ENOENT);
        fails(libc::open(16 as *const _, libc::O_RDONLY), libc::EFAULT);
    });
}

#[test]
fn open_takes_the_lowest_descriptor() {
    isolated(|| {
        let fds = [0; 3].map(|_| ok(open(c"/", libc::O_RDONLY)));
        assert_eq!(fds, [3, 4, 5]);
        close(4);
        assert_eq!(ok(open(c"/", libc::O_RDONLY)), 4);
    });
}

#[test]
fn descriptor_limit_gives_emfile() {
    isolated(|| unsafe {
        let limit = libc::rlimit { rlim_cur: 10, rlim_max: 1000 };
        ok(libc::setrlimit(libc::RLIMIT_NOFILE, &limit));
        let opened = (0..20).take_while(|_| open(c"/", libc::O_RDONLY) >= 0).count();
        assert_eq!(opened, 7);
        fails(open(c"/", libc::O_RDONLY), libc::EMFILE);
        fails(libc::dup(0), libc::EMFILE);
        fails(libc::dup2(0, 10), libc::EBADF);
        fails(libc::fcntl(0, libc::F_DUPFD, 10), libc::EINVAL);
        fails(libc::pipe([0; 2].as_mut_ptr()), libc::EMFILE);
    });
}

#[test]
fn truncating_open_empties() {
    isolated(|| {
        file(c"f", b"hello");
        close(ok(open(c"f", libc::O_WRONLY | libc::O_TRUNC)));
        assert_eq!(stat(c"f").st_size, 0);
    });
}

#[test]
fn append_writes_at_the_end() {
    isolated(|| unsafe {
        file(c"f", b"abc");
        let fd = ok(open(c"f", libc::O_RDWR | libc::O_APPEND));
        assert_eq!(write(fd, b"d"), 1);
        ok(libc::lseek(fd, 0, libc::SEEK_SET));
        assert_eq!(write(fd, b"e"), 1);
        assert_eq!(libc::lseek(fd, 0, libc::SEEK_CUR), 5);
        ok(libc::pwrite(fd, c"f".as_ptr().cast(), 1, 0));
        assert_eq!(fs::read("f").unwrap(), b"abcdef");
    });
}

#[test]
fn appends_of_two_processes_do_not_overwrite() {
    isolated(|| {
        let fd = ok(open(c"f", libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND));
        close(fd);
        let pids = [b'a', b'b', b'c'].map(|letter| {
            child(|| {
                let fd = ok(open(c"f", libc::O_WRONLY | libc::O_APPEND));
                (0..200).for_each(|_| assert_eq!(write(fd, &[letter; 10]), 10));
                0
            })
        });
        pids.into_iter().for_each(|pid| assert_eq!(wait(pid), Status::Exited(0)));
        let contents = fs::read("f").unwrap();
        assert_eq!(contents.len(), 6000);
        assert!(contents.chunks(10).all(|chunk| chunk.iter().all(|byte| *byte == chunk[0])));
    });
}

#[test]
fn access_mode_limits_reading_and_writing() {
    isolated(|| unsafe {
        file(c"f", b"abc");
        let (reading, writing) = (ok(open(c"f", libc::O_RDONLY)), ok(open(c"f", libc::O_WRONLY)));
        fails(write(reading, b"x"), libc::EBADF);
        fails(read(writing, &mut [0]), libc::EBADF);
        fails(libc::ftruncate(reading, 0), libc::EINVAL);
        fails(read(ok(open(c"/", libc::O_RDONLY)), &mut [0]), libc::EISDIR);
        fails(read(77, &mut [0]), libc::EBADF);
        fails(libc::read(reading, 8 as *mut c_void, 1), libc::EFAULT);
    });
}

#[test]
fn tmpfile_has_no_name_until_linked() {
    isolated(|| unsafe {
        let fd = ok(open(c".", libc::O_TMPFILE | libc::O_RDWR));
        assert_eq!(write(fd, b"hello"), 5);
        assert_eq!(fstat(fd).st_nlink, 0);
        assert_eq!(fs::read_dir(".").unwrap().count(), 0);
        let link = CString::new(format!("/proc/self/fd/{fd}")).unwrap();
        let at = libc::AT_FDCWD;
        ok(libc::linkat(at, link.as_ptr(), at, c"named".as_ptr(), libc::AT_SYMLINK_FOLLOW));
        assert_eq!(fs::read("named").unwrap(), b"hello");
        fails(open(c".", libc::O_TMPFILE | libc::O_RDONLY), libc::EINVAL);
        let fd = ok(open(c".", libc::O_TMPFILE | libc::O_RDWR | libc::O_EXCL));
        let link = CString::new(format!("/proc/self/fd/{fd}")).unwrap();
        fails(libc::linkat(at, link.as_ptr(), at, c"other".as_ptr(), libc::AT_SYMLINK_FOLLOW), libc::ENOENT);
    });
}

#[test]
fn path_descriptors_only_name() {
    isolated(|| unsafe {
        file(c"f", b"abc");
        let fd = ok(open(c"f", libc::O_PATH));
        fails(read(fd, &mut [0]), libc::EBADF);
        fails(libc::fchmod(fd, 0o600), libc::EBADF);
        fails(libc::lseek(fd, 0, libc::SEEK_SET), libc::EBADF);
        fails(libc::mmap(ptr::null_mut(), 1, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0), libc::EBADF);
        assert_eq!(fstat(fd).st_size, 3);
        assert_eq!(ok(libc::fcntl(fd, libc::F_GETFL)) & libc::O_PATH, libc::O_PATH);
        let fd = ok(libc::dup(fd));
        assert_eq!(fs::read(format!("/proc/self/fd/{fd}")).unwrap(), b"abc");
        ok(libc::symlink(c"f".as_ptr(), c"l".as_ptr()));
        let link = ok(open(c"l", libc::O_PATH | libc::O_NOFOLLOW));
        assert_eq!(fstat(link).st_mode & libc::S_IFMT, libc::S_IFLNK);
        let mut target = [0u8; 9];
        assert_eq!(ok(libc::readlinkat(link, c"".as_ptr(), target.as_mut_ptr().cast(), 9)), 1);
    });
}

#[test]
fn positional_reads_and_writes_leave_the_offset() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(libc::pwrite(fd, c"hello".as_ptr().cast(), 5, 3));
        assert_eq!(libc::lseek(fd, 0, libc::SEEK_CUR), 0);
        let mut buffer = [1u8; 9];
        assert_eq!(ok(libc::pread(fd, buffer.as_mut_ptr().cast(), 9, 1)), 7);
        assert_eq!(&buffer[..7], b"\0\0hello");
        assert_eq!(ok(libc::pread(fd, buffer.as_mut_ptr().cast(), 9, 100)), 0);
        fails(libc::pread(fd, buffer.as_mut_ptr().cast(), 9, -1), libc::EINVAL);
        fails(libc::pwrite(fd, buffer.as_ptr().cast(), 9, -1), libc::EINVAL);
        fails(libc::pread(pipe().0, buffer.as_mut_ptr().cast(), 9, 0), libc::ESPIPE);
    });
}

fn vector(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

#[test]
fn vectors_are_read_and_written_in_order() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        let (mut first, mut second) = (*b"abc", *b"de");
        let parts = [vector(&mut first), vector(&mut []), vector(&mut second)];
        assert_eq!(ok(libc::writev(fd, parts.as_ptr(), 3)), 5);
        assert_eq!(ok(libc::preadv(fd, parts[2..].as_ptr(), 1, 1)), 2);
        assert_eq!(&second, b"bc");
        let mut rest = [0; 9];
        let parts = [vector(&mut second), vector(&mut rest)];
        ok(libc::lseek(fd, 0, libc::SEEK_SET));
        assert_eq!(ok(libc::readv(fd, parts.as_ptr(), 2)), 5);
        assert_eq!((&second, &rest[..3]), (b"ab", &b"cde"[..]));
        assert_eq!(ok(libc::preadv2(fd, parts.as_ptr(), 2, -1, 0)), 0);
        assert_eq!(ok(libc::readv(fd, parts.as_ptr(), 0)), 0);
    });
}

#[test]
fn vector_errors() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        let mut byte = [0];
        let parts = vec![vector(&mut byte); 1025];
        fails(libc::writev(fd, parts.as_ptr(), 1025), libc::EINVAL);
        assert_eq!(ok(libc::writev(fd, parts.as_ptr(), 1024)), 1024);
        fails(libc::writev(fd, parts.as_ptr(), -1), libc::EINVAL);
        fails(libc::writev(fd, 16 as *const _, 1), libc::EFAULT);
        let huge = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: usize::MAX };
        fails(libc::writev(fd, &huge, 1), libc::EINVAL);
        fails(libc::preadv2(fd, parts.as_ptr(), 1, 0, 0x4000_0000), libc::EOPNOTSUPP);
    });
}

#[test]
fn lseek_positions_and_errors() {
    isolated(|| unsafe {
        file(c"f", b"hello");
        let fd = ok(open(c"f", libc::O_RDWR));
        assert_eq!(libc::lseek(fd, -2, libc::SEEK_END), 3);
        assert_eq!(libc::lseek(fd, 100, libc::SEEK_CUR), 103);
        assert_eq!(read_some(fd, 1), b"");
        assert_eq!(write(fd, b"x"), 1);
        assert_eq!(stat(c"f").st_size, 104);
        fails(libc::lseek(fd, -1, libc::SEEK_SET), libc::EINVAL);
        fails(libc::lseek(fd, 0, 9), libc::EINVAL);
        fails(libc::lseek(fd, i64::MAX, libc::SEEK_END), libc::EINVAL);
        assert_eq!(libc::lseek(fd, 0, libc::SEEK_CUR), 104);
        fails(libc::lseek(pipe().0, 0, libc::SEEK_SET), libc::ESPIPE);
        fails(libc::lseek(77, 0, libc::SEEK_SET), libc::EBADF);
    });
}

#[test]
fn seek_data_and_hole() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(libc::ftruncate(fd, 1 << 20));
        ok(libc::pwrite(fd, c"x".as_ptr().cast(), 1, 512 * 1024));
        let data = ok(libc::lseek(fd, 0, libc::SEEK_DATA));
        assert!((0..=512 * 1024).contains(&data), "{data}");
        assert!(ok(libc::lseek(fd, 512 * 1024, libc::SEEK_HOLE)) > 512 * 1024);
        assert!(ok(libc::lseek(fd, 0, libc::SEEK_HOLE)) <= 1 << 20);
        fails(libc::lseek(fd, 1 << 20, libc::SEEK_DATA), libc::ENXIO);
        fails(libc::lseek(fd, 1 << 20, libc::SEEK_HOLE), libc::ENXIO);
        fails(libc::lseek(fd, -1, libc::SEEK_DATA), libc::ENXIO);
    });
}

#[test]
fn truncate_grows_with_zeros_and_cuts() {
    isolated(|| unsafe {
        file(c"f", b"hello");
        ok(libc::truncate(c"f".as_ptr(), 2));
        ok(libc::truncate(c"f".as_ptr(), 6));
        assert_eq!(fs::read("f").unwrap(), b"he\0\0\0\0");
        fails(libc::truncate(c"f".as_ptr(), -1), libc::EINVAL);
        fails(libc::truncate(c".".as_ptr(), 0), libc::EISDIR);
        fails(libc::truncate(c"missing".as_ptr(), 0), libc::ENOENT);
        fails(libc::truncate(c"f/x".as_ptr(), 0), libc::ENOTDIR);
        fails(libc::ftruncate(pipe().1, 0), libc::EINVAL);
    });
}

#[test]
fn file_size_limit_signals() {
    isolated(|| unsafe {
        let pid = child(|| {
            let limit = libc::rlimit { rlim_cur: 10, rlim_max: 10 };
            ok(libc::setrlimit(libc::RLIMIT_FSIZE, &limit));
            let fd = open_new(c"f");
            assert_eq!(write(fd, &[0; 20]), 10);
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            fails(write(fd, b"x"), libc::EFBIG);
            fails(libc::ftruncate(fd, 11), libc::EFBIG);
            libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
            write(fd, b"x");
            0
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGXFSZ));
    });
}

#[test]
fn fallocate_modes() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        write(fd, &[7; 3 * PAGE]);
        ok(libc::fallocate(fd, 0, 0, 4 * PAGE as i64));
        assert_eq!(fstat(fd).st_size, 4 * PAGE as i64);
        ok(libc::fallocate(fd, libc::FALLOC_FL_KEEP_SIZE, 0, 8 * PAGE as i64));
        assert_eq!(fstat(fd).st_size, 4 * PAGE as i64);
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        ok(libc::fallocate(fd, punch, PAGE as i64, PAGE as i64));
        let contents = fs::read("f").unwrap();
        assert_eq!([0, 1, 2, 3].map(|page| contents[page * PAGE]), [7, 0, 7, 0]);
        fails(libc::fallocate(fd, 0, -1, 1), libc::EINVAL);
        fails(libc::fallocate(fd, 0, 0, 0), libc::EINVAL);
        fails(libc::fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE, 0, 1), libc::EOPNOTSUPP);
        fails(libc::fallocate(ok(open(c"f", libc::O_RDONLY)), 0, 0, 1), libc::EBADF);
        fails(libc::fallocate(pipe().1, 0, 0, 1), libc::ESPIPE);
    });
}

#[test]
fn dup_shares_offset_and_flags_but_not_cloexec() {
    isolated(|| unsafe {
        file(c"f", b"hello");
        let fd = ok(open(c"f", libc::O_RDONLY | libc::O_CLOEXEC));
        let copy = ok(libc::dup(fd));
        assert_eq!(libc::fcntl(copy, libc::F_GETFD), 0);
        read_some(fd, 2);
        assert_eq!(read_some(copy, 9), b"llo");
        ok(libc::fcntl(copy, libc::F_SETFL, libc::O_NONBLOCK));
        assert_ne!(libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK, 0);
    });
}

#[test]
fn dup2_and_dup3() {
    isolated(|| unsafe {
        let fd = ok(open(c"/", libc::O_RDONLY));
        assert_eq!(ok(libc::dup2(fd, 50)), 50);
        assert_eq!(ok(libc::dup2(fd, fd)), fd);
        fails(libc::dup2(77, 78), libc::EBADF);
        fails(libc::dup2(77, 77), libc::EBADF);
        fails(libc::dup2(fd, -1), libc::EBADF);
        fails(libc::dup3(fd, fd, 0), libc::EINVAL);
        fails(libc::dup3(fd, 60, libc::O_APPEND), libc::EINVAL);
        ok(libc::dup3(fd, 60, libc::O_CLOEXEC));
        assert_eq!(libc::fcntl(60, libc::F_GETFD), libc::FD_CLOEXEC);
        let (reader, writer) = pipe();
        ok(libc::dup2(fd, writer));
        assert_eq!(read_some(reader, 1), b"", "dup2 closed the only writer");
    });
}

#[test]
fn f_dupfd_finds_the_lowest_from_a_number() {
    isolated(|| unsafe {
        assert_eq!(ok(libc::fcntl(0, libc::F_DUPFD, 40)), 40);
        assert_eq!(ok(libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 40)), 41);
        assert_eq!(libc::fcntl(41, libc::F_GETFD), libc::FD_CLOEXEC);
        fails(libc::fcntl(0, libc::F_DUPFD, -1), libc::EINVAL);
        fails(libc::fcntl(0, 9999), libc::EINVAL);
    });
}

#[test]
fn setfl_changes_only_some_flags() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(libc::fcntl(fd, libc::F_SETFL, libc::O_APPEND | libc::O_WRONLY | libc::O_EXCL));
        let flags = ok(libc::fcntl(fd, libc::F_GETFL));
        assert_eq!(flags & (libc::O_ACCMODE | libc::O_APPEND | libc::O_EXCL), libc::O_RDWR | libc::O_APPEND);
    });
}

#[test]
fn close_range_closes_or_marks() {
    isolated(|| unsafe {
        for fd in 20..30 {
            ok(libc::dup2(0, fd));
        }
        let close_range = |first: u32, last: u32, flags: u32| libc::syscall(libc::SYS_close_range, first, last, flags);
        ok(close_range(22, 24, 0));
        ok(close_range(26, 100, libc::CLOSE_RANGE_CLOEXEC));
        let flags = [21, 22, 24, 25, 26, 29].map(|fd| libc::fcntl(fd, libc::F_GETFD));
        assert_eq!(flags, [0, -1, -1, 0, 1, 1]);
        fails(close_range(5, 4, 0), libc::EINVAL);
        fails(close_range(5, 6, 0x100), libc::EINVAL);
    });
}

#[test]
fn close_of_a_closed_descriptor_gives_ebadf() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        close(fd);
        fails(libc::close(fd), libc::EBADF);
        fails(libc::close(-1), libc::EBADF);
    });
}

#[test]
fn unlinked_open_file_lives_on() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        write(fd, b"hello");
        ok(libc::unlink(c"f".as_ptr()));
        assert_eq!(fstat(fd).st_nlink, 0);
        let mut buffer = [0u8; 5];
        ok(libc::pread(fd, buffer.as_mut_ptr().cast(), 5, 0));
        assert_eq!(&buffer, b"hello");
        let link = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        assert!(link.to_str().unwrap().ends_with("/f (deleted)"));
        let again = ok(open(&CString::new(format!("/proc/self/fd/{fd}")).unwrap(), libc::O_RDWR));
        assert_eq!(read_some(again, 9), b"hello");
    });
}

#[test]
fn proc_self_fd_names_every_descriptor() {
    isolated(|| {
        let fd = open_new(c"f");
        let (reader, _) = pipe();
        let link =
            |fd: c_int| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().into_os_string().into_string().unwrap();
        assert_eq!(link(fd), std::env::current_dir().unwrap().join("f").to_str().unwrap());
        assert_eq!(link(reader), format!("pipe:[{}]", fstat(reader).st_ino));
        let (socket, _) = socket_pair(libc::SOCK_STREAM);
        assert_eq!(link(socket), format!("socket:[{}]", fstat(socket).st_ino));
        // SAFETY: no memory is involved.
        let event = ok(unsafe { libc::eventfd(0, 0) });
        assert_eq!(link(event), "anon_inode:[eventfd]");
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        assert!(info.starts_with("pos:\t0\nflags:\t0100002\n"), "{info}");
    });
}

#[test]
fn sendfile_copies() {
    isolated(|| unsafe {
        file(c"f", b"hello world");
        let (from, to) = (ok(open(c"f", libc::O_RDONLY)), open_new(c"g"));
        let mut offset = 6;
        assert_eq!(ok(libc::sendfile(to, from, &mut offset, 100)), 5);
        assert_eq!((offset, libc::lseek(from, 0, libc::SEEK_CUR)), (11, 0));
        assert_eq!(ok(libc::sendfile(to, from, ptr::null_mut(), 5)), 5);
        assert_eq!(libc::lseek(from, 0, libc::SEEK_CUR), 5);
        assert_eq!(fs::read("g").unwrap(), b"worldhello");
        let (socket, other) = socket_pair(libc::SOCK_STREAM);
        assert_eq!(ok(libc::sendfile(socket, from, ptr::null_mut(), 100)), 6);
        assert_eq!(read_some(other, 9), b" world");
        fails(libc::sendfile(from, to, ptr::null_mut(), 1), libc::EBADF);
        fails(libc::sendfile(to, pipe().0, &mut offset, 1), libc::ESPIPE);
    });
}

#[test]
fn splice_and_tee_between_pipes_and_files() {
    isolated(|| unsafe {
        file(c"f", b"hello world");
        let from = ok(open(c"f", libc::O_RDONLY));
        let (reader, writer) = pipe();
        let mut offset = 6;
        let none = ptr::null_mut();
        assert_eq!(ok(libc::splice(from, &mut offset, writer, none, 100, 0)), 5);
        let (second, into_second) = pipe();
        assert_eq!(ok(libc::tee(reader, into_second, 3, 0)), 3);
        assert_eq!(read_some(second, 9), b"wor");
        let to = open_new(c"g");
        assert_eq!(ok(libc::splice(reader, none, to, none, 100, 0)), 5);
        assert_eq!(fs::read("g").unwrap(), b"world");
        fails(libc::splice(reader, none, to, none, 1, libc::SPLICE_F_NONBLOCK), libc::EAGAIN);
        fails(libc::splice(from, none, to, none, 1, 0), libc::EINVAL);
        fails(libc::splice(reader, &mut offset, to, none, 1, 0), libc::ESPIPE);
        close(writer);
        assert_eq!(libc::splice(reader, none, to, none, 1, 0), 0);
    });
}

#[test]
fn vmsplice_puts_memory_into_a_pipe() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let mut bytes = *b"hello";
        assert_eq!(ok(libc::vmsplice(writer, &vector(&mut bytes), 1, 0)), 5);
        assert_eq!(read_some(reader, 9), b"hello");
        fails(libc::vmsplice(open_new(c"f"), &vector(&mut bytes), 1, 0), libc::EBADF);
    });
}

#[test]
fn copy_file_range_copies_between_files() {
    isolated(|| unsafe {
        file(c"f", b"hello world");
        let (from, to) = (ok(open(c"f", libc::O_RDONLY)), open_new(c"g"));
        let (mut input, mut output) = (6, 2);
        assert_eq!(ok(libc::copy_file_range(from, &mut input, to, &mut output, 100, 0)), 5);
        assert_eq!((input, output), (11, 7));
        assert_eq!(fs::read("g").unwrap(), b"\0\0world");
        assert_eq!(ok(libc::copy_file_range(from, &mut input, to, &mut output, 100, 0)), 0);
        let none = ptr::null_mut();
        fails(libc::copy_file_range(from, none, to, none, 1, 1), libc::EINVAL);
        fails(libc::copy_file_range(to, none, from, none, 1, 0), libc::EBADF);
        let append = ok(open(c"g", libc::O_WRONLY | libc::O_APPEND));
        fails(libc::copy_file_range(from, none, append, none, 1, 0), libc::EBADF);
    });
}

#[test]
fn sync_file_range_checks_its_range_and_its_file() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(write(fd, &[7; 3 * PAGE]));
        let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        for (offset, len) in [(0, 0), (5, PAGE as i64), (1 << 40, 1), (0, i64::MAX)] {
            ok(libc::sync_file_range(fd, offset, len, all));
            ok(libc::sync_file_range(fd, offset, len, 0));
        }
        fails(libc::sync_file_range(fd, -1, 1, all), libc::EINVAL);
        fails(libc::sync_file_range(fd, 0, -1, all), libc::EINVAL);
        fails(libc::sync_file_range(fd, i64::MAX, 2, all), libc::EINVAL);
        fails(libc::sync_file_range(fd, 0, 1, 8), libc::EINVAL);
        ok(libc::sync_file_range(ok(open(c".", libc::O_RDONLY)), 0, 1, all));
        fails(libc::sync_file_range(pipe().0, 0, 1, all), libc::ESPIPE);
        fails(libc::sync_file_range(77, 0, 1, all), libc::EBADF);
        // A descriptor for reading is enough.
        ok(libc::sync_file_range(ok(open(c"f", libc::O_RDONLY)), 0, 0, all));
    });
}

#[test]
fn fsync_and_relatives() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        write(fd, b"x");
        ok(libc::fsync(fd));
        ok(libc::fdatasync(fd));
        ok(libc::fsync(ok(open(c".", libc::O_RDONLY))));
        fails(libc::fsync(pipe().1), libc::EINVAL);
        fails(libc::fsync(77), libc::EBADF);
        assert_eq!(libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_SEQUENTIAL), 0);
        assert_eq!(libc::posix_fadvise(fd, 0, 0, 99), libc::EINVAL);
        assert_eq!(libc::posix_fadvise(pipe().0, 0, 0, 0), libc::ESPIPE);
    });
}

#[test]
fn device_files() {
    isolated(|| unsafe {
        let null = ok(open(c"/dev/null", libc::O_RDWR));
        assert_eq!((write(null, b"abc"), read(null, &mut [0])), (3, 0));
        let zero = ok(open(c"/dev/zero", libc::O_RDWR));
        let mut buffer = [1; 9];
        assert_eq!((read(zero, &mut buffer), buffer), (9, [0; 9]));
        let full = ok(open(c"/dev/full", libc::O_RDWR));
        fails(write(full, b"x"), libc::ENOSPC);
        let random = ok(open(c"/dev/urandom", libc::O_RDONLY));
        assert_ne!(read_some(random, 16), read_some(random, 16));
        let stat = fstat(null);
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR);
        assert_eq!((libc::major(stat.st_rdev), libc::minor(stat.st_rdev)), (1, 3));
        fails(libc::ioctl(null, libc::TCGETS, [0u8; 64].as_mut_ptr()), libc::ENOTTY);
    });
}

/// Long ones too, whatever way they come: devices have no end at which a writer could stop.
#[test]
fn device_files_take_and_give_as_much_as_is_asked() {
    isolated(|| unsafe {
        const LONG: usize = 1 << 20;
        let mut bytes = vec![7u8; LONG];
        let random = ok(open(c"/dev/urandom", libc::O_RDWR));
        for device in [c"/dev/null", c"/dev/zero"] {
            let fd = ok(open(device, libc::O_RDWR));
            assert_eq!(write(fd, &bytes), LONG as isize);
            assert_eq!(libc::pwrite(fd, bytes.as_ptr().cast(), LONG, 5), LONG as isize);
            let parts = [bytes[..LONG / 2].as_ptr(), bytes[LONG / 2..].as_ptr()];
            let parts = parts.map(|part| libc::iovec { iov_base: part as *mut _, iov_len: LONG / 2 });
            assert_eq!(libc::writev(fd, parts.as_ptr(), 2), LONG as isize);
            // They do not look at it.
            assert_eq!(libc::write(fd, 4096 as *const _, LONG), LONG as isize);
            file(c"long", &bytes);
            let from = ok(open(c"long", libc::O_RDONLY));
            assert_eq!(libc::sendfile(fd, from, std::ptr::null_mut(), LONG), LONG as isize);
            let (reader, writer) = pipe();
            ok(libc::fcntl(writer, libc::F_SETPIPE_SZ, LONG));
            assert_eq!(write(writer, &bytes), LONG as isize);
            let null = std::ptr::null_mut();
            let mut left = LONG as isize;
            while left > 0 {
                let moved = libc::splice(reader, null, fd, null, left as usize, 0);
                assert!(moved > 0);
                left -= moved;
            }
        }
        assert_eq!(write(random, &bytes), LONG as isize);
        assert_eq!(read(random, &mut bytes), LONG as isize);
        assert!(bytes.chunks(16).all(|chunk| chunk != [7; 16]));
        let full = ok(open(c"/dev/full", libc::O_RDWR));
        fails(write(full, &bytes), libc::ENOSPC);
        assert_eq!(read(full, &mut bytes), LONG as isize);
        assert!(bytes.iter().all(|&byte| byte == 0));
    });
}

#[test]
fn fionread_counts_what_is_left() {
    isolated(|| unsafe {
        let mut count: c_int = 0;
        file(c"f", b"hello");
        let fd = ok(open(c"f", libc::O_RDONLY));
        read_some(fd, 2);
        ok(libc::ioctl(fd, libc::FIONREAD, &raw mut count));
        assert_eq!(count, 3);
        let (reader, writer) = pipe();
        write(writer, b"abcd");
        ok(libc::ioctl(reader, libc::FIONREAD, &raw mut count));
        assert_eq!(count, 4);
        ok(libc::ioctl(reader, libc::FIOCLEX));
        assert_eq!(libc::fcntl(reader, libc::F_GETFD), libc::FD_CLOEXEC);
        count = 1;
        ok(libc::ioctl(reader, libc::FIONBIO, &raw mut count));
        read_some(reader, 9);
        fails(read(reader, &mut [0]), libc::EAGAIN);
        fails(libc::ioctl(77, libc::FIONREAD, &raw mut count), libc::EBADF);
    });
}
