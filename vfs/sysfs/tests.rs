use super::*;
use crate::errno::{Errno, Result};
use crate::io::SliceSink;
use crate::netstack::testing::{lonely, pair};
use crate::vfs::inode::FileSystem;

fn read(fs: &KernFs, path: &str) -> Result<String> {
    let mut at = fs.root();
    for name in path.split('/') {
        at = at.lookup(name.as_bytes())?;
    }
    let mut buf = [0; 200];
    let n = at.open(0)?.read(0, &mut SliceSink::new(&mut buf))?;
    Ok(String::from_utf8(buf[..n].to_vec()).unwrap())
}

#[test]
fn shows_processors() {
    let fs = new(7, 4, &lonely());
    assert_eq!(read(&fs, "devices/system/cpu/online").as_deref(), Ok("0-3\n"));
    assert_eq!(read(&fs, "devices/system/cpu/cpu3/topology/core_id").as_deref(), Ok("3\n"));
}

#[test]
fn shows_interfaces() {
    let (stack, _other) = pair(true);
    let fs = new(7, 4, &stack);
    let at = |name: &str| read(&fs, &format!("devices/virtual/net/eth0/{name}"));
    assert_eq!(at("operstate").as_deref(), Ok("up\n"));
    assert_eq!(at("mtu").as_deref(), Ok("1500\n"));
    assert_eq!(at("flags").as_deref(), Ok("0x1003\n"));
    assert_eq!(at("statistics/rx_bytes").as_deref(), Ok("0\n"));
    assert_eq!(at("uevent").as_deref(), Ok("INTERFACE=eth0\nIFINDEX=2\n"));
    assert_eq!(at("address").map(|text| text.len()), Ok(18));
    assert_eq!(read(&fs, "devices/virtual/net/lo/speed"), Err(Errno::EINVAL));
    assert_eq!(read(&fs, "devices/virtual/net/eth1/address"), Err(Errno::ENOENT));
    let class = fs.root().lookup(b"class").and_then(|class| class.lookup(b"net")).unwrap();
    let link = class.lookup(b"eth0").unwrap();
    assert_eq!(link.read_link().as_deref(), Ok(&b"../../devices/virtual/net/eth0"[..]));
    assert_eq!(link.attr().unwrap().ino, class.lookup(b"eth0").unwrap().attr().unwrap().ino, "made once");
}
