//! The line discipline `N_TTY`: `termios(3)`. Pure logic: bytes in, bytes out, and what else is to happen as a value.
//!
//! ```text
//! master writes ──receive──> signals, flow control, editing ──> lines, or raw bytes ──read──> slave
//!                                  │ echo
//! master reads <──output queue <───┴──────────── post-processing <──write── slave
//! ```

use std::collections::VecDeque;

use bitflags::bitflags;

use super::output::Output;
use super::termios::Termios;

/// What the input side holds at most: `N_TTY_BUF_SIZE`, one place being kept for the end of a line.
const INPUT_MAX: usize = 4095;

bitflags! {
    /// What packet mode (`TIOCPKT`) tells the master in the first byte of a read; none is data.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Packet: u8 {
        /// Input was flushed.
        const FLUSHREAD = 1;
        /// Output was flushed.
        const FLUSHWRITE = 2;
        /// Output was stopped.
        const STOP = 4;
        /// Output was started.
        const START = 8;
        /// `^S` and `^Q` no longer control the flow.
        const NOSTOP = 16;
        /// They do.
        const DOSTOP = 32;
    }
}

impl Packet {
    /// With later events added, which undo their opposites.
    pub fn then(self, later: Packet) -> Packet {
        const OPPOSITES: [(Packet, Packet); 2] = [(Packet::STOP, Packet::START), (Packet::NOSTOP, Packet::DOSTOP)];
        let mut kept = self;
        for (one, other) in OPPOSITES {
            if later.intersects(one | other) {
                kept.remove(one | other);
            }
        }
        kept | later
    }
}

/// What is to happen besides the movement of bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Signals for the foreground process group.
    pub signals: Vec<i32>,
    /// For packet mode.
    pub packet: Packet,
    /// Something can be read that could not before.
    pub readable: bool,
    /// Output was made, or is going on.
    pub output: bool,
}

/// A line that is complete.
struct Line {
    bytes: Vec<u8>,
    /// Bytes before it were read.
    start: usize,
}

/// Both directions of one terminal.
#[derive(Default)]
pub struct LineDiscipline {
    termios: Termios,
    lines: VecDeque<Line>,
    /// The line being typed.
    edit: Vec<u8>,
    /// Input while lines are not edited.
    raw: VecDeque<u8>,
    /// Bytes in `lines`.
    line_bytes: usize,
    /// The next byte is taken as it is.
    literal: bool,
    /// In a run of `ECHOPRT` erasures.
    erasing: bool,
    /// Output to the master.
    pub output: Output,
    /// `^S` or `TCOOFF`: the slave's output stands still.
    stopped: bool,
    /// By `TCOOFF`: only `TCOON` starts it again.
    stopped_by_call: bool,
}

impl LineDiscipline {
    /// The settings.
    pub fn termios(&self) -> &Termios {
        &self.termios
    }

    /// Replaces the settings. Input that is there already is kept: as bytes when lines are no longer edited, as one line
    /// when they are from now on.
    pub fn set_termios(&mut self, new: Termios) -> Effects {
        let old = std::mem::replace(&mut self.termios, new);
        let mut fx = Effects::default();
        if old.canonical() && !new.canonical() {
            for line in self.lines.drain(..) {
                self.raw.extend(&line.bytes[line.start..]);
            }
            self.line_bytes = 0;
            self.raw.extend(self.edit.drain(..));
            fx.readable = !self.raw.is_empty();
        } else if !old.canonical() && new.canonical() && !self.raw.is_empty() {
            let bytes: Vec<u8> = self.raw.drain(..).collect();
            self.push_line(bytes);
            fx.readable = true;
        }
        self.literal &= new.canonical();
        if old.usual_flow_control() != new.usual_flow_control() {
            fx.packet = if new.usual_flow_control() { Packet::DOSTOP } else { Packet::NOSTOP };
        }
        if old.i(libc::IXON) && !new.i(libc::IXON) && !self.stopped_by_call {
            self.start(&mut fx);
        }
        fx
    }

