//! Values as people write them: GVariant's text format, <https://docs.gtk.org/glib/gvariant-text-format.html>.
//!
//! A text is parsed into a tree whose numbers and strings have no type yet. Types come from the text (`uint64 5`, `@as []`),
//! from an array's other elements, or are the usual ones (`i` for whole numbers, `d` for others, `s`). There are no `maybe`
//! types, which D-Bus has not got.

use super::value::{Value, is_one_type, split_type};

/// Nesting that is followed.
const MAX_DEPTH: usize = 32;

/// Parses a whole text. What is wrong, in words.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { text, at: 0 };
    let node = parser.node(0)?;
    parser.skip_blanks();
    if parser.at < text.len() {
        return Err(format!("{:?} is left over", &text[parser.at..]));
    }
    let typ = node.typ().unwrap_or_else(|| node.usual_type());
    if !is_one_type(&typ) {
        return Err(format!("{text:?} has no type of D-Bus"));
    }
    node.build(&typ)
}

/// What a text says.
#[derive(Debug)]
enum Node {
    Bool(bool),
    Number(String),
    Str(String),
    Bytes(Vec<u8>),
    Array(Vec<Node>),
    Dict(Vec<(Node, Node)>),
    Tuple(Vec<Node>),
    Variant(Box<Node>),
    /// With its type.
    Typed(String, Box<Node>),
}

