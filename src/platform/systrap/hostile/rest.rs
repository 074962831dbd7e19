//! Threads that rest: what a program can make of them.

use super::*;

/// The context of a thread that rests is written over, and the thread called up again and again.
#[test]
fn threads_that_find_no_rest() {
    bounded(Duration::from_secs(120), || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        let mut random = Random(0xbed);
        for turn in 0..60 {
            let mut user = free_thread(&platform);
            let pid = user.space().host_pid();
            for _ in 0..5 {
                let Ok(seed) = user.spawn_thread() else { break };
                let child = std::thread::spawn(move || {
                    let Ok(mut child) = seed.attach() else { return };
                    let kicks = Kicks::new(child.interrupter(), Duration::from_millis(2));
                    for _ in 0..20 {
                        let begun = Instant::now();
                        let event = child.run();
                        assert!(begun.elapsed() < Duration::from_secs(2));
                        if matches!(event, Event::Lost) {
                            return;
                        }
                        child.regs_mut().rip = CODE;
                    }
                    drop(kicks);
                    child.retire();
                });
                child.join().unwrap();
                // Whichever context it has.
                for _ in 0..random.below(20) {
                    let address = context::WINDOW + context::SIZE + random.below(0x40) * 8;
                    let word = if turn % 3 == 0 { random.below(10) } else { random.word() };
                    scribble(pid, address, &word.to_ne_bytes());
                }
                let begun = Instant::now();
                if matches!(run_a_while(&mut *user), Event::Lost) {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(2));
                user.regs_mut().rip = CODE;
            }
            drop(user);
            // SAFETY: no pointers.
            assert_eq!(unsafe { libc::kill(pid, 0) }, -1, "the process is gone");
        }
        bystander.finish();
    });
}
