//! The three paths that become sockets.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    extract::{Query, State},
    response::Response,
};
use http::{HeaderMap, HeaderValue, Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Asks, Gateway,
    auth::{Admitted, Bearer},
    pairs::pair_of,
    problem::{Named, Problem},
    rooms::room_of,
    upgrade::Handshake,
};
use crate::{
    node::{Feed, NewPair, Pass, Unserved, Wish, now_seconds, time_text},
    protocol::{Codec, Failure, Fault, Format, Grants, LONGEST_TICKET, PairId, SiblingId, Side, Ticket, read_cursor},
    socket::{Caller, Service, SiblingSocket, serve_client, serve_sibling, standing},
};

/// What a socket's query may say.
#[derive(Deserialize, Default)]
struct SocketQuery {
    format: Option<String>,
    cursor: Option<String>,
    ping: Option<u64>,
    received: Option<u64>,
    epoch: Option<u64>,
    replay: Option<u64>,
}

impl SocketQuery {
    fn of(uri: &Uri) -> Result<Self, Failure> {
        let query = Query::<Self>::try_from_uri(uri)
            .map_err(|error| Failure::new(Fault::InvalidParams, format!("query: {error}")))?
            .0;
        if query.ping.is_some_and(|seconds| !(1..=3_600).contains(&seconds)) {
            return Err(Failure::new(Fault::InvalidParams, "ping: 1 to 3600 seconds"));
        }
        Ok(query)
    }

    fn wish(&self) -> Wish {
        Wish { received: self.received, epoch: self.epoch, replay: self.replay }
    }

    /// What the client can speak: as the query says, else as the subprotocols do.
    fn offers(&self, protocols: &[String]) -> Result<Vec<Format>, Failure> {
        let Some(names) = &self.format else {
            return Ok(protocols.iter().filter_map(|name| Format::from_subprotocol(name)).collect());
        };
        let read = |name: &str| {
            Format::from_name(name.trim()).ok_or_else(|| {
                Failure::new(Fault::InvalidParams, "format: text, json, binary, any, or a list of them")
            })
        };
        names.split(',').map(read).collect()
    }
}

/// The subprotocol that a client is answered with: its own where the room lists it, that of the agreed format, else the
/// first known.
fn choose(protocols: &[String], format: Format, listed: &[String]) -> Option<String> {
    if let Some(own) = protocols.iter().find(|name| listed.contains(name)) {
        return Some(own.clone());
    }
    let of_format = protocols.iter().find(|name| Format::from_subprotocol(name) == Some(format));
    of_format.or_else(|| protocols.iter().find(|name| Format::from_subprotocol(name).is_some())).cloned()
}

/// `GET /v1/pairs/{pair}/client`
pub(super) async fn client(
    State(gateway): State<Arc<Gateway>>,
    Named(pair): Named,
    handshake: Handshake,
) -> Response {
    let opening = async {
        let query = gateway.admit(&handshake)?;
        let bearer = Bearer::of(&handshake.headers, &handshake.uri)?;
        let pair = pair_of(&pair)?;
        let Admitted { pass, .. } = gateway.grants_for_pair(&bearer, pair, Side::Client)?;
        let (opened, service) = gateway.open(pair, &query, &handshake.protocols).await?;
        Ok((opened, Service { pass, ..service }))
    };
    match opening.await {
        Ok((opened, service)) => gateway.serve(handshake, opened, service),
        Err(failure) => handshake.refuse(&gateway, failure),
    }
}

