//! A pair made over HTTP, its tickets, and its commands over HTTP.

use serde_json::{Value, json};

use super::{ADMIN_KEY, Dial, Gateway, Reply};

/// A JSON-RPC error.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub code: i64,
    pub message: String,
    pub data: Value,
}

impl Fault {
    /// Splits a JSON-RPC response into its result or its error.
    pub fn split(response: &Value) -> Result<Value, Self> {
        assert_eq!(response["jsonrpc"], "2.0", "{response}");
        match (response.get("result"), response.get("error")) {
            (Some(result), None) => Ok(result.clone()),
            (None, Some(error)) => Err(Self {
                code: error["code"].as_i64().expect("an error has a number"),
                message: error["message"].as_str().expect("an error has a message").to_owned(),
                data: error["data"].clone(),
            }),
            _ => panic!("a response has a result or an error, not both: {response}"),
        }
    }
}

/// A pair as its maker got it.
#[derive(Clone, Debug)]
pub struct Pair {
    pub id: String,
    pub room: String,
    pub client_ticket: String,
    pub sibling_ticket: String,
    /// The whole response of `POST /v1/pairs`.
    pub made: Value,
}

impl Pair {
    /// Makes a pair in a room of one format, without an account.
    pub async fn make(node: &Gateway, room: &str, format: &str) -> Self {
        Self::from(node, json!({"room": room, "format": format})).await
    }

    pub async fn from(node: &Gateway, body: Value) -> Self {
        Self::from_reply(&node.send("POST", "/v1/pairs", &[], Some(&body)).await)
    }

    /// Makes a pair as the admin, who may ask for any grants.
    pub async fn by_admin(node: &Gateway, body: Value) -> Self {
        Self::from_reply(&node.ask("POST", "/v1/pairs", ADMIN_KEY, Some(&body)).await)
    }

    /// Reads the answer to the request that made it.
    pub fn from_reply(reply: &Reply) -> Self {
        assert_eq!(reply.status, 201, "{}", reply.text());
        let made = reply.json();
        let word = |value: &Value| value.as_str().expect("a string in the made pair").to_owned();
        Self {
            id: word(&made["pair"]),
            room: word(&made["room"]),
            client_ticket: word(&made["client"]["ticket"]),
            sibling_ticket: word(&made["sibling"]["ticket"]),
            made,
        }
    }

    pub fn path(&self, tail: &str) -> String {
        format!("/v1/pairs/{}{tail}", self.id)
    }

    pub fn dial_client(&self, node: &Gateway) -> Dial {
        Dial::to(node, self.path("/client")).bearer(&self.client_ticket)
    }

    pub fn dial_sibling(&self, node: &Gateway) -> Dial {
        Dial::to(node, self.path("/sibling")).bearer(&self.sibling_ticket)
    }

    /// Posts a JSON-RPC message as it is.
    pub async fn post(&self, node: &Gateway, message: &Value) -> Reply {
        node.ask("POST", &self.path("/commands"), &self.sibling_ticket, Some(message)).await
    }

    /// One command over HTTP.
    pub async fn command(&self, node: &Gateway, method: &str, params: Value) -> Result<Value, Fault> {
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let reply = self.post(node, &message).await;
        assert_eq!(reply.status, 200, "{method}: {}", reply.text());
        Fault::split(&reply.json())
    }

    /// The state, as `GET /v1/pairs/{pair}` tells it.
    pub async fn state(&self, node: &Gateway) -> Value {
        let reply = node.ask("GET", &self.path(""), &self.sibling_ticket, None).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }
}

/// Finds a field anywhere in a value: the contract names the counters, not how they nest.
pub fn deep<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    match value {
        Value::Object(map) => map.get(name).or_else(|| map.values().find_map(|inner| deep(inner, name))),
        _ => None,
    }
}

/// A counter by its name, wherever it stands: `dropped_frames`, or `frames` within `dropped`.
pub fn counter(value: &Value, name: &str) -> u64 {
    let nested = || {
        let (outer, inner) = name.split_once('_')?;
        deep(value, outer)?.get(inner)
    };
    let found = deep(value, name).or_else(nested).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no counter {name} in {value}"))
}
