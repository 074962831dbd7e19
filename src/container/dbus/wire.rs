//! Messages as bytes: <https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol>.
//!
//! ```text
//! l  kind  flags  1 │ length of the body │ serial │ fields a(yv) ─ padding to 8 │ body
//! ```
//!
//! Every value is aligned to its size, counted from the start of the message.

use super::value::{MAX_DEPTH, Value, split_type};

/// The bytes before the fields' own: up to the length of these.
pub const PREFIX: usize = 16;

/// The longest message that is taken. (The specification allows 128 MiB; what is asked for here is short.)
pub const MAX_MESSAGE: usize = 4 << 20;

/// What is wrong with a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged D-Bus message: {0}")]
pub struct Damaged(&'static str);

type Result<T> = std::result::Result<T, Damaged>;

/// What a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Asks for something.
    #[default]
    Call = 1,
    /// What was asked for.
    Return = 2,
    /// Why it was not done.
    Error = 3,
    /// Something has happened.
    Signal = 4,
}

/// A message. Fields that it has not got are empty, or 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// Its number among the sender's.
    pub serial: u32,
    /// The object.
    pub path: String,
    /// The interface of the method or signal.
    pub interface: String,
    /// The method or signal.
    pub member: String,
    /// The name of the error.
    pub error: String,
    /// The number of the call that it answers.
    pub reply_to: u32,
    /// To whom it is addressed.
    pub destination: String,
    /// Arguments.
    pub body: Vec<Value>,
}

impl Message {
    /// As bytes, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::default();
        self.body.iter().for_each(|value| body.put(value));
        let mut out = Writer::default();
        out.bytes.extend([b'l', self.kind as u8, 0, 1]);
        out.put(&Value::U32(body.bytes.len() as u32));
        out.put(&Value::U32(self.serial));
        out.put(&Value::Array("(yv)".into(), self.fields()));
        out.align(8);
        out.bytes.append(&mut body.bytes);
        out.bytes
    }

    fn fields(&self) -> Vec<Value> {
        let signature: String = self.body.iter().map(Value::signature).collect();
        let reply_to = (self.reply_to != 0).then_some(Value::U32(self.reply_to));
        let text = |text: &String, make: fn(String) -> Value| (!text.is_empty()).then(|| make(text.clone()));
        let fields = [
            (1, text(&self.path, Value::Path)),
            (2, text(&self.interface, Value::Str)),
            (3, text(&self.member, Value::Str)),
            (4, text(&self.error, Value::Str)),
            (5, reply_to),
            (6, text(&self.destination, Value::Str)),
            (8, text(&signature, Value::Signature)),
        ];
        let field = |(code, value): (u8, Option<Value>)| Some(Value::Struct(vec![Value::Byte(code), value?.variant()]));
        fields.into_iter().filter_map(field).collect()
    }

    /// The length of a message in all, by its first [`PREFIX`] bytes.
    pub fn total(prefix: &[u8; PREFIX]) -> Result<usize> {
        let mut reader = Reader::new(prefix)?;
        reader.at = 4;
        let body = reader.u32()? as usize;
        reader.at = 12;
        let fields = reader.u32()? as usize;
        let total = PREFIX.saturating_add(fields).next_multiple_of(8).saturating_add(body);
        if total > MAX_MESSAGE { Err(Damaged("too long")) } else { Ok(total) }
    }

    /// From bytes: those of one message.
    pub fn decode(bytes: &[u8]) -> Result<Message> {
        let mut reader = Reader::new(bytes)?;
        let kind = match bytes.get(1) {
            Some(1) => Kind::Call,
            Some(2) => Kind::Return,
            Some(3) => Kind::Error,
            Some(4) => Kind::Signal,
            _ => return Err(Damaged("unknown kind")),
        };
        reader.at = 8;
        let mut message = Message { kind, serial: reader.u32()?, ..Message::default() };
        let Value::Array(_, fields) = reader.value("a(yv)", 0)? else { return Err(Damaged("no fields")) };
        let mut signature = String::new();
        for field in fields {
            message.take_field(field, &mut signature)?;
        }
        reader.align(8)?;
        let mut rest = signature.as_str();
        while !rest.is_empty() {
            let (one, more) = split_type(rest).ok_or(Damaged("bad signature"))?;
            message.body.push(reader.value(one, 0)?);
            rest = more;
        }
        Ok(message)
    }

    fn take_field(&mut self, field: Value, signature: &mut String) -> Result<()> {
        let Value::Struct(mut parts) = field else { return Err(Damaged("bad field")) };
        let (value, code) = (parts.pop().map(Value::into_inner), parts.pop());
        match (code, value) {
            (Some(Value::Byte(1)), Some(Value::Path(text))) => self.path = text,
            (Some(Value::Byte(2)), Some(Value::Str(text))) => self.interface = text,
            (Some(Value::Byte(3)), Some(Value::Str(text))) => self.member = text,
            (Some(Value::Byte(4)), Some(Value::Str(text))) => self.error = text,
            (Some(Value::Byte(5)), Some(Value::U32(serial))) => self.reply_to = serial,
            (Some(Value::Byte(6)), Some(Value::Str(text))) => self.destination = text,
            (Some(Value::Byte(8)), Some(Value::Signature(text))) => *signature = text,
            (Some(Value::Byte(1..=6 | 8)), _) => return Err(Damaged("a field of another type")),
            // The sender, and what is not known: to be left alone.
            _ => {}
        }
        Ok(())
    }
}

