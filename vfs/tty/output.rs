//! The output side of the line discipline: post-processing (`OPOST`), echo, and the column that both depend on.

use std::collections::VecDeque;

use super::termios::Termios;

/// How much is held for the master before a writer must wait.
pub const OUTPUT_MAX: usize = 16 << 10;

/// Echo beyond this is lost: it cannot make its writer, the master, wait.
const ECHO_MAX: usize = OUTPUT_MAX + (16 << 10);

/// Bytes on their way to the master.
#[derive(Default)]
pub struct Output {
    bytes: VecDeque<u8>,
    /// Echo made while output is stopped; follows once it goes on. (The slave writes nothing meanwhile.)
    held: VecDeque<u8>,
    stopped: bool,
    column: usize,
    /// The column where the line that is being typed begins.
    line_column: usize,
}

impl Output {
    /// Bytes held.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether none are held.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes a writer may give: post-processing may make more of them.
    pub fn room(&self) -> usize {
        OUTPUT_MAX.saturating_sub(self.bytes.len())
    }

    /// `TCOFLUSH`.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.held.clear();
    }

    /// Flow control: while it is stopped echo is held back.
    pub fn set_stopped(&mut self, stopped: bool) {
        self.stopped = stopped;
        if !stopped {
            self.bytes.append(&mut self.held);
        }
    }

    fn target(&mut self) -> &mut VecDeque<u8> {
        if self.stopped { &mut self.held } else { &mut self.bytes }
    }

    fn put(&mut self, byte: u8) {
        self.target().push_back(byte);
    }

    /// Shows up to `limit` of the first bytes to `f` and takes away as many as it says.
    pub fn read<E>(&mut self, limit: usize, f: &mut dyn FnMut(&[u8]) -> Result<usize, E>) -> Result<usize, E> {
        let bytes = self.bytes.make_contiguous();
        let n = f(&bytes[..bytes.len().min(limit)])?;
        self.bytes.drain(..n);
        Ok(n)
    }

    /// What the slave writes.
    pub fn write(&mut self, termios: &Termios, bytes: &[u8]) {
        if termios.o(libc::OPOST) {
            bytes.iter().for_each(|&byte| self.post_one(termios, byte));
        } else {
            self.target().extend(bytes);
        }
    }

    /// Echoes bytes, post-processed but with control characters as they are.
    pub fn post(&mut self, termios: &Termios, bytes: &[u8]) {
        if self.bytes.len() + self.held.len() < ECHO_MAX {
            self.write(termios, bytes);
        }
    }

    /// Echoes one byte, a control character as `^X` (`ECHOCTL`).
    pub fn echo(&mut self, termios: &Termios, byte: u8) {
        if termios.l(libc::ECHOCTL) && byte.is_ascii_control() && byte != b'\t' {
            self.post(termios, &[b'^', byte ^ 0o100]);
        } else {
            self.post(termios, &[byte]);
        }
    }

    /// Notes that the line that is being typed begins here.
    pub fn begin_line(&mut self) {
        self.line_column = self.column;
    }

    /// The column behind `typed`, echoed from the beginning of the line on.
    pub fn column_after(&self, termios: &Termios, typed: &[u8]) -> usize {
        typed.iter().fold(self.line_column, |column, &byte| match byte {
            b'\t' => column + 8 - column % 8,
            _ if byte.is_ascii_control() => column + if termios.l(libc::ECHOCTL) { 2 } else { 0 },
            _ if termios.i(libc::IUTF8) && byte & 0xc0 == 0x80 => column,
            _ => column + 1,
        })
    }

    fn post_one(&mut self, termios: &Termios, byte: u8) {
        match byte {
            b'\n' => {
                if termios.o(libc::ONLRET) {
                    self.column = 0;
                }
                if termios.o(libc::ONLCR) {
                    self.column = 0;
                    self.put(b'\r');
                }
                self.line_column = self.column;
                self.put(b'\n');
            }
            b'\r' if termios.o(libc::ONOCR) && self.column == 0 => {}
            b'\r' if termios.o(libc::OCRNL) => {
                if termios.o(libc::ONLRET) {
                    (self.column, self.line_column) = (0, 0);
                }
                self.put(b'\n');
            }
            b'\r' => {
                (self.column, self.line_column) = (0, 0);
                self.put(b'\r');
            }
            b'\t' => {
                let spaces = 8 - self.column % 8;
                self.column += spaces;
                if termios.output & libc::TABDLY == libc::XTABS {
                    self.target().extend(std::iter::repeat_n(b' ', spaces));
                } else {
                    self.put(b'\t');
                }
            }
            b'\x08' => {
                self.column = self.column.saturating_sub(1);
                self.put(byte);
            }
            _ => {
                let continues = termios.i(libc::IUTF8) && byte & 0xc0 == 0x80;
                if !byte.is_ascii_control() && !continues {
                    self.column += 1;
                }
                let upper = termios.o(libc::OLCUC);
                self.put(if upper { byte.to_ascii_uppercase() } else { byte });
            }
        }
    }
}