/// `GET /v1/rooms/{room}/client`: the pair is made on the way.
pub(super) async fn room_client(
    State(gateway): State<Arc<Gateway>>,
    Named(room): Named,
    handshake: Handshake,
) -> Response {
    let opening = async {
        let query = gateway.admit(&handshake)?;
        let room = room_of(&room)?;
        let bearer = Bearer::of(&handshake.headers, &handshake.uri)?;
        let authority = gateway.authority(&bearer, Asks { action: "client.open", room: Some(&room) }).await?;
        let (grants, until) = (Grants::of_a_sibling().common(&authority.grants), authority.until);
        let offers = query.offers(&handshake.protocols)?;
        let new = NewPair { room, offers, meta: serde_json::Map::new(), linger: None, authority };
        let (pair, _) = gateway.node.create_pair(new).await?;
        let said = gateway.node.sign_ticket(Side::Sibling, pair, grants, None)?;
        let (opened, mut service) = gateway.open(pair, &query, &handshake.protocols).await?;
        if let Some(until) = until {
            // It ends with the token that opened it, as with a ticket.
            let latest = now_seconds() + LONGEST_TICKET;
            let ticket = Ticket::new(Side::Client, pair, Grants::default(), until.min(latest));
            service.pass = gateway.node.admit(&ticket)?;
        }
        Ok((opened, service, said["ticket"].as_str().unwrap_or_default().to_owned()))
    };
    match opening.await {
        Ok((opened, service, ticket)) => {
            let pair = opened.pair.to_string();
            let mut response = gateway.serve(handshake, opened, service);
            for (name, value) in [("sibling-pair", pair), ("sibling-ticket", ticket)] {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        Err(failure) => handshake.refuse(&gateway, failure),
    }
}

/// `GET /v1/pairs/{pair}/sibling`
pub(super) async fn sibling(
    State(gateway): State<Arc<Gateway>>,
    Named(pair): Named,
    handshake: Handshake,
) -> Response {
    let protocol = handshake.protocols.iter().find(|name| Codec::from_subprotocol(name).is_some()).cloned();
    let codec = protocol.as_deref().and_then(Codec::from_subprotocol).unwrap_or_default();
    let opening = async {
        let query = gateway.admit(&handshake)?;
        let bearer = Bearer::of(&handshake.headers, &handshake.uri)?;
        let listening = gateway.listen_to(&pair, &bearer, query.cursor.as_deref()).await?;
        Ok((listening, query))
    };
    match opening.await {
        Ok((Listening { pair, grants, pass, feed, state }, query)) => {
            let id = SiblingId::fresh();
            let caller = Caller { pair, name: id.to_string(), grants };
            let socket = SiblingSocket { id, caller, pass, codec, feed, state };
            let (response, upgraded) = handshake.accept(protocol.as_deref());
            let node = &gateway.node;
            node.spawn_socket("sibling", serve_sibling(Arc::clone(node), socket, query.ping, upgraded));
            response
        }
        Err(failure) => handshake.refuse(&gateway, failure),
    }
}

/// `GET /v1/validate`: what an upgrade with the same ticket would be told.
pub(super) async fn validate(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    let Bearer::Token(text) = Bearer::of(&headers, &uri)? else {
        return Err(Problem::new(
            Fault::Unauthorized,
            "a ticket is needed: as Authorization: Bearer, or as ?ticket=",
        ));
    };
    let ticket = gateway.node.settings.ticket_keys.read(&text, now_seconds())?;
    gateway.node.check_revoked(&ticket)?;
    match ticket.aud {
        Side::Client => drop(gateway.node.find_pair(ticket.pair).await?),
        // A sibling may still hear the story of a pair that has ended.
        Side::Sibling => drop(gateway.node.find_even_ended(ticket.pair).await?),
    }
    let expires_at = time_text(SystemTime::UNIX_EPOCH + Duration::from_secs(ticket.exp));
    let said = json!({
        "valid": true, "pair": ticket.pair, "side": ticket.aud, "grants": ticket.grants, "expires_at": expires_at,
    });
    Ok(Json(said))
}

/// A listener that was let in.
pub(super) struct Listening {
    pub(super) pair: PairId,
    pub(super) grants: Grants,
    pub(super) pass: Pass,
    pub(super) feed: Feed,
    pub(super) state: Value,
}

impl Gateway {
    /// What holds for every socket: the node takes new ones, and the page it comes from may open one.
    fn admit(self: &Arc<Self>, handshake: &Handshake) -> Result<SocketQuery, Failure> {
        if self.node.draining.is_cancelled() {
            return Err(Failure::new(Fault::Draining, "the node is draining: come back, another one answers"));
        }
        self.check_origin(&handshake.headers)?;
        SocketQuery::of(&handshake.uri)
    }

    async fn open(
        &self,
        pair: PairId,
        query: &SocketQuery,
        protocols: &[String],
    ) -> Result<(Unserved, Service), Failure> {
        let opened = self.node.open_client(pair, query.offers(protocols)?, query.wish()).await?;
        let subprotocol = choose(protocols, opened.facts.format, &opened.ruling.spec.subprotocols);
        Ok((opened, Service { subprotocol, ping: query.ping, ..Service::default() }))
    }

    fn serve(self: &Arc<Self>, handshake: Handshake, opened: Unserved, service: Service) -> Response {
        let (mut response, upgraded) = handshake.accept(service.subprotocol.as_deref());
        // What `?epoch=` takes, for clients that can read it.
        response.headers_mut().insert("sibling-epoch", HeaderValue::from(opened.fence.epoch));
        self.node.spawn_socket("client", serve_client(Arc::clone(&self.node), opened, service, upgraded));
        response
    }

    /// Lets somebody listen to a pair's events, from a cursor on or from now on; also after the pair's end.
    pub(super) async fn listen_to(
        &self,
        pair: &str,
        bearer: &Bearer,
        cursor: Option<&str>,
    ) -> Result<Listening, Failure> {
        let pair = pair_of(pair)?;
        let Admitted { grants, pass } = self.grants_for_pair(bearer, pair, Side::Sibling)?;
        let after = cursor
            .map(|cursor| read_cursor(pair, cursor, &self.node.settings.ticket_keys))
            .transpose()
            .map_err(|bad| Failure::new(Fault::NotFound, bad.to_string()))?;
        // The feed first: what happens between the two looks is told, and the state is never older than the feed.
        let feed = Feed::open(&self.node, pair, after).await?;
        let found = self.node.find_even_ended(pair).await?;
        let mut state = standing(&self.node, pair, &found).await?;
        self.node.count_unread(pair, &mut state).await?;
        Ok(Listening { pair, grants, pass, feed, state })
    }
}