    /// Whether the slave's output stands still.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// `TCOOFF` and `TCOON`.
    pub fn stop_or_start(&mut self, stop: bool) -> Effects {
        let mut fx = Effects::default();
        self.stopped_by_call = stop;
        if stop {
            self.stop(&mut fx);
        } else {
            self.start(&mut fx);
        }
        fx
    }

    fn stop(&mut self, fx: &mut Effects) {
        if !std::mem::replace(&mut self.stopped, true) {
            self.output.set_stopped(true);
            fx.packet = fx.packet.then(Packet::STOP);
        }
    }

    fn start(&mut self, fx: &mut Effects) {
        if std::mem::replace(&mut self.stopped, false) {
            self.output.set_stopped(false);
            fx.packet = fx.packet.then(Packet::START);
            fx.output = true;
        }
    }

    /// Bytes held for the slave.
    fn held(&self) -> usize {
        self.line_bytes + self.edit.len() + self.raw.len()
    }

    /// How many bytes the master may write now. Without a complete line there is always room while lines are edited, lest
    /// the end of the line could not come: what is too much of the line is lost.
    pub fn input_room(&self) -> usize {
        let room = INPUT_MAX.saturating_sub(self.held());
        if room == 0 && self.termios.canonical() && self.lines.is_empty() { 1 } else { room }
    }

    /// How many bytes a read would give: `FIONREAD`.
    pub fn readable_bytes(&self) -> usize {
        if self.termios.canonical() { self.line_bytes } else { self.raw.len() }
    }

    /// Whether there is something to read; a line may be empty (end of file). Without lines, `least` bytes.
    pub fn is_readable(&self, least: usize) -> bool {
        if self.termios.canonical() { !self.lines.is_empty() } else { self.raw.len() >= least.max(1) }
    }

    /// Shows what a read of at most `room` bytes gives, and takes away as much as `f` says it took: at most one line, or
    /// all the raw bytes. A line that ends in end-of-file is gone once its bytes are. `None` when there is nothing.
    pub fn read<E>(&mut self, room: usize, f: &mut dyn FnMut(&[u8]) -> Result<usize, E>) -> Option<Result<usize, E>> {
        if !self.termios.canonical() {
            if self.raw.is_empty() {
                return None;
            }
            let bytes = self.raw.make_contiguous();
            let n = f(&bytes[..bytes.len().min(room)]);
            self.raw.drain(..*n.as_ref().unwrap_or(&0));
            return Some(n);
        }
        let line = self.lines.front_mut()?;
        let rest = &line.bytes[line.start..];
        let n = if rest.is_empty() { Ok(0) } else { f(&rest[..rest.len().min(room)]) };
        if let Ok(n) = n {
            line.start += n;
            self.line_bytes -= n;
            if line.start == line.bytes.len() {
                self.lines.pop_front();
            }
        }
        Some(n)
    }

    /// `TCIFLUSH`: forgets the input.
    pub fn flush_input(&mut self) {
        self.lines.clear();
        self.raw.clear();
        self.edit.clear();
        self.line_bytes = 0;
        (self.literal, self.erasing) = (false, false);
    }

    fn push_line(&mut self, bytes: Vec<u8>) {
        self.line_bytes += bytes.len();
        self.lines.push_back(Line { bytes, start: 0 });
    }

    /// Takes bytes that the master wrote.
    pub fn receive(&mut self, bytes: &[u8], fx: &mut Effects) {
        for &byte in bytes {
            self.receive_one(byte, fx);
        }
        fx.output |= !self.output.is_empty();
    }

