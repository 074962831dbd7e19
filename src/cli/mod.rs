//! The command line: one file a command. Names and flags are those of gVisor's `runsc`, so that what drives that one
//! drives this one.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use log::LevelFilter;

use crate::container::mount as mount_process;
use crate::container::{Context, Error, Result, boot, gofer, stand_in};
use crate::logging::{self, Sink};

mod args;
mod create;
mod delete;
mod do_command;
mod events;
mod exec;
mod features;
mod install;
mod kill;
mod limit_args;
mod list;
mod mount;
mod normalise;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;
mod wait;

use args::{Cli, Command, Globals};

/// The exit status of a command that the runtime itself could not carry out. A container's own status is below 128, or
/// above it when a signal killed its first process.
const FAILURE: u8 = 128;

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    if let Some(status) = internal(std::env::args_os()) {
        return exit_code(status);
    }
    match parse(std::env::args_os()) {
        Ok(cli) => dispatch(cli),
        Err(error) => usage_error(&error),
    }
}

/// The runtime's own processes, which it starts as `NAME COMMAND --config-fd=N --id ID`; they have their own logs and report
/// their failures themselves. They go without the grammar below, whose making takes a third of a mebibyte of each.
fn internal(args: impl IntoIterator<Item = OsString>) -> Option<i32> {
    let mut args = args.into_iter().skip(1);
    let main = match args.next()?.to_str()? {
        "boot" => boot::main,
        "gofer" => gofer::main,
        "stand-in" => stand_in::main,
        "view" => mount_process::main,
        _ => return None,
    };
    let config_fd = args.next()?.to_str()?.strip_prefix("--config-fd=")?.parse().ok()?;
    Some(main(config_fd))
}

/// Reads the command line in Go's spelling or in clap's.
fn parse(args: impl IntoIterator<Item = OsString>) -> std::result::Result<Cli, clap::Error> {
    let mut grammar = Cli::command();
    grammar.build();
    let takes_value = |command: Option<&str>, flag: &str| {
        let of = match command {
            None => Some(&grammar),
            Some(name) => grammar.find_subcommand(name),
        };
        // By its long name, or its letter.
        let named = |arg: &&clap::Arg| {
            arg.get_long() == Some(flag) || arg.get_short().is_some_and(|short| flag.chars().eq([short]))
        };
        let arg = of.and_then(|of| of.get_arguments().find(named));
        arg.is_some_and(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
    };
    let trailing = |command: &str| {
        let of = grammar.find_subcommand(command);
        of.is_some_and(|of| of.get_positionals().any(|arg| arg.is_trailing_var_arg_set()))
    };
    let args = normalise::normalise(args, &normalise::Grammar { takes_value: &takes_value, trailing: &trailing });
    Cli::from_arg_matches(&grammar.clone().try_get_matches_from(args)?)
}

fn dispatch(cli: Cli) -> ExitCode {
    let globals = &cli.globals;
    let (name, id) = cli.command.name_and_id();
    let outcome = match &cli.command {
        Command::Flags => return exit_code(print_flags()),
        command => start_logging(globals, name, &id).and_then(|()| match command {
            Command::Create(args) => create::run(globals, args),
            Command::Start(args) => start::run(globals, args),
            Command::Run(args) => run::run(globals, args),
            Command::Kill(args) => kill::run(globals, args),
            Command::Wait(args) => wait::run(globals, args),
            Command::Do(args) => do_command::run(globals, args, &id),
            Command::Spec(args) => spec::run(args),
            Command::State(args) => state::run(globals, args),
            Command::List(args) => list::run(globals, args),
            Command::Delete(args) => delete::run(globals, args),
            Command::Exec(args) => exec::run(globals, args),
            Command::Pause(args) => pause::pause(globals, args),
            Command::Resume(args) => pause::resume(globals, args),
            Command::Ps(args) => ps::run(globals, args),
            Command::Mount(args) => mount::run(globals, args),
            Command::Update(args) => update::run(globals, args),
            Command::Events(args) => events::run(globals, args),
            Command::Features => features::run(),
            Command::Install(args) => install::install(args),
            Command::Uninstall(args) => install::uninstall(args),
            Command::Flags => Ok(0), // above
        }),
    };
    match outcome {
        Ok(status) => exit_code(status),
        Err(error) => {
            log::error!("{error}");
            complain(&error);
            ExitCode::from(FAILURE)
        }
    }
}

/// Prints the one line that says what is wrong, if there is anybody to read it.
fn complain(problem: &dyn Display) {
    let _ = writeln!(io::stderr(), "runsc: {problem}");
}

/// Prints what a command was asked for. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.doing(|| "standard output"),
    }
}

/// Writes a process number for whoever waits for the file: it appears with its content.
fn write_pid(file: &Path, pid: i32) -> Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let written = fs::write(&new, pid.to_string()).and_then(|()| fs::rename(&new, file));
    written.doing(|| format!("write {}", file.display()))
}

