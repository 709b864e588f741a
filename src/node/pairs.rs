//! Pairs: made, found, opened and ended.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{
    ClientMail, Node, Parting,
    ask::{gone, not_found},
    no_common_format, now_seconds,
    story::lost_draft,
    time_text,
};
use crate::{
    broker::{BrokerError, Census, Group, Member, Record, Step},
    hub::{Client, Outbox, Room},
    protocol::{
        Failure, Fault, Fence, Format, Grants, PairId, Reply, RoomName, Settings, SiblingId, Side, Ticket, Topic,
    },
};

/// The longest that a ticket may live, in seconds: a day.
const LONGEST_TICKET: u64 = 86_400;
/// How much mail an actor takes before askers are told to wait.
const MAILBOX: usize = 256;

/// What every node must know of a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Its room.
    pub room: RoomName,
    /// What it speaks there; before its first client socket, what it is expected to.
    pub format: Format,
    /// What its client said that it can speak, in order; empty when it said nothing.
    pub offers: Vec<Format>,
    /// Its application's own data.
    pub meta: Map<String, Value>,
    /// Seconds that it waits for a client socket.
    pub linger_seconds: u64,
    /// The settings of its pipe.
    pub settings: Settings,
}

impl Facts {
    /// Reads what [`Facts::write`] wrote.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }

    /// The bytes for the registry.
    ///
    /// # Errors
    /// [`Fault::Internal`] when they can't be encoded.
    pub fn write(&self) -> Result<bytes::Bytes, Failure> {
        let bytes = rmp_serde::to_vec_named(self);
        bytes.map(Into::into).map_err(|e| Failure::new(Fault::Internal, e.to_string()))
    }

    /// How long the pair waits for a client socket.
    #[must_use]
    pub fn linger(&self) -> Duration {
        Duration::from_secs(self.linger_seconds)
    }
}

/// What a new pair is to be.
#[derive(Debug, Clone)]
pub struct NewPair {
    /// Its room.
    pub room: RoomName,
    /// What its client can speak, in order.
    pub offers: Vec<Format>,
    /// Its application's own data.
    pub meta: Map<String, Value>,
    /// How long it waits for a client socket.
    pub linger: Option<Duration>,
}

/// A pair as the registry has it.
#[derive(Debug, Clone)]
pub struct Found {
    /// The record.
    pub record: Record,
    /// What it says.
    pub facts: Facts,
}

/// A client socket that may be served: frames of its room are queued for it already.
pub struct Opened {
    /// Whose.
    pub pair: PairId,
    /// Which.
    pub fence: Fence,
    /// What the pair is.
    pub facts: Facts,
    /// The subprotocol that the caller answers with.
    pub subprotocol: Option<String>,
    /// What waits to be written to it.
    pub outbox: Arc<Outbox>,
    /// Where it sits.
    pub room: Arc<Room>,
    /// Its actor's mail.
    pub mailbox: mpsc::Receiver<Box<ClientMail>>,
}

impl Node {
    /// Makes a pair.
    ///
    /// # Errors
    /// [`Fault::NoCommonFormat`], or when the broker can't be reached.
    pub async fn create_pair(&self, new: NewPair) -> Result<(PairId, Facts), Failure> {
        self.must_be_leased()?;
        let census = self.registry.census(&Group::Room(new.room.clone())).await?;
        let linger = new.linger.unwrap_or(self.settings.linger);
        let facts = Facts {
            format: agree(census.charter.as_deref(), &new.offers)?,
            room: new.room,
            offers: new.offers,
            meta: new.meta,
            linger_seconds: linger.as_secs(),
            settings: self.settings.pipe.clone(),
        };
        let pair = PairId::fresh();
        self.registry.create(pair, facts.write()?, self.id, linger, self.settings.keep.age).await?;
        self.lingering.add(pair, Fence::default(), linger);
        Ok((pair, facts))
    }

    /// Finds a pair that has not ended.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::Gone`], or when the broker can't be reached.
    pub async fn find_pair(&self, pair: PairId) -> Result<Found, Failure> {
        let found = self.find_even_ended(pair).await?;
        if found.record.ended { Err(gone()) } else { Ok(found) }
    }

    /// There is no record of a pair: or not yet, when the broker has lost its data and is just being told again.
    pub(super) fn unknown(&self, pair: PairId) -> Failure {
        if self.broker_is_healing() {
            return Failure::new(Fault::BrokerUnavailable, "the broker has just come back: try again in a moment");
        }
        not_found(pair)
    }