    fn receive_one(&mut self, mut byte: u8, fx: &mut Effects) {
        let termios = self.termios;
        if termios.i(libc::ISTRIP) {
            byte &= 0x7f;
        }
        if termios.i(libc::IUCLC) && termios.l(libc::IEXTEN) {
            byte = byte.to_ascii_lowercase();
        }
        if std::mem::take(&mut self.literal) {
            return self.store_echoed(byte, fx);
        }
        if self.flow_control(byte, fx) || self.signal(byte, fx) {
            return;
        }
        if self.stopped && !self.stopped_by_call && termios.i(libc::IXON) && termios.i(libc::IXANY) {
            self.start(fx);
        }
        match byte {
            b'\r' if termios.i(libc::IGNCR) => return,
            b'\r' if termios.i(libc::ICRNL) => byte = b'\n',
            b'\n' if termios.i(libc::INLCR) => byte = b'\r',
            _ => {}
        }
        if termios.canonical() && self.edit_with(byte, fx) {
            return;
        }
        self.store_echoed(byte, fx);
    }

    /// `IXON`: whether `byte` was a start or stop character.
    fn flow_control(&mut self, byte: u8, fx: &mut Effects) -> bool {
        let termios = &self.termios;
        if !termios.i(libc::IXON) {
            return false;
        }
        // One character for both starts what is stopped and stops what is not.
        let (start, stop) = (termios.is(byte, libc::VSTART), termios.is(byte, libc::VSTOP));
        if start && (!stop || self.stopped) {
            if !self.stopped_by_call {
                self.start(fx);
            }
        } else if stop {
            self.stop(fx);
        }
        start || stop
    }

    /// `ISIG`: whether `byte` made a signal.
    fn signal(&mut self, byte: u8, fx: &mut Effects) -> bool {
        let termios = self.termios;
        let signal = match byte {
            _ if !termios.l(libc::ISIG) => return false,
            _ if termios.is(byte, libc::VINTR) => libc::SIGINT,
            _ if termios.is(byte, libc::VQUIT) => libc::SIGQUIT,
            _ if termios.is(byte, libc::VSUSP) => libc::SIGTSTP,
            _ => return false,
        };
        if !termios.l(libc::NOFLSH) {
            self.flush_input();
            self.output.clear();
            fx.packet |= Packet::FLUSHREAD | Packet::FLUSHWRITE;
            fx.output = true; // there is room now
        }
        fx.signals.push(signal);
        if termios.i(libc::IXON) && !self.stopped_by_call {
            self.start(fx);
        }
        if termios.l(libc::ECHO) {
            self.output.echo(&termios, byte);
        }
        true
    }

    /// Line editing: whether `byte` was a command or an end of line.
    fn edit_with(&mut self, byte: u8, fx: &mut Effects) -> bool {
        let termios = self.termios;
        let (echo, extended) = (termios.l(libc::ECHO), termios.l(libc::IEXTEN));
        if termios.is(byte, libc::VERASE) {
            self.erase(Erase::Char);
        } else if termios.is(byte, libc::VKILL) {
            self.erase(Erase::Line);
        } else if extended && termios.is(byte, libc::VWERASE) {
            self.erase(Erase::Word);
        } else if extended && termios.is(byte, libc::VLNEXT) {
            self.literal = true;
            if echo {
                self.finish_erasing();
                if termios.l(libc::ECHOCTL) {
                    self.output.post(&termios, b"^\x08");
                }
            }
        } else if extended && echo && termios.is(byte, libc::VREPRINT) {
            self.reprint(byte);
        } else if byte == b'\n' {
            if echo || termios.l(libc::ECHONL) {
                self.output.post(&termios, b"\n");
            }
            self.end_line(Some(byte), fx);
        } else if termios.is(byte, libc::VEOF) {
            self.end_line(None, fx);
        } else if termios.is(byte, libc::VEOL) || (extended && termios.is(byte, libc::VEOL2)) {
            if echo {
                self.output.echo(&termios, byte);
            }
            self.end_line(Some(byte), fx);
        } else {
            return false;
        }
        true
    }

    fn end_line(&mut self, last: Option<u8>, fx: &mut Effects) {
        let mut bytes = std::mem::take(&mut self.edit);
        bytes.extend(last);
        self.push_line(bytes);
        fx.readable = true;
    }

