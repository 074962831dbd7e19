//! The grammar of the command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::limit_args::{EventsArgs, InstallArgs, UninstallArgs, UpdateArgs};
use crate::container::network::{Mac, NetConfig, Prefix};
use crate::container::sandbox::Options;
use crate::container::spec::Leniency;
use crate::container::{Error, Result};
use crate::logging::Format;

/// What `--version` prints after the name: the form that Docker and containerd parse.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.1.0");

/// Runs Linux containers on a kernel in user space.
#[derive(Debug, Parser)]
#[command(name = "runsc", version = VERSION, disable_version_flag = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// The faster platform where the host has what it takes; `RUNSC_PLATFORM` where a caller's flags cannot be changed.
fn default_platform() -> &'static str {
    let wanted = std::env::var("RUNSC_PLATFORM").unwrap_or_default();
    match wanted.as_str() {
        "ptrace" => "ptrace",
        _ if !crate::platform::systrap::is_possible() => "ptrace",
        _ => "systrap",
    }
}

/// Flags before the command.
#[derive(Debug, Args)]
pub struct Globals {
    /// Where the state of containers is kept [default: $XDG_RUNTIME_DIR/runsc or /var/run/runsc]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// How system calls are captured
    #[arg(long, default_value = default_platform(), value_parser = PossibleValuesParser::new(["systrap", "ptrace"]))]
    pub platform: String,

    /// The container's network: `sandbox` is the stack of its own, with loopback and the TAP device of --tap; `none` is
    /// loopback alone. `host` does not exist: host sockets are never reached
    #[arg(long, value_enum, default_value_t = Network::Sandbox)]
    pub network: Network,

    /// The TAP device of the sandbox. It must exist, in the network namespace that config.json names or else in this one
    /// [default: the only TAP device of the namespace that config.json names, if any]
    #[arg(long, value_name = "NAME")]
    pub tap: Option<String>,

    /// An address of the sandbox on the TAP device; may be repeated, IPv4 and IPv6
    #[arg(long, value_name = "ADDR/PREFIX")]
    pub ip: Vec<Prefix>,

    /// The default gateway; may be given once for IPv4 and once for IPv6
    #[arg(long, value_name = "ADDR")]
    pub gateway: Vec<IpAddr>,

    /// Largest IP packet in bytes [default: the TAP device's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(576..))]
    pub mtu: Option<u16>,

    /// The Ethernet address of the sandbox [default: made up]
    #[arg(long, value_name = "XX:XX:XX:XX:XX:XX")]
    pub mac: Option<Mac>,

    /// `root:memory`: changes to the root file system are kept in memory and discarded; `none`: they go to the host
    /// [default: none, so that whoever made the container finds them; `do` is always root:memory]
    #[arg(long, value_parser = PossibleValuesParser::new(["root:memory", "none"]))]
    pub overlay2: Option<String>,

    /// Run containers without the cgroup and the resource limits that config.json sets
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub ignore_cgroups: bool,

    /// Make cgroups through systemd: linux.cgroupsPath of config.json is SLICE:PREFIX:NAME then
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub systemd_cgroup: bool,

    /// Refused: sandboxes are made by root
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub rootless: bool,

    /// Log debug lines too
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub debug: bool,

    /// Where to log. %COMMAND%, %ID% and %TIMESTAMP% are replaced; with a slash at the end, a directory of one file a
    /// command
    #[arg(long, value_name = "PATH")]
    pub debug_log: Option<String>,

    /// How lines of the debug log look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub debug_log_format: Format,

    /// Where to log warnings and errors of this command, for whoever called it
    #[arg(long, value_name = "PATH")]
    pub log: Option<PathBuf>,

    /// How lines of --log look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub log_format: Format,

    /// Log every system call of the container: to the debug log, or to standard error when there is none
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub strace: bool,

