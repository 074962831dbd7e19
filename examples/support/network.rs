//! A network for one sandbox, in a namespace of its own: nothing of the host's network is at the other end.
//!
//! ```text
//!  the sandbox                      the namespace "outside"
//!  192.168.10.2, fd00:10::2  ─────  192.168.10.1, fd00:10::1
//!                          a TAP device
//! ```

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

/// The outside end of the cable.
pub const OUTSIDE: &str = "192.168.10.1";
pub const OUTSIDE6: &str = "fd00:10::1";
/// The sandbox's end.
pub const SANDBOX: &str = "192.168.10.2";
pub const SANDBOX6: &str = "fd00:10::2";

/// What connects a sandbox with the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// A TAP device in the outside's namespace.
    Tap,
    /// A pair of virtual Ethernet devices, one in a namespace that is the sandbox's: how gVisor is connected.
    #[allow(dead_code, reason = "the tests use it, and the examples do not")]
    Veth,
}

/// The namespaces and devices; they are removed when it is dropped.
#[derive(Debug)]
pub struct Network {
    outside: Namespace,
    inside: Option<Namespace>,
}

impl Network {
    /// Makes it.
    pub fn new(cable: Cable) -> io::Result<Network> {
        let outside = Namespace::new()?;
        outside.ip("link set lo up")?;
        let inside = match cable {
            Cable::Tap => {
                outside.ip("tuntap add dev tap0 mode tap")?;
                None
            }
            Cable::Veth => {
                let inside = Namespace::new()?;
                outside.ip(&format!("link add tap0 type veth peer name eth0 netns {}", inside.name))?;
                inside.ip("link set lo up")?;
                inside.ip("link set eth0 up")?;
                inside.ip(&format!("address add {SANDBOX}/24 dev eth0"))?;
                inside.ip(&format!("address add {SANDBOX6}/64 dev eth0 nodad"))?;
                Some(inside)
            }
        };
        outside.ip(&format!("address add {OUTSIDE}/24 dev tap0"))?;
        outside.ip(&format!("address add {OUTSIDE6}/64 dev tap0 nodad"))?;
        outside.ip("link set tap0 up")?;
        if let Some(inside) = &inside {
            inside.ip(&format!("route add default via {OUTSIDE}"))?;
        }
        Ok(Network { outside, inside })
    }

    /// The flags that tell `runsc` about it.
    pub fn flags(&self) -> Vec<String> {
        if self.inside.is_some() {
            // gVisor takes the devices, addresses and routes that it finds in the namespace.
            return vec!["--network=sandbox".into()];
        }
        vec![
            "--tap=tap0".into(),
            format!("--ip={SANDBOX}/24"),
            format!("--ip={SANDBOX6}/64"),
            format!("--gateway={OUTSIDE}"),
        ]
    }

    /// The namespace that a bundle's `config.json` should name.
    pub fn bundle_namespace(&self) -> PathBuf {
        self.inside.as_ref().unwrap_or(&self.outside).path()
    }

    /// A command that runs outside of the sandbox, at the other end of the cable.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.outside.name, program]);
        command
    }

    /// Runs `work` at the other end of the cable, on a thread of its own. Threads that it makes are there too.
    #[allow(dead_code, reason = "the tests use it, and the examples do not")]
    pub fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.outside.enter(work)
    }

    /// The name of the namespace outside, for `ip netns exec NAME`.
    pub fn name(&self) -> &str {
        &self.outside.name
    }
}

/// A named network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one, in which everything is down.
    pub fn new() -> io::Result<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("runsc-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        Ok(Namespace { name })
    }

    /// Its name, for `ip netns exec NAME`.
    #[allow(dead_code, reason = "the tests use it, and the examples do not")]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `work` in it, on a thread of its own. Threads that it makes are there too.
    #[allow(dead_code, reason = "the tests use it, and the examples do not")]
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace is there as long as this is");
        let enter_and_work = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter_and_work).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip` with these words in it.
    pub fn ip(&self, words: &str) -> io::Result<()> {
        run(Command::new("ip").args(["-n", &self.name]).args(words.split(' ')))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("{error}");
        }
    }
}

/// Runs a command, whose output is the error when it fails.
pub fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output().map_err(|error| io::Error::other(format!("{:?}: {error}", command.get_program())))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// Whether this process is root, which making namespaces and sandboxes takes.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root() && fs::metadata("/dev/net/tun").is_ok()
}
