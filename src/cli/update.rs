//! `runsc update`: changes the limits of a container that is there.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::args::Globals;
use super::limit_args::UpdateArgs;
use crate::container::control::Request;
use crate::container::state::{self, StateDir, Status};
use crate::container::{Context, Error, Result};

/// Changes what the flags or the file name.
pub fn run(globals: &Globals, args: &UpdateArgs) -> Result<i32> {
    let changes = changes(args)?;
    let directory = StateDir::open(&globals.state_root(), &args.id)?;
    let mut record = directory.load()?;
    if record.status() == Status::Stopped {
        return Err(Error::Usage(format!("container {:?}: container not running", args.id)));
    }
    record.cgroup.update(&changes)?;
    directory.save(&record)?;
    // The container sees its limits, and the sentry keeps some itself.
    let resources = Box::new(record.cgroup.resources().clone());
    let mut client = state::connect(&globals.state_root(), &record)?;
    client.call::<()>(&Request::Limit { id: args.id.clone(), resources })?;
    Ok(0)
}

fn changes(args: &UpdateArgs) -> Result<LinuxResources> {
    if let Some(file) = &args.resources {
        return read(file);
    }
    let bytes = |flag: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => {
            let bytes = parse_bytes(text);
            bytes.map(Some).ok_or_else(|| Error::Usage(format!("--{flag}={text}: not a size like 1048576, 512M or -1")))
        }
    };
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(bytes("memory", &args.memory)?)
        .set_reservation(bytes("memory-reservation", &args.memory_reservation)?)
        .set_swap(bytes("memory-swap", &args.memory_swap)?)
        .set_kernel_tcp(bytes("kernel-memory-tcp", &args.kernel_memory_tcp)?);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(args.cpu_share)
        .set_quota(args.cpu_quota)
        .set_period(args.cpu_period)
        .set_burst(args.cpu_burst)
        .set_idle(args.cpu_idle)
        .set_realtime_period(args.cpu_rt_period)
        .set_realtime_runtime(args.cpu_rt_runtime)
        .set_cpus(args.cpuset_cpus.clone())
        .set_mems(args.cpuset_mems.clone());
    let mut io = LinuxBlockIo::default();
    io.set_weight(args.blkio_weight);
    let pids = args.pids_limit.map(|limit| *LinuxPids::default().set_limit(limit));
    let mut changes = LinuxResources::default();
    changes
        .set_memory(Some(memory).filter(|memory| *memory != Default::default()))
        .set_cpu(Some(cpu).filter(|cpu| *cpu != Default::default()))
        .set_block_io(Some(io).filter(|io| *io != Default::default()))
        .set_pids(pids);
    if changes == LinuxResources::default() {
        return Err(Error::Usage("update: no limit is given: see runsc help update".into()));
    }
    Ok(changes)
}

fn read(file: &Path) -> Result<LinuxResources> {
    let doing = || format!("--resources={}", file.display());
    let mut text = Vec::new();
    if file == Path::new("-") {
        io::stdin().read_to_end(&mut text).doing(doing)?;
    } else {
        text = fs::read(file).doing(doing)?;
    }
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let parsed = serde_path_to_error::deserialize(&mut reader);
    parsed.map_err(|error| Error::Usage(format!("{}: {}: {}", doing(), error.path(), error.inner())))
}

/// A size as Docker's tools write it: bytes, or a number with k, m, g, t or p, which are powers of 1024, and maybe `b` or
/// `ib` behind; -1 is no limit.
fn parse_bytes(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    if text == "-1" {
        return Some(-1);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << shift);
    }
    let bytes = number.parse::<f64>().ok()? * (1i64 << shift) as f64;
    (bytes < 9e18).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let sizes = ["1048576", "512M", "1.5g", "2KiB", "-1", "10b"].map(parse_bytes);
        assert_eq!(sizes, [1 << 20, 512 << 20, 3 << 29, 2048, -1, 10].map(Some));
        for bad in ["", "M", "x", "-2", "1x", "99999999999g"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn flags_become_resources() {
        let args = UpdateArgs { memory: Some("64m".into()), cpu_quota: Some(-1), ..UpdateArgs::default() };
        let changes = changes(&args).unwrap();
        assert_eq!(changes.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(changes.cpu().as_ref().unwrap().quota(), Some(-1));
        assert!(changes.pids().is_none() && changes.block_io().is_none());
        assert!(super::changes(&UpdateArgs::default()).is_err());
        let bad = UpdateArgs { memory: Some("lots".into()), ..UpdateArgs::default() };
        assert!(super::changes(&bad).unwrap_err().to_string().contains("--memory=lots"));
    }
}