    /// Stores an ordinary byte, and echoes it.
    fn store_echoed(&mut self, byte: u8, fx: &mut Effects) {
        let termios = self.termios;
        if self.held() >= INPUT_MAX {
            if termios.i(libc::IMAXBEL) {
                self.output.post(&termios, b"\x07");
            }
            return;
        }
        if termios.l(libc::ECHO) {
            self.finish_erasing();
            if self.edit.is_empty() {
                self.output.begin_line();
            }
            if byte == b'\n' { self.output.post(&termios, b"\n") } else { self.output.echo(&termios, byte) }
        }
        // A real 0xff is doubled where 0xff marks errors.
        let count = if termios.i(libc::PARMRK) && byte == 0xff { 2 } else { 1 };
        for _ in 0..count {
            if termios.canonical() { self.edit.push(byte) } else { self.raw.push_back(byte) }
        }
        fx.readable |= !termios.canonical();
    }

    fn finish_erasing(&mut self) {
        if std::mem::take(&mut self.erasing) {
            self.output.post(&self.termios, b"/");
        }
    }

    fn reprint(&mut self, byte: u8) {
        let termios = self.termios;
        self.finish_erasing();
        self.output.echo(&termios, byte);
        self.output.post(&termios, b"\n");
        self.output.begin_line();
        for i in 0..self.edit.len() {
            self.output.echo(&termios, self.edit[i]);
        }
    }

    /// `VERASE`, `VWERASE` and `VKILL`.
    fn erase(&mut self, what: Erase) {
        let termios = self.termios;
        if self.edit.is_empty() {
            return;
        }
        let echo = termios.l(libc::ECHO);
        let visible = [libc::ECHOK, libc::ECHOKE, libc::ECHOE].iter().all(|&flag| termios.l(flag));
        if what == Erase::Line && !(echo && visible) {
            self.edit.clear();
            if echo {
                self.finish_erasing();
                self.output.echo(&termios, termios.chars[libc::VKILL]);
                if termios.l(libc::ECHOK) {
                    self.output.post(&termios, b"\n");
                }
            }
            return;
        }
        let mut in_word = false;
        while let Some(start) = self.last_char() {
            let first = self.edit[start];
            if what == Erase::Word {
                if first.is_ascii_alphanumeric() || first == b'_' {
                    in_word = true;
                } else if in_word {
                    break;
                }
            }
            let erased = self.edit.split_off(start);
            if echo {
                self.echo_erasure(what, &erased);
            }
            if what == Erase::Char {
                break;
            }
        }
        if self.edit.is_empty() && echo {
            self.finish_erasing();
        }
    }

    /// Where the last character of the line begins: of several bytes in UTF-8 (`IUTF8`). `None` without a whole one.
    fn last_char(&self) -> Option<usize> {
        let continues = |byte: u8| self.termios.i(libc::IUTF8) && byte & 0xc0 == 0x80;
        self.edit.iter().rposition(|&byte| !continues(byte))
    }

    fn echo_erasure(&mut self, what: Erase, erased: &[u8]) {
        let termios = self.termios;
        let first = erased[0];
        if termios.l(libc::ECHOPRT) {
            if !std::mem::replace(&mut self.erasing, true) {
                self.output.post(&termios, b"\\");
            }
            erased.iter().for_each(|&byte| self.output.echo(&termios, byte));
        } else if what == Erase::Char && !termios.l(libc::ECHOE) {
            self.output.echo(&termios, termios.chars[libc::VERASE]);
        } else if first == b'\t' {
            let before = self.output.column_after(&termios, &self.edit);
            for _ in 0..8 - before % 8 {
                self.output.post(&termios, b"\x08");
            }
        } else {
            let width = match (first.is_ascii_control(), termios.l(libc::ECHOCTL)) {
                (true, true) => 2,
                (true, false) => 0,
                (false, _) => 1,
            };
            (0..width).for_each(|_| self.output.post(&termios, b"\x08 \x08"));
        }
    }
}

/// What an editing character erases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Erase {
    Char,
    Word,
    Line,
}
