//! Native, this project and every gVisor that is found, side by side, in one run.
//!
//! `cargo bench -- micro start work programs nginx iperf3 docker` runs those groups, without words all. `PEER_RUNSC=PATH,…`
//! names the gVisors (otherwise the one on `PATH`), `PEER_PLATFORM=ptrace,systrap` their platforms. Root is needed. The group
//! `docker` compares with `runc`.

#[path = "../../tests/common/mod.rs"]
mod common;
mod docker;
#[allow(dead_code, reason = "the tests of Docker use the rest of it")]
#[path = "../../tests/docker/engine.rs"]
mod engine;
mod micro;
mod network;
mod start;
mod table;
mod work;

use common::Runtime;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == micro::FLAG) {
        return micro::main();
    }
    // Cargo adds flags of its own.
    let groups: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let wanted = |group: &str| groups.is_empty() || groups.contains(&group);
    let ours = Runtime::ours_on_each_platform();
    let peers = Runtime::peers();
    let runtimes: Vec<Runtime> = ours.iter().chain(&peers).cloned().collect();
    if wanted("micro") {
        table::run("Operations, in microseconds: less is better", &runtimes, start::micro);
    }
    if wanted("start") {
        table::run("Start-up, memory, files: less is better", &runtimes, start::start);
    }
    if wanted("work") {
        table::run("Ordinary programs: less is better", &runtimes, work::work);
    }
    if wanted("programs") {
        table::run("Programs within one sandbox, over loopback: more is better", &runtimes, start::programs);
    }
    if wanted("nginx") {
        table::run(
            "nginx from another network namespace, wrk -t2 -c32: more is better, except of latency",
            &runtimes,
            network::nginx,
        );
    }
    if wanted("iperf3") {
        table::run("TCP throughput in Gbit/s, one connection: more is better", &runtimes, network::iperf3);
    }
    if wanted("docker") {
        table::run_beside(
            table::Beside::Runc,
            "Docker, difference from runc: less is better",
            &ours.iter().take(1).chain(&peers).cloned().collect::<Vec<_>>(),
            docker::docker,
        );
    }
}