/// Types that a keyword tells.
const KEYWORDS: [(&str, &str); 12] = [
    ("boolean", "b"),
    ("byte", "y"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("double", "d"),
    ("string", "s"),
    ("objectpath", "o"),
    ("signature", "g"),
];

impl Node {
    /// The type, as far as the text tells it.
    fn typ(&self) -> Option<String> {
        Some(match self {
            Node::Bool(_) => "b".into(),
            Node::Number(_) | Node::Str(_) => return None,
            Node::Bytes(_) => "ay".into(),
            Node::Array(elements) => format!("a{}", elements.iter().find_map(Node::typ)?),
            Node::Dict(entries) => {
                let key = entries.iter().find_map(|(key, _)| key.typ());
                let value = entries.iter().find_map(|(_, value)| value.typ());
                let (first_key, first_value) = entries.first()?;
                let (key, value) = match (key, value) {
                    (None, None) => return None,
                    (key, value) => (
                        key.unwrap_or_else(|| first_key.usual_type()),
                        value.unwrap_or_else(|| first_value.usual_type()),
                    ),
                };
                format!("a{{{key}{value}}}")
            }
            Node::Tuple(fields) => {
                let all: Vec<String> =
                    fields.iter().map(|field| field.typ().unwrap_or_else(|| field.usual_type())).collect();
                format!("({})", all.concat())
            }
            Node::Variant(_) => "v".into(),
            Node::Typed(typ, _) => typ.clone(),
        })
    }

    /// The type of what does not tell its own. Of an empty array there is none.
    fn usual_type(&self) -> String {
        match self {
            Node::Number(text) if is_whole(text) => "i".into(),
            Node::Number(_) => "d".into(),
            Node::Str(_) => "s".into(),
            Node::Array(elements) => {
                // One that is not whole makes all of them doubles.
                let types: Vec<String> = elements.iter().map(Node::usual_type).collect();
                let one = types.iter().find(|typ| *typ == "d").or(types.first());
                one.map_or(String::new(), |one| format!("a{one}"))
            }
            Node::Dict(entries) => entries
                .first()
                .map_or(String::new(), |(key, value)| format!("a{{{}{}}}", key.usual_type(), value.usual_type())),
            other => other.typ().unwrap_or_default(),
        }
    }

    /// As a value of type `typ`, which is complete.
    fn build(&self, typ: &str) -> Result<Value, String> {
        match (self, typ.as_bytes().first()) {
            (Node::Typed(own, inner), _) if own == typ => inner.build(typ),
            (Node::Bool(on), Some(b'b')) => Ok(Value::Bool(*on)),
            (Node::Number(text), _) => number(text, typ),
            (Node::Str(text), Some(b's')) => Ok(Value::Str(text.clone())),
            (Node::Str(text), Some(b'o')) if is_object_path(text) => Ok(Value::Path(text.clone())),
            (Node::Str(text), Some(b'g')) if is_signature(text) => Ok(Value::Signature(text.clone())),
            (Node::Bytes(bytes), _) if typ == "ay" => Ok(Value::bytes(bytes.iter().copied())),
            (Node::Array(elements), Some(b'a')) if !typ.starts_with("a{") || elements.is_empty() => {
                let element = &typ[1..];
                let values: Result<Vec<Value>, String> = elements.iter().map(|one| one.build(element)).collect();
                Ok(Value::Array(element.into(), values?))
            }
            (Node::Dict(entries), Some(b'a')) => self.build_dict(entries, typ),
            (Node::Tuple(fields), Some(b'(')) => {
                let mut rest = &typ[1..typ.len() - 1];
                let mut values = Vec::new();
                for field in fields {
                    let (one, more) = split_type(rest).ok_or_else(|| self.mismatch(typ))?;
                    values.push(field.build(one)?);
                    rest = more;
                }
                if rest.is_empty() { Ok(Value::Struct(values)) } else { Err(self.mismatch(typ)) }
            }
            (Node::Variant(inner), Some(b'v')) => {
                let typ = inner.typ().unwrap_or_else(|| inner.usual_type());
                if !is_one_type(&typ) {
                    return Err("an array without elements has no type: @as [] has one".into());
                }
                Ok(inner.build(&typ)?.variant())
            }
            _ => Err(self.mismatch(typ)),
        }
    }

    fn build_dict(&self, entries: &[(Node, Node)], typ: &str) -> Result<Value, String> {
        let element = &typ[1..];
        let inner = element.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let (key, value) = inner.and_then(split_type).ok_or_else(|| self.mismatch(typ))?;
        let entry = |(k, v): &(Node, Node)| Ok(Value::Entry(Box::new((k.build(key)?, v.build(value)?))));
        let entries: Result<Vec<Value>, String> = entries.iter().map(entry).collect();
        Ok(Value::Array(element.into(), entries?))
    }

    fn mismatch(&self, typ: &str) -> String {
        let what = match self {
            Node::Bool(on) => on.to_string(),
            Node::Number(text) => text.clone(),
            Node::Str(text) => format!("{text:?}"),
            Node::Bytes(_) => "a byte string".into(),
            Node::Array(_) => "an array".into(),
            Node::Dict(_) => "a dictionary".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::Variant(_) => "a variant".into(),
            Node::Typed(own, _) => format!("a value of type {own:?}"),
        };
        format!("{what} is not of type {typ:?}")
    }
}

fn is_whole(text: &str) -> bool {
    text.starts_with("0x") || text.starts_with("-0x") || !text.contains(['.', 'e', 'E'])
}

fn number(text: &str, typ: &str) -> Result<Value, String> {
    let whole = || {
        let (minus, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let digits = digits.strip_prefix('+').unwrap_or(digits);
        let parsed = match digits.strip_prefix("0x") {
            Some(hex) => i128::from_str_radix(hex, 16),
            None if digits.len() > 1 && digits.starts_with('0') => i128::from_str_radix(&digits[1..], 8),
            None => digits.parse(),
        };
        parsed.ok().map(|number| if minus { -number } else { number })
    };
    let value = match typ {
        "y" => whole().and_then(|n| n.try_into().ok()).map(Value::Byte),
        "n" => whole().and_then(|n| n.try_into().ok()).map(Value::I16),
        "q" => whole().and_then(|n| n.try_into().ok()).map(Value::U16),
        "i" => whole().and_then(|n| n.try_into().ok()).map(Value::I32),
        "u" => whole().and_then(|n| n.try_into().ok()).map(Value::U32),
        "x" => whole().and_then(|n| n.try_into().ok()).map(Value::I64),
        "t" => whole().and_then(|n| n.try_into().ok()).map(Value::U64),
        "d" => text.parse::<f64>().ok().or_else(|| whole().map(|n| n as f64)).map(Value::Double),
        _ => None,
    };
    value.ok_or_else(|| format!("{text} is not of type {typ:?}"))
}

fn is_object_path(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    text == "/" || text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
}

fn is_signature(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        match split_type(rest) {
            Some((_, more)) => rest = more,
            None => return false,
        }
    }
    text.len() <= 255
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes `what` if it is next.
    fn take(&mut self, what: &str) -> bool {
        self.skip_blanks();
        let is = self.rest().starts_with(what);
        self.at += if is { what.len() } else { 0 };
        is
    }

    fn expect(&mut self, what: &str) -> Result<(), String> {
        if self.take(what) { Ok(()) } else { Err(self.unexpected(&format!("{what:?} is missing"))) }
    }

    fn unexpected(&self, problem: &str) -> String {
        match self.rest() {
            "" => format!("{problem} at the end"),
            rest => format!("{problem} before {rest:?}"),
        }
    }

    fn node(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err("nested too deep".into());
        }
        self.skip_blanks();
        match self.rest().chars().next() {
            Some('[') => self.array(depth),
            Some('{') => self.dict(depth),
            Some('(') => self.tuple(depth),
            Some('<') => {
                self.expect("<")?;
                let inner = self.node(depth + 1)?;
                self.expect(">")?;
                Ok(Node::Variant(Box::new(inner)))
            }
            Some('\'' | '"') => self.string().map(Node::Str),
            Some('b') if self.rest()[1..].starts_with(['\'', '"']) => {
                self.at += 1;
                let mut bytes = self.string()?.into_bytes();
                bytes.push(0);
                Ok(Node::Bytes(bytes))
            }
            Some('@') => {
                let (typ, _) = split_type(&self.rest()[1..]).ok_or_else(|| self.unexpected("no type"))?;
                self.at += 1 + typ.len();
                Ok(Node::Typed(typ.into(), Box::new(self.node(depth + 1)?)))
            }
            Some('0'..='9' | '+' | '-' | '.') => Ok(Node::Number(self.word().into())),
            Some('a'..='z') => self.keyword(depth),
            _ => Err(self.unexpected("a value is missing")),
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn keyword(&mut self, depth: usize) -> Result<Node, String> {
        let word = self.word();
        match word {
            "true" => return Ok(Node::Bool(true)),
            "false" => return Ok(Node::Bool(false)),
            "inf" | "nan" => return Ok(Node::Number(word.into())),
            _ => {}
        }
        let known = KEYWORDS.iter().find(|(name, _)| *name == word);
        let (_, typ) = known.ok_or_else(|| format!("{word:?} is no value: strings are in quotes"))?;
        Ok(Node::Typed((*typ).into(), Box::new(self.node(depth + 1)?)))
    }

    fn array(&mut self, depth: usize) -> Result<Node, String> {
        self.expect("[")?;
        let mut elements = Vec::new();
        while !self.take("]") {
            if !elements.is_empty() {
                self.expect(",")?;
            }
            elements.push(self.node(depth + 1)?);
        }
        Ok(Node::Array(elements))
    }

    fn dict(&mut self, depth: usize) -> Result<Node, String> {
        self.expect("{")?;
        let mut entries = Vec::new();
        while !self.take("}") {
            if !entries.is_empty() {
                self.expect(",")?;
            }
            let key = self.node(depth + 1)?;
            self.expect(":")?;
            entries.push((key, self.node(depth + 1)?));
        }
        Ok(Node::Dict(entries))
    }

    fn tuple(&mut self, depth: usize) -> Result<Node, String> {
        self.expect("(")?;
        let mut fields = Vec::new();
        while !self.take(")") {
            if !fields.is_empty() {
                self.expect(",")?;
                // One field is written with a comma behind it.
                if self.take(")") {
                    break;
                }
            }
            fields.push(self.node(depth + 1)?);
        }
        Ok(Node::Tuple(fields))
    }

    fn string(&mut self) -> Result<String, String> {
        let mut chars = self.rest().char_indices();
        let quote = chars.next().map(|(_, quote)| quote);
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                c if Some(c) == quote => {
                    self.at += at + 1;
                    return if text.contains('\0') { Err("a string holds a NUL".into()) } else { Ok(text) };
                }
                '\\' => text.extend(escaped(&mut chars)?),
                c => text.push(c),
            }
        }
        Err("a string has no end".into())
    }
}

