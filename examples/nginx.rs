//! Runs Debian's nginx in a sandbox and fetches a page from it.
//!
//! `./scripts/example` does all that this needs first. `--keep` leaves the server running until Ctrl-C. Nothing is
//! installed or started on the host: the packages are unpacked into a temporary directory, and the network is a namespace
//! of its own; both are gone when this ends.

mod support;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use serde_json::json;
use support::debian;
use support::network::{Cable, Network, SANDBOX, SANDBOX6, is_root};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Set by Ctrl-C. Every wait looks at it, so that what was made is taken down in the ordinary way.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    match run(std::env::args().any(|argument| argument == "--keep")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nginx example: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(keep: bool) -> Result<()> {
    if !is_root() {
        return Err("run this as root, with /dev/net/tun there: it makes a network namespace and a TAP device".into());
    }
    catch_signals()?;
    let runsc = runsc()?;
    let directory = tempfile::Builder::new().prefix("runsc-nginx-").tempdir()?;
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let root = directory.path().join("rootfs");

    step("a root file system from this release's packages, downloaded and unpacked, not installed");
    let cache = runsc.parent().unwrap_or(Path::new(".")).join("debian-packages");
    debian::nginx_root(&root, &cache)?;
    println!("    {} packages are kept in {}", fs::read_dir(&cache)?.count(), cache.display());

    step("a network namespace with a TAP device");
    let network = Network::new(Cable::Tap)?;
    println!("    {}: {SANDBOX} and {SANDBOX6} will be the sandbox's addresses", network.name());

    step("what a program in the sandbox sees of the kernel");
    let look = "uname -a; dmesg | head -n 8; echo processes:; ps";
    write_config(directory.path(), &network, &["/bin/sh", "-c", look])?;
    let mut container = Container::start(&runsc, directory.path(), &network, "look")?;
    let status = container.wait()?;
    print!("{}", indented(&fs::read_to_string(container.output())?));
    if !status {
        return Err("the sandbox failed; see above".into());
    }

    step("nginx, as Debian configures it: a master and its workers");
    write_config(directory.path(), &network, &["/usr/sbin/nginx", "-g", "daemon off;"])?;
    let begun = Instant::now();
    let mut container = Container::start(&runsc, directory.path(), &network, "web")?;
    while fetch(&network, SANDBOX).is_err() {
        container.still_runs()?;
        pause()?;
    }
    println!("    the first page came after {} ms", begun.elapsed().as_millis());

    step("pages, fetched from the other end of the cable");
    for address in [SANDBOX, &format!("[{SANDBOX6}]")] {
        let page = fetch(&network, address)?;
        let title = page.lines().find(|line| line.contains("<title>")).unwrap_or_default();
        println!("    http://{address}/: {} bytes, {}", page.len(), title.trim());
    }
    let begun = Instant::now();
    let pages = 100;
    for _ in 0..pages {
        fetch(&network, SANDBOX)?;
    }
    println!("    {pages} more in {} ms, most of it curl's", begun.elapsed().as_millis());

    if keep {
        println!("\nnginx stays up until Ctrl-C. In another terminal:");
        println!("    ip netns exec {} curl http://{SANDBOX}/", network.name());
        while pause().is_ok() {
            container.still_runs()?;
        }
    }
    step("the end: the sandbox, the namespace and the files are removed");
    Ok(())
}

fn step(what: &str) {
    println!("\n* {what}");
    let _ = io::stdout().flush();
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// `runsc` of the same build as this: this is `target/PROFILE/examples/nginx`.
fn runsc() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let found = this.ancestors().skip(1).map(|directory| directory.join("runsc")).find(|path| path.is_file());
    found.ok_or_else(|| "runsc is not built: cargo build".into())
}

/// Writes the bundle's `config.json`, in which OCI describes a container.
fn write_config(bundle: &Path, network: &Network, args: &[&str]) -> Result<()> {
    // What nginx's master needs to open port 80 and make its workers run as www-data.
    let capabilities =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID", "CAP_SYSLOG"];
    let config = json!({
        "ociVersion": "1.0.0",
        "hostname": "nginx",
        "process": {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096}],
        },
        // Changes to it stay in the sandbox's memory.
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            {"type": "network", "path": network.bundle_namespace()},
        ]},
    });
    Ok(fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)?)
}

/// Fetches the first page with the host's curl from the namespace outside.
fn fetch(network: &Network, address: &str) -> Result<String> {
    let url = format!("http://{address}/");
    let output =
        network.command("curl").args(["--silent", "--show-error", "--fail", "--max-time", "10", &url]).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(format!("{url}: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}

/// A running container; it is ended when dropped.
struct Container {
    child: Child,
    directory: PathBuf,
}

impl Container {
    fn start(runsc: &Path, bundle: &Path, network: &Network, id: &str) -> Result<Container> {
        let directory = bundle.to_owned();
        let mut command = Command::new(runsc);
        command.arg("--root").arg(bundle.join("state")).args(network.flags());
        command.arg("--overlay2=root:memory").arg("run").arg("--bundle").arg(bundle).arg(id);
        let shown = format!("{command:?}").replace('"', "");
        println!("    {shown}");
        let child = command.stdin(Stdio::null()).stdout(File::create(directory.join("stdout"))?).spawn()?;
        Ok(Container { child, directory })
    }

    fn output(&self) -> PathBuf {
        self.directory.join("stdout")
    }

    /// Waits for its end; whether it was a success.
    fn wait(&mut self) -> Result<bool> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            pause()?;
        }
    }

    fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => match status.signal() {
                Some(signal) => Err(format!("the sandbox was ended by signal {signal}").into()),
                None => Err(format!("nginx has ended: {status}").into()),
            },
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let pid = Pid::from_raw(self.child.id() as i32);
        // It passes the signal on; the container's end is its end.
        let _ = kill(pid, Signal::SIGTERM);
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A short wait, which Ctrl-C ends.
fn pause() -> Result<()> {
    thread::sleep(Duration::from_millis(20));
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err("interrupted".into()),
        false => Ok(()),
    }
}

fn catch_signals() -> Result<()> {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}
