//! Rooms: what holds in them, and who is in them.
//!
//! What holds is said, in this order, by the specification that an account set (a rule in the registry, the same for
//! all nodes), by the node's configuration, and by its defaults.

use std::sync::{Arc, LazyLock, atomic::Ordering::Relaxed};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Facts, Node, talk::counted};
use crate::{
    broker::{BrokerError, Census, Group, Member, Rule},
    hub::{Outbox, Room},
    protocol::{
        Account, Authority, EventKind, Failure, Fault, Fence, Format, PairId, Pattern, Position, Publish, RoomName,
        RoomSpec, Topic,
    },
};

/// How often a room is entered anew because its specification changed meanwhile.
const TRIES: usize = 4;

/// What holds in rooms that no account has specified.
#[derive(Debug, Clone, Default)]
pub struct RoomDefaults {
    /// Whether those without any specification are public.
    pub public: bool,
    /// The configuration's own specifications: the most exact pattern counts.
    pub specs: Vec<(Pattern, Arc<RoomSpec>)>,
}

/// What rooms are that nobody has specified, private and public ones: the same for all of them.
static PLAIN: [LazyLock<Arc<RoomSpec>>; 2] = [LazyLock::new(|| plain(false)), LazyLock::new(|| plain(true))];

fn plain(public: bool) -> Arc<RoomSpec> {
    Arc::new(RoomSpec { public, ..RoomSpec::default() })
}

/// What holds in a room.
#[derive(Debug, Clone, PartialEq)]
pub struct Ruling {
    /// Its specification.
    pub spec: Arc<RoomSpec>,
    /// Who set it, and may change it; `None` where nobody did.
    pub owner: Option<Account>,
    /// The rule's version in the registry; 0 where there is none.
    pub version: u64,
}

/// A rule as it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Laid {
    pub(super) owner: Account,
    pub(super) spec: RoomSpec,
}

impl Ruling {
    /// Whether it lets somebody be here.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`] for those without an account, [`Fault::Forbidden`] for others.
    pub fn admits(&self, authority: &Authority, room: &RoomName) -> Result<(), Failure> {
        if self.spec.public || authority.covers(room) {
            return Ok(());
        }
        Err(match authority.account {
            Account::Anonymous => {
                let message =
                    "the room is not public: send a token, or have its owner set \"public\" in its specification";
                Failure::new(Fault::Unauthorized, message)
            }
            Account::Admin | Account::Named(_) => {
                let rooms = authority.rooms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Failure::new(Fault::Forbidden, format!("the token does not go for this room: it goes for {rooms}"))
            }
        })
    }

    /// The rule that says so; `None` where none was set.
    pub(super) fn rule(&self) -> Option<Rule> {
        let laid = Laid { owner: self.owner.clone()?, spec: (*self.spec).clone() };
        let value = rmp_serde::to_vec_named(&laid).ok()?;
        (self.version != 0).then(|| Rule { version: self.version, value: value.into() })
    }

    /// Whether clients of this authority may publish here.
    #[must_use]
    pub fn lets_publish(&self, authority: &Authority) -> bool {
        self.spec.publish == Publish::All || authority.may_publish()
    }
}

/// Who wants to enter a room.
pub struct Entrant<'a> {
    /// On whose behalf.
    pub authority: &'a Authority,
    /// What it can speak, in order; empty when it says nothing.
    pub offers: &'a [Format],
}

impl Entrant<'_> {
    /// What it is to speak in a room that speaks `spoken`, if it may be there at all.
    pub(super) fn agree(&self, ruling: &Ruling, room: &RoomName, spoken: Option<Format>) -> Result<Format, Failure> {
        ruling.admits(self.authority, room)?;
        let Some(offers) = self.authority.limit(self.offers) else {
            let formats = self.authority.formats.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let message = format!("the token does not go for these formats: it goes for {formats}");
            return Err(Failure::new(Fault::Forbidden, message));
        };
        ruling.spec.agree(spoken, &offers)
    }
}

/// A room that was entered, for the cluster.
pub struct Entry {
    /// Which.
    pub room: RoomName,
    /// What the client speaks there.
    pub format: Format,
    /// What holds there.
    pub ruling: Ruling,
    /// Where it came to the room's talk.
    pub talk: Position,
    /// How many changes of rooms had been heard of before.
    heard: u64,
}

/// A room as others see it.
#[derive(Debug, Clone)]
pub struct RoomState {
    /// Its name.
    pub name: RoomName,
    /// What holds in it.
    pub ruling: Ruling,
    /// What it speaks, while it has members.
    pub speaks: Option<Format>,
    /// How many members it has.
    pub members: u64,
    /// The newest place in its talk.
    pub talk: Position,
}