    /// Print the version
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// `--network`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Network {
    Sandbox,
    None,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container, whose program does not run yet
    Create(CreateArgs),
    /// Run the program of a created container
    Start(IdsArgs),
    /// Create and run a container
    Run(RunArgs),
    /// Run a command with the host's files, in a sandbox whose changes are discarded
    Do(DoArgs),
    /// Make a config.json to start from
    Spec(SpecArgs),
    /// Send a signal to a container
    Kill(KillArgs),
    /// Wait for a container to end, and print how it did
    Wait(WaitArgs),
    /// Print the state of a container
    State(IdArgs),
    /// List the containers
    List(ListArgs),
    /// Remove what is left of a container
    Delete(DeleteArgs),
    /// Run a further process in a running container
    Exec(ExecArgs),
    /// Stop every process of a container, without their notice
    Pause(IdArgs),
    /// Let a paused container go on
    Resume(IdArgs),
    /// List the processes of a container
    Ps(PsArgs),
    /// Show a container's files in a directory of the host, for reading, until that is unmounted
    Mount(MountArgs),
    /// Change the limits of a container
    Update(UpdateArgs),
    /// Print what a container uses, and processes killed for want of memory
    Events(EventsArgs),
    /// Print what this runtime can do, as JSON
    Features,
    /// Make Docker know this runtime
    Install(InstallArgs),
    /// Make Docker forget this runtime
    Uninstall(UninstallArgs),
    /// Describe the flags that go before the command
    Flags,
}

/// Flags of `create`, and of `run`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The bundle's directory
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Where to write the process number that stands for the container on the host
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Who listens here gets the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Accepted for runc's callers: the container's root is never the host's
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub no_pivot: bool,
    /// Accepted for runc's callers: containers have no keyring of the host's
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub no_new_keyring: bool,
    /// Pass on so many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub create: CreateArgs,
    /// Return once the container runs
    #[arg(long, short, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub detach: bool,
    /// Do not delete the container when it has ended
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub keep: bool,
}

/// Flags of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Send it to every process of the container
    #[arg(long, short, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub all: bool,
    /// Send it to this process, by its number inside the container [default: the first]
    #[arg(long, value_name = "PID", conflicts_with = "all")]
    pub pid: Option<i32>,
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
    /// The signal's number or name
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub signal: String,
}

/// Flags of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Wait for this process, by its number inside the container [default: the first]
    #[arg(long, value_name = "PID")]
    pub pid: Option<i32>,
    /// As --pid
    #[arg(long, value_name = "PID", conflicts_with = "pid")]
    pub rootpid: Option<i32>,
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
}

/// A command that takes names only.
#[derive(Debug, Args)]
pub struct IdsArgs {
    /// The containers' names
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
}

/// Flags of `do`.
#[derive(Debug, Args)]
pub struct DoArgs {
    /// The directory that is the container's root
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// The working directory [default: the current one]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// An environment variable, besides those of this process; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Accepted for gVisor's callers: nothing is printed anyway
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub quiet: bool,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Flags of `exec`.
#[derive(Debug, Default, Args)]
pub struct ExecArgs {
    /// The process as in config.json; without it, the container's own with the changes of the other flags
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["command", "cwd", "env", "user", "tty"])]
    pub process: Option<PathBuf>,
    /// Give it a terminal
    #[arg(long, short, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub tty: bool,
    /// The working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// An environment variable, besides those of the container's process; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The user, by numbers
    #[arg(long, short, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// A further group, by its number; may be repeated
    #[arg(long, short = 'g', value_name = "GID", value_delimiter = ',')]
    pub additional_gids: Vec<u32>,
    /// A further capability; may be repeated
    #[arg(long, short, value_name = "NAME", value_delimiter = ',')]
    pub cap: Vec<String>,
    /// Whether it can gain rights from files that it executes [default: as the container's process]
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide_possible_values = true)]
    pub no_new_privs: Option<bool>,
    /// The AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// The SELinux label
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Return once it runs
    #[arg(long, short, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub detach: bool,
    /// Where to write the number of the host process that stands for it
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Who listens here gets the master of its terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Pass on so many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Start it in a paused container too
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub ignore_paused: bool,
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Flags of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// How to print: a table, or the numbers on the host
    #[arg(long, short, default_value = "table", value_parser = PossibleValuesParser::new(["table", "json"]))]
    pub format: String,
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where to show its files
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Flags of `spec`.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// The bundle's directory
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// The working directory of the container's program
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub cwd: PathBuf,
    /// A network namespace to take the TAP device from
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,
    /// The program and its arguments
    #[arg(value_name = "ARGS", default_value = "sh", last = true)]
    pub args: Vec<String>,
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print names only
    #[arg(long, short, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub quiet: bool,
    /// How to print
    #[arg(long, default_value = "text", value_parser = PossibleValuesParser::new(["text", "json"]))]
    pub format: String,
}