/// The descriptors from 3 on: those that `LISTEN_FDS` counts and, behind them, `--preserve-fds`.
fn preserved(listening: u32, count: u32) -> Result<Vec<BorrowedFd<'static>>> {
    let listening_end = 3u32.saturating_add(listening).min(i32::MAX as u32) as i32;
    let last = 3u32.saturating_add(listening).saturating_add(count).min(i32::MAX as u32) as i32;
    let one = |fd: i32| {
        // SAFETY: only asks about a number.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            let counts = match fd < listening_end {
                true => format!("LISTEN_FDS={listening}"),
                false => format!("--preserve-fds={count}"),
            };
            return Err(Error::Usage(format!("{counts}: descriptor {fd} is not open")));
        }
        // SAFETY: it is open, and nothing in this process closes descriptors that it was started with.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    };
    (3..last).map(one).collect()
}

fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status & 0xff).unwrap_or(FAILURE))
}

fn start_logging(globals: &Globals, name: &str, id: &str) -> Result<()> {
    let debug = if globals.debug { LevelFilter::Debug } else { LevelFilter::Info };
    let mut sinks = Vec::new();
    if let Some(path) = &globals.log {
        let file = logging::open(path).doing(|| format!("--log={}", path.display()))?;
        // Whoever started this command reads it for the reason of a failure.
        sinks.push(Sink { file, format: globals.log_format, level: LevelFilter::Warn });
    }
    if let Some(pattern) = &globals.debug_log {
        let path = logging::expand(pattern, name, id, SystemTime::now());
        let file = logging::open(&path).doing(|| format!("--debug-log={}", path.display()))?;
        sinks.push(Sink { file, format: globals.debug_log_format, level: debug });
    }
    logging::init(name, sinks);
    log::debug!("arguments: {:?}", std::env::args_os().collect::<Vec<_>>());
    Ok(())
}

fn print_flags() -> i32 {
    let mut grammar = Cli::command().disable_help_subcommand(true).help_template("{options}\n");
    grammar = grammar.mut_subcommands(|command| command.hide(true));
    match grammar.print_long_help() {
        Ok(()) => 0,
        Err(_) => i32::from(FAILURE),
    }
}

/// Prints what was asked for (help, the version), or one line that says what is wrong with the command line.
fn usage_error(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    complain(&format_args!("{} (see: runsc help)", describe(error)));
    ExitCode::from(FAILURE)
}

fn describe(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => format!("unknown flag {argument}"),
        ErrorKind::UnknownArgument => format!("unexpected argument {argument:?}"),
        ErrorKind::InvalidSubcommand => format!("unknown command {:?}", context(ContextKind::InvalidSubcommand)),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "no command given".to_owned()
        }
        ErrorKind::InvalidValue => {
            let valid = context(ContextKind::ValidValue);
            let hint = if valid.is_empty() { String::new() } else { format!(", which takes one of: {valid}") };
            format!("invalid value {:?} for {argument}{hint}", context(ContextKind::InvalidValue))
        }
        ErrorKind::MissingRequiredArgument => format!("missing argument {argument}"),
        // clap's first line says it; hints and usage follow on others.
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> std::result::Result<Cli, String> {
        parse(line.split(' ').map(OsString::from)).map_err(|error| describe(&error))
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_in_gos_spelling() {
        let cli = parsed("runsc -root /r -debug -strace=false run -bundle=/b c1").unwrap();
        assert_eq!(cli.globals.root.as_deref(), Some("/r".as_ref()));
        assert!(cli.globals.debug && !cli.globals.strace);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!((run.create.bundle.to_str(), run.create.id.as_str()), (Some("/b"), "c1"));
    }

    #[test]
    fn do_keeps_the_commands_words() {
        for line in ["runsc --debug do --cwd /tmp ls -la --root=x", "runsc -debug do -cwd /tmp -- ls -la --root=x"] {
            let Command::Do(args) = parsed(line).unwrap().command else { panic!("not do") };
            assert_eq!(args.command, ["ls", "-la", "--root=x"]);
            assert_eq!(args.cwd.as_deref(), Some("/tmp".as_ref()));
        }
    }

    #[test]
    fn errors_name_the_word() {
        assert_eq!(parsed("runsc -bogus do true").unwrap_err(), "unknown flag --bogus");
        assert_eq!(parsed("runsc frobnicate").unwrap_err(), "unknown command \"frobnicate\"");
        assert_eq!(parsed("runsc").unwrap_err(), "no command given");
        assert_eq!(parsed("runsc run").unwrap_err(), "missing argument <ID>");
        assert!(parsed("runsc --platform=kvm do true").unwrap_err().contains("kvm"));
        let host = "invalid value \"host\" for --network <NETWORK>, which takes one of: sandbox, none";
        assert_eq!(parsed("runsc --network=host do true").unwrap_err(), host);
        assert!(parsed("runsc --mtu=12 do true").unwrap_err().contains("--mtu"));
    }
}
