//! The door to user memory: typed pointers, strings, slices and iovecs.
//!
//! Everything that crosses between the sentry and container memory goes through here, so that `EFAULT` and partial progress
//! are decided once. Container memory changes under our hands: what is read is read once, into the sentry's own memory.
//!
//! Each call is one host call (`process_vm_readv`, 0.3 us and more) on the ptrace platform, so callers batch: a structure
//! at once, all iovecs at once.

use std::marker::PhantomData;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::platform::AddressSpace;

/// The page size.
pub const PAGE: u64 = 4096;

/// `MAX_RW_COUNT`: the most that one read or write moves.
pub const MAX_RW: usize = 0x7fff_f000;

/// `IOV_MAX`.
pub const IOV_MAX: usize = 1024;

/// `PATH_MAX`, the NUL included.
pub const PATH_MAX: usize = 4096;

/// A pointer of the container's to a `T`. May be null or wild.
#[derive(Debug)]
pub struct UserPtr<T> {
    addr: u64,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for UserPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for UserPtr<T> {}

impl<T> UserPtr<T> {
    /// From a register.
    pub const fn new(addr: u64) -> UserPtr<T> {
        UserPtr { addr, of: PhantomData }
    }

    /// Its value.
    pub fn addr(self) -> u64 {
        self.addr
    }

    /// Whether it is NULL.
    pub fn is_null(self) -> bool {
        self.addr == 0
    }

    /// `None` when NULL.
    pub fn non_null(self) -> Option<UserPtr<T>> {
        (self.addr != 0).then_some(self)
    }

    /// The element `index` places on.
    pub fn index(self, index: usize) -> UserPtr<T> {
        UserPtr::new(self.addr.wrapping_add((index as u64).wrapping_mul(size_of::<T>() as u64)))
    }

    /// The same address as a pointer to something else.
    pub fn cast<U>(self) -> UserPtr<U> {
        UserPtr::new(self.addr)
    }
}

impl<T: FromBytes + IntoBytes> UserPtr<T> {
    /// Copies the value in. `EFAULT`.
    pub fn read(self, space: &dyn AddressSpace) -> Result<T> {
        let mut value = T::new_zeroed();
        read_exact(space, self.addr, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies `count` values in. `EFAULT`; the caller has bounded `count`.
    pub fn read_array(self, space: &dyn AddressSpace, count: usize) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(count);
        values.resize_with(count, T::new_zeroed);
        read_exact(space, self.addr, values.as_mut_slice().as_mut_bytes())?;
        Ok(values)
    }
}

impl<T: IntoBytes + Immutable> UserPtr<T> {
    /// Copies the value out. `EFAULT`.
    pub fn write(self, space: &dyn AddressSpace, value: &T) -> Result<()> {
        write_all(space, self.addr, value.as_bytes())
    }

    /// Copies the value out unless the pointer is NULL.
    pub fn write_if(self, space: &dyn AddressSpace, value: &T) -> Result<()> {
        if self.is_null() { Ok(()) } else { self.write(space, value) }
    }

    /// Copies several values out, one after the other.
    pub fn write_array(self, space: &dyn AddressSpace, values: &[T]) -> Result<()> {
        write_all(space, self.addr, values.as_bytes())
    }
}

/// A NUL-terminated string of the container's.
#[derive(Clone, Copy, Debug)]
pub struct UserStr {
    addr: u64,
}

impl UserStr {
    /// From a register.
    pub const fn new(addr: u64) -> UserStr {
        UserStr { addr }
    }

    /// Its address.
    pub fn addr(self) -> u64 {
        self.addr
    }

    /// Whether it is NULL.
    pub fn is_null(self) -> bool {
        self.addr == 0
    }

    /// Copies a path in, without its NUL. `EFAULT`; `ENAMETOOLONG` from `PATH_MAX` bytes on.
    pub fn read_path(self, space: &dyn AddressSpace) -> Result<Vec<u8>> {
        self.read(space, PATH_MAX)?.ok_or(Errno::ENAMETOOLONG)
    }