impl RoomState {
    /// As it is told over every transport: its specification, and what became of it. Without a specified format, what it
    /// speaks is its format.
    #[must_use]
    pub fn told(&self) -> Value {
        let mut told = serde_json::to_value(&*self.ruling.spec).unwrap_or_default();
        if self.ruling.spec.format.is_empty() {
            told["format"] = json!(self.speaks);
        }
        told["room"] = json!(self.name);
        told["members"] = json!(self.members);
        told["speaks"] = json!(self.speaks);
        told["owner"] = match &self.ruling.owner {
            Some(Account::Named(name)) => json!(name),
            _ => Value::Null,
        };
        told["specified"] = json!(self.ruling.owner.is_some());
        told
    }
}

impl Node {
    /// What holds in a room under this rule.
    pub(super) fn ruling(&self, room: &RoomName, rule: Option<&Rule>) -> Ruling {
        if let Some(Rule { version, value }) = rule {
            match rmp_serde::from_slice::<Laid>(value) {
                Ok(Laid { owner, spec }) => {
                    return Ruling { spec: Arc::new(spec), owner: Some(owner), version: *version };
                }
                // Nobody but its owner gets in before this node is of that version too.
                Err(error) => {
                    tracing::warn!(%room, %error, "a room's specification is of another version: it is taken for private");
                    return Ruling { spec: Arc::default(), owner: Some(Account::Admin), version: *version };
                }
            }
        }
        let defaults = &self.settings.rooms;
        let configured = defaults.specs.iter().filter(|(pattern, _)| pattern.covers(room));
        match configured.max_by_key(|(pattern, _)| pattern.weight()) {
            Some((_, spec)) => Ruling { spec: Arc::clone(spec), owner: Some(Account::Admin), version: 0 },
            None => Ruling { spec: Arc::clone(&PLAIN[usize::from(defaults.public)]), owner: None, version: 0 },
        }
    }