/// Flags of `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Kill the container first if it runs
    #[arg(long, short, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub force: bool,
    /// The containers' names
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
}

/// A command that takes a name only.
#[derive(Debug, Args)]
pub struct IdArgs {
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
}

impl Command {
    /// The command's name and the container's, which for `do` is made here.
    pub fn name_and_id(&self) -> (&'static str, String) {
        let (name, id) = match self {
            Command::Create(args) => ("create", args.id.as_str()),
            Command::Start(args) => ("start", args.ids.first().map_or("", String::as_str)),
            Command::Run(args) => ("run", args.create.id.as_str()),
            Command::Kill(args) => ("kill", args.id.as_str()),
            Command::Wait(args) => ("wait", args.id.as_str()),
            Command::Do(_) => return ("do", new_id()),
            Command::Spec(_) => ("spec", ""),
            Command::State(args) => ("state", args.id.as_str()),
            Command::List(_) => ("list", ""),
            Command::Delete(args) => ("delete", args.ids.first().map_or("", String::as_str)),
            Command::Exec(args) => ("exec", args.id.as_str()),
            Command::Pause(args) => ("pause", args.id.as_str()),
            Command::Resume(args) => ("resume", args.id.as_str()),
            Command::Ps(args) => ("ps", args.id.as_str()),
            Command::Mount(args) => ("mount", args.id.as_str()),
            Command::Update(args) => ("update", args.id.as_str()),
            Command::Events(args) => ("events", args.id.as_str()),
            Command::Features => ("features", ""),
            Command::Install(_) => ("install", ""),
            Command::Uninstall(_) => ("uninstall", ""),
            Command::Flags => ("flags", ""),
        };
        (name, id.to_owned())
    }
}

/// How the names of `do`'s containers begin.
pub const ID_PREFIX: &str = "do-";

/// A name that no other container has.
fn new_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{ID_PREFIX}{}-{:06}", std::process::id(), now.subsec_micros())
}

impl Globals {
    /// Where state is kept.
    pub fn state_root(&self) -> PathBuf {
        let chosen = self.root.clone();
        chosen
            .or_else(|| {
                std::env::var_os("XDG_RUNTIME_DIR")
                    .filter(|dir| !dir.is_empty())
                    .map(|dir| PathBuf::from(dir).join("runsc"))
            })
            .unwrap_or_else(|| "/var/run/runsc".into())
    }

    /// Whether cgroups are systemd's to make.
    pub fn systemd_cgroup(&self) -> bool {
        self.systemd_cgroup && !self.ignore_cgroups
    }

    /// What may go unheeded.
    pub fn leniency(&self) -> Leniency {
        Leniency { ignore_cgroups: self.ignore_cgroups }
    }

    /// The choices for a sandbox, after checking that they go together.
    pub fn options(&self, attached: bool) -> Result<Options> {
        let refuse = |text: &str| Err(Error::Usage(text.into()));
        if self.rootless {
            return refuse("--rootless: sandboxes are made by root; rootless ones are not supported yet");
        }
        if self.network == Network::None && (self.tap.is_some() || self.network_config().needs_interface()) {
            return refuse("--network=none has no device: leave out --tap, --ip, --gateway, --mtu and --mac");
        }
        let v4 = self.gateway.iter().filter(|gateway| gateway.is_ipv4()).count();
        if v4 > 1 || self.gateway.len() - v4 > 1 {
            return refuse("--gateway: given twice for one address family");
        }
        Ok(Options {
            state_root: self.state_root(),
            systemd_cgroup: self.systemd_cgroup(),
            platform: self.platform.clone(),
            strace: self.strace,
            debug: self.debug,
            debug_log: self.debug_log.clone(),
            debug_log_format: self.debug_log_format,
            overlay: self.overlay2.as_deref() == Some("root:memory"),
            interface: self.network == Network::Sandbox,
            tap: self.tap.clone(),
            network: self.network_config(),
            attached,
            console: false,
            console_socket: None,
            preserved: Vec::new(),
            listening: 0,
            infra: false,
        })
    }

    fn network_config(&self) -> NetConfig {
        NetConfig {
            addresses: self.ip.clone(),
            gateways: self.gateway.clone(),
            mtu: self.mtu,
            mac: self.mac,
            vnet_header: false,
        }
    }
}
