//! Calls: carrying out what a sibling asks for, whichever way it asks (socket or HTTP).

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    node::{Facts, Found, Line, Node, RoomState},
    protocol::{
        Answer, BadRequest, Cause, Command, Failure, Fault, Grants, METHODS, MembersParams, Message, PairId, Request,
        Side, TicketParams,
    },
};

/// Who asks, and what it may.
#[derive(Clone)]
pub struct Caller {
    /// For which pair.
    pub pair: PairId,
    /// Its name in the causes of events: a sibling's id, or "http".
    pub name: String,
    /// What it may do.
    pub grants: Grants,
}

/// The commands of one caller on one node.
#[derive(Clone)]
pub struct Calls {
    node: Arc<Node>,
    caller: Arc<Caller>,
    line: Arc<Line>,
}

impl Calls {
    /// Commands for `caller`.
    #[must_use]
    pub fn new(node: &Arc<Node>, caller: Caller) -> Self {
        Self { node: Arc::clone(node), caller: Arc::new(caller), line: Arc::default() }
    }

    /// Answers a message: what is to be sent back, if anything.
    pub async fn answer(&self, message: Message) -> Option<Value> {
        match message {
            Message::One(one) => self.answer_one(one).await.and_then(|answer| serde_json::to_value(answer).ok()),
            Message::Batch(all) => {
                // At once, and answered in the order of the requests.
                let answers = join_all(all.into_iter().map(|one| self.answer_one(one))).await;
                let answers: Vec<_> = answers.into_iter().flatten().collect();
                if answers.is_empty() { None } else { serde_json::to_value(answers).ok() }
            }
        }
    }

    async fn answer_one(&self, one: Result<Request, BadRequest>) -> Option<Answer> {
        match one {
            Ok(Request { id, method, params }) => {
                let outcome = self.call(&method, params, id.clone()).await;
                Some(Answer::new(id?, outcome, trace_id))
            }
            Err(BadRequest { id, failure }) => Some(Answer::new(id, Err(failure), trace_id)),
        }
    }

    async fn call(&self, method: &str, params: Value, id: Option<Value>) -> Result<Value, Failure> {
        // An unknown method is said to be so before a grant for it is missed.
        let known = METHODS.iter().any(|entry| entry.name == method);
        if known && method != "rpc.discover" && !self.caller.grants.cover(method) {
            let message = format!("the grant {method} is missing: ask for a ticket that has it");
            return Err(Failure::new(Fault::Forbidden, message));
        }
        let (command, key) = Command::read(method, params)?;
        let cause = match key {
            Some(key) => Cause { key: Some(key), id: None, sibling: None },
            None => Cause { key: None, id, sibling: Some(self.caller.name.clone()) },
        };
        let (node, pair, line) = (&self.node, self.caller.pair, &self.line);
        match command {
            Command::PairGet => self.state().await,
            Command::PairEnd(params) => node.end_pair(pair, params.reason, cause, line).await,
            Command::RoomGet => Ok(self.own_room().await?.told()),
            Command::RoomMembers(params) => self.members(params).await,
            Command::Discover => Ok(super::discover::open_rpc()),
            Command::Watch(_) | Command::Unwatch(_) | Command::Ack(_) => node.note(pair, command, cause, line).await,
            Command::Signal(params) => node.signal(pair, params, cause).await,
            Command::PairTicket(_) | Command::RoomSet(_) | Command::RoomKick(_) | Command::RoomClose(_) => {
                let (calls, key, name) = (self.clone(), cause.key.clone(), command.name());
                node.once(pair, key, name, async move { calls.decide(command, cause).await }).await
            }
            command => node.ask(pair, command, cause, line).await,
        }
    }

    /// Carries out what is not for the pair's client socket.
    async fn decide(self, command: Command, cause: Cause) -> Result<Value, Failure> {
        let node = &self.node;
        let Facts { room, authority, .. } = node.find_pair(self.caller.pair).await?.facts;
        match command {
            Command::PairTicket(params) => self.ticket(params),
            Command::RoomSet(spec) => Ok(node.set_room(&room, Some(*spec), &authority, Some(cause)).await?.told()),
            Command::RoomKick(params) => node.kick(&room, params, &authority, cause).await,
            Command::RoomClose(params) => node.close_room(&room, params.reason, &authority, Some(cause)).await,
            other => Err(Failure::new(Fault::Internal, format!("{} is for the client socket", other.name()))),
        }
    }

    /// The pair's state: the actor's own account while there is a client socket, else what the record says.
    pub async fn state(&self) -> Result<Value, Failure> {
        let (node, pair) = (&self.node, self.caller.pair);
        let cause = Cause { key: None, id: None, sibling: None };
        let mut state = match node.ask(pair, Command::PairGet, cause, &self.line).await {
            Err(failure) if failure.fault == Fault::ClientDetached => {
                standing(node, pair, &node.find_pair(pair).await?).await?
            }
            state => state?,
        };
        node.count_unread(pair, &mut state).await?;
        state["siblings"] = node.count_siblings(pair).await?.into();
        Ok(state)
    }

    fn ticket(&self, params: TicketParams) -> Result<Value, Failure> {
        let grants = match params.grants {
            Some(names) => Grants::read(names)?,
            None => self.caller.grants.clone(),
        };
        if let Some(name) = self.caller.grants.lacking(&grants) {
            let message = format!("grants: {name} is more than the caller has");
            return Err(Failure::new(Fault::Forbidden, message));
        }
        // Who opens the client socket speaks as the client.
        if params.side == Side::Client && !self.caller.grants.cover("client.*") {
            let message = "side: the grant client.* is missing, without which nobody may be the client";
            return Err(Failure::new(Fault::Forbidden, message));
        }
        let grants = if params.side == Side::Client { Grants::default() } else { grants };
        self.node.sign_ticket(params.side, self.caller.pair, grants, params.ttl)
    }

    /// The pair's own room, if its client could be there: one that has become private is none of its business.
    async fn own_room(&self) -> Result<RoomState, Failure> {
        let Facts { room, authority, .. } = self.node.find_pair(self.caller.pair).await?.facts;
        let state = self.node.room(&room).await?;
        state.ruling.admits(&authority, &room).map(|()| state)
    }

    async fn members(&self, params: MembersParams) -> Result<Value, Failure> {
        let room = self.own_room().await?.name;
        self.node.members(&room, params.after.as_deref(), params.size()).await
    }
}

/// A pair's state as its record tells it, with the place up to where its events were dealt with.
///
/// # Errors
/// When the broker can't be reached.
pub async fn standing(node: &Node, pair: PairId, found: &Found) -> Result<Value, Failure> {
    let ruling = node.room(&found.facts.room).await?.ruling;
    let settings = node.settings.pipe.with(&ruling.spec, found.facts.chosen.as_deref());
    let client = match (&found.record.holder, found.record.fence.epoch) {
        (Some(_), _) => "live",
        (None, 0) => "awaited",
        (None, _) => "detached",
    };
    Ok(json!({
        "pair": pair, "room": found.facts.room, "format": found.facts.format, "epoch": found.record.fence.epoch,
        "client": if found.record.ended { "ended" } else { client }, "node": found.record.holder,
        "meta": found.facts.meta, "settings": settings, "paused": {"in": null, "out": null},
        "counters": null, "rtt_ms": null, "unread": found.facts.acked,
    }))
}

/// A name by which a failure can be found in the logs.
#[must_use]
pub fn trace_id() -> String {
    let id = opentelemetry::trace::TraceId::from_bytes(rand::random()).to_string();
    tracing::debug!(trace_id = id, "a request failed");
    id
}
