//! `execve(2)`: from a file to a program that is ready to run.
//!
//! Two phases, because a failure must leave the old program alive, and after a certain point cannot:
//!
//! ```text
//! prepare()  open, read headers, follow `#!`, open the interpreter, check the size of the arguments     errno: old program goes on
//! ─────────────────────────── the point of no return: other threads are gone ───────────────────────────
//! commit()   UserThread::renew, map segments, write the stack image in one copy, set registers          error: kill the task
//! ```
//!
//! Everything in a file is hostile: sizes are checked before they are used, and nothing is mapped outside of what the
//! container may map. A file is read with two reads at most (its first page holds the headers of almost every program).

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::io::SliceSink;
use crate::platform::{Title, UserThread};
use crate::sentry::creds::Credentials;
use crate::sentry::mm::{Layout, MemLimits, MemoryManager};
use crate::vfs::file::OpenFile;

pub mod auxv;
pub mod elf;
mod image;
pub mod script;
mod stack;

#[cfg(test)]
mod tests;

pub use auxv::HostAux;
use elf::Program;

/// How files are found; the paths are those of the arguments, of `#!` lines and of `PT_INTERP`.
pub trait ExecFiles {
    /// Opens `path` for execution. `EACCES` unless it is a regular file that may be executed, on a mount that is not
    /// `noexec`; `ETXTBSY` when it is open for writing; and the errors of path lookup.
    fn open_exec(&mut self, path: &[u8]) -> Result<Arc<OpenFile>>;
}

/// The longest argument or environment string, its NUL included: `MAX_ARG_STRLEN`.
pub const MAX_ARG_STRLEN: usize = 128 << 10;

/// How much of a file's beginning decides its format.
pub const HEAD: usize = 4096;

/// What `execve(2)` was called with.
pub struct ExecArgs {
    /// The file, already opened under the name given.
    pub file: Arc<OpenFile>,
    /// That name: `AT_EXECFN`, and the first argument of a script's interpreter (`/dev/fd/N/...` for `execveat(2)`).
    pub path: Vec<u8>,
    /// The arguments. An empty list becomes one empty string, as on Linux.
    pub argv: Vec<Vec<u8>>,
    /// The environment.
    pub envp: Vec<Vec<u8>>,
    /// The caller's limits.
    pub limits: MemLimits,
    /// The name cannot be opened by an interpreter (`execveat(2)` on a close-on-exec descriptor): a script is `ENOENT`.
    pub path_inaccessible: bool,
}

/// A program that can be started.
pub struct Prepared {
    /// The file whose set-user-ID bits and capabilities count, and that `/proc/PID/exe` leads to: for a script its
    /// interpreter.
    pub exe: Arc<OpenFile>,
    /// The new command name: the last component of the path that was executed, at most 15 bytes.
    pub comm: Vec<u8>,
    path: Vec<u8>,
    argv: Vec<Vec<u8>>,
    envp: Vec<Vec<u8>>,
    limits: MemLimits,
    program: Program,
    interpreter: Option<elf::Interpreter>,
}

/// What the caller decides between the two phases.
pub struct CommitArgs<'a> {
    /// The credentials that the program starts with.
    pub creds: &'a Credentials,
    /// `AT_SECURE`: it has gained something from the file.
    pub secure: bool,
    /// Whether addresses are drawn at random: not with `ADDR_NO_RANDOMIZE` of `personality(2)`.
    pub randomize: bool,
    /// `READ_IMPLIES_EXEC` of `personality(2)`.
    pub read_implies_exec: bool,
    /// What the host says of the processor.
    pub host: &'a HostAux,
}

/// A program whose memory and registers are ready.
pub struct Loaded {
    /// Its memory.
    pub mm: Arc<MemoryManager>,
    /// Where it starts (also in the thread's `rip`).
    pub entry: u64,
    /// Its stack pointer (also in `rsp`).
    pub stack: u64,
}