    /// Finds a pair, also after its end, for as long as its history is kept.
    ///
    /// # Errors
    /// [`Fault::NotFound`], or when the broker can't be reached.
    pub async fn find_even_ended(&self, pair: PairId) -> Result<Found, Failure> {
        let record = self.registry.look_up(pair).await?.ok_or_else(|| self.unknown(pair))?;
        let facts = Facts::read(&record.facts)
            .ok_or_else(|| Failure::new(Fault::Internal, "the pair was made by another version"))?;
        Ok(Found { record, facts })
    }

    /// Takes a pair for a new client socket: whoever has it lets go first, the room is entered and listened to. When
    /// this returns, nothing that is sent to the room from now on is missed.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::Gone`], [`Fault::NoCommonFormat`], or when the broker can't be reached; then
    /// nothing is held.
    pub async fn open_client(self: &Arc<Self>, pair: PairId, offers: Vec<Format>) -> Result<Opened, Failure> {
        let (done, opened) = oneshot::channel();
        let node = Arc::clone(self);
        // A task of its own: whoever asks may go away in the middle, and then what was taken must be given up.
        self.parting.fetch_add(1, Relaxed);
        self.spawn("opening", async move {
            if let Err(Ok(unwanted)) = done.send(node.open(pair, offers).await) {
                node.give_up(unwanted).await;
            }
            node.parting.fetch_sub(1, Relaxed);
        });
        let stopping = || Failure::new(Fault::Internal, "the client socket could not be opened");
        opened.await.unwrap_or_else(|_| Err(stopping()))
    }

    async fn give_up(self: &Arc<Self>, opened: Opened) {
        let Opened { pair, fence, facts, outbox, room, mailbox, .. } = opened;
        self.hub.unregister(pair, fence);
        self.hub.exit(&room, &outbox);
        self.return_mail(mailbox);
        self.exit(pair, fence, &facts.room).await;
        drop(self.part(Parting::unheard(pair, fence, facts)));
    }

    async fn open(self: &Arc<Self>, pair: PairId, offers: Vec<Format>) -> Result<Opened, Failure> {
        let mut facts = self.find_pair(pair).await?.facts;
        if !offers.is_empty() {
            facts.offers = offers;
        }
        // Refused before anything is taken: a client that speaks the wrong format replaces nobody.
        let census = self.registry.census(&Group::Room(facts.room.clone())).await?;
        agree(census.charter.as_deref(), &facts.offers)?;

        let fence = self.take(pair, &facts).await?;
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        // An older one that is still here was taken for dead, and does not know it yet: its mailbox closes.
        drop(self.hub.register(pair, Client { fence, mailbox: sender }));
        let outbox = Arc::new(Outbox::new(facts.settings.queue_bytes, facts.settings.slow));
        match self.enter(pair, fence, &facts.room, &facts.offers).await {
            Ok(format) => facts.format = format,
            Err(failure) => {
                self.hub.unregister(pair, fence);
                self.return_mail(mailbox);
                drop(self.part(Parting::unheard(pair, fence, facts)));
                return Err(failure);
            }
        }
        let room = self.hub.enter(&facts.room, pair, &outbox);
        let written = match facts.write() {
            Ok(bytes) => self.registry.revise(pair, fence, bytes).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        let opened = Opened { pair, fence, facts, subprotocol: None, outbox, room, mailbox };
        let failure = match written {
            Ok(true) => return Ok(opened),
            Ok(false) => Failure::new(Fault::Conflict, "replaced by a newer client socket, or the pair ended"),
            Err(failure) => failure,
        };
        self.give_up(opened).await;
        Err(failure)
    }

    /// Closes a mailbox that nobody reads any more: whoever left mail in it is to look elsewhere.
    pub fn return_mail(self: &Arc<Self>, mut mailbox: mpsc::Receiver<Box<ClientMail>>) {
        mailbox.close();
        while let Ok(mail) = mailbox.try_recv() {
            if let ClientMail::Command { reply, .. } | ClientMail::Yield { reply, .. } = *mail {
                self.reply(reply, Reply::NotHere);
            }
        }
    }

    /// Listens to a room and becomes its member, for the cluster; the caller enters it in the hub then.
    ///
    /// # Errors
    /// [`Fault::NoCommonFormat`], or when the broker can't be reached; then the room is not entered.
    pub async fn enter(
        &self,
        pair: PairId,
        fence: Fence,
        room: &RoomName,
        offers: &[Format],
    ) -> Result<Format, Failure> {
        let topic = Topic::Room(room.clone());
        self.interest.add(&topic).await?;
        let group = Group::Room(room.clone());
        let member = self.member(pair, fence);
        let wish = Format::first_choice(offers);
        let joined = self.registry.join(&group, member, bytes::Bytes::from_static(wish.as_str().as_bytes())).await;
        let agreed = joined.map_err(Failure::from).and_then(|charter| agree(Some(&charter), offers));
        if agreed.is_err() {
            self.exit(pair, fence, room).await;
        }
        agreed
    }

    /// Leaves a room, for the cluster; the caller left it in the hub before.
    pub async fn exit(&self, pair: PairId, fence: Fence, room: &RoomName) {
        self.leave(Group::Room(room.clone()), self.member(pair, fence)).await;
        self.interest.remove(&Topic::Room(room.clone())).await;
    }

    /// Listens to a room once less.
    pub async fn lose_interest(&self, room: &RoomName) {
        self.interest.remove(&Topic::Room(room.clone())).await;
    }

    /// Has the registry know again what it lost of a client socket: its record, and its place in its room; that events
    /// may be missing is kept in the new history. False when another has the pair.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn restore(&self, pair: PairId, fence: Fence, facts: &Facts) -> Result<bool, BrokerError> {
        let Ok(bytes) = facts.write() else { return Ok(false) };
        let drafts = [lost_draft(None)];
        let keep = &self.settings.keep;
        if self.registry.restore(pair, self.id, fence, bytes, &drafts, keep).await? != Step::Taken(()) {
            return Ok(false);
        }
        if self.hub.fence(pair) == Some(fence) {
            let charter = bytes::Bytes::from_static(facts.format.as_str().as_bytes());
            self.registry.join(&Group::Room(facts.room.clone()), self.member(pair, fence), charter).await?;
        }
        Ok(true)
    }