    /// Copies the string in, without its NUL: `None` when there is no NUL within `limit` bytes. `EFAULT` when memory ends
    /// before the NUL.
    pub fn read(self, space: &dyn AddressSpace, limit: usize) -> Result<Option<Vec<u8>>> {
        // Most strings are short, and lie within one page: one host call.
        let mut text = vec![0u8; limit.min(256)];
        let mut filled = 0;
        loop {
            let n = space.read(self.addr.wrapping_add(filled as u64), &mut text[filled..])?;
            if let Some(end) = text[filled..filled + n].iter().position(|&byte| byte == 0) {
                text.truncate(filled + end);
                return Ok(Some(text));
            }
            filled += n;
            if filled >= limit {
                return Ok(None);
            }
            if filled == text.len() {
                text.resize(limit.min(text.len() * 4), 0);
            }
            // After a short read the next one faults by itself, or finds that the page has come meanwhile.
        }
    }
}

/// A buffer of the container's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserSlice {
    addr: u64,
    len: usize,
}

impl UserSlice {
    /// From two registers.
    pub const fn new(addr: u64, len: usize) -> UserSlice {
        UserSlice { addr, len }
    }

    /// Its first byte.
    pub fn addr(self) -> u64 {
        self.addr
    }

    /// Its length in bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// At most its first `limit` bytes.
    pub fn limit(self, limit: usize) -> UserSlice {
        UserSlice { len: self.len.min(limit), ..self }
    }

