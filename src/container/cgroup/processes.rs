//! Host processes and their descendants, by `/proc`.

use std::fs;

/// `pid`, its children and theirs, in this order.
pub(super) fn family(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&one) = found.get(at) {
        at += 1;
        found.extend(children(one));
    }
    found
}

/// The children of every thread of a process: `proc_tid_children(5)`.
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_come_after_their_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = std::process::id() as i32;
        let family = family(own);
        assert_eq!(family[0], own);
        assert!(family[1..].contains(&(child.id() as i32)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