/// What is behind a backslash; nothing where that continues a line.
fn escaped(chars: &mut std::str::CharIndices<'_>) -> Result<Option<char>, String> {
    Ok(Some(match chars.next().map(|(_, c)| c) {
        Some('u') => return code(chars, 4).map(Some),
        Some('U') => return code(chars, 8).map(Some),
        Some('a') => '\x07',
        Some('b') => '\x08',
        Some('f') => '\x0c',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('v') => '\x0b',
        Some('\n') => return Ok(None),
        Some(c) => c,
        None => return Err("a string has no end".into()),
    }))
}

/// A character by its number, of `len` hexadecimal digits.
fn code(chars: &mut std::str::CharIndices<'_>, len: usize) -> Result<char, String> {
    let digits: String = chars.take(len).map(|(_, c)| c).collect();
    let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == len);
    code.and_then(char::from_u32).ok_or_else(|| format!("{digits:?} is not the number of a character"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(text: &str, value: Value) {
        assert_eq!(parse(text), Ok(value), "{text}");
    }

    #[test]
    fn plain_values() {
        is("true", Value::Bool(true));
        is(" 5 ", Value::I32(5));
        is("-0x10", Value::I32(-16));
        is("010", Value::I32(8));
        is("1.5", Value::Double(1.5));
        is("uint64 18446744073709551615", Value::U64(u64::MAX));
        is("byte 0x7f", Value::Byte(127));
        is("double 3", Value::Double(3.0));
        is("@t 5", Value::U64(5));
        is("'a \\'b\\' \\u00e9\\n'", Value::str("a 'b' é\n"));
        is("\"it's\"", Value::str("it's"));
        is("objectpath '/a/b'", Value::Path("/a/b".into()));
        is("signature 'a(sv)'", Value::Signature("a(sv)".into()));
    }

    #[test]
    fn containers_of_values() {
        is("['a', 'b']", Value::Array("s".into(), vec![Value::str("a"), Value::str("b")]));
        is("[uint32 1, 2]", Value::Array("u".into(), vec![Value::U32(1), Value::U32(2)]));
        is("[1, 2.5]", Value::Array("d".into(), vec![Value::Double(1.0), Value::Double(2.5)]));
        is("@as []", Value::Array("s".into(), vec![]));
        is("@ay [1, 255]", Value::bytes([1, 255]));
        is("b'ab'", Value::bytes(*b"ab\0"));
        is(
            "[('/dev/null', 'rw')]",
            Value::Array("(ss)".into(), vec![Value::Struct(vec![Value::str("/dev/null"), Value::str("rw")])]),
        );
        is("(uint64 5,)", Value::Struct(vec![Value::U64(5)]));
        let entry = |key: &str, value: Value| Value::Entry(Box::new((Value::str(key), value)));
        is("{'a': <1>}", Value::Array("{sv}".into(), vec![entry("a", Value::I32(1).variant())]));
        is("<'x'>", Value::str("x").variant());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for bad in [
            "",
            "abc",
            "5 6",
            "[",
            "[1",
            "[1,",
            "['a', 1]",
            "[]",
            "<[]>",
            "uint8 1",
            "byte 256",
            "uint32 -1",
            "'a",
            "'\\u00'",
            "'\\u0000'",
            "@z 1",
            "@a 1",
            "@s 5",
            "(1, 2",
            "{1}",
            "{1:",
            "1x",
            "0x",
            "objectpath 'a'",
            "b",
            "@",
            "-",
            "'\\",
            "uint64 true",
            "{<1>: 2}",
            "@as ['a', 5]",
            "()",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(!error.is_empty() && !error.contains('\n'), "{bad}: {error}");
        }
        assert!(parse(&"[".repeat(100_000)).unwrap_err().contains("deep"));
        assert!(parse(&"<".repeat(100_000)).unwrap_err().contains("deep"));
        assert!(parse(&"uint32 ".repeat(100_000)).unwrap_err().contains("deep"));
    }
}