    /// Copies all of it in; the caller has bounded its length. `EFAULT`.
    pub fn read(self, space: &dyn AddressSpace) -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; self.len];
        read_exact(space, self.addr, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies out as much of `bytes` as fits, and returns how much that is. `EFAULT` unless all of that could be stored.
    pub fn write_truncated(self, space: &dyn AddressSpace, bytes: &[u8]) -> Result<usize> {
        let n = bytes.len().min(self.len);
        write_all(space, self.addr, &bytes[..n])?;
        Ok(n)
    }
}

/// Fills all of `buf`, or `EFAULT`.
pub fn read_exact(space: &dyn AddressSpace, addr: u64, buf: &mut [u8]) -> Result<()> {
    if space.read(addr, buf)? == buf.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Stores all of `bytes`, or `EFAULT` with a part of them stored.
pub fn write_all(space: &dyn AddressSpace, addr: u64, bytes: &[u8]) -> Result<()> {
    if space.write(addr, bytes)? == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

/// One or several buffers of the container's, used up from the front: the [`Sink`] and [`Source`] of `read(2)`,
/// `writev(2)` and their kin.
pub struct UserBuffers<'a> {
    space: &'a dyn AddressSpace,
    /// What is left, no empty parts.
    parts: Parts,
    left: usize,
}

enum Parts {
    One(u64),
    /// The parts and the index of the first that is not used up.
    Many(Vec<(u64, usize)>, usize),
}

/// How much is moved through the sentry's memory at a time when a file must fill or drain a slice.
const BOUNCE: usize = 256 << 10;

impl<'a> UserBuffers<'a> {
    /// One buffer. The length is cut to [`MAX_RW`].
    pub fn one(space: &'a dyn AddressSpace, slice: UserSlice) -> UserBuffers<'a> {
        UserBuffers { space, parts: Parts::One(slice.addr), left: slice.len.min(MAX_RW) }
    }

    /// The `struct iovec`s at `addr`. `EINVAL`: more than [`IOV_MAX`], a length beyond `isize::MAX`; `EFAULT`. The total
    /// is cut to [`MAX_RW`].
    pub fn iovecs(space: &'a dyn AddressSpace, addr: u64, count: usize) -> Result<UserBuffers<'a>> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        let raw = UserPtr::<[u64; 2]>::new(addr).read_array(space, count)?;
        let mut parts = Vec::with_capacity(raw.len());
        let mut left = 0usize;
        for [base, len] in raw {
            let len = usize::try_from(len).ok().filter(|&len| len <= isize::MAX as usize).ok_or(Errno::EINVAL)?;
            let len = len.min(MAX_RW - left);
            if len > 0 {
                parts.push((base, len));
                left += len;
            }
        }
        Ok(match parts[..] {
            [(addr, _)] => UserBuffers { space, parts: Parts::One(addr), left },
            _ => UserBuffers { space, parts: Parts::Many(parts, 0), left },
        })
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.left
    }

    /// At most `limit` bytes are left from now on.
    pub fn truncate(&mut self, limit: usize) {
        let limit = limit.min(self.left);
        if let Parts::Many(parts, first) = &mut self.parts {
            let mut room = limit;
            for part in &mut parts[*first..] {
                part.1 = part.1.min(room);
                room -= part.1;
            }
            parts.retain(|part| part.1 > 0);
            *first = 0;
        }
        self.left = limit;
    }

    fn advance(&mut self, mut n: usize) {
        self.left -= n;
        match &mut self.parts {
            Parts::One(addr) => *addr = addr.wrapping_add(n as u64),
            Parts::Many(parts, first) => {
                while let Some(part) = parts.get_mut(*first).filter(|_| n > 0) {
                    let step = n.min(part.1);
                    part.0 = part.0.wrapping_add(step as u64);
                    part.1 -= step;
                    n -= step;
                    if part.1 == 0 {
                        *first += 1;
                    }
                }
            }
        }
    }

    /// The first parts that hold `len` bytes.
    fn head(parts: &[(u64, usize)], mut len: usize) -> Vec<(u64, usize)> {
        let mut head = Vec::new();
        for &(addr, part) in parts {
            if len == 0 {
                break;
            }
            head.push((addr, part.min(len)));
            len -= part.min(len);
        }
        head
    }

    fn write_some(&self, bytes: &[u8]) -> Result<usize> {
        match &self.parts {
            Parts::One(addr) => self.space.write(*addr, bytes),
            Parts::Many(parts, first) => self.space.write_vectored(&Self::head(&parts[*first..], bytes.len()), bytes),
        }
    }

    fn read_some(&self, buf: &mut [u8]) -> Result<usize> {
        match &self.parts {
            Parts::One(addr) => self.space.read(*addr, buf),
            Parts::Many(parts, first) => self.space.read_vectored(&Self::head(&parts[*first..], buf.len()), buf),
        }
    }
}

impl Sink for UserBuffers<'_> {
    fn room(&self) -> usize {
        self.left
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        let bytes = &bytes[..bytes.len().min(self.left)];
        if bytes.is_empty() {
            return Ok(0);
        }
        let n = self.write_some(bytes)?;
        if n == 0 {
            return Err(Errno::EFAULT);
        }
        self.advance(n);
        Ok(n)
    }

    fn put_slices(&mut self, slices: &[&[u8]]) -> Result<usize> {
        match slices {
            [only] => self.put(only),
            // A copy within the sentry costs less than a host call a slice.
            _ => {
                let total: usize = slices.iter().map(|slice| slice.len()).sum();
                let mut joined = Vec::with_capacity(total.min(self.left).min(BOUNCE));
                for slice in slices {
                    let room = (self.left.min(BOUNCE)).saturating_sub(joined.len());
                    joined.extend_from_slice(&slice[..slice.len().min(room)]);
                }
                self.put(&joined)
            }
        }
    }
}

impl Source for UserBuffers<'_> {
    fn left(&self) -> usize {
        self.left
    }

    fn peek(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = buf.len().min(self.left);
        if n == 0 {
            return Ok(0);
        }
        match self.read_some(&mut buf[..n])? {
            0 => Err(Errno::EFAULT),
            n => Ok(n),
        }
    }

    fn skip(&mut self, n: usize) {
        self.advance(n);
    }
}
