//! Go's flag spelling, as gVisor's callers use it: `-root=/x`, `-root /x` and `-debug` mean `--root=/x` and so on.
//!
//! clap reads `-root` as the short flags `-r -o -o -t`, so single-dash long flags get their second dash before clap
//! sees them. As in Go, flags end at `--` or, after the command, where the command's own words begin: nothing in the
//! command line of `do` is touched.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What the rewriting has to know of the command line's grammar.
pub struct Grammar<'a> {
    /// Whether the flag of this name (without dashes) takes the next word as its value, for `command` or, with `None`,
    /// before the command.
    pub takes_value: &'a dyn Fn(Option<&str>, &str) -> bool,
    /// Whether everything behind this command's first positional word belongs to another program.
    pub trailing: &'a dyn Fn(&str) -> bool,
}

/// Rewrites `args` (the program's name first).
pub fn normalise(args: impl IntoIterator<Item = OsString>, grammar: &Grammar<'_>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut command: Option<String> = None;
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            out.push(arg);
            break;
        }
        if bytes.len() < 2 || bytes[0] != b'-' {
            match &command {
                None => command = Some(arg.to_string_lossy().into_owned()),
                Some(command) if (grammar.trailing)(command) => {
                    // clap would take the words behind for flags of ours if it were not told that flags are over.
                    out.push("--".into());
                    out.push(arg);
                    break;
                }
                Some(_) => {}
            }
            out.push(arg);
            continue;
        }
        let flag = two_dashes(bytes);
        let name = if flag[1] == b'-' { &flag[2..] } else { &flag[1..] };
        let wants_value =
            !flag.contains(&b'=') && (grammar.takes_value)(command.as_deref(), &String::from_utf8_lossy(name));
        out.push(OsString::from_vec(flag));
        if wants_value {
            out.extend(args.next());
        }
    }
    out.extend(args);
    out
}

/// `-name` becomes `--name`; one letter (`-h`) and two dashes stay. The name is as far as a `=`.
fn two_dashes(arg: &[u8]) -> Vec<u8> {
    let name_len = arg[1..].iter().position(|&b| b == b'=').unwrap_or(arg.len() - 1);
    if arg[1] == b'-' || name_len == 1 {
        return arg.to_vec();
    }
    let mut long = Vec::with_capacity(arg.len() + 1);
    long.push(b'-');
    long.extend_from_slice(arg);
    long
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &str) -> String {
        let grammar = Grammar {
            takes_value: &|command, name| {
                matches!((command, name), (None, "root") | (Some("run"), "bundle") | (Some("do"), "e"))
            },
            trailing: &|command| command == "do",
        };
        let words = normalise(args.split(' ').map(OsString::from), &grammar);
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn single_dash_becomes_double() {
        assert_eq!(run("runsc -root=/x -debug run -bundle=/b id"), "runsc --root=/x --debug run --bundle=/b id");
        assert_eq!(run("runsc --root /x run --bundle /b id"), "runsc --root /x run --bundle /b id");
    }

    #[test]
    fn values_are_not_flags_nor_commands() {
        assert_eq!(run("runsc -root do run -bundle -odd id"), "runsc --root do run --bundle -odd id");
    }

    #[test]
    fn single_letters_and_stdin_dash_stay() {
        assert_eq!(run("runsc -h run -h -"), "runsc -h run -h -");
        assert_eq!(run("runsc -a=b"), "runsc -a=b");
    }

    #[test]
    fn letters_have_values_too() {
        assert_eq!(run("runsc do -e A=b ls -e x"), "runsc do -e A=b -- ls -e x");
        assert_eq!(run("runsc do -t ls"), "runsc do -t -- ls");
    }

    #[test]
    fn another_programs_words_are_left_alone() {
        assert_eq!(run("runsc -debug do -quiet ls -la -root"), "runsc --debug do --quiet -- ls -la -root");
        assert_eq!(run("runsc do -- ls -la -root"), "runsc do -- ls -la -root");
    }
}
