use super::*;
use crate::io::SliceSink;
use crate::vfs::inode::FileSystem;

struct One;

impl NetInterfaces for One {
    fn names(&self) -> Vec<String> {
        vec!["eth0".into()]
    }
    fn get(&self, name: &str) -> Option<NetInterface> {
        let flags = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
        (name == "eth0").then_some(NetInterface { index: 2, address: [2, 0, 0, 0, 0, 0x1f], mtu: 1500, flags, kind: 1 })
    }
}

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
fn shows_processors_and_interfaces() {
    let fs = new(7, 4, Some(Arc::new(One)));
    assert_eq!(read(&fs, "devices/system/cpu/online").as_deref(), Ok("0-3\n"));
    assert_eq!(read(&fs, "devices/system/cpu/cpu3/topology/core_id").as_deref(), Ok("3\n"));
    assert_eq!(read(&fs, "class/net/eth0/address").as_deref(), Ok("02:00:00:00:00:1f\n"));
    assert_eq!(read(&fs, "class/net/eth0/operstate").as_deref(), Ok("up\n"));
    assert_eq!(read(&fs, "class/net/eth1/address"), Err(Errno::ENOENT));
}
