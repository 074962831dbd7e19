use super::*;
use crate::io::SliceSink;

#[test]
fn kmsg_gives_one_record_a_read() {
    let log = Arc::new(BootLog::new());
    log.push("one");
    let reader = Kmsg::new(log.clone());
    reader.write(0, &mut &b"<3>two\n"[..]).unwrap();
    let mut buf = [0; 100];
    let mut read = || {
        let n = reader.read(0, &mut SliceSink::new(&mut buf))?;
        Ok(String::from_utf8(buf[..n].to_vec()).unwrap())
    };
    assert!(read().unwrap().ends_with(",-;one\n"));
    assert!(read().unwrap().starts_with("11,1,"), "facility 0 is the kernel's alone");
    assert_eq!(read(), Err(Errno::EAGAIN));
}

#[test]
fn memory_devices_give_what_they_promise() {
    let mut buf = [7; 5000];
    assert_eq!(Zero.read(0, &mut SliceSink::new(&mut buf)), Ok(5000));
    assert_eq!(buf, [0; 5000]);
    assert_eq!(Random.read(0, &mut SliceSink::new(&mut buf)), Ok(5000));
    assert!(buf[4990..].iter().any(|&byte| byte != 0));
    assert_eq!(Null.read(0, &mut SliceSink::new(&mut buf)), Ok(0));
    assert_eq!(Null.write(0, &mut &buf[..]), Ok(5000));
    assert_eq!(Full.write(0, &mut &buf[..]), Err(Errno::ENOSPC));
    assert_eq!(Full.read(0, &mut SliceSink::new(&mut buf)), Ok(5000));
}
