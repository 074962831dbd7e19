//! Properties of the unit that annotations give: `org.systemd.property.NAME`, with a value in GVariant's text format.

use oci_spec::runtime::Spec;

use super::properties::Property;
use crate::container::dbus::{Value, text};

/// How their names begin.
pub const PREFIX: &str = "org.systemd.property.";

/// All of a specification's, by name. What is wrong, as a line that names the annotation.
pub(super) fn properties(spec: &Spec) -> Result<Vec<Property>, String> {
    let annotations = spec.annotations().iter().flatten();
    let mut own: Vec<(&String, &String)> = annotations.filter(|(key, _)| key.starts_with(PREFIX)).collect();
    own.sort();
    own.into_iter()
        .map(|(key, text)| {
            let wrong = |problem: String| format!("annotations[{key:?}]: {problem}");
            property(&key[PREFIX.len()..], text).map_err(wrong)
        })
        .collect()
}

fn property(name: &str, text: &str) -> Result<Property, String> {
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(format!("{name:?} is no name of a property"));
    }
    let value = text::parse(text)?;
    // As in unit files, times may be in seconds; on D-Bus they are in microseconds.
    let stem = name.strip_suffix("Sec").filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()));
    match stem {
        Some(stem) => Ok((format!("{stem}USec"), microseconds(&value)?)),
        None => Ok((name.to_owned(), value)),
    }
}

fn microseconds(value: &Value) -> Result<Value, String> {
    const UNIT: f64 = 1e6;
    let whole = |seconds: i128| u64::try_from(seconds * UNIT as i128).ok();
    let converted = match *value {
        Value::Byte(seconds) => whole(seconds.into()),
        Value::I16(seconds) => whole(seconds.into()),
        Value::U16(seconds) => whole(seconds.into()),
        Value::I32(seconds) => whole(seconds.into()),
        Value::U32(seconds) => whole(seconds.into()),
        Value::I64(seconds) => whole(seconds.into()),
        Value::U64(seconds) => whole(seconds.into()),
        Value::Double(seconds) if (0.0..1e12).contains(&seconds) => Some((seconds * UNIT) as u64),
        _ => None,
    };
    converted.map(Value::U64).ok_or_else(|| "is not a number of seconds".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(name: &str, text: &str) -> Result<Vec<Property>, String> {
        let spec = json!({"ociVersion": "1.0.0", "annotations": {format!("{PREFIX}{name}"): text, "other": "x"}});
        properties(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn values_keep_their_types() {
        assert_eq!(
            of("CollectMode", "'inactive-or-failed'"),
            Ok(vec![("CollectMode".into(), Value::str("inactive-or-failed"))])
        );
        assert_eq!(of("TimeoutStopUSec", "uint64 5"), Ok(vec![("TimeoutStopUSec".into(), Value::U64(5))]));
        assert_eq!(of("After", "['a.service']").unwrap()[0].1.signature(), "as");
    }

    #[test]
    fn seconds_become_microseconds() {
        assert_eq!(of("TimeoutStopSec", "5"), Ok(vec![("TimeoutStopUSec".into(), Value::U64(5_000_000))]));
        assert_eq!(of("RuntimeMaxSec", "1.5"), Ok(vec![("RuntimeMaxUSec".into(), Value::U64(1_500_000))]));
        assert_eq!(of("XSec", "5").unwrap()[0].0, "XSec");
        for bad in ["-1", "'5'", "uint64 18446744073709551615", "1e300"] {
            assert!(of("TimeoutStopSec", bad).unwrap_err().contains("seconds"), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_names_the_annotation() {
        for (name, text) in [("X1y", "1"), ("Ab", "1"), ("CollectMode", "inactive"), ("A.b", "1")] {
            let problem = of(name, text).unwrap_err();
            assert!(problem.starts_with(&format!("annotations[\"org.systemd.property.{name}\"]: ")), "{problem}");
        }
    }
}
