//! The programs that run sandboxes: this project's, and its peer gVisor's where one is given.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Cable;

/// A shell script that runs its arguments in a mount namespace made for them, with `/proc/sys/net` hidden. gVisor takes any
/// network namespace with this directory for the host's own, and refuses to use it; recent kernels have it in all.
pub const HIDE_NET: &str = "mount -t tmpfs none /proc/sys/net && exec \"$0\" \"$@\"";

/// One of them, with the flags that it needs.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// As tables show it.
    pub name: String,
    pub program: PathBuf,
    pub flags: Vec<String>,
    /// How its sandboxes are connected.
    pub cable: Cable,
    /// A command that runs it somewhere else: in another mount namespace, say.
    pub within: Vec<String>,
}

impl Runtime {
    /// This project's, from the same build as the running test or benchmark.
    pub fn ours() -> Runtime {
        // Tests run on the files of the host, which must stay as they are.
        let flags = vec!["--overlay2=root:memory".to_owned()];
        Runtime { name: "runsc (this)".into(), program: built("runsc"), flags, cable: Cable::Tap, within: Vec::new() }
    }

    /// This project's, on each platform that the host can have, the default first.
    pub fn ours_on_each_platform() -> Vec<Runtime> {
        let platforms =
            if runsc::platform::systrap::is_possible() { &["systrap", "ptrace"][..] } else { &["ptrace"][..] };
        let on = |platform: &&str| {
            let mut runtime = Runtime::ours();
            runtime.flags.push(format!("--platform={platform}"));
            Runtime { name: format!("this, {platform}"), ..runtime }
        };
        platforms.iter().map(on).collect()
    }

    /// What the tests test: this project's, or the gVisor at `RUNSC_PEER`, which tells a mistake of a test from one of the
    /// sandbox.
    pub fn under_test() -> Runtime {
        match env::var_os("RUNSC_PEER") {
            Some(program) => Runtime::peer(Path::new(&program), "ptrace"),
            None => Runtime::ours(),
        }
    }

    /// The gVisors to compare with: each of `PEER_RUNSC` (by default the one on `PATH`, if any) on each of `PEER_PLATFORM`.
    pub fn peers() -> Vec<Runtime> {
        let programs = match env::var("PEER_RUNSC") {
            Ok(list) => list.split(',').map(PathBuf::from).collect(),
            Err(_) => on_path("runsc").into_iter().collect::<Vec<_>>(),
        };
        let platforms = env::var("PEER_PLATFORM").unwrap_or_else(|_| "ptrace,systrap".into());
        let mut peers = Vec::new();
        for program in &programs {
            for platform in platforms.split(',') {
                let peer = Runtime::peer(program, platform);
                let works = Command::new(&peer.program)
                    .args(["--root", "/tmp/runsc-probe"])
                    .args(&peer.flags)
                    .args(["--network=none", "do", "true"])
                    .output();
                match works {
                    Ok(output) if output.status.success() => peers.push(peer),
                    Ok(output) => {
                        let text = String::from_utf8_lossy(&output.stderr);
                        println!("left out: {}: {}", peer.name, text.lines().last().unwrap_or("fails"));
                    }
                    Err(error) => println!("left out: {}: {error}", peer.name),
                }
            }
        }
        peers
    }

    fn peer(program: &Path, platform: &str) -> Runtime {
        let version = Command::new(program).arg("--version").output().expect("the peer starts");
        let version = String::from_utf8_lossy(&version.stdout);
        let version = version.lines().next().unwrap_or_default();
        let version = version.rsplit([' ', '~']).next().unwrap_or_default().trim_end_matches(".0");
        // The flag for changes in memory, which `run` needs so as not to change the host's files, has changed its name.
        let overlay = if version < "2023" { "--overlay" } else { "--overlay2=root:memory" };
        Runtime {
            name: format!("gVisor {version} {platform}"),
            program: program.to_owned(),
            flags: vec![format!("--platform={platform}"), overlay.into()],
            cable: Cable::Veth,
            within: Vec::new(),
        }
    }

    /// The program alone.
    pub fn plain(&self) -> Command {
        match self.within.split_first() {
            None => Command::new(&self.program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
        }
    }

    /// The program with its flags; the state goes to `root`.
    pub fn command(&self, root: &Path) -> Command {
        let mut command = match self.cable {
            Cable::Tap => self.plain(),
            Cable::Veth => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", HIDE_NET]).arg(&self.program);
                command
            }
        };
        command.arg("--root").arg(root).args(&self.flags);
        command
    }

    /// `do` with loopback alone; the state goes to `root`.
    pub fn do_command(&self, root: &Path) -> Command {
        let mut command = self.plain();
        command.arg("--root").arg(root).args(&self.flags).args(["--network=none", "do"]);
        command
    }
}

/// A binary of this build: tests, examples and benchmarks lie in directories below it.
fn built(name: &str) -> PathBuf {
    let this = env::current_exe().expect("this program has a path");
    let found = this.ancestors().skip(1).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built beside {}: cargo build", this.display()))
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}
