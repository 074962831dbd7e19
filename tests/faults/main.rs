//! What goes wrong on the host: processes that are killed, a disk that is full, state that is damaged, hooks that hang,
//! everything at once. One clear line, and in the end nothing is left.

#[path = "../common/mod.rs"]
mod common;
#[path = "../lifecycle/place.rs"]
mod place;

mod crowd;
mod damaged;
mod disk;
mod hostile;
mod killed;

use common::leftovers::Watch;

/// Runs a test on a thread of its own, whose mounts and processes are watched, and checks that nothing is left.
fn watched(test: impl FnOnce(&Watch) + Send) {
    let run = || {
        // On this thread, which makes the places.
        let _alone = place::alone();
        let watch = Watch::new();
        test(&watch);
        watch.nothing_is_left();
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
