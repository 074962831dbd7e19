//! Terminal settings: `termios(3)`, in the layout of the kernel's structures.

use crate::errno::{Errno, Result};

/// `VDISABLE`: a control character with this value is switched off.
pub const DISABLED: u8 = 0;

/// The size of the kernel's `struct termios` (`TCGETS`).
pub const SIZE: usize = 36;
/// The size of the kernel's `struct termios2` (`TCGETS2`).
pub const SIZE2: usize = 44;

/// How many control characters the kernel's structures hold.
const NCCS: usize = 19;

/// The settings of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termios {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// `c_line`.
    pub line: u8,
    /// `c_cc`, indexed by `libc::VINTR` and so on.
    pub chars: [u8; NCCS],
    /// `c_ispeed` of `struct termios2`.
    pub input_speed: u32,
    /// `c_ospeed` of `struct termios2`.
    pub output_speed: u32,
}

impl Default for Termios {
    /// Those of a new pseudoterminal.
    fn default() -> Self {
        let mut chars = [DISABLED; NCCS];
        for (index, value) in [
            (libc::VINTR, 0o3),
            (libc::VQUIT, 0o34),
            (libc::VERASE, 0o177),
            (libc::VKILL, 0o25),
            (libc::VEOF, 0o4),
            (libc::VMIN, 1),
            (libc::VSTART, 0o21),
            (libc::VSTOP, 0o23),
            (libc::VSUSP, 0o32),
            (libc::VREPRINT, 0o22),
            (libc::VDISCARD, 0o17),
            (libc::VWERASE, 0o27),
            (libc::VLNEXT, 0o26),
        ] {
            chars[index] = value;
        }
        Termios {
            input: libc::ICRNL | libc::IXON,
            output: libc::OPOST | libc::ONLCR,
            control: libc::B38400 | libc::CS8 | libc::CREAD,
            local: libc::ISIG
                | libc::ICANON
                | libc::ECHO
                | libc::ECHOE
                | libc::ECHOK
                | libc::ECHOCTL
                | libc::ECHOKE
                | libc::IEXTEN,
            line: 0,
            chars,
            input_speed: 38_400,
            output_speed: 38_400,
        }
    }
}

impl Termios {
    /// Whether an input flag is set.
    pub fn i(&self, flag: u32) -> bool {
        self.input & flag != 0
    }

    /// Whether an output flag is set.
    pub fn o(&self, flag: u32) -> bool {
        self.output & flag != 0
    }

    /// Whether a local flag is set.
    pub fn l(&self, flag: u32) -> bool {
        self.local & flag != 0
    }

    /// Whether `byte` is the control character at `index`, and that is not switched off.
    pub fn is(&self, byte: u8, index: usize) -> bool {
        byte != DISABLED && self.chars[index] == byte
    }

    /// Whether lines are edited.
    pub fn canonical(&self) -> bool {
        self.l(libc::ICANON)
    }

    /// Whether `^S` and `^Q` stop and start output: what packet mode tells of.
    pub fn usual_flow_control(&self) -> bool {
        self.i(libc::IXON) && self.chars[libc::VSTOP] == 0o23 && self.chars[libc::VSTART] == 0o21
    }

    /// As `struct termios` (the first 36 bytes) followed by the speeds of `struct termios2`.
    pub fn encode(&self) -> [u8; SIZE2] {
        let mut out = [0; SIZE2];
        for (i, word) in [self.input, self.output, self.control, self.local].into_iter().enumerate() {
            out[i * 4..i * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        }
        out[16] = self.line;
        out[17..17 + NCCS].copy_from_slice(&self.chars);
        out[36..40].copy_from_slice(&self.input_speed.to_ne_bytes());
        out[40..44].copy_from_slice(&self.output_speed.to_ne_bytes());
        out
    }

    /// What `bytes` (a `struct termios`, or a `struct termios2`) ask for. A pseudoterminal has 8 bits and no parity,
    /// whatever is asked for. `EINVAL` for another length.
    pub fn decode(&self, bytes: &[u8]) -> Result<Termios> {
        if bytes.len() != SIZE && bytes.len() != SIZE2 {
            return Err(Errno::EINVAL);
        }
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut new = *self;
        (new.input, new.output, new.local, new.line) = (word(0), word(4), word(12), bytes[16]);
        new.control = word(8) & !(libc::CSIZE | libc::PARENB) | libc::CS8 | libc::CREAD;
        new.chars.copy_from_slice(&bytes[17..17 + NCCS]);
        if bytes.len() == SIZE2 {
            (new.input_speed, new.output_speed) = (word(36), word(40));
        } else if let Some(speed) = speed(new.control) {
            (new.input_speed, new.output_speed) = (speed, speed);
        }
        Ok(new)
    }
}

/// Bits a second of a `CBAUD` code; `None` for `BOTHER`, which leaves the speeds as they are.
fn speed(control: u32) -> Option<u32> {
    const LOW: [u32; 16] = [0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19_200, 38_400];
    const HIGH: [u32; 15] = [
        57_600, 115_200, 230_400, 460_800, 500_000, 576_000, 921_600, 1_000_000, 1_152_000, 1_500_000, 2_000_000,
        2_500_000, 3_000_000, 3_500_000, 4_000_000,
    ];
    let code = (control & libc::CBAUD) as usize;
    if code & libc::CBAUDEX as usize == 0 {
        LOW.get(code).copied()
    } else {
        HIGH.get((code & 0xf).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_encoding() {
        let mut termios = Termios::default();
        termios.chars[libc::VMIN] = 9;
        termios.control = termios.control & !libc::CBAUD | libc::B115200;
        let bytes = termios.encode();
        let back = Termios::default().decode(&bytes[..SIZE]).expect("the right size");
        assert_eq!((back.chars, back.control, back.output_speed), (termios.chars, termios.control, 115_200));
        assert_eq!(Termios::default().decode(&bytes), Ok(termios));
        assert_eq!(Termios::default().decode(&bytes[..35]), Err(Errno::EINVAL));
    }

    #[test]
    fn a_pseudoterminal_has_eight_bits() {
        let mut bytes = Termios::default().encode();
        bytes[8..12].copy_from_slice(&(libc::CS5 | libc::PARENB).to_ne_bytes());
        let got = Termios::default().decode(&bytes).expect("the right size");
        assert_eq!(got.control, libc::CS8 | libc::CREAD);
    }
}