/// The first phase. Errors, all harmless: `ENOEXEC`, `EACCES`, `ELIBBAD`, `E2BIG`, `ELOOP`, `ENOENT`, `EINVAL`, `EIO` and
/// those of opening interpreters.
pub fn prepare(args: ExecArgs, files: &mut dyn ExecFiles) -> Result<Prepared> {
    let comm = comm_of(&args.path);
    let (mut file, mut argv, mut path) = (args.file, args.argv, args.path.clone());
    if argv.is_empty() {
        argv.push(Vec::new());
    }
    check_size(&argv, &args.envp, &args.path, &args.limits)?;
    let mut depth = 0;
    let program = loop {
        let head = read_head(&file)?;
        let Some(line) = script::parse(&head)? else {
            break elf::parse(&file, &head, files)?;
        };
        // Linux follows five rewrites of the command.
        depth += 1;
        if depth > 5 {
            return Err(Errno::ELOOP);
        }
        if args.path_inaccessible {
            return Err(Errno::ENOENT);
        }
        file = files.open_exec(&line.interpreter)?;
        line.rewrite(&mut argv, &path);
        path.clone_from(&line.interpreter);
        check_size(&argv, &args.envp, &args.path, &args.limits)?;
    };
    let (program, interpreter) = program;
    Ok(Prepared { exe: file, comm, path: args.path, argv, envp: args.envp, limits: args.limits, program, interpreter })
}

impl Prepared {
    /// The arguments that the program will see.
    pub fn argv(&self) -> &[Vec<u8>] {
        &self.argv
    }

    /// The second phase: replaces the thread's memory. The caller has ended the other threads of the group; after an error
    /// the task must be killed (`SIGSEGV`, as Linux does).
    pub fn commit(self, thread: &mut dyn UserThread, args: &CommitArgs<'_>) -> Result<Loaded> {
        thread.renew()?;
        let mm = MemoryManager::new(thread.space().clone());
        let plan = image::Plan::new(&mm, &self, args)?;
        let placed = plan.map(thread, &mm, &self, args)?;
        let stack = stack::Image::build(&self, args, &placed)?;
        crate::sentry::mm::user::write_all(&**mm.space(), stack.pointer, &stack.bytes)?;
        let layout = Layout {
            start_stack: stack.pointer,
            arg_start: stack.args.start,
            arg_end: stack.args.end,
            env_start: stack.env.start,
            env_end: stack.env.end,
            ..placed.layout
        };
        mm.set_program(layout, stack.auxv, Some(self.exe));
        thread.entitle(&Title { name: &self.comm, args: stack.args, env: stack.env, stack: stack.pointer });
        let regs = thread.regs_mut();
        (regs.rip, regs.rsp) = (placed.start, stack.pointer);
        Ok(Loaded { mm, entry: placed.start, stack: stack.pointer })
    }
}

/// The command name of a path.
fn comm_of(path: &[u8]) -> Vec<u8> {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    name[..name.len().min(15)].to_vec()
}

/// `E2BIG`: a string longer than [`MAX_ARG_STRLEN`], or strings and pointers of more than a quarter of the stack's limit
/// (at least 128 KiB; at most 6 MiB).
fn check_size(argv: &[Vec<u8>], envp: &[Vec<u8>], path: &[u8], limits: &MemLimits) -> Result<()> {
    const LEAST: u64 = 128 << 10;
    const MOST: u64 = (8 << 20) / 4 * 3;
    let limit = (limits.stack / 4).clamp(LEAST, MOST);
    let mut size = path.len() as u64 + 1;
    for text in argv.iter().chain(envp) {
        if text.len() >= MAX_ARG_STRLEN {
            return Err(Errno::E2BIG);
        }
        size += text.len() as u64 + 1 + 8;
    }
    if size > limit { Err(Errno::E2BIG) } else { Ok(()) }
}

/// The file's beginning; shorter than [`HEAD`] when the file is.
fn read_head(file: &OpenFile) -> Result<Vec<u8>> {
    let mut head = vec![0u8; HEAD];
    let n = read_at(file, 0, &mut head)?;
    head.truncate(n);
    Ok(head)
}

/// Fills `buf` from `offset`, as far as the file goes. The file was opened for execution, not for reading.
fn read_at(file: &OpenFile, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        let at = offset.checked_add(done as u64).ok_or(Errno::EIO)?;
        match file.object().read(at, &mut SliceSink::new(&mut buf[done..]))? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}
