//! JSON-RPC 2.0 in JSON and in MessagePack.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Event, Failure, Fault, FrameKind, strict};

/// The most requests in a batch.
pub const MOST_IN_BATCH: usize = 64;
/// From here on not every integer is one of the floating-point numbers.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// Room for most messages, an event with its cursor among them, in bytes: so few grow while they are written.
const USUAL: usize = 512;

/// How a sibling writes its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Codec {
    /// JSON in text frames.
    #[default]
    Json,
    /// MessagePack, maps by name, in binary frames.
    Msgpack,
}

impl Codec {
    /// The subprotocol that stands for it.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "siblings.v1.json",
            Self::Msgpack => "siblings.v1.msgpack",
        }
    }

    /// The codec that a subprotocol stands for.
    #[must_use]
    pub fn from_subprotocol(name: &str) -> Option<Self> {
        [Self::Json, Self::Msgpack].into_iter().find(|codec| codec.subprotocol() == name)
    }

    /// The frames that carry it.
    #[must_use]
    pub const fn frame(self) -> FrameKind {
        match self {
            Self::Json => FrameKind::Text,
            Self::Msgpack => FrameKind::Binary,
        }
    }

    /// Reads one message.
    ///
    /// # Errors
    /// [`Fault::Parse`] with what is wrong and where.
    pub fn decode(self, bytes: &[u8]) -> Result<Value, Failure> {
        match self {
            Self::Json => strict::from_json(bytes),
            Self::Msgpack => strict::from_msgpack(bytes),
        }
        .map_err(|why| Failure::new(Fault::Parse, format!("the message can't be read: {why}")))
    }

    /// Writes one message.
    ///
    /// # Errors
    /// [`Fault::Internal`] when it can't be encoded.
    pub fn encode(self, message: &impl Serialize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::with_capacity(USUAL);
        match self {
            Self::Json => serde_json::to_writer(&mut bytes, message).map_err(|e| e.to_string()),
            Self::Msgpack => rmp_serde::encode::write_named(&mut bytes, message).map_err(|e| e.to_string()),
        }
        .map_err(|why| Failure::new(Fault::Internal, why))?;
        Ok(bytes)
    }

    /// Writes the notification of an event, with the cursor of its place.
    ///
    /// # Errors
    /// [`Fault::Internal`] when it can't be encoded.
    pub fn encode_event(self, event: &Event, cursor: &str) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Json => {
                let mut bytes = Vec::with_capacity(USUAL);
                bytes.extend_from_slice(br#"{"jsonrpc":"2.0","method":"event","params":"#);
                event.write(cursor, &mut bytes);
                bytes.push(b'}');
                Ok(bytes)
            }
            Self::Msgpack => {
                let told = event.told(cursor).ok_or_else(|| Failure::new(Fault::Internal, "it says nothing"))?;
                self.encode(&Notification { jsonrpc: "2.0", method: "event", params: told })
            }
        }
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What its answer is matched by; `None` for a notification, which gets none.
    pub id: Option<Value>,
    /// The command's name.
    pub method: String,
    /// The command's params, always an object.
    pub params: Value,
}

/// A request that is none, with the id that its answer carries.
#[derive(Debug, Clone, PartialEq)]
pub struct BadRequest {
    /// The request's id where it could be read, else null.
    pub id: Value,
    /// What is wrong.
    pub failure: Failure,
}

/// One message from a sibling.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A request alone.
    One(Result<Request, BadRequest>),
    /// Several, answered together.
    Batch(Vec<Result<Request, BadRequest>>),
}

impl Message {
    /// Tells requests from what is none.
    #[must_use]
    pub fn from_value(value: Value) -> Self {
        let refuse = |message: String| {
            Self::One(Err(BadRequest { id: Value::Null, failure: Failure::new(Fault::InvalidRequest, message) }))
        };
        match value {
            Value::Array(items) if items.is_empty() => refuse("the batch is empty".into()),
            Value::Array(items) if items.len() > MOST_IN_BATCH => {
                refuse(format!("the batch has {} requests: at most {MOST_IN_BATCH}", items.len()))
            }
            Value::Array(items) => Self::Batch(items.into_iter().map(Request::from_value).collect()),
            value => Self::One(Request::from_value(value)),
        }
    }

    /// How many requests it counts for.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Batch(all) => all.len(),
        }
    }
}

