//! Reading JSON and MessagePack under one set of rules: bounded depth, no duplicate or odd keys, nothing behind the
//! end, no number that JSON can't say.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How deep a message may nest.
pub const DEEPEST: usize = 32;

/// Reads one JSON value that fills `bytes`.
///
/// # Errors
/// A phrase that says what is wrong and where.
pub fn from_json(bytes: &[u8]) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }.deserialize(&mut reader).map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    Ok(value)
}

/// Reads one MessagePack value that fills `bytes`. Binary data, and text that is not UTF-8, becomes an object
/// `{"base64": …}`, so that it is never taken for text.
///
/// # Errors
/// A phrase that says what is wrong.
pub fn from_msgpack(bytes: &[u8]) -> Result<Value, String> {
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    reader.set_max_depth(DEEPEST + 2);
    let value = Strict { depth: 0 }.deserialize(&mut reader).map_err(|e| e.to_string())?;
    if !rest.is_empty() {
        return Err(format!("{} trailing bytes", rest.len()));
    }
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == DEEPEST {
            return Err(E::custom(format_args!("nested deeper than {DEEPEST}")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a boolean, a number, text, binary data, an array or a map")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_bytes<E>(self, v: &[u8]) -> Result<Value, E> {
        Ok(serde_json::json!({"base64": STANDARD.encode(v)}))
    }

    // No capacity is taken from a length that the sender claims.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            fields.insert(key, map.next_value_seed(inner)?);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn both_encodings_refuse_the_same() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n)).into_bytes();
        assert!(from_json(&deep(DEEPEST)).is_ok());
        assert!(from_json(&deep(DEEPEST + 1)).is_err());
        let deep = |n: usize| [vec![0x91; n], vec![0xc0]].concat();
        assert!(from_msgpack(&deep(DEEPEST)).is_ok());
        assert!(from_msgpack(&deep(DEEPEST + 1)).is_err());
        assert!(from_msgpack(&deep(60_000)).is_err());

        assert!(from_json(br#"{"a":1,"a":2}"#).unwrap_err().contains("duplicate"));
        assert!(from_msgpack(b"\x82\xa1a\x01\xa1a\x02").unwrap_err().contains("duplicate"));
        assert!(from_json(b"1 2").is_err());
        assert!(from_msgpack(b"\x01\x02").is_err());
        assert!(from_msgpack(b"\x81\x01\x02").is_err(), "a key that is no text");
        assert!(from_msgpack(b"\xd4\x05\x00").is_err(), "an extension type");
        assert!(from_msgpack(b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00").is_err(), "not a number");
        assert!(from_msgpack(b"\xdd\xff\xff\xff\xff").is_err(), "four billion promised");
    }

    #[test]
    fn large_integers_stay_exact() {
        assert_eq!(from_json(b"18446744073709551615").unwrap(), json!(u64::MAX));
        assert_eq!(from_msgpack(&rmp_serde::to_vec(&i64::MIN).unwrap()).unwrap(), json!(i64::MIN));
    }

    #[test]
    fn binary_and_broken_text_are_no_text() {
        assert_eq!(from_msgpack(b"\xa2\xff\xfe").unwrap(), json!({"base64": "//4="}));
        assert_eq!(from_msgpack(b"\x81\xa6binary\xc4\x02hi").unwrap(), json!({"binary": {"base64": "aGk="}}));
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let _ = from_json(&noise);
            let _ = from_msgpack(&noise);
        }
    }
}
