//! `linux.seccomp` of an OCI specification as a filter: config-linux.md, "Seccomp".
//!
//! Names that are none of x86_64's are left out, as libseccomp does: profiles name the calls of every architecture. Rules
//! whose action is the default one say nothing. A rule without conditions covers those with conditions for the same call;
//! of two without, the stricter holds. Architectures need no rules: container code has one kind of calls, and those with
//! the x32 bit are not there, whatever a profile says of x32.

use std::collections::BTreeMap;
use std::sync::Arc;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

use super::bpf::{ARCH, Insn, MAX_LEN, Program, code};
use super::{Filter, action, names};

/// A field beneath `linux.seccomp`, and what is wrong with it.
pub type Problem = (String, String);

/// Makes the filter.
pub fn compile(profile: &LinuxSeccomp) -> Result<Arc<Filter>, Problem> {
    if profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return Err(("listenerPath".into(), "calls are not handed to a process of the host".into()));
    }
    let flags = profile.flags().as_deref().unwrap_or_default();
    if let Some(index) =
        flags.iter().position(|flag| *flag == LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv)
    {
        return Err((format!("flags[{index}]"), "is for listeners, which are not supported".into()));
    }
    let log = flags.contains(&LinuxSeccompFilterFlag::SeccompFilterFlagLog);
    let default = value(profile.default_action(), profile.default_errno_ret())
        .map_err(|text| ("defaultAction".to_owned(), text))?;
    let rules = collect(profile, default)?;
    let insns = assemble(&rules, default);
    if insns.len() > MAX_LEN {
        return Err(("syscalls".into(), format!("are more than fit into a filter of {MAX_LEN} instructions")));
    }
    let program = Program::new(insns).map_err(|error| ("syscalls".to_owned(), error.to_string()))?;
    Filter::new(program, log, None).map_err(|error| ("syscalls".to_owned(), error.to_string()))
}

/// What a program returns for an action.
fn value(which: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, String> {
    let data = |default: i32| match errno.unwrap_or(default as u32) {
        errno @ 0..=0xffff => Ok(errno),
        errno => Err(format!("{errno} is no error number")),
    };
    Ok(match which {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => action::KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => action::KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => action::TRAP,
        LinuxSeccompAction::ScmpActErrno => action::ERRNO | data(libc::EPERM)?,
        LinuxSeccompAction::ScmpActTrace => action::TRACE | data(libc::EPERM)?,
        LinuxSeccompAction::ScmpActLog => action::LOG,
        LinuxSeccompAction::ScmpActAllow => action::ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err("SCMP_ACT_NOTIFY needs a listener, which is not supported".into());
        }
    })
}

/// What holds for one call.
#[derive(Default)]
struct Rules {
    /// Whatever the arguments are.
    always: Option<u32>,
    /// Where all conditions hold; the first that matches decides.
    conditional: Vec<(Vec<LinuxSeccompArg>, u32)>,
}

fn collect(profile: &LinuxSeccomp, default: u32) -> Result<BTreeMap<u32, Rules>, Problem> {
    let mut rules: BTreeMap<u32, Rules> = BTreeMap::new();
    for (index, entry) in profile.syscalls().iter().flatten().enumerate() {
        let value =
            value(entry.action(), entry.errno_ret()).map_err(|text| (format!("syscalls[{index}].action"), text))?;
        let args = entry.args().as_deref().unwrap_or_default();
        if let Some(bad) = args.iter().position(|arg| arg.index() > 5) {
            return Err((format!("syscalls[{index}].args[{bad}].index"), "a call has arguments 0 to 5".into()));
        }
        if value == default {
            continue;
        }
        for number in entry.names().iter().filter_map(|name| names::number(name)) {
            add(rules.entry(number).or_default(), entry, value);
        }
    }
    Ok(rules)
}

fn add(rules: &mut Rules, entry: &LinuxSyscall, value: u32) {
    let args = entry.args().as_deref().unwrap_or_default();
    let index_twice =
        args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|earlier| earlier.index() == arg.index()));
    if args.is_empty() {
        let stricter =
            |old: u32| if ((old & action::FULL) as i32) <= (value & action::FULL) as i32 { old } else { value };
        rules.always = Some(rules.always.map_or(value, stricter));
    } else if index_twice {
        // Conditions on one argument are alternatives, as runc takes them.
        rules.conditional.extend(args.iter().map(|arg| (vec![*arg], value)));
    } else {
        rules.conditional.push((args.to_vec(), value));
    }
}