impl Request {
    fn from_value(value: Value) -> Result<Self, BadRequest> {
        let refuse =
            |id: Value, message: &str| Err(BadRequest { id, failure: Failure::new(Fault::InvalidRequest, message) });
        let Value::Object(mut fields) = value else {
            return refuse(Value::Null, "a request is an object: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":…}");
        };
        // Any id type is echoed; structures can't be ids.
        let id = match fields.remove("id") {
            Some(Value::Array(_) | Value::Object(_)) => {
                return refuse(Value::Null, "id: a number, a text, a boolean or null");
            }
            // It has been read as the nearest number there is, and would not come back as it was sent.
            Some(Value::Number(id)) if id.is_f64() && id.as_f64().is_some_and(|id| id.abs() >= EXACT) => {
                return refuse(Value::Null, "id: an integer beyond 64 bits can't be echoed: send it as text");
            }
            id => id,
        };
        let echo = || id.clone().unwrap_or_default();
        if fields.remove("jsonrpc") != Some(json!("2.0")) {
            return refuse(echo(), "jsonrpc: must be \"2.0\"");
        }
        let Some(Value::String(method)) = fields.remove("method") else {
            return refuse(echo(), "method: the name of a command, as text");
        };
        let params = match fields.remove("params") {
            None | Some(Value::Null) => json!({}),
            Some(Value::Object(params)) => params.into(),
            Some(Value::Array(mut list)) if list.len() == 1 && list[0].is_object() => list.remove(0),
            Some(Value::Array(list)) if list.is_empty() => json!({}),
            Some(_) => {
                let failure = Failure::new(Fault::InvalidParams, "params: an object, or an array of one object");
                return Err(BadRequest { id: echo(), failure });
            }
        };
        if let Some(odd) = fields.keys().next() {
            return refuse(echo(), &format!("{odd:?} is no field of a request"));
        }
        Ok(Self { id, method, params })
    }
}

/// The answer to one request.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    jsonrpc: &'static str,
    id: Value,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Result(Value),
    Error(Value),
}

impl Answer {
    /// The answer to request `id`; `trace_id` finds a failure in the logs.
    #[must_use]
    pub fn new(id: Value, outcome: Result<Value, Failure>, trace_id: impl FnOnce() -> String) -> Self {
        let outcome = match outcome {
            Ok(result) => Outcome::Result(result),
            Err(failure) => {
                let fault = failure.fault;
                let mut data = json!({
                    "code": fault.code(),
                    "retryable": fault.retryable(),
                    "doc": format!("/openrpc.json#/components/errors/{}", fault.code()),
                    "trace_id": trace_id(),
                });
                if let Some(ms) = failure.retry_after_ms() {
                    data["retry_after_ms"] = ms.into();
                }
                Outcome::Error(json!({"code": fault.rpc(), "message": failure.message, "data": data}))
            }
        };
        Self { jsonrpc: "2.0", id, outcome }
    }
}

/// A notification that carries an event.
#[derive(Debug, Clone, Serialize)]
struct Notification<T> {
    jsonrpc: &'static str,
    method: &'static str,
    params: T,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> Result<Request, BadRequest> {
        match Message::from_value(Codec::Json.decode(text.as_bytes()).unwrap()) {
            Message::One(one) => one,
            Message::Batch(_) => panic!("a batch"),
        }
    }

    #[test]
    fn any_plain_id_is_echoed() {
        for id in [
            "1",
            "-1",
            "9007199254740993",
            "18446744073709551615",
            "-9223372036854775808",
            "0.5",
            "\"x\"",
            "\"\"",
            "null",
            "true",
        ] {
            let request = one(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#)).unwrap();
            let answer = Answer::new(request.id.unwrap(), Ok(json!(1)), String::new);
            assert_eq!(
                String::from_utf8(Codec::Json.encode(&answer).unwrap()).unwrap(),
                format!(r#"{{"jsonrpc":"2.0","id":{id},"result":1}}"#)
            );
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_id() {
        let fault = |text: &str| one(text).map_err(|bad| (bad.id, bad.failure.fault)).unwrap_err();
        assert_eq!(fault("1"), (Value::Null, Fault::InvalidRequest));
        assert_eq!(fault("[]"), (Value::Null, Fault::InvalidRequest));
        assert_eq!(fault(r#"{"id":1,"method":"m"}"#), (json!(1), Fault::InvalidRequest));
        assert_eq!(fault(r#"{"jsonrpc":"2.0","id":2}"#), (json!(2), Fault::InvalidRequest));
        assert_eq!(fault(r#"{"jsonrpc":"2.0","id":3,"method":"m","params":4}"#), (json!(3), Fault::InvalidParams));
        assert_eq!(fault(r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#), (Value::Null, Fault::InvalidRequest));
        assert_eq!(fault(r#"{"jsonrpc":"2.0","id":5,"method":"m","x":1}"#), (json!(5), Fault::InvalidRequest));
        for id in ["18446744073709551616", "-9223372036854775809", "1e300"] {
            let inexact = one(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#)).unwrap_err();
            assert_eq!((inexact.id, inexact.failure.fault), (Value::Null, Fault::InvalidRequest), "{id}");
            assert!(inexact.failure.message.contains("text"), "{}", inexact.failure.message);
        }
        let params = one(r#"{"jsonrpc":"2.0","method":"m","params":[{"a":1}]}"#).unwrap();
        assert_eq!((params.id, params.params), (None, json!({"a": 1})));
    }

    proptest! {
        #[test]
        fn msgpack_says_the_same_as_json(n: i64, text: String) {
            let message = json!({"jsonrpc": "2.0", "id": n, "method": text, "params": {"a": [n, text]}});
            let there = Codec::Msgpack.decode(&Codec::Msgpack.encode(&message).unwrap()).unwrap();
            prop_assert_eq!(&there, &message);
            prop_assert_eq!(Codec::Json.decode(&Codec::Json.encode(&message).unwrap()).unwrap(), message);
        }
    }
}
