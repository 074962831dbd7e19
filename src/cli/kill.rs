//! `runsc kill`: sends a signal to a container.

use std::str::FromStr;

use nix::sys::signal::Signal;

use super::args::{Globals, KillArgs};
use crate::container::control::Target;
use crate::container::life::Container;
use crate::container::{Error, Result};

/// Sends it.
pub fn run(globals: &Globals, args: &KillArgs) -> Result<i32> {
    let signal = parse(&args.signal)?;
    let target = match args.pid {
        Some(pid) => Target::Process(pid),
        None if args.all => Target::All,
        None => Target::Init,
    };
    Container::open(&globals.state_root(), &args.id)?.kill(signal, target)?;
    Ok(0)
}

/// `9`, `KILL`, `SIGKILL`, `sigkill`; also real-time signals as `SIGRTMIN+3` and `SIGRTMAX-1`, as bash names them.
fn parse(text: &str) -> Result<i32> {
    let unknown = || Error::Usage(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = short.strip_prefix("RTMIN") {
        return real_time(34, offset).ok_or_else(unknown);
    }
    if let Some(offset) = short.strip_prefix("RTMAX") {
        return real_time(64, offset).ok_or_else(unknown);
    }
    let name = match short {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        name => name,
    };
    Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| unknown())
}

/// A real-time signal by its distance from the first or the last: glibc keeps 32 and 33 to itself.
fn real_time(base: i32, offset: &str) -> Option<i32> {
    let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().ok()? };
    Some(base + offset).filter(|number| (34..=64).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for text in ["9", "KILL", "SIGKILL", "sigkill", "Kill"] {
            assert_eq!(parse(text).unwrap(), libc::SIGKILL, "{text}");
        }
        assert_eq!(parse("SIGCLD").unwrap(), libc::SIGCHLD);
        assert_eq!(parse("RTMIN+3").unwrap(), 37);
        assert_eq!(parse("SIGRTMAX-14").unwrap(), 50);
        for text in ["0", "65", "-9", "", "SIG", "TERMINATE", "RTMIN-1", "RTMAX+1", "RTMINx"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
