//! `#!` scripts: `execve(2)`, "Interpreter scripts".

use crate::errno::{Errno, Result};

/// How much of the first line counts: `BINPRM_BUF_SIZE`.
const LINE: usize = 256;

/// The first line of a script.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// The interpreter's path.
    pub interpreter: Vec<u8>,
    /// The rest of the line as one argument, if there is one.
    pub argument: Option<Vec<u8>>,
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The line of a script; `None` when `head` is not one. `ENOEXEC`: no interpreter is named, or its name may be cut off.
pub fn parse(head: &[u8]) -> Result<Option<Line>> {
    let Some(rest) = head.strip_prefix(b"#!") else { return Ok(None) };
    let rest = &rest[..rest.len().min(LINE - 2)];
    let newline = rest.iter().position(|&byte| byte == b'\n');
    // Behind a file that is shorter than the buffer come zeros, which end the line.
    let complete = newline.is_some() || head.len() < LINE;
    let line = &rest[..newline.unwrap_or(rest.len())];
    let line = line.trim_ascii_start_blank();
    if line.is_empty() {
        return Err(Errno::ENOEXEC);
    }
    let ends = |&byte: &u8| is_blank(byte) || byte == 0;
    let name = line.iter().position(ends);
    // Without its end in sight the name may be longer.
    let end = match name {
        Some(end) => end,
        None if complete => line.len(),
        None => return Err(Errno::ENOEXEC),
    };
    let interpreter = line[..end].to_vec();
    if interpreter.is_empty() {
        return Err(Errno::ENOEXEC);
    }
    let rest = line[end..].trim_ascii_start_blank();
    let rest = &rest[..rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len())];
    let last = rest.iter().rposition(|&byte| !is_blank(byte)).map_or(0, |last| last + 1);
    let argument = (last > 0).then(|| rest[..last].to_vec());
    Ok(Some(Line { interpreter, argument }))
}

impl Line {
    /// What the interpreter is called with: its path, the argument, the script's path, and the script's arguments.
    pub fn rewrite(&self, argv: &mut Vec<Vec<u8>>, script: &[u8]) {
        let mut front = vec![self.interpreter.clone()];
        front.extend(self.argument.clone());
        front.push(script.to_vec());
        let replaced = argv.len().min(1);
        argv.splice(..replaced, front);
    }
}

trait TrimBlank {
    fn trim_ascii_start_blank(&self) -> &[u8];
}

impl TrimBlank for [u8] {
    fn trim_ascii_start_blank(&self) -> &[u8] {
        let first = self.iter().position(|&byte| !is_blank(byte)).unwrap_or(self.len());
        &self[first..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(interpreter: &str, argument: Option<&str>) -> Result<Option<Line>> {
        let argument = argument.map(|text| text.as_bytes().to_vec());
        Ok(Some(Line { interpreter: interpreter.as_bytes().to_vec(), argument }))
    }

    #[test]
    fn lines() {
        assert_eq!(parse(b"\x7fELF"), Ok(None));
        assert_eq!(parse(b"#!/bin/sh\necho"), line("/bin/sh", None));
        assert_eq!(parse(b"#! \t/bin/sh  -e  -x \n"), line("/bin/sh", Some("-e  -x")));
        assert_eq!(parse(b"#!/bin/sh"), line("/bin/sh", None));
        assert_eq!(parse(b"#!\n"), Err(Errno::ENOEXEC));
        assert_eq!(parse(b"#!   \n"), Err(Errno::ENOEXEC));
        let long = [b"#!/", &[b'a'; 300][..]].concat();
        assert_eq!(parse(&long), Err(Errno::ENOEXEC));
        let argument = [b"#!/bin/sh ", &[b'a'; 300][..]].concat();
        assert_eq!(parse(&argument).unwrap().unwrap().argument.unwrap().len(), 256 - 10);
    }

    #[test]
    fn arguments_are_rewritten() {
        let mut argv = vec![b"old".to_vec(), b"one".to_vec()];
        parse(b"#!/bin/sh -e\n").unwrap().unwrap().rewrite(&mut argv, b"./script");
        assert_eq!(argv, [&b"/bin/sh"[..], b"-e", b"./script", b"one"]);
    }
}
