//! Limits that change some of those that there are.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// Whether there is a limit that a cgroup is needed for. Device rules are none: no host device is reachable.
pub(super) fn limits_anything(resources: &LinuxResources) -> bool {
    let given = |is: Option<bool>| is == Some(true);
    resources.memory().is_some_and(|memory| memory != Default::default())
        || resources.cpu().as_ref().is_some_and(|cpu| limits_cpu(cpu) || *cpu != without_cpuset(cpu))
        || resources.pids().is_some_and(|pids| pids.limit() != 0)
        || resources.block_io().as_ref().is_some_and(|io| *io != Default::default())
        || given(resources.hugepage_limits().as_ref().map(|limits| !limits.is_empty()))
        || given(resources.rdma().as_ref().map(|limits| !limits.is_empty()))
        || given(resources.unified().as_ref().map(|files| !files.is_empty()))
        || resources.network().as_ref().is_some_and(|network| *network != Default::default())
}

/// Whether the `cpu` controller is asked for something.
pub(super) fn limits_cpu(cpu: &LinuxCpu) -> bool {
    without_cpuset(cpu) != LinuxCpu::default()
}

/// What is the `cpu` controller's, not `cpuset`'s.
pub(super) fn without_cpuset(cpu: &LinuxCpu) -> LinuxCpu {
    let mut plain = cpu.clone();
    plain.set_cpus(None).set_mems(None);
    plain
}

/// All limits after the change, and those that must be set for it: of a part that changes, all of it, since its values
/// bound each other.
pub(super) fn merge(old: &LinuxResources, change: &LinuxResources) -> (LinuxResources, LinuxResources) {
    let mut set = LinuxResources::default();
    if let Some(memory) = change.memory() {
        set.set_memory(Some(merge_memory(old.memory().unwrap_or_default(), memory)));
    }
    if let Some(cpu) = change.cpu() {
        set.set_cpu(Some(merge_cpu(old.cpu().clone().unwrap_or_default(), cpu)));
    }
    if let Some(io) = change.block_io() {
        set.set_block_io(Some(merge_io(old.block_io().clone().unwrap_or_default(), io)));
    }
    if let Some(pids) = change.pids() {
        set.set_pids(Some(*pids));
    }
    set.set_hugepage_limits(change.hugepage_limits().clone());
    set.set_rdma(change.rdma().clone());
    set.set_unified(change.unified().clone());
    set.set_network(change.network().clone());
    (overlay(old.clone(), &set), set)
}

fn overlay(mut all: LinuxResources, set: &LinuxResources) -> LinuxResources {
    if set.memory().is_some() {
        all.set_memory(*set.memory());
    }
    if set.cpu().is_some() {
        all.set_cpu(set.cpu().clone());
    }
    if set.block_io().is_some() {
        all.set_block_io(set.block_io().clone());
    }
    if set.pids().is_some() {
        all.set_pids(*set.pids());
    }
    if set.hugepage_limits().is_some() {
        all.set_hugepage_limits(set.hugepage_limits().clone());
    }
    if let Some(rdma) = set.rdma() {
        all.rdma_mut().get_or_insert_default().extend(rdma.clone());
    }
    if let Some(files) = set.unified() {
        all.unified_mut().get_or_insert_default().extend(files.clone());
    }
    if set.network().is_some() {
        all.set_network(set.network().clone());
    }
    all
}

fn merge_memory(mut memory: LinuxMemory, change: &LinuxMemory) -> LinuxMemory {
    if let Some(limit) = change.limit() {
        memory.set_limit(Some(limit));
        if limit == -1 && change.swap().is_none() {
            memory.set_swap(Some(-1));
        }
    }
    if change.reservation().is_some() {
        memory.set_reservation(change.reservation());
    }
    if change.swap().is_some() {
        memory.set_swap(change.swap());
    }
    if change.kernel_tcp().is_some() {
        memory.set_kernel_tcp(change.kernel_tcp());
    }
    if change.swappiness().is_some() {
        memory.set_swappiness(change.swappiness());
    }
    if change.disable_oom_killer().is_some() {
        memory.set_disable_oom_killer(change.disable_oom_killer());
    }
    memory
}

fn merge_cpu(mut cpu: LinuxCpu, change: &LinuxCpu) -> LinuxCpu {
    if change.shares().is_some() {
        cpu.set_shares(change.shares());
    }
    if change.quota().is_some() {
        cpu.set_quota(change.quota());
    }
    if change.period().is_some() {
        cpu.set_period(change.period());
    }
    if change.burst().is_some() {
        cpu.set_burst(change.burst());
    }
    if change.idle().is_some() {
        cpu.set_idle(change.idle());
    }
    if change.realtime_period().is_some() {
        cpu.set_realtime_period(change.realtime_period());
    }
    if change.realtime_runtime().is_some() {
        cpu.set_realtime_runtime(change.realtime_runtime());
    }
    if change.cpus().is_some() {
        cpu.set_cpus(change.cpus().clone());
    }
    if change.mems().is_some() {
        cpu.set_mems(change.mems().clone());
    }
    cpu
}

fn merge_io(mut io: LinuxBlockIo, change: &LinuxBlockIo) -> LinuxBlockIo {
    if change.weight().is_some() {
        io.set_weight(change.weight());
    }
    if change.leaf_weight().is_some() {
        io.set_leaf_weight(change.leaf_weight());
    }
    if change.weight_device().is_some() {
        io.set_weight_device(change.weight_device().clone());
    }
    if change.throttle_read_bps_device().is_some() {
        io.set_throttle_read_bps_device(change.throttle_read_bps_device().clone());
    }
    if change.throttle_write_bps_device().is_some() {
        io.set_throttle_write_bps_device(change.throttle_write_bps_device().clone());
    }
    if change.throttle_read_iops_device().is_some() {
        io.set_throttle_read_iops_device(change.throttle_read_iops_device().clone());
    }
    if change.throttle_write_iops_device().is_some() {
        io.set_throttle_write_iops_device(change.throttle_write_iops_device().clone());
    }
    io
}
