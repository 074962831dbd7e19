//! `ioctl_tty(2)`.

use std::sync::Arc;

use super::termios::{SIZE, SIZE2};
use super::{Effects, Packet, Tty, slave_rdev};
use crate::errno::{Errno, Result};
use crate::vfs::file::IoctlMemory;

// What the libc crate lacks or has only for some targets: `asm-generic/ioctls.h`.
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TCSETSW2: u64 = 0x402c_542c;
const TCSETSF2: u64 = 0x402c_542d;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCSIG: u64 = 0x4004_5436;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;

/// The line discipline's number.
const N_TTY: i32 = 0;

/// Of the master. Settings are the slave's.
pub(super) fn master(tty: &Arc<Tty>, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
    match u64::from(cmd) {
        TIOCGPTN => put_int(mem, arg, tty.index as i32),
        TIOCSPTLCK => {
            tty.state.lock().locked = get_int(mem, arg)? != 0;
            Ok(0)
        }
        TIOCGPTLCK => {
            let locked = tty.state.lock().locked;
            put_int(mem, arg, locked.into())
        }
        libc::TIOCPKT => {
            let on = get_int(mem, arg)? != 0;
            let mut state = tty.state.lock();
            if on != state.packet {
                (state.packet, state.packet_events) = (on, Packet::empty());
            }
            Ok(0)
        }
        TIOCGPKT => {
            let packet = tty.state.lock().packet;
            put_int(mem, arg, packet.into())
        }
        TIOCSIG => {
            let signal = i32::try_from(arg).map_err(|_| Errno::EINVAL)?;
            if ![libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP].contains(&signal) {
                return Err(Errno::EINVAL);
            }
            tty.signal_foreground(signal);
            Ok(0)
        }
        libc::FIONREAD => {
            let len = tty.state.lock().disc.output.len();
            put_int(mem, arg, len as i32)
        }
        libc::TCFLSH => flush(tty, arg, true),
        // The node of the master itself is 5:2.
        TIOCGDEV => put_int(mem, arg, libc::makedev(5, 2) as i32),
        _ => common(tty, mem, cmd, arg, true),
    }
}

/// Of the slave.
pub(super) fn slave(tty: &Arc<Tty>, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
    match u64::from(cmd) {
        libc::FIONREAD => {
            let len = tty.state.lock().disc.readable_bytes();
            put_int(mem, arg, len as i32)
        }
        libc::TCFLSH => flush(tty, arg, false),
        TIOCGDEV => put_int(mem, arg, slave_rdev(tty.index) as i32),
        libc::TIOCSCTTY => tty.set_controlling(arg == 1).map(|()| 0),
        libc::TIOCNOTTY => tty.give_up().map(|()| 0),
        _ => common(tty, mem, cmd, arg, false),
    }
}

fn common(tty: &Arc<Tty>, mem: &dyn IoctlMemory, cmd: u32, arg: u64, master: bool) -> Result<u64> {
    match u64::from(cmd) {
        libc::TCGETS => mem.write(arg, &tty.state.lock().disc.termios().encode()[..SIZE]).map(|()| 0),
        TCGETS2 => mem.write(arg, &tty.state.lock().disc.termios().encode()).map(|()| 0),
        libc::TCSETS | libc::TCSETSW => set_termios(tty, mem, arg, SIZE, false, master),
        libc::TCSETSF => set_termios(tty, mem, arg, SIZE, true, master),
        TCSETS2 | TCSETSW2 => set_termios(tty, mem, arg, SIZE2, false, master),
        TCSETSF2 => set_termios(tty, mem, arg, SIZE2, true, master),
        libc::TIOCGWINSZ => {
            let window = tty.state.lock().window;
            mem.write(arg, &window.map(u16::to_ne_bytes).concat()).map(|()| 0)
        }
        libc::TIOCSWINSZ => set_window(tty, mem, arg),
        libc::TIOCGPGRP => put_int(mem, arg, tty.foreground_group(master)?),
        libc::TIOCSPGRP => tty.set_foreground_group(get_int(mem, arg)?).map(|()| 0),
        libc::TIOCGSID => put_int(mem, arg, tty.session_id(master)?),
        libc::TIOCOUTQ => put_int(mem, arg, 0), // what is written has arrived at the master
        libc::TCSBRK | libc::TCSBRKP | libc::TIOCSBRK | libc::TIOCCBRK => {
            // Everything is drained as soon as it is written, and a pseudoterminal has no line to break.
            may_change(tty, master).map(|()| 0)
        }
        libc::TCXONC => flow(tty, arg, master),
        libc::TIOCEXCL => {
            tty.state.lock().exclusive = true;
            Ok(0)
        }
        libc::TIOCNXCL => {
            tty.state.lock().exclusive = false;
            Ok(0)
        }
        TIOCGEXCL => {
            let exclusive = tty.state.lock().exclusive;
            put_int(mem, arg, exclusive.into())
        }
        libc::TIOCGETD => put_int(mem, arg, N_TTY),
        libc::TIOCSETD => match get_int(mem, arg)? {
            N_TTY => Ok(0),
            _ => Err(Errno::EINVAL),
        },
        // Typing for others: switched off, as Linux is by default since 6.2.
        libc::TIOCSTI => Err(Errno::EIO),
        _ => Err(Errno::ENOTTY),
    }
}

