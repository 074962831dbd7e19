//! Programs of the libraries and languages that there are: they do the same as on Linux, and the places that they make their
//! calls at are rewritten where the platform does that, as their own memory tells.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use runsc::platform::systrap;
use tempfile::TempDir;

use crate::common::Sandbox;

/// Whether the sandboxes of these tests are on the platform that rewrites call sites.
fn rewrites() -> bool {
    let platform = env::var("RUNSC_PLATFORM").unwrap_or_else(|_| "systrap".into());
    platform == "systrap" && systrap::is_possible() && env::var_os("RUNSC_PEER").is_none()
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/sites").join(name)
}

/// What a program has printed, and the places that it has found rewritten, by the calls that are made there.
struct Printed {
    text: String,
    rewritten: Vec<(String, u32)>,
}

fn read(text: &str) -> Printed {
    let mut printed = Printed { text: String::new(), rewritten: Vec::new() };
    for line in text.lines() {
        match line.strip_prefix("rewritten for ").and_then(|line| line.rsplit_once(": ")) {
            Some((call, places)) => printed.rewritten.push((call.into(), places.parse().expect("a number"))),
            None => printed.text.extend([line, "\n"]),
        }
    }
    printed
}

/// Runs a program on the host and in a sandbox.
#[track_caller]
fn same_and_rewritten(args: &[&str]) {
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let native = Command::new(args[0]).args(&args[1..]).current_dir(elsewhere.path()).output().expect("it starts");
    assert!(native.status.success(), "on Linux: {}\n{}", native.status, String::from_utf8_lossy(&native.stderr));
    let native = read(&String::from_utf8_lossy(&native.stdout));
    assert!(!native.rewritten.is_empty(), "it has looked");
    assert!(native.rewritten.iter().all(|(_, places)| *places == 0), "on Linux: {:?}", native.rewritten);

    let output = Sandbox::new(args.iter().copied()).run();
    let inside = read(output.success());
    assert_eq!(inside.text, native.text, "{}", output.report());
    assert_eq!(inside.rewritten.len(), native.rewritten.len());
    let wrong = |(_, places): &&(String, u32)| (*places > 0) != rewrites();
    let wrong: Vec<_> = inside.rewritten.iter().filter(wrong).collect();
    assert!(wrong.is_empty(), "rewritten should be: {}, but {wrong:?}", rewrites());
}

/// Compiles a source with a compiler and its flags.
#[track_caller]
fn compile(compiler: &str, flags: &[&str], name: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = directory.path().join("calls");
    let mut command = Command::new(compiler);
    let output = command.args(flags).arg("-o").arg(&program).arg(source(name)).output();
    let output = output.unwrap_or_else(|error| panic!("{compiler}: {error}: ./scripts/setup installs it"));
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    let program = program.to_str().expect("UTF-8").to_owned();
    (directory, program)
}

#[track_caller]
fn in_c(compiler: &str, flags: &[&str]) {
    let (_directory, program) = compile(compiler, &[&["-O2", "-pthread"], flags].concat(), "calls.c");
    same_and_rewritten(&[&program]);
}

#[test]
fn the_gnu_c_library() {
    in_c("gcc", &[]);
}

#[test]
fn the_gnu_c_library_linked_into_the_program() {
    in_c("gcc", &["-static"]);
}

#[test]
fn musl() {
    in_c("musl-gcc", &[]);
}

#[test]
fn musl_linked_into_the_program() {
    in_c("musl-gcc", &["-static"]);
}

#[test]
fn rust_linked_into_the_program() {
    let flags = ["--edition=2024", "-O", "-Ctarget-feature=+crt-static"];
    let (_directory, program) = compile("rustc", &flags, "calls.rs");
    same_and_rewritten(&[&program]);
}

#[test]
fn go() {
    let script = source("go.py");
    same_and_rewritten(&["/usr/bin/python3", script.to_str().expect("UTF-8")]);
}