fn insn(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
    Insn { code, jt, jf, k }
}

/// The program. Calls with conditions come first: whether the others are allowed is found without running it.
fn assemble(rules: &BTreeMap<u32, Rules>, default: u32) -> Vec<Insn> {
    const X32: u32 = 0x4000_0000;
    let mut out = vec![
        insn(code::LD_ABS, 0, 0, 4),
        insn(code::JEQ, 1, 0, ARCH),
        insn(code::RET_K, 0, 0, action::KILL_THREAD),
        insn(code::LD_ABS, 0, 0, 0),
        insn(code::JGE, 0, 1, X32),
        insn(code::RET_K, 0, 0, action::ERRNO | libc::ENOSYS as u32),
    ];
    let conditional = |rules: &&Rules| rules.always.is_none();
    for (&number, rules) in rules.iter().filter(|(_, rules)| conditional(rules)) {
        let mut body = Vec::new();
        for (args, value) in &rules.conditional {
            body.extend(one_rule(args, *value));
        }
        body.push(insn(code::RET_K, 0, 0, default));
        out.push(insn(code::JEQ, 1, 0, number));
        out.push(insn(code::JA, 0, 0, body.len() as u32));
        out.extend(body);
    }
    for (&number, rules) in rules {
        if let Some(value) = rules.always {
            out.push(insn(code::JEQ, 0, 1, number));
            out.push(insn(code::RET_K, 0, 0, value));
        }
    }
    out.push(insn(code::RET_K, 0, 0, default));
    out
}

/// Returns `value` where all conditions hold, and goes on behind otherwise.
fn one_rule(args: &[LinuxSeccompArg], value: u32) -> Vec<Insn> {
    let mut out = Vec::new();
    // From the last to the first: each knows how far it is to the end.
    out.push(insn(code::RET_K, 0, 0, value));
    for arg in args.iter().rev() {
        let mut condition = condition(arg, out.len() as u8);
        condition.append(&mut out);
        out = condition;
    }
    out
}