/// Whether the caller may change the terminal: a background process of its session may not, but who holds the master may.
fn may_change(tty: &Tty, master: bool) -> Result<()> {
    if master { Ok(()) } else { tty.check_foreground(libc::SIGTTOU) }
}

fn set_termios(tty: &Tty, mem: &dyn IoctlMemory, arg: u64, size: usize, flush: bool, master: bool) -> Result<u64> {
    may_change(tty, master)?;
    let mut bytes = [0; SIZE2];
    mem.read(arg, &mut bytes[..size])?;
    let mut state = tty.state.lock();
    let new = state.disc.termios().decode(&bytes[..size])?;
    if flush {
        state.disc.flush_input();
    }
    let fx = state.disc.set_termios(new);
    drop(state);
    tty.carry_out(fx);
    Ok(0)
}

fn set_window(tty: &Arc<Tty>, mem: &dyn IoctlMemory, arg: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    mem.read(arg, &mut bytes)?;
    let word = |i: usize| u16::from_ne_bytes([bytes[i * 2], bytes[i * 2 + 1]]);
    let new = [word(0), word(1), word(2), word(3)];
    let old = std::mem::replace(&mut tty.state.lock().window, new);
    if old != new {
        tty.signal_foreground(libc::SIGWINCH);
    }
    Ok(0)
}

/// `TCFLSH`: from the master's side input and output are the other way round.
fn flush(tty: &Arc<Tty>, arg: u64, master: bool) -> Result<u64> {
    may_change(tty, master)?;
    let (mut input, mut output) = match i32::try_from(arg) {
        Ok(libc::TCIFLUSH) => (true, false),
        Ok(libc::TCOFLUSH) => (false, true),
        Ok(libc::TCIOFLUSH) => (true, true),
        _ => return Err(Errno::EINVAL),
    };
    if master {
        (input, output) = (output, input);
    }
    let mut state = tty.state.lock();
    let mut packet = Packet::empty();
    if input {
        state.disc.flush_input();
        packet |= Packet::FLUSHREAD;
    }
    if output {
        state.disc.output.clear();
        packet |= Packet::FLUSHWRITE;
    }
    drop(state);
    tty.carry_out(Effects { packet, output, ..Effects::default() });
    tty.master_queue.wake(crate::wait::Events::WRITE);
    Ok(0)
}

/// `TCXONC`.
fn flow(tty: &Tty, arg: u64, master: bool) -> Result<u64> {
    may_change(tty, master)?;
    match i32::try_from(arg) {
        Ok(libc::TCOOFF) => {
            let fx = tty.state.lock().disc.stop_or_start(true);
            tty.carry_out(fx);
        }
        Ok(libc::TCOON) => {
            let fx = tty.state.lock().disc.stop_or_start(false);
            tty.carry_out(fx);
        }
        Ok(how @ (libc::TCIOFF | libc::TCION)) => {
            // The terminal is to stop or go on sending: it is sent the character that says so.
            let index = if how == libc::TCIOFF { libc::VSTOP } else { libc::VSTART };
            let mut state = tty.state.lock();
            let mut termios = *state.disc.termios();
            let byte = termios.chars[index];
            if byte != super::termios::DISABLED {
                termios.output &= !libc::OPOST;
                state.disc.output.write(&termios, &[byte]);
            }
            drop(state);
            tty.carry_out(Effects { output: true, ..Effects::default() });
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn get_int(mem: &dyn IoctlMemory, arg: u64) -> Result<i32> {
    let mut bytes = [0; 4];
    mem.read(arg, &mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

fn put_int(mem: &dyn IoctlMemory, arg: u64, value: i32) -> Result<u64> {
    mem.write(arg, &value.to_ne_bytes()).map(|()| 0)
}
