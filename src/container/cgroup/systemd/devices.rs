//! `linux.resources.devices` as `DevicePolicy` and `DeviceAllow`: which devices the sandbox's own processes may open. Programs
//! of the container reach none, so these rules bound what a sentry that was broken into could.
//!
//! systemd takes a list of what is allowed and no exceptions from it, so that rules are applied one after the other here, as
//! the kernel does in cgroup v1.

use std::fs;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::properties::Property;
use crate::container::dbus::Value;

/// What every container may have, as with runc: `null`, `zero`, `full`, `random`, `urandom`, `tty`, `console`, `ptmx` and
/// terminals.
const STANDARD: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Before this release, systemd looks whether a node is there.
const NUMBERS_SINCE: u32 = 240;

/// Devices that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Which {
    block: bool,
    /// `None`: all.
    major: Option<i64>,
    minor: Option<i64>,
}

/// The properties of rules; none where there are no rules.
pub(super) fn properties(rules: &[LinuxDeviceCgroup], version: u32) -> Vec<Property> {
    let groups = fs::read_to_string("/proc/devices").unwrap_or_default();
    properties_with(rules, version, &groups)
}

fn properties_with(rules: &[LinuxDeviceCgroup], version: u32, groups: &str) -> Vec<Property> {
    if rules.is_empty() {
        return Vec::new();
    }
    let allowed = allowed(rules);
    let policy = if allowed.is_some() { "strict" } else { "auto" };
    let entry = |(which, access): (Which, String)| {
        let path = path(which, version, groups).or_else(|| {
            log::warn!("linux.resources.devices: {which:?}: systemd has no words for it: it stays denied");
            None
        })?;
        Some(Value::Struct(vec![Value::Str(path), Value::Str(access)]))
    };
    let entries = allowed.into_iter().flatten().filter_map(entry).collect();
    let list = Value::Array("(ss)".into(), entries);
    vec![("DevicePolicy".into(), Value::str(policy)), ("DeviceAllow".into(), list)]
}

/// What is allowed in the end; `None`: all.
fn allowed(rules: &[LinuxDeviceCgroup]) -> Option<Vec<(Which, String)>> {
    let mut all = false;
    let mut list: Vec<(Which, String)> = Vec::new();
    let standard =
        STANDARD.map(|(major, minor)| (Which { block: false, major: Some(major), minor }, "rwm".to_owned(), true));
    let own = rules.iter().map(|rule| {
        let access = rule.access().clone().filter(|access| !access.is_empty()).unwrap_or_else(|| "rwm".into());
        (which(rule), access, rule.allow())
    });
    for (which, access, allow) in own.chain(standard.map(|(which, access, allow)| (Some(which), access, allow))) {
        let Some(which) = which else {
            all = allow;
            list.clear();
            continue;
        };
        // Exceptions from everything cannot be told, and are not needed.
        if all {
            continue;
        }
        let at = list.iter().position(|(other, _)| *other == which);
        match (at, allow) {
            (Some(at), true) => list[at].1 = merged(&list[at].1, |c| access.contains(c)),
            (Some(at), false) => list[at].1.retain(|c| !access.contains(c)),
            (None, true) => list.push((which, merged("", |c| access.contains(c)))),
            (None, false) => {}
        }
    }
    list.retain(|(_, access)| !access.is_empty());
    (!all).then_some(list)
}

/// The kinds of access of `old`, and those that are `more`, in the usual order.
fn merged(old: &str, more: impl Fn(char) -> bool) -> String {
    "rwm".chars().filter(|&c| old.contains(c) || more(c)).collect()
}

/// `None`: all devices.
fn which(rule: &LinuxDeviceCgroup) -> Option<Which> {
    let block = match rule.typ() {
        None | Some(LinuxDeviceType::A) => return None,
        Some(LinuxDeviceType::B) => true,
        Some(_) => false,
    };
    let number = |number: Option<i64>| number.filter(|&number| number >= 0);
    Some(Which { block, major: number(rule.major()), minor: number(rule.minor()) })
}

/// How systemd calls it: a node by its numbers, or a group of `/proc/devices`.
fn path(which: Which, version: u32, groups: &str) -> Option<String> {
    let kind = if which.block { "block" } else { "char" };
    match (which.major, which.minor) {
        (None, None) => Some(format!("{kind}-*")),
        (None, Some(_)) => None,
        (Some(major), None) => group(which.block, major, groups).map(|name| format!("{kind}-{name}")),
        (Some(major), Some(minor)) => {
            let path = format!("/dev/{kind}/{major}:{minor}");
            (version >= NUMBERS_SINCE || fs::exists(&path).unwrap_or(false)).then_some(path)
        }
    }
}

/// The name of a major number: `proc_devices(5)`.
fn group(block: bool, major: i64, groups: &str) -> Option<&str> {
    let mut in_block = false;
    for line in groups.lines() {
        match line {
            "Character devices:" => in_block = false,
            "Block devices:" => in_block = true,
            line if in_block == block => {
                let (number, name) = line.trim().split_once(' ').unwrap_or_default();
                if number.parse() == Ok(major) {
                    return Some(name);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    const GROUPS: &str = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  7 loop\n136 other\n";

    fn of(rules: Json) -> (String, Vec<(String, String)>) {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).unwrap();
        let mut properties = properties_with(&rules, 252, GROUPS).into_iter();
        let (Some((_, policy)), Some((_, Value::Array(typ, entries)))) = (properties.next(), properties.next()) else {
            panic!("no properties");
        };
        assert_eq!(typ, "(ss)");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let entry = |value: Value| match value {
            Value::Struct(fields) => (text(&fields[0]), text(&fields[1])),
            other => panic!("{other:?}"),
        };
        (text(&policy), entries.into_iter().map(entry).collect())
    }

    #[test]
    fn what_docker_asks_for() {
        let (policy, list) = of(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rw"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "access": "r"},
            {"allow": true, "type": "b", "access": "m"},
            {"allow": true, "type": "c", "minor": 3, "access": "m"},
        ]));
        assert_eq!(policy, "strict");
        let has = |path: &str, access: &str| list.contains(&(path.to_owned(), access.to_owned()));
        assert!(has("/dev/char/1:5", "rwm"), "{list:?}");
        assert!(has("/dev/char/10:200", "rwm") && has("block-loop", "r") && has("block-*", "m"), "{list:?}");
        assert!(has("/dev/char/1:3", "rwm") && has("char-pts", "rwm"), "{list:?}");
        assert_eq!(list.len(), 4 - 1 + 9, "nothing for all majors with one minor: {list:?}");
    }

    #[test]
    fn rules_follow_one_another() {
        let (_, list) = of(json!([
            {"allow": true},
            {"allow": false, "type": "a"},
            {"allow": true, "type": "c", "major": 9, "minor": 1, "access": "rwm"},
            {"allow": false, "type": "c", "major": 9, "minor": 1, "access": "w"},
            {"allow": true, "type": "b", "major": 9, "minor": 1, "access": "r"},
            {"allow": false, "type": "b", "major": 9, "minor": 1, "access": "rwm"},
        ]));
        assert!(list.contains(&("/dev/char/9:1".into(), "rm".into())), "{list:?}");
        assert!(!list.iter().any(|(path, _)| path.starts_with("/dev/block")), "{list:?}");
    }

    #[test]
    fn everything_and_nothing() {
        let privileged =
            json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 1}]);
        assert_eq!(of(privileged), ("auto".into(), vec![]));
        assert_eq!(properties_with(&[], 252, GROUPS), []);
    }
}
