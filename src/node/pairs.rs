//! Pairs: made, found, opened and ended.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    ClientMail, Entrant, Facts, Found, NewPair, Node, Parting, Past, Resumption, Ruling, Wish,
    ask::{BETWEEN_LOOKS, gone, not_found},
    now_seconds,
    story::lost_draft,
    time_text,
};
use crate::{
    broker::{BrokerError, Group, Member, Step},
    hub::{Client, Hearing, Mailbox, Outbox, Room, mailbox},
    protocol::{
        Failure, Fault, Fence, Format, Grants, LONGEST_TICKET, PairId, Position, Reply, SiblingId, Side, Ticket,
        Watching,
    },
};

/// How much mail an actor takes before askers are told to wait.
const MAILBOX: u32 = 256;
/// How long a client that does not suit a pair as it stands is kept waiting, while another socket has the pair.
const HAND_OVER: Duration = Duration::from_millis(500);

/// A client socket that may be served: frames of its room are queued for it already.
pub struct Opened {
    /// Whose.
    pub pair: PairId,
    /// Which.
    pub fence: Fence,
    /// What the pair is.
    pub facts: Facts,
    /// What waits to be written to it.
    pub outbox: Arc<Outbox>,
    /// Where it sits.
    pub room: Arc<Room>,
    /// What holds there.
    pub ruling: Ruling,
    /// What its room has kept, where it keeps its frames.
    pub past: Option<Past>,
    /// How it goes on where the socket before it stopped, where that is known already.
    pub resumed: Option<Resumption>,
    /// Where it came to its room's talk.
    pub talk: Position,
    /// Its actor's mail.
    pub mailbox: Mailbox<ClientMail>,
}

/// A client socket that was opened and is not served yet. Dropped, it is given up: whoever wanted it may go away at any
/// moment.
pub struct Unserved {
    node: Arc<Node>,
    opened: Option<Box<Opened>>,
}

impl Unserved {
    /// It is served from now on.
    ///
    /// # Panics
    /// Never: what is in it is taken out only here and when it is dropped.
    #[must_use]
    pub fn serve(mut self) -> Opened {
        *self.opened.take().expect(PRESENT)
    }
}

impl std::ops::Deref for Unserved {
    type Target = Opened;

    fn deref(&self) -> &Opened {
        self.opened.as_ref().expect(PRESENT)
    }
}

/// Why there is something in it.
const PRESENT: &str = "it is taken out only when it is served or dropped";

impl Drop for Unserved {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take() {
            let node = Arc::clone(&self.node);
            node.parting.fetch_add(1, Relaxed);
            self.node.spawn("giving up", async move {
                node.give_up(*opened).await;
                node.parting.fetch_sub(1, Relaxed);
            });
        }
    }
}

/// Where frames are kept, a client hears of them when it has those that were before.
fn hearing_at_first(ruling: &Ruling) -> Hearing {
    if ruling.spec.keeps().is_some() { Hearing::Nothing } else { Hearing::All }
}

