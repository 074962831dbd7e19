//! The grammar of `update`, `events`, `features`, `install` and `uninstall`.

use std::path::PathBuf;

use clap::Args;

/// Flags of `update`: runc's.
#[derive(Debug, Default, Args)]
pub struct UpdateArgs {
    /// A file with the limits to change, as `linux.resources` of config.json; `-` is standard input. The other flags are
    /// not looked at then
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Memory in bytes, or with a unit (512M); -1: no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Memory that is kept when the host runs short
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; -1: no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Buffers of the host's TCP (cgroup v1)
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Share of CPU time, relative to other containers
    #[arg(long, visible_alias = "cpu-shares", value_name = "N")]
    pub cpu_share: Option<u64>,
    /// CPU time in each period, in microseconds; -1: no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// The period, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// CPU time that may be saved up beyond the quota, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// 1: run only when nothing else wants to; 0: as usual
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpu_idle: Option<i64>,
    /// The period of realtime tasks, in microseconds (cgroup v1)
    #[arg(long, value_name = "US")]
    pub cpu_rt_period: Option<u64>,
    /// CPU time of realtime tasks in each period, in microseconds (cgroup v1)
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// CPUs to run on: 0-2,7
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Weight of reads and writes, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// How many threads the container may have; -1: no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Flags of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// How often: 5s, 500ms, 1m
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub interval: String,
    /// Print what is used now, once
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub stats: bool,
    /// The container's name
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Flags of `install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Docker's configuration
    #[arg(long = "config_file", alias = "config-file", value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    pub config_file: PathBuf,
    /// The name that Docker is to know it by: `docker run --runtime=NAME`
    #[arg(long, value_name = "NAME", default_value = "runsc")]
    pub runtime: String,
    /// Replace a runtime of that name
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "true", hide_possible_values = true)]
    pub clobber: bool,
    /// Turn Docker's experimental features on
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true)]
    pub experimental: bool,
    /// Docker's cgroup driver: cgroupfs or systemd
    #[arg(long, value_name = "NAME")]
    pub cgroupdriver: Option<String>,
    /// Flags that Docker is to give to the runtime
    #[arg(value_name = "ARGS", last = true)]
    pub args: Vec<String>,
}

/// Flags of `uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Docker's configuration
    #[arg(long = "config_file", alias = "config-file", value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    pub config_file: PathBuf,
    /// The name that Docker knows it by
    #[arg(long, value_name = "NAME", default_value = "runsc")]
    pub runtime: String,
}
