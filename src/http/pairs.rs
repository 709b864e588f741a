//! Pairs over HTTP: made, read, commanded and ended.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, Uri, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    Asks, Gateway,
    auth::Bearer,
    problem::{Named, Problem},
};
use crate::{
    node::{Line, NewPair},
    protocol::{
        Cause, Codec, Failure, Fault, Grants, Message, OneOrMany, PairId, RoomName, Side, check_meta, strict_json,
    },
    socket::{Caller, Calls},
};

/// The body of `POST /v1/pairs`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    room: RoomName,
    #[serde(default)]
    format: Option<OneOrMany>,
    #[serde(default)]
    meta: Map<String, Value>,
    #[serde(default)]
    linger: Option<u64>,
    #[serde(default)]
    grants: Option<Vec<String>>,
}

/// Reads a body as strictly as everything else.
pub(super) fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let value = strict_json(bytes).map_err(|why| Failure::new(Fault::Parse, format!("body: {why}")))?;
    if !value.is_object() {
        return Err(Failure::new(Fault::InvalidParams, "body: a JSON object"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| Failure::misfit("body", &error))
}

/// The pair that a path names. What can't be a pair is answered like one that is not there.
pub(super) fn pair_of(text: &str) -> Result<PairId, Failure> {
    text.parse().map_err(|_| Failure::new(Fault::NotFound, "there is no such pair"))
}

/// `POST /v1/pairs`
pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    uri: Uri,
    bytes: Bytes,
) -> Result<Response, Problem> {
    let node = &gateway.node;
    if node.draining.is_cancelled() {
        return Err(Problem::new(Fault::Draining, "the node is draining: ask again, another one answers"));
    }
    // Who asks before what: a stranger learns nothing of what would be right.
    let bearer = Bearer::of(&headers, &uri)?;
    let wish = body::<CreateBody>(&bytes);
    let room = wish.as_ref().ok().map(|wish| &wish.room);
    let authority = gateway.authority(&bearer, Asks { action: "pair.create", room }).await?;
    let CreateBody { room, format, meta, linger, grants } = wish?;
    let offers = format.map(Vec::from).unwrap_or_default();
    check_meta(&meta)?;
    let longest = node.settings.longest_linger;
    if linger.is_some_and(|seconds| seconds > longest.as_secs()) {
        let message = format!("linger: 0 to {} seconds", longest.as_secs());
        return Err(Problem::new(Fault::InvalidParams, message));
    }
    let grants = grants.map_or_else(|| Ok(Grants::of_a_sibling().common(&authority.grants)), Grants::read)?;
    if let Some(name) = authority.grants.lacking(&grants) {
        return Err(Problem::new(Fault::Forbidden, format!("grants: {name} is more than the caller has")));
    }
    let new = NewPair { room, offers, meta, linger: linger.map(Duration::from_secs), authority };
    let (pair, facts) = node.create_pair(new).await?;
    let base = gateway.base_url(&headers);
    let side = |side: Side, grants: Grants| -> Result<Value, Failure> {
        let mut said = node.sign_ticket(side, pair, grants, None)?;
        said["url"] = format!("{base}/v1/pairs/{pair}/{}", side.as_str()).into();
        if let Some(fields) = said.as_object_mut() {
            fields.remove("side");
        }
        Ok(said)
    };
    let answer = json!({
        "pair": pair, "room": facts.room, "format": facts.format, "linger": facts.linger_seconds,
        "client": side(Side::Client, Grants::default())?, "sibling": side(Side::Sibling, grants)?,
    });
    let place = [(header::LOCATION, format!("/v1/pairs/{pair}"))];
    Ok((StatusCode::CREATED, place, Json(answer)).into_response())
}

/// `GET /v1/pairs/{pair}`
pub(super) async fn read(
    State(gateway): State<Arc<Gateway>>,
    Named(pair): Named,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    Ok(Json(gateway.caller(&pair, &headers, &uri, Some("pair.get"))?.state().await?))
}

/// `DELETE /v1/pairs/{pair}`
pub(super) async fn end(
    State(gateway): State<Arc<Gateway>>,
    Named(pair): Named,
    headers: HeaderMap,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    gateway.caller(&pair, &headers, &uri, Some("pair.end"))?;
    let cause = Cause { key: None, id: None, sibling: Some("http".into()) };
    gateway.node.end_pair(pair_of(&pair)?, None, cause, &Line::default()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/pairs/{pair}/commands`: what a sibling would send, one message a request.
pub(super) async fn command(
    State(gateway): State<Arc<Gateway>>,
    Named(pair): Named,
    headers: HeaderMap,
    uri: Uri,
    bytes: Bytes,
) -> Result<Response, Problem> {
    let calls = gateway.caller(&pair, &headers, &uri, None)?;
    let message = match Codec::Json.decode(&bytes) {
        Ok(value) => Message::from_value(value),
        Err(failure) => Message::One(Err(crate::protocol::BadRequest { id: Value::Null, failure })),
    };
    gateway.limits.commands(pair_of(&pair)?, message.count())?;
    Ok(match calls.answer(message).await {
        Some(answer) => Json(answer).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

impl Gateway {
    /// The commands of whoever sent a request for a pair, if it may give them: by name, or any.
    fn caller(&self, pair: &str, headers: &HeaderMap, uri: &Uri, grant: Option<&str>) -> Result<Calls, Failure> {
        let pair = pair_of(pair)?;
        let grants = self.grants_for_pair(&Bearer::of(headers, uri)?, pair, Side::Sibling)?.grants;
        if let Some(grant) = grant.filter(|grant| !grants.cover(grant)) {
            return Err(Failure::new(Fault::Forbidden, format!("the grant {grant} is missing")));
        }
        Ok(Calls::new(&self.node, Caller { pair, name: "http".into(), grants }))
    }

    /// Scheme and authority for the sockets of a pair: as configured, else as the request reached this node.
    fn base_url(&self, headers: &HeaderMap) -> String {
        if let Some(url) = &self.access.public_url {
            return url.clone();
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        format!("ws://{}", host.filter(|host| host.parse::<http::uri::Authority>().is_ok()).unwrap_or("localhost"))
    }
}