impl Node {
    /// Makes a pair.
    ///
    /// # Errors
    /// [`Fault::NoCommonFormat`], what [`Ruling::admits`] says, or when the broker can't be reached.
    pub async fn create_pair(&self, new: NewPair) -> Result<(PairId, Facts), Failure> {
        self.must_be_leased()?;
        let NewPair { room, offers, meta, linger, authority } = new;
        let entrant = Entrant { authority: &authority, offers: &offers };
        let state = self.room(&room).await?;
        let format = self.agree(&entrant, &state)?;
        let linger = linger.unwrap_or(self.settings.linger);
        let linger_seconds = linger.as_secs();
        let watching = Watching::default();
        let (first, since) = (Some((room.clone(), state.talk)), Some(state.talk));
        let facts = Facts {
            room,
            format,
            offers,
            meta,
            linger_seconds,
            chosen: None,
            watching,
            trace: None,
            parked: None,
            first,
            since,
            acked: None,
            authority: authority.shared(),
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
    pub async fn open_client(
        self: &Arc<Self>,
        pair: PairId,
        offers: Vec<Format>,
        wish: Wish,
    ) -> Result<Unserved, Failure> {
        let node = Arc::clone(self);
        // Whoever asks may go away in the middle, and then what was taken must be given up.
        self.parting.fetch_add(1, Relaxed);
        self.to_the_end("opening", async move {
            let opened = node
                .open(pair, offers, wish)
                .await
                .map(|opened| Unserved { node: Arc::clone(&node), opened: Some(Box::new(opened)) });
            node.parting.fetch_sub(1, Relaxed);
            opened
        })
        .await
    }

    async fn give_up(self: &Arc<Self>, opened: Opened) {
        let Opened { pair, fence, facts, outbox, room, mut mailbox, .. } = opened;
        self.hub.unregister(pair, fence);
        self.hub.exit(&room, &outbox);
        self.return_mail(&mut mailbox);
        self.exit(pair, fence, &facts.room).await;
        drop(self.part(Parting::unheard(pair, fence, facts)));
    }

    async fn open(self: &Arc<Self>, pair: PairId, offers: Vec<Format>, wish: Wish) -> Result<Opened, Failure> {
        // Refused before anything is taken: a client that may not be there, or speaks the wrong format, replaces nobody.
        let (facts, ruling) = self.would_enter(pair, &offers).await?;
        let fence = self.take(pair, &facts).await?;
        let (mut facts, ruling) = match self.noted_last((pair, fence), &facts, &offers, ruling).await {
            Ok(noted) => noted,
            Err(failure) => {
                drop(self.part(Parting::unheard(pair, fence, facts)));
                return Err(failure);
            }
        };
        let entrant = Entrant { authority: &facts.authority, offers: &facts.offers };
        let (slot, mut mailbox) = mailbox(MAILBOX);
        // An older one that is still here was taken for dead, and does not know it yet: its mailbox closes.
        drop(self.hub.register(pair, Client { fence, slot }));
        let entry = match self.enter((pair, fence), &facts.room, &entrant, ruling).await {
            Ok(entry) => entry,
            Err(failure) => {
                self.hub.unregister(pair, fence);
                self.return_mail(&mut mailbox);
                drop(self.part(Parting::unheard(pair, fence, facts)));
                return Err(failure);
            }
        };
        facts.format = entry.format;
        facts.since.get_or_insert(entry.talk);
        let (resumed, waiting) = self.take_parked((pair, fence), &mut facts, &entry, wish.received).await.unzip();
        let (room, outbox) = match waiting.flatten() {
            Some((room, outbox)) => {
                let settings = self.settings.pipe.with(&entry.ruling.spec, facts.chosen.as_deref());
                outbox.set(settings.queue_bytes, settings.slow);
                outbox.hear(hearing_at_first(&entry.ruling));
                (room, outbox)
            }
            None => {
                let outbox = self.new_outbox(&entry, &facts);
                outbox.hear(hearing_at_first(&entry.ruling));
                (self.take_seat(pair, &entry, &outbox), outbox)
            }
        };
        facts.name(room.name());
        let (ruling, talk, past) = (entry.ruling, entry.talk, None);
        let mut opened = Opened { pair, fence, facts, outbox, room, ruling, past, resumed, talk, mailbox };
        let failure = match self.settle_in(&mut opened, wish).await {
            Ok(true) => return Ok(opened),
            Ok(false) => Failure::new(Fault::Conflict, "replaced by a newer client socket, or the pair ended"),
            Err(failure) => failure,
        };
        self.give_up(opened).await;
        Err(failure)
    }

    /// Looks whether a client with these offers, or with none of its own, could be where the pair is. While a socket has
    /// the pair, a refusal waits for a moment: one that hands over to the next is about to note where, and for whom.
    async fn would_enter(&self, pair: PairId, offers: &[Format]) -> Result<(Facts, Ruling), Failure> {
        let refused_at = Instant::now() + HAND_OVER;
        loop {
            let Found { record, facts } = self.find_pair(pair).await?;
            let facts = facts.offering(offers);
            let state = self.room(&facts.room).await?;
            let entrant = Entrant { authority: &facts.authority, offers: &facts.offers };
            match self.agree(&entrant, &state) {
                Ok(_) => return Ok((facts, state.ruling)),
                Err(_) if record.holder.is_some() && Instant::now() < refused_at => sleep(BETWEEN_LOOKS).await,
                Err(failure) => return Err(failure),
            }
        }
    }

    /// What the socket before has noted of the pair in its last moments, after this one has looked; and what holds in its
    /// room.
    async fn noted_last(
        &self,
        (pair, fence): (PairId, Fence),
        facts: &Facts,
        offers: &[Format],
        ruling: Ruling,
    ) -> Result<(Facts, Ruling), Failure> {
        if fence.epoch <= 1 {
            return Ok((facts.clone(), ruling));
        }
        let noted = self.find_pair(pair).await?.facts.offering(offers);
        let ruling = if noted.room == facts.room { ruling } else { self.room(&noted.room).await?.ruling };
        Ok((noted, ruling))
    }

    /// Finds where the pipe begins in what its room keeps, and writes what is new of the pair. False when it is
    /// another's by now.
    async fn settle_in(self: &Arc<Self>, opened: &mut Opened, wish: Wish) -> Result<bool, Failure> {
        let Opened { pair, fence, facts, ruling, .. } = opened;
        match ruling.spec.keeps() {
            Some(history) => {
                opened.past = Some(self.begin_past((*pair, fence.epoch), facts, history, wish).await?);
            }
            None => facts.trace = None,
        }
        Ok(self.registry.revise(*pair, *fence, facts.write()?).await?)
    }

    /// Closes a mailbox that nobody reads any more: whoever left mail in it is to look elsewhere.
    pub fn return_mail(self: &Arc<Self>, mailbox: &mut Mailbox<ClientMail>) {
        mailbox.close();
        while let Some(mail) = mailbox.read_here() {
            if let ClientMail::Command { reply, .. } | ClientMail::Yield { reply, .. } = mail {
                self.reply(reply, Reply::NotHere);
            }
        }
    }

    /// Has the registry know again what it lost of a client socket: its record, its place in its room, and what holds there;
    /// that events may be missing is kept in the new history. False when another has the pair.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn restore(
        &self,
        pair: PairId,
        fence: Fence,
        facts: &Facts,
        ruling: Option<&Ruling>,
    ) -> Result<bool, BrokerError> {
        let Ok(bytes) = facts.write() else { return Ok(false) };
        let drafts = [lost_draft(None)];
        let keep = &self.settings.keep;
        if self.registry.restore(pair, self.id, fence, bytes, &drafts, keep).await? != Step::Taken(()) {
            return Ok(false);
        }
        if let Some(rule) = ruling.and_then(Ruling::rule) {
            self.registry.lay_down(&facts.room, 0, Some(rule), None).await?;
        }
        if self.hub.fence(pair) == Some(fence) {
            let charter = bytes::Bytes::from_static(facts.format.as_str().as_bytes());
            // It was in already: however full the room is.
            let (group, member) = (Group::Room(facts.room.clone()), self.member(pair, fence));
            // Nor is it told to have come.
            self.registry.join(&group, member, charter, None, None).await?;
        }
        Ok(true)
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
        let mut ticket = Ticket::new(side, pair, grants, now_seconds() + ttl);
        // Not among those that are void, whichever clock told when that was.
        if let Some(made) = self.chronicle.lock().revoked.pair(pair) {
            ticket = ticket.made_after(made);
        }
        let expires_at = time_text(SystemTime::UNIX_EPOCH + Duration::from_secs(ticket.exp));
        let mut said =
            json!({"side": side, "ticket": self.settings.ticket_keys.sign(&ticket)?, "expires_at": expires_at});
        if side == Side::Sibling {
            said["grants"] = json!(ticket.grants);
        }
        Ok(said)
    }

    /// Counts a sibling in, for `pair.get` everywhere.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn count_in(&self, pair: PairId, sibling: SiblingId) -> Result<(), Failure> {
        self.siblings.insert(sibling);
        self.registry.join(&Group::Siblings(pair), self.sibling(sibling), bytes::Bytes::new(), None, None).await?;
        Ok(())
    }

    /// Counts a sibling out.
    pub async fn count_out(self: &Arc<Self>, pair: PairId, sibling: SiblingId) {
        self.siblings.remove(&sibling);
        self.leave(Group::Siblings(pair), self.sibling(sibling)).await;
    }

    fn sibling(&self, sibling: SiblingId) -> Member {
        Member { id: sibling.uuid(), node: self.id, value: bytes::Bytes::new() }
    }
}