/// How a type is aligned.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a' | b'h') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn put(&mut self, value: &Value) {
        self.align(alignment(&value.signature()));
        match value {
            Value::Byte(byte) => self.bytes.push(*byte),
            Value::Bool(on) => self.bytes.extend(u32::from(*on).to_le_bytes()),
            Value::I16(number) => self.bytes.extend(number.to_le_bytes()),
            Value::U16(number) => self.bytes.extend(number.to_le_bytes()),
            Value::I32(number) => self.bytes.extend(number.to_le_bytes()),
            Value::U32(number) => self.bytes.extend(number.to_le_bytes()),
            Value::I64(number) => self.bytes.extend(number.to_le_bytes()),
            Value::U64(number) => self.bytes.extend(number.to_le_bytes()),
            Value::Double(number) => self.bytes.extend(number.to_le_bytes()),
            Value::Str(text) | Value::Path(text) => {
                self.bytes.extend((text.len() as u32).to_le_bytes());
                self.text(text);
            }
            Value::Signature(text) => {
                self.bytes.push(text.len() as u8);
                self.text(text);
            }
            Value::Array(element, values) => self.array(element, values),
            Value::Struct(fields) => fields.iter().for_each(|field| self.put(field)),
            Value::Entry(entry) => {
                self.put(&entry.0);
                self.put(&entry.1);
            }
            Value::Variant(inner) => {
                self.put(&Value::Signature(inner.signature()));
                self.put(inner);
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// The length, without the padding before the first element.
    fn array(&mut self, element: &str, values: &[Value]) {
        let length_at = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.align(alignment(element));
        let start = self.bytes.len();
        values.iter().for_each(|value| self.put(value));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Reader<'a>> {
        let big = match (bytes.first(), bytes.get(3)) {
            (Some(b'l'), Some(1)) => false,
            (Some(b'B'), Some(1)) => true,
            _ => return Err(Damaged("unknown byte order or version")),
        };
        Ok(Reader { bytes, at: 0, big })
    }

    fn align(&mut self, to: usize) -> Result<()> {
        let end = self.at.next_multiple_of(to);
        self.take(end - self.at).map(drop)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).ok_or(Damaged("cut off"))?;
        let bytes = self.bytes.get(self.at..end).ok_or(Damaged("cut off"))?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes: [u8; N] = self.take(N)?.try_into().map_err(|_| Damaged("cut off"))?;
        if self.big {
            bytes.reverse();
        }
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn text(&mut self, len: usize) -> Result<String> {
        let text = self.take(len)?;
        if self.take(1)? != [0] {
            return Err(Damaged("a string without an end"));
        }
        String::from_utf8(text.to_vec()).map_err(|_| Damaged("a string that is not UTF-8"))
    }

    /// A value of the type `signature`, which is complete.
    fn value(&mut self, signature: &str, depth: usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(Damaged("nested too deep"));
        }
        self.align(alignment(signature))?;
        Ok(match signature.as_bytes().first() {
            Some(b'y') => Value::Byte(self.array::<1>()?[0]),
            Some(b'b') => Value::Bool(self.u32()? != 0),
            Some(b'n') => Value::I16(i16::from_le_bytes(self.array()?)),
            Some(b'q') => Value::U16(u16::from_le_bytes(self.array()?)),
            Some(b'i') => Value::I32(i32::from_le_bytes(self.array()?)),
            // A descriptor is told by its place in a list that is not asked for.
            Some(b'u' | b'h') => Value::U32(self.u32()?),
            Some(b'x') => Value::I64(i64::from_le_bytes(self.array()?)),
            Some(b't') => Value::U64(u64::from_le_bytes(self.array()?)),
            Some(b'd') => Value::Double(f64::from_le_bytes(self.array()?)),
            Some(b's') => {
                let len = self.u32()? as usize;
                Value::Str(self.text(len)?)
            }
            Some(b'o') => {
                let len = self.u32()? as usize;
                Value::Path(self.text(len)?)
            }
            Some(b'g') => Value::Signature(self.signature()?),
            Some(b'v') => {
                let inner = self.signature()?;
                if !super::value::is_one_type(&inner) {
                    return Err(Damaged("a variant of no type"));
                }
                self.value(&inner, depth + 1)?.variant()
            }
            Some(b'a') => self.elements(&signature[1..], depth)?,
            Some(b'(') => Value::Struct(self.sequence(&signature[1..signature.len() - 1], depth)?),
            Some(b'{') => {
                let mut parts = self.sequence(&signature[1..signature.len() - 1], depth)?;
                match (parts.pop(), parts.pop()) {
                    (Some(value), Some(key)) => Value::Entry(Box::new((key, value))),
                    _ => return Err(Damaged("an entry without a value")),
                }
            }
            _ => return Err(Damaged("unknown type")),
        })
    }

    fn signature(&mut self) -> Result<String> {
        let len = self.array::<1>()?[0].into();
        self.text(len)
    }

    fn sequence(&mut self, mut signature: &str, depth: usize) -> Result<Vec<Value>> {
        let mut values = Vec::new();
        while !signature.is_empty() {
            let (one, rest) = split_type(signature).ok_or(Damaged("bad signature"))?;
            values.push(self.value(one, depth + 1)?);
            signature = rest;
        }
        Ok(values)
    }

    fn elements(&mut self, element: &str, depth: usize) -> Result<Value> {
        let len = self.u32()? as usize;
        self.align(alignment(element))?;
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len()).ok_or(Damaged("cut off"))?;
        let mut values = Vec::new();
        // Every type takes at least a byte, so that this ends.
        while self.at < end {
            values.push(self.value(element, depth + 1)?);
        }
        if self.at == end {
            Ok(Value::Array(element.into(), values))
        } else {
            Err(Damaged("an array of another length"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `GetUnit("a.scope")`, byte by byte.
    const GET_UNIT: &[u8] = b"l\x01\0\x01\x0c\0\0\0\x07\0\0\0\x97\0\0\0\
        \x01\x01o\0\x19\0\0\0/org/freedesktop/systemd1\0\0\0\0\0\0\0\
        \x02\x01s\0\x20\0\0\0org.freedesktop.systemd1.Manager\0\0\0\0\0\0\0\0\
        \x03\x01s\0\x07\0\0\0GetUnit\0\
        \x06\x01s\0\x18\0\0\0org.freedesktop.systemd1\0\0\0\0\0\0\0\0\
        \x08\x01g\0\x01s\0\0\
        \x07\0\0\0a.scope\0";

    /// What `busctl` sends for `StartTransientUnit` with four properties.
    const START_TRANSIENT_UNIT_HEADER: &[u8] = b"\
        l\x01\x04\x01\xc8\0\0\0\x02\0\0\0\xb6\0\0\0\x01\x01o\0\x19\0\0\0/org/freedesktop/systemd\
        1\0\0\0\0\0\0\0\x03\x01s\0\x12\0\0\0StartTransientUnit\0\0\0\0\0\0\x02\x01s\0 \0\0\0\
        org.freedesktop.systemd1.Manager\0\0\0\0\0\0\0\0\x06\x01s\0\x18\0\0\0\
        org.freedesktop.systemd1\0\0\0\0\0\0\0\0\x08\x01g\0\x10ssa(sv)a(sa\
        (sv))\0\0\0";

    /// The same, behind the header.
    const START_TRANSIENT_UNIT_BODY: &[u8] = b"\
        \x07\0\0\0a.scope\0\x07\0\0\0replace\0\xa4\0\0\0\0\0\0\0\x05\0\0\0Slice\0\x01s\0\0\0\0\
        \x0c\0\0\0system.slice\0\0\0\0\0\0\0\0\x04\0\0\0PIDs\0\x02au\0\0\0\0\x08\0\0\0\x07\0\0\0\
        \x08\0\0\0\0\0\0\0\x09\0\0\0MemoryMax\0\x01t\0\0\0\0\0\0\0\0\0\0\0\x04\0\0\0\0\x0b\0\0\0Devi\
        ceAllow\0\x05a(ss)\0\0\x1c\0\0\0\0\0\0\0\x0d\0\0\0/dev/char/1:3\0\0\0\x03\0\0\0\
        rwm\0\0\0\0\0";

    fn get_unit() -> Message {
        Message {
            kind: Kind::Call,
            serial: 7,
            path: "/org/freedesktop/systemd1".into(),
            interface: "org.freedesktop.systemd1.Manager".into(),
            member: "GetUnit".into(),
            destination: "org.freedesktop.systemd1".into(),
            body: vec![Value::str("a.scope")],
            ..Message::default()
        }
    }

    #[test]
    fn a_call_byte_by_byte() {
        let bytes = get_unit().encode();
        assert_eq!(bytes, GET_UNIT, "{}", bytes.escape_ascii());
        assert_eq!(Message::decode(GET_UNIT).unwrap(), get_unit());
        let prefix = GET_UNIT[..PREFIX].try_into().unwrap();
        assert_eq!(Message::total(prefix), Ok(GET_UNIT.len()));
    }

    #[test]
    fn a_call_as_systemds_own_library_writes_it() {
        let property = |name: &str, value: Value| Value::Struct(vec![Value::str(name), value.variant()]);
        let device = Value::Struct(vec![Value::str("/dev/char/1:3"), Value::str("rwm")]);
        let properties = vec![
            property("Slice", Value::str("system.slice")),
            property("PIDs", Value::Array("u".into(), vec![Value::U32(7), Value::U32(8)])),
            property("MemoryMax", Value::U64(64 << 20)),
            property("DeviceAllow", Value::Array("(ss)".into(), vec![device])),
        ];
        let message = Message {
            serial: 2,
            member: "StartTransientUnit".into(),
            body: vec![
                Value::str("a.scope"),
                Value::str("replace"),
                Value::Array("(sv)".into(), properties),
                Value::Array("(sa(sv))".into(), vec![]),
            ],
            ..get_unit()
        };
        let theirs = [START_TRANSIENT_UNIT_HEADER, START_TRANSIENT_UNIT_BODY].concat();
        assert_eq!(Message::decode(&theirs).unwrap(), message);
        // The order of fields is free, that of a body is not.
        let ours = message.encode();
        assert_eq!(ours.len(), theirs.len());
        assert!(ours.ends_with(START_TRANSIENT_UNIT_BODY), "{}", ours.escape_ascii());
    }

    #[test]
    fn a_signal_of_a_big_endian_sender() {
        let bytes = b"B\x04\0\x01\0\0\0\x08\0\0\0\x02\0\0\0\x20\
            \x03\x01s\0\0\0\0\x0aJobRemoved\0\0\0\0\0\0\
            \x08\x01g\0\x02ub\0\
            \0\0\x01\x02\0\0\0\x01";
        let decoded = Message::decode(bytes);
        let expected = Message {
            kind: Kind::Signal,
            serial: 2,
            member: "JobRemoved".into(),
            body: vec![Value::U32(258), Value::Bool(true)],
            ..Message::default()
        };
        assert_eq!(decoded, Ok(expected));
    }

    #[test]
    fn every_type_survives() {
        let body = vec![
            Value::Byte(1),
            Value::I16(-2),
            Value::U16(3),
            Value::I32(-4),
            Value::I64(-5),
            Value::U64(u64::MAX),
            Value::Double(0.5),
            Value::Path("/a".into()),
            Value::Signature("a(sv)".into()),
            Value::Array("{sv}".into(), vec![Value::Entry(Box::new((Value::str("k"), Value::Bool(true).variant())))]),
            Value::Array("t".into(), vec![]),
            Value::Struct(vec![Value::bytes([1, 2]), Value::Struct(vec![Value::str("x")])]),
            Value::U32(9).variant().variant(),
        ];
        let message = Message { kind: Kind::Return, serial: 1, reply_to: 3, body, ..Message::default() };
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn damage_is_an_error() {
        for len in 0..GET_UNIT.len() {
            assert!(Message::decode(&GET_UNIT[..len]).is_err(), "{len}");
        }
        // Whatever a byte is changed to, it ends.
        for at in 0..GET_UNIT.len() {
            for byte in [0, 1, 0x28, 0x61, 0x76, 0xff] {
                let mut damaged = GET_UNIT.to_vec();
                damaged[at] = byte;
                let _ = Message::decode(&damaged);
            }
        }
        let mut long = [0; PREFIX];
        long.copy_from_slice(&GET_UNIT[..PREFIX]);
        long[7] = 0xff;
        assert_eq!(Message::total(&long), Err(Damaged("too long")));
    }
}
