//! Rooms over HTTP: listed, read, specified, and published in.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
};
use http::{HeaderMap, StatusCode, Uri, header};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Asks, Gateway,
    auth::Bearer,
    pairs::body,
    problem::{Named, Problem},
};
use crate::protocol::{Account, Authority, Failure, Fault, FrameKind, MembersParams, RoomName, RoomSpec};

/// A part of a list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    after: Option<String>,
    limit: Option<usize>,
}

impl PageQuery {
    fn of(uri: &Uri) -> Result<MembersParams, Failure> {
        let wrong = |error| Failure::new(Fault::InvalidParams, format!("query: {error}"));
        let Self { after, limit } = Query::<Self>::try_from_uri(uri).map_err(wrong)?.0;
        MembersParams { after, limit }.check()
    }
}

/// `GET /v1/rooms`: those with specifications that were set, as far as the caller may enter them.
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    let authority = gateway.room_authority(&headers, &uri, "room.get", None).await?;
    let page = PageQuery::of(&uri)?;
    Ok(Json(gateway.node.rooms(page.after.as_deref(), page.size(), &authority).await?))
}

/// `GET /v1/rooms/{room}`
pub(super) async fn read(
    State(gateway): State<Arc<Gateway>>,
    Named(room): Named,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    let name = room_of(&room)?;
    let state = gateway.node.room(&name).await?;
    if !state.ruling.spec.public {
        gateway.room_authority(&headers, &uri, "room.get", Some(&name)).await?;
    }
    if state.ruling.owner.is_none() && state.members == 0 {
        return Err(Problem::new(Fault::NotFound, "the room has neither a specification nor members"));
    }
    Ok(Json(state.told()))
}

/// `PUT /v1/rooms/{room}`
pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Named(room): Named,
    headers: HeaderMap,
    uri: Uri,
    bytes: Bytes,
) -> Result<Json<Value>, Problem> {
    let name = room_of(&room)?;
    let authority = gateway.room_authority(&headers, &uri, "room.set", Some(&name)).await?;
    let spec: RoomSpec = body(&bytes)?;
    Ok(Json(gateway.node.set_room(&name, Some(spec), &authority, None).await?.told()))
}

/// `DELETE /v1/rooms/{room}`
pub(super) async fn unset(
    State(gateway): State<Arc<Gateway>>,
    Named(room): Named,
    headers: HeaderMap,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let name = room_of(&room)?;
    let authority = gateway.room_authority(&headers, &uri, "room.set", Some(&name)).await?;
    gateway.node.set_room(&name, None, &authority, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/rooms/{room}/members`
pub(super) async fn members(
    State(gateway): State<Arc<Gateway>>,
    Named(room): Named,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    let name = room_of(&room)?;
    if !gateway.node.room(&name).await?.ruling.spec.public {
        gateway.room_authority(&headers, &uri, "room.members", Some(&name)).await?;
    }
    let page = PageQuery::of(&uri)?;
    Ok(Json(gateway.node.members(&name, page.after.as_deref(), page.size()).await?))
}

/// `POST /v1/rooms/{room}/messages`: the body is one frame.
pub(super) async fn post(
    State(gateway): State<Arc<Gateway>>,
    Named(room): Named,
    headers: HeaderMap,
    uri: Uri,
    bytes: Bytes,
) -> Result<Json<Value>, Problem> {
    let name = room_of(&room)?;
    let authority = gateway.room_authority(&headers, &uri, "client.send", Some(&name)).await?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let kind = match essence.as_str() {
        "text/plain" | "application/json" => FrameKind::Text,
        _ => FrameKind::Binary,
    };
    if kind == FrameKind::Text && std::str::from_utf8(&bytes).is_err() {
        return Err(Problem::new(Fault::InvalidParams, "body: not UTF-8: send it as application/octet-stream"));
    }
    Ok(Json(gateway.node.post_frame(&name, kind, &bytes, &authority).await?))
}

/// The room that a path names.
pub(super) fn room_of(text: &str) -> Result<RoomName, Failure> {
    text.parse().map_err(|bad| Failure::new(Fault::NotFound, format!("{bad}")))
}

impl Gateway {
    /// On whose behalf something is asked of rooms: an account's or the admin's, with this grant, for this room.
    async fn room_authority(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        grant: &'static str,
        room: Option<&RoomName>,
    ) -> Result<Authority, Failure> {
        let authority = self.authority(&Bearer::of(headers, uri)?, Asks { action: grant, room }).await?;
        if authority.account == Account::Anonymous {
            let message = "an account's token or the admin key is needed, as Authorization: Bearer";
            return Err(Failure::new(Fault::Unauthorized, message));
        }
        if !authority.grants.cover(grant) {
            return Err(Failure::new(Fault::Forbidden, format!("the grant {grant} is missing")));
        }
        match room {
            Some(room) if !authority.covers(room) => {
                Err(Failure::new(Fault::Forbidden, "the token does not go for this room"))
            }
            _ => Ok(authority),
        }
    }
}
