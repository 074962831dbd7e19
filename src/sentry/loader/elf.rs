//! ELF headers: `elf(5)`, the System V ABI. Read and checked as Linux does before the point of no return; what is wrong with
//! segments shows only when they are mapped.

use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{ExecFiles, read_at, read_head};
use crate::errno::{Errno, Result};
use crate::sentry::mm::user::PATH_MAX;
use crate::vfs::file::OpenFile;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
/// `PT_LOAD`.
pub const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
/// `PF_X`.
pub const PF_X: u32 = 1;
/// `PF_W`.
pub const PF_W: u32 = 2;
/// `PF_R`.
pub const PF_R: u32 = 4;

/// The largest table of program headers that is read.
const MAX_PHDRS: usize = 65536;

#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    phoff: u64,
    shoff: u64,
    flags: u32,
    ehsize: u16,
    phentsize: u16,
    phnum: u16,
    shentsize: u16,
    shnum: u16,
    shstrndx: u16,
}

/// A program header.
#[derive(Clone, Copy, Debug, Default, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are elf(5)'s")]
pub struct Phdr {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub paddr: u64,
    pub filesz: u64,
    pub memsz: u64,
    pub align: u64,
}

/// What the headers of a program or an interpreter say.
#[derive(Clone, Debug)]
pub struct Program {
    /// Whether it may be put anywhere (`ET_DYN`).
    pub movable: bool,
    /// Where it starts, before moving.
    pub entry: u64,
    /// Number of program headers.
    pub phnum: u16,
    /// Where the program headers will be in memory, before moving; 0 when no segment holds them.
    pub phdr: u64,
    /// The `PT_LOAD` headers.
    pub segments: Vec<Phdr>,
    /// `PT_GNU_STACK` asks for an executable stack.
    pub exec_stack: bool,
}

/// The dynamic linker's file and what its headers say.
pub(super) type Interpreter = (Arc<OpenFile>, Program);

/// Reads the headers of a program and of the interpreter that it names. `ENOEXEC`; `EIO` for a file that ends early;
/// `ELIBBAD` for an interpreter that is none; and the errors of opening it.
pub(super) fn parse(
    file: &Arc<OpenFile>,
    head: &[u8],
    files: &mut dyn ExecFiles,
) -> Result<(Program, Option<Interpreter>)> {
    let header = header(head).ok_or(Errno::ENOEXEC)?;
    let movable = movable(&header).ok_or(Errno::ENOEXEC)?;
    let phdrs = program_headers(file, head, &header).ok_or(Errno::ENOEXEC)?;
    let interpreter = match phdrs.iter().find(|phdr| phdr.kind == PT_INTERP) {
        Some(phdr) => Some(interpreter(file, head, phdr, files)?),
        None => None,
    };
    Ok((program(&header, movable, &phdrs), interpreter))
}

/// Opens and reads the interpreter that `phdr` names.
fn interpreter(file: &OpenFile, head: &[u8], phdr: &Phdr, files: &mut dyn ExecFiles) -> Result<Interpreter> {
    if !(2..=PATH_MAX as u64).contains(&phdr.filesz) {
        return Err(Errno::ENOEXEC);
    }
    let mut path = vec![0u8; phdr.filesz as usize];
    read_all(file, head, phdr.offset, &mut path)?;
    if path.last() != Some(&0) {
        return Err(Errno::ENOEXEC);
    }
    let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
    let file = files.open_exec(&path[..end])?;
    let head = read_head(&file)?;
    if head.len() < size_of::<Header>() {
        return Err(Errno::EIO);
    }
    let header = header(&head).ok_or(Errno::ELIBBAD)?;
    let movable = movable(&header).ok_or(Errno::ELIBBAD)?;
    let phdrs = program_headers(&file, &head, &header).ok_or(Errno::ELIBBAD)?;
    let program = program(&header, movable, &phdrs);
    Ok((file, program))
}

/// The header, if this is an ELF file for this processor.
fn header(head: &[u8]) -> Option<Header> {
    let (header, _) = Header::read_from_prefix(head).ok()?;
    (header.ident.starts_with(b"\x7fELF") && header.machine == EM_X86_64).then_some(header)
}

/// Whether it may be put anywhere; `None` when it is not a program.
fn movable(header: &Header) -> Option<bool> {
    match header.kind {
        ET_EXEC => Some(false),
        ET_DYN => Some(true),
        _ => None,
    }
}

fn program_headers(file: &OpenFile, head: &[u8], header: &Header) -> Option<Vec<Phdr>> {
    let size = usize::from(header.phnum) * size_of::<Phdr>();
    if usize::from(header.phentsize) != size_of::<Phdr>() || size == 0 || size > MAX_PHDRS {
        return None;
    }
    let mut bytes = vec![0u8; size];
    read_all(file, head, header.phoff, &mut bytes).ok()?;
    Some(bytes.chunks_exact(size_of::<Phdr>()).filter_map(|chunk| Phdr::read_from_bytes(chunk).ok()).collect())
}

/// Fills `buf` from `offset`, from `head` when it is in there. `EIO` when the file ends before; `EINVAL` for a negative
/// offset.
fn read_all(file: &OpenFile, head: &[u8], offset: u64, buf: &mut [u8]) -> Result<()> {
    if offset > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EIO)?;
    if let Some(part) = head.get(offset as usize..end as usize) {
        buf.copy_from_slice(part);
        return Ok(());
    }
    if read_at(file, offset, buf)? == buf.len() { Ok(()) } else { Err(Errno::EIO) }
}

fn program(header: &Header, movable: bool, phdrs: &[Phdr]) -> Program {
    let holds = |phdr: &&Phdr| {
        phdr.kind == PT_LOAD && header.phoff.checked_sub(phdr.offset).is_some_and(|offset| offset < phdr.filesz)
    };
    let phdr = match phdrs.iter().find(holds) {
        Some(phdr) => phdr.vaddr.wrapping_add(header.phoff - phdr.offset),
        None => phdrs.iter().find(|phdr| phdr.kind == PT_PHDR).map_or(0, |phdr| phdr.vaddr),
    };
    let stack = phdrs.iter().rfind(|phdr| phdr.kind == PT_GNU_STACK);
    Program {
        movable,
        entry: header.entry,
        phnum: header.phnum,
        phdr,
        segments: phdrs.iter().filter(|phdr| phdr.kind == PT_LOAD).copied().collect(),
        exec_stack: stack.is_some_and(|stack| stack.flags & PF_X != 0),
    }
}