/// Goes on behind itself where the condition holds, and otherwise skips `rest` instructions more. Arguments have 64 bits,
/// the machine 32: the upper half decides unless it is equal.
fn condition(arg: &LinuxSeccompArg, rest: u8) -> Vec<Insn> {
    let low = 16 + 8 * arg.index() as u32;
    let load = |offset: u32| insn(code::LD_ABS, 0, 0, offset);
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high_value, low_value) = halves(arg.value());
    // [load high] [compare high] ([compare high]) [load low] [compare low]
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpEq => vec![
            load(low + 4),
            insn(code::JEQ, 0, rest + 2, high_value),
            load(low),
            insn(code::JEQ, 0, rest, low_value),
        ],
        LinuxSeccompOperator::ScmpCmpNe => {
            vec![load(low + 4), insn(code::JEQ, 0, 2, high_value), load(low), insn(code::JEQ, rest, 0, low_value)]
        }
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (high_mask, low_mask) = (high_value, low_value);
            let (high_value, low_value) = halves(arg.value_two().unwrap_or(0));
            vec![
                load(low + 4),
                insn(code::AND, 0, 0, high_mask),
                insn(code::JEQ, 0, rest + 3, high_value),
                load(low),
                insn(code::AND, 0, 0, low_mask),
                insn(code::JEQ, 0, rest, low_value),
            ]
        }
        op => {
            let greater = matches!(op, LinuxSeccompOperator::ScmpCmpGt | LinuxSeccompOperator::ScmpCmpGe);
            // "Less" holds where "greater or equal" does not, and "less or equal" where "greater" does not.
            let compare = match op {
                LinuxSeccompOperator::ScmpCmpGt | LinuxSeccompOperator::ScmpCmpLe => code::JGT,
                _ => code::JGE,
            };
            let (holds, fails) = if greater { (3, rest + 2) } else { (rest + 3, 2) };
            let last = if greater { insn(compare, 0, rest, low_value) } else { insn(compare, rest, 0, low_value) };
            vec![
                load(low + 4),
                // Above in the upper half: decided.
                insn(code::JGT, holds, 0, high_value),
                // Below: decided the other way.
                insn(code::JEQ, 0, fails, high_value),
                load(low),
                last,
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentry::seccomp::bpf::Data;
    use crate::sentry::seccomp::{Seccomp, Verdict};
    use serde_json::{Value, json};

    fn compiled(profile: Value) -> Result<Arc<Filter>, Problem> {
        compile(&serde_json::from_value(profile).unwrap())
    }

    fn verdict(profile: &Value, nr: i64, args: &[u64]) -> Verdict {
        let seccomp = Seccomp::default();
        seccomp.install(compiled(profile.clone()).unwrap());
        let mut data = Data { nr: nr as u32, ip: 0, args: [0; 6] };
        data.args[..args.len()].copy_from_slice(args);
        seccomp.check(|| data, nr as u64)
    }

    #[test]
    fn names_actions_and_errors() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["read", "breakpoint", "arm_fadvise64_64"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["write"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                {"names": ["close"], "action": "SCMP_ACT_KILL"},
                {"names": ["stat"], "action": "SCMP_ACT_TRAP"},
            ],
        });
        assert_eq!(verdict(&profile, libc::SYS_read, &[]), Verdict::Allow);
        assert_eq!(verdict(&profile, libc::SYS_write, &[]), Verdict::Errno(libc::EPERM));
        assert_eq!(verdict(&profile, libc::SYS_open, &[]), Verdict::Errno(13));
        assert_eq!(verdict(&profile, libc::SYS_close, &[]), Verdict::KillThread);
        assert_eq!(verdict(&profile, libc::SYS_stat, &[]), Verdict::Trap(0));
        assert_eq!(verdict(&profile, libc::SYS_fstat, &[]), Verdict::Errno(38));
        assert_eq!(verdict(&profile, 0x4000_0000, &[]), Verdict::Errno(libc::ENOSYS));
    }

    #[test]
    fn conditions_compare_64_bits() {
        const VALUES: [u64; 9] = [0, 1, 2, 0xffff_ffff, 1 << 32, (1 << 32) + 1, (1 << 32) + 2, 2 << 32, u64::MAX];
        type Holds = fn(u64, u64) -> bool;
        let ops: [(&str, Holds); 6] = [
            ("SCMP_CMP_NE", |a, b| a != b),
            ("SCMP_CMP_LT", |a, b| a < b),
            ("SCMP_CMP_LE", |a, b| a <= b),
            ("SCMP_CMP_EQ", |a, b| a == b),
            ("SCMP_CMP_GE", |a, b| a >= b),
            ("SCMP_CMP_GT", |a, b| a > b),
        ];
        for (op, holds) in ops {
            for value in VALUES {
                let arg = json!({"index": 1, "op": op, "value": value});
                let second = json!({"index": 2, "op": "SCMP_CMP_EQ", "value": 5});
                let profile = json!({
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "syscalls": [{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [arg, second]}],
                });
                for given in VALUES {
                    let expected = if holds(given, value) { Verdict::Allow } else { Verdict::Errno(1) };
                    assert_eq!(verdict(&profile, libc::SYS_ioctl, &[0, given, 5]), expected, "{given} {op} {value}");
                    assert_eq!(verdict(&profile, libc::SYS_ioctl, &[0, given, 6]), Verdict::Errno(1));
                }
            }
        }
    }

    #[test]
    fn docker_allows_clone_without_namespaces() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["getpid"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["getpid"], "action": "SCMP_ACT_LOG"},
                {"names": ["getpid"], "action": "SCMP_ACT_TRACE",
                    "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            ],
        });
        assert_eq!(verdict(&profile, libc::SYS_clone, &[libc::CLONE_VM as u64]), Verdict::Allow);
        assert_eq!(verdict(&profile, libc::SYS_clone, &[libc::CLONE_NEWUSER as u64]), Verdict::Errno(1));
        assert_eq!(verdict(&profile, libc::SYS_clone3, &[]), Verdict::Errno(38));
        for (persona, expected) in [(0, Verdict::Allow), (8, Verdict::Allow), (4, Verdict::Errno(1))] {
            assert_eq!(verdict(&profile, libc::SYS_personality, &[persona]), expected);
        }
        assert_eq!(verdict(&profile, libc::SYS_getpid, &[0]), Verdict::Allow, "a rule without conditions covers all");
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let problem = |profile: Value| compiled(profile).err().expect("accepted").0;
        assert_eq!(problem(json!({"defaultAction": "SCMP_ACT_NOTIFY"})), "defaultAction");
        assert_eq!(problem(json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"})), "listenerPath");
        let notify = json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"});
        assert_eq!(problem(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [notify]})), "syscalls[0].action");
        let index = json!({"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]});
        assert_eq!(
            problem(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [index]})),
            "syscalls[0].args[0].index"
        );
    }
}
