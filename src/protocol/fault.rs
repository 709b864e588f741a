//! Faults: the ways in which a request can fail, one table for JSON-RPC, HTTP and close codes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $rpc:literal, $code:literal, $status:literal, $retryable:literal;)*) => {
        /// A kind of failure, stable across versions.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Fault { $($(#[$doc])* $name,)* }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The JSON-RPC error code.
            #[must_use]
            pub const fn rpc(self) -> i64 {
                match self { $(Self::$name => $rpc,)* }
            }

            /// The stable word for it.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Whether the same request may succeed later.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)* }
            }
        }
    };
}

faults! {
    /// The message is not JSON or MessagePack as it is taken here.
    Parse = -32700, "parse_error", 400, false;
    /// The message is no JSON-RPC 2.0 request.
    InvalidRequest = -32600, "invalid_request", 400, false;
    /// There is no such method.
    UnknownMethod = -32601, "unknown_method", 404, false;
    /// The method's params are wrong; the message names the field.
    InvalidParams = -32602, "invalid_params", 400, false;
    /// A field that is none; the message names it.
    UnknownField = -32602, "unknown_field", 400, false;
    /// A defect of the gateway.
    Internal = -32603, "internal", 500, true;
    /// The ticket or token is missing, bad or expired.
    Unauthorized = -32001, "unauthorized", 401, false;
    /// A grant is missing; the message names it.
    Forbidden = -32003, "forbidden", 403, false;
    /// No such pair or room.
    NotFound = -32004, "not_found", 404, false;
    /// No answer in time: the effect is unknown.
    Timeout = -32008, "timeout", 504, true;
    /// It does not fit the present state.
    Conflict = -32009, "conflict", 409, false;
    /// The pair has ended.
    Gone = -32010, "gone", 410, false;
    /// Over a limit in bytes.
    TooLarge = -32013, "too_large", 413, false;
    /// Client and room have no format in common.
    NoCommonFormat = -32016, "no_common_format", 406, false;
    /// The pair has no live client socket.
    ClientDetached = -32017, "client_detached", 409, true;
    /// Too many requests.
    RateLimited = -32029, "rate_limited", 429, true;
    /// The room has as many members as it takes.
    RoomFull = -32056, "room_full", 503, true;
    /// The node has too much to do.
    Overloaded = -32053, "overloaded", 503, true;
    /// The node is stopping; another will answer.
    Draining = -32054, "draining", 503, true;
    /// Who decides on tokens, or has their keys, can't be reached.
    AuthorizerUnavailable = -32055, "authorizer_unavailable", 503, true;
    /// The broker can't be reached.
    BrokerUnavailable = -32050, "broker_unavailable", 503, true;
}

/// A failure and the sentence that says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its kind.
    pub fault: Fault,
    /// What went wrong and what would be right.
    pub message: String,
    /// How long to wait before trying again, in milliseconds, where that is known better than from its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wait_ms: Option<u64>,
}

impl Failure {
    /// A failure of this kind.
    #[must_use]
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into(), wait_ms: None }
    }

    /// The same failure, which goes away after `wait`.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        let wait_ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).ok();
        Self { wait_ms, ..self }
    }

    /// A value that does not fit its type: the message names the field.
    #[must_use]
    pub fn misfit(what: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        let text = error.inner().to_string();
        let fault = if text.starts_with("unknown field") { Fault::UnknownField } else { Fault::InvalidParams };
        let place = match error.path().to_string() {
            path if path == "." => what.to_owned(),
            path => format!("{what}.{path}"),
        };
        let text = match text.rsplit_once(", expected ") {
            Some((found, expected)) => format!("{found}, expected {}", plainly(expected)),
            None => text,
        };
        Self::new(fault, format!("{place}: {text}"))
    }

    /// How long to wait before trying again, in milliseconds, where that helps.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.fault.retryable().then_some(match (self.wait_ms, self.fault) {
            (Some(wait), _) => wait,
            (None, Fault::Timeout | Fault::ClientDetached) => 200,
            (None, _) => 1_000,
        })
    }
}

/// What a reader expected, in the words of those who write JSON.
fn plainly(expected: &str) -> &str {
    match expected {
        "u16" | "u32" | "u64" | "usize" | "i64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a map" => "an object",
        "a sequence" => "a list",
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misfit_is_told_in_plain_words() {
        for (value, told) in [
            (
                serde_json::json!({"capacity": "many"}),
                "body.capacity: invalid type: string \"many\", expected a whole number",
            ),
            (serde_json::json!({"rate": 7}), "body.rate: invalid type: integer `7`, expected an object"),
            (serde_json::json!({"echo": 1}), "body.echo: invalid type: integer `1`, expected true or false"),
        ] {
            let misfit = serde_path_to_error::deserialize::<_, crate::protocol::RoomSpec>(value).unwrap_err();
            assert_eq!(Failure::misfit("body", &misfit).message, told);
        }
    }

    #[test]
    fn codes_and_words_differ() {
        for (i, fault) in Fault::ALL.iter().enumerate() {
            for other in &Fault::ALL[..i] {
                assert_ne!(fault.code(), other.code());
            }
        }
    }
}
