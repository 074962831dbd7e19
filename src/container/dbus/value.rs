//! The types of D-Bus and their signatures.

/// The deepest nesting of containers, 32 arrays and 32 structures: <https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol-marshaling-signature>.
pub const MAX_DEPTH: usize = 64;

/// A value with its type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `y`.
    Byte(u8),
    /// `b`.
    Bool(bool),
    /// `n`.
    I16(i16),
    /// `q`.
    U16(u16),
    /// `i`.
    I32(i32),
    /// `u`.
    U32(u32),
    /// `x`.
    I64(i64),
    /// `t`.
    U64(u64),
    /// `d`.
    Double(f64),
    /// `s`.
    Str(String),
    /// `o`: the name of an object.
    Path(String),
    /// `g`.
    Signature(String),
    /// `a…`: the signature of the elements, then these.
    Array(String, Vec<Value>),
    /// `(…)`.
    Struct(Vec<Value>),
    /// `{…}`, an element of an array.
    Entry(Box<(Value, Value)>),
    /// `v`.
    Variant(Box<Value>),
}

impl Value {
    /// Text.
    pub fn str(text: impl Into<String>) -> Value {
        Value::Str(text.into())
    }

    /// `ay`.
    pub fn bytes(bytes: impl IntoIterator<Item = u8>) -> Value {
        Value::Array("y".into(), bytes.into_iter().map(Value::Byte).collect())
    }

    /// `v`.
    pub fn variant(self) -> Value {
        Value::Variant(Box::new(self))
    }

    /// The type, as a signature.
    pub fn signature(&self) -> String {
        let all = |values: &[Value]| -> String { values.iter().map(Value::signature).collect() };
        match self {
            Value::Byte(_) => "y".into(),
            Value::Bool(_) => "b".into(),
            Value::I16(_) => "n".into(),
            Value::U16(_) => "q".into(),
            Value::I32(_) => "i".into(),
            Value::U32(_) => "u".into(),
            Value::I64(_) => "x".into(),
            Value::U64(_) => "t".into(),
            Value::Double(_) => "d".into(),
            Value::Str(_) => "s".into(),
            Value::Path(_) => "o".into(),
            Value::Signature(_) => "g".into(),
            Value::Array(element, _) => format!("a{element}"),
            Value::Struct(fields) => format!("({})", all(fields)),
            Value::Entry(entry) => format!("{{{}{}}}", entry.0.signature(), entry.1.signature()),
            Value::Variant(_) => "v".into(),
        }
    }

    /// The text of a string or of an object's name.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) | Value::Path(text) => Some(text),
            _ => None,
        }
    }

    /// What a variant holds; any other value is itself.
    pub fn into_inner(self) -> Value {
        match self {
            Value::Variant(inner) => *inner,
            other => other,
        }
    }
}

/// The first complete type of a signature, and the rest. `None` when it is none.
pub fn split_type(signature: &str) -> Option<(&str, &str)> {
    let end = end_of_type(signature.as_bytes(), 0, 0)?;
    Some(signature.split_at(end))
}

/// Whether a signature is that of one type.
pub fn is_one_type(signature: &str) -> bool {
    split_type(signature).is_some_and(|(_, rest)| rest.is_empty())
}

fn end_of_type(signature: &[u8], at: usize, depth: usize) -> Option<usize> {
    if depth > MAX_DEPTH {
        return None;
    }
    match signature.get(at)? {
        b'y' | b'b' | b'n' | b'q' | b'i' | b'u' | b'x' | b't' | b'd' | b's' | b'o' | b'g' | b'v' | b'h' => Some(at + 1),
        b'a' if signature.get(at + 1) == Some(&b'{') => {
            let key = end_of_type(signature, at + 2, depth + 2)?;
            // Keys hold nothing else.
            let basic = key == at + 3 && signature[at + 2] != b'v';
            let value = end_of_type(signature, key, depth + 2).filter(|_| basic)?;
            (signature.get(value) == Some(&b'}')).then_some(value + 1)
        }
        b'a' => end_of_type(signature, at + 1, depth + 1),
        b'(' => {
            let mut at = end_of_type(signature, at + 1, depth + 1)?;
            while signature.get(at)? != &b')' {
                at = end_of_type(signature, at, depth + 1)?;
            }
            Some(at + 1)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_split_into_types() {
        assert_eq!(split_type("ssa(sv)"), Some(("s", "sa(sv)")));
        assert_eq!(split_type("a(sa(sv))u"), Some(("a(sa(sv))", "u")));
        assert_eq!(split_type("a{sv}"), Some(("a{sv}", "")));
        assert_eq!(split_type("(a{oa{sv}}t)x"), Some(("(a{oa{sv}}t)", "x")));
        for bad in ["", "a", "(", "()", "(s", "{sv}", "a{vs", "a{s}", "a{asv}", "a{vs}", "z", ")"] {
            assert_eq!(split_type(bad), None, "{bad}");
        }
        assert_eq!(split_type(&"a".repeat(100_000)), None, "too deep");
        assert!(is_one_type("as") && !is_one_type("ss"));
    }

    #[test]
    fn values_know_their_types() {
        let value = Value::Array("(sv)".into(), vec![]);
        assert_eq!(value.signature(), "a(sv)");
        let entry = Value::Entry(Box::new((Value::str("a"), Value::Bool(true).variant())));
        assert_eq!(entry.signature(), "{sv}");
        assert_eq!(Value::Struct(vec![Value::Byte(1), Value::bytes([1])]).signature(), "(yay)");
        assert_eq!(Value::U64(1).variant().into_inner(), Value::U64(1));
    }
}