    fn member(&self, pair: PairId, fence: Fence) -> Member {
        let value = rmp_serde::to_vec_named(&json!({"epoch": fence.epoch})).unwrap_or_default();
        Member { id: pair.to_string(), node: self.id, value: value.into() }
    }

    /// Writes changed facts. False when a newer client socket has the pair.
    pub async fn revise(&self, pair: PairId, fence: Fence, facts: &Facts) -> bool {
        let Ok(bytes) = facts.write() else { return false };
        self.registry.revise(pair, fence, bytes).await.unwrap_or(true)
    }

    /// Signs a ticket for one side of a pair; `ttl` is in seconds.
    ///
    /// # Errors
    /// [`Fault::InvalidParams`] for a lifetime out of bounds, [`Fault::Internal`] when signing fails.
    pub fn sign_ticket(&self, side: Side, pair: PairId, grants: Grants, ttl: Option<u64>) -> Result<Value, Failure> {
        let ttl = ttl.unwrap_or(self.settings.ticket_ttl.as_secs());
        if !(1..=LONGEST_TICKET).contains(&ttl) {
            let message = format!("ttl: 1 to {LONGEST_TICKET} seconds");
            return Err(Failure::new(Fault::InvalidParams, message));
        }
        let ticket = Ticket::new(side, pair, grants, now_seconds() + ttl);
        let expires_at = time_text(SystemTime::UNIX_EPOCH + Duration::from_secs(ticket.exp));
        let mut said =
            json!({"side": side, "ticket": self.settings.ticket_keys.sign(&ticket)?, "expires_at": expires_at});
        if side == Side::Sibling {
            said["grants"] = json!(ticket.grants);
        }
        Ok(said)
    }

    /// What a room is, in one look.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn census(&self, group: &Group) -> Result<Census, Failure> {
        Ok(self.registry.census(group).await?)
    }

    /// A page of a room's members.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn members(&self, room: &RoomName, after: Option<&str>, limit: usize) -> Result<Vec<Member>, Failure> {
        Ok(self.registry.members(&Group::Room(room.clone()), after, limit).await?)
    }

    /// Counts a sibling in, for `pair.get` everywhere.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn count_in(&self, pair: PairId, sibling: SiblingId) -> Result<(), Failure> {
        self.siblings.insert(sibling);
        self.registry.join(&Group::Siblings(pair), self.sibling(sibling), bytes::Bytes::new()).await?;
        Ok(())
    }

    /// Counts a sibling out.
    pub async fn count_out(&self, pair: PairId, sibling: SiblingId) {
        self.siblings.remove(&sibling);
        self.leave(Group::Siblings(pair), self.sibling(sibling)).await;
    }

    fn sibling(&self, sibling: SiblingId) -> Member {
        Member { id: sibling.to_string(), node: self.id, value: bytes::Bytes::new() }
    }
}

/// What a client with these offers speaks in a room with this charter.
fn agree(charter: Option<&[u8]>, offers: &[Format]) -> Result<Format, Failure> {
    let charter = charter.and_then(|c| std::str::from_utf8(c).ok()).and_then(Format::from_name);
    let speaks = charter.unwrap_or_else(|| Format::first_choice(offers));
    if speaks.suits(offers) { Ok(speaks) } else { Err(no_common_format(speaks)) }
}