    /// A room, in one look.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn room(&self, name: &RoomName) -> Result<RoomState, Failure> {
        let census = self.registry.census(&Group::Room(name.clone())).await?;
        Ok(self.room_state(name, &census))
    }

    pub(super) fn room_state(&self, name: &RoomName, census: &Census) -> RoomState {
        RoomState {
            name: name.clone(),
            ruling: self.ruling(name, census.rule.as_ref()),
            speaks: spoken(census),
            members: census.members,
            talk: census.talk,
        }
    }

    /// What somebody who wants to enter a room would speak there, if it may at all.
    ///
    /// # Errors
    /// What [`Ruling::admits`] and [`RoomSpec::agree`] say; [`Fault::BrokerUnavailable`] where that may be for want of a
    /// specification that the broker has just lost.
    pub(super) fn agree(&self, entrant: &Entrant<'_>, state: &RoomState) -> Result<Format, Failure> {
        let agreed = entrant.agree(&state.ruling, &state.name, state.speaks);
        agreed.map_err(|failure| match state.ruling.version == 0 && self.broker_is_healing() {
            true => Failure::new(Fault::BrokerUnavailable, "the broker has just come back: try again in a moment"),
            false => failure,
        })
    }

    /// Whether the rule that a client lived under was taken back. A broker that lost its data has lost it, too: then it is
    /// told again, with all else that it knew of the client.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn is_gone(
        &self,
        (pair, fence): (PairId, Fence),
        facts: &Facts,
        ruling: &Ruling,
    ) -> Result<bool, BrokerError> {
        match self.registry.look_up(pair).await? {
            Some(record) if record.fence.epoch >= fence.epoch => {
                Ok(self.registry.census(&Group::Room(facts.room.clone())).await?.rule.is_none())
            }
            _ => self.restore(pair, fence, facts, Some(ruling)).await.map(|_| false),
        }
    }

    /// How many siblings a pair has.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn count_siblings(&self, pair: PairId) -> Result<u64, Failure> {
        Ok(self.registry.census(&Group::Siblings(pair)).await?.members)
    }

    /// A page of a room's members, as it is told over every transport.
    ///
    /// # Errors
    /// [`Fault::InvalidParams`] for an `after` that is no member's id, or when the broker can't be reached.
    pub async fn members(&self, room: &RoomName, after: Option<&str>, limit: usize) -> Result<Value, Failure> {
        let after = after.map(str::parse::<PairId>).transpose();
        let after = after.map_err(|bad| Failure::new(Fault::InvalidParams, format!("after: {bad}")))?;
        let page = self.registry.members(&Group::Room(room.clone()), after.map(PairId::uuid), limit).await?;
        let after = page.last().filter(|_| page.len() == limit).map(|member| PairId::from_uuid(member.id));
        let members: Vec<_> = page
            .iter()
            .map(|member| {
                let epoch = rmp_serde::from_slice::<u64>(&member.value).ok();
                json!({"pair": PairId::from_uuid(member.id), "node": member.node, "epoch": epoch})
            })
            .collect();
        Ok(json!({"room": room, "members": members, "after": after}))
    }

    /// Listens to a room and becomes its member, for the cluster; the caller takes its seat then. `known` is what held in
    /// the room a moment ago.
    ///
    /// # Errors
    /// [`Fault::NoCommonFormat`], [`Fault::RoomFull`], what [`Ruling::admits`] says, or when the broker can't be reached;
    /// then the room is not entered.
    pub async fn enter(
        self: &Arc<Self>,
        (pair, fence): (PairId, Fence),
        room: &RoomName,
        entrant: &Entrant<'_>,
        known: Ruling,
    ) -> Result<Entry, Failure> {
        let heard = self.rules_heard.load(Relaxed);
        self.interest.add(&Topic::Room(room.clone())).await?;
        match self.join((pair, fence), room, entrant, known).await {
            Ok((format, ruling, talk)) => Ok(Entry { room: room.clone(), format, ruling, talk, heard }),
            Err(failure) => {
                self.exit(pair, fence, room).await;
                Err(failure)
            }
        }
    }

    async fn join(
        self: &Arc<Self>,
        (pair, fence): (PairId, Fence),
        room: &RoomName,
        entrant: &Entrant<'_>,
        known: Ruling,
    ) -> Result<(Format, Ruling, Position), Failure> {
        let (group, mut ruling) = (Group::Room(room.clone()), known);
        let told = counted(EventKind::PeerJoined, &self.member(pair, fence));
        for _ in 0..TRIES {
            let wish = entrant.agree(&ruling, room, None)?;
            let charter = bytes::Bytes::from_static(wish.as_str().as_bytes());
            let capacity = ruling.spec.capacity;
            let told = told.as_ref().map(|told| (told, &self.settings.keep));
            let Some(census) = self.registry.join(&group, self.member(pair, fence), charter, capacity, told).await?
            else {
                let capacity = capacity.unwrap_or_default();
                let message = format!("the room is full, it takes {capacity} members: try again later");
                return Err(Failure::new(Fault::RoomFull, message));
            };
            self.tell_of_crowd(room, &census);
            let now = self.ruling(room, census.rule.as_ref());
            if now.version == ruling.version {
                return Ok((entrant.agree(&ruling, room, spoken(&census))?, ruling, census.talk));
            }
            ruling = now;
        }
        Err(Failure::new(Fault::Overloaded, "the room's specification changes all the time: try again"))
    }

    /// Takes the seat in a room that was entered: frames reach the outbox from now on.
    pub fn take_seat(self: &Arc<Self>, pair: PairId, entry: &Entry, outbox: &Arc<Outbox>) -> Arc<Room> {
        let room = self.hub.enter(&entry.room, pair, outbox);
        self.keep_seat(entry);
        room
    }

    /// Keeps the seat in a room that was entered once more.
    pub fn keep_seat(self: &Arc<Self>, entry: &Entry) {
        // A change that was told between the entry and the seat did not reach this one.
        if self.rules_heard.load(Relaxed) != entry.heard {
            self.look_at_room_soon(&entry.room, None);
        }
    }

    /// Leaves a room, for the cluster; the caller left it in the hub before. The place in its talk is returned, if it is
    /// known.
    pub async fn exit(self: &Arc<Self>, pair: PairId, fence: Fence, room: &RoomName) -> Option<Position> {
        let talk = self.leave(Group::Room(room.clone()), self.member(pair, fence)).await;
        self.lose_interest(room).await;
        talk
    }

    /// Listens to a room once less.
    pub async fn lose_interest(&self, room: &RoomName) {
        self.interest.remove(&Topic::Room(room.clone())).await;
    }

    pub(super) fn member(&self, pair: PairId, fence: Fence) -> Member {
        let value = rmp_serde::to_vec(&fence.epoch).unwrap_or_default();
        // Kept for as long as it is a member: not with the room that it was encoded in.
        Member { id: pair.uuid(), node: self.id, value: value.into_boxed_slice().into() }
    }
}

/// What a room speaks while it has members.
pub(super) fn spoken(census: &Census) -> Option<Format> {
    census.charter.as_deref().and_then(|charter| std::str::from_utf8(charter).ok()).and_then(Format::from_name)
}
