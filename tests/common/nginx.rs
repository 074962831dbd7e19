//! Debian's nginx as a container, made once for all tests of a program.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tempfile::TempDir;

use super::http::Connection;
use super::support::debian;
use super::{Network, Running, SANDBOX, Sandbox};

/// Sizes of the files that it serves, by name.
pub const FILES: &[(&str, usize)] = &[("1k", 1 << 10), ("1m", 1 << 20), ("100m", 100 << 20)];

/// Added to Debian's configuration. The header tells workers apart; uploads and the log can be fetched.
const CONFIGURATION: &str = "
server {
    listen 8080 backlog=1024;
    listen [::]:8080;
    root /srv;
    keepalive_requests 1000000;
    add_header X-Worker $pid;
    location /upload/ { dav_methods PUT; create_full_put_path on; client_max_body_size 256m; }
    location /log/ { alias /var/log/nginx/; }
}
";

/// The root file system.
pub struct Nginx {
    directory: TempDir,
    files: Vec<Vec<u8>>,
}

/// The one of this process.
pub static NGINX: LazyLock<Nginx> = LazyLock::new(Nginx::new);

impl Nginx {
    fn new() -> Nginx {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path().join("rootfs");
        // Containers run as another user beneath this.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("the owner may");
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian");
        debian::nginx_root(&root, &cache).expect("Debian's packages can be had");
        fs::write(root.join("etc/nginx/conf.d/test.conf"), CONFIGURATION).expect("a file");
        let mut files = Vec::new();
        fs::create_dir_all(root.join("srv/upload")).expect("a directory");
        nix::unistd::chown(&root.join("srv/upload"), Some(33.into()), Some(33.into())).expect("www-data");
        for (index, &(name, size)) in FILES.iter().enumerate() {
            files.push(pattern(index as u64, size));
            fs::write(root.join("srv").join(name), &files[index]).expect("a file");
        }
        Nginx { directory, files }
    }

    /// What a file of [`FILES`] holds.
    pub fn content(&self, name: &str) -> &[u8] {
        let index = FILES.iter().position(|file| file.0 == name).expect("a file's name");
        &self.files[index]
    }

    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// A sandbox that will run it.
    pub fn sandbox<'a>(&self, network: &'a Network) -> Sandbox<'a> {
        Sandbox::new(["/usr/sbin/nginx", "-g", "daemon off;"]).root(&self.root()).network(network)
    }

    /// Runs it and waits until it answers.
    pub fn start(&self, network: &Network) -> Running {
        let mut running = self.sandbox(network).start();
        network.outside(|| running.until("nginx answers", || Connection::new(server()).ok()));
        running
    }
}

/// Where it listens.
pub fn server() -> SocketAddr {
    SocketAddr::new(SANDBOX.parse().expect("an address"), 8080)
}

/// Bytes that differ at every place and with every seed.
pub fn pattern(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
