//! What owners do with their rooms: specify them, close them, send members away, publish in them.
//!
//! A change goes to the registry first and is then told to every node that has members; each of these looks it up
//! itself, so that it does not matter which of several changes it hears of. A node that missed the notice reads again
//! when live deliveries go on.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::{
    ClientMail, Line, Node, RoomState, Ruling,
    ask::{BETWEEN_LOOKS, timed_out},
    rooms::spoken,
};
use crate::{
    broker::{Group, Share},
    hub::{Absent, Room},
    protocol::{
        Account, Authority, Cause, Command, Envelope, Failure, Fault, Format, FrameKind, KickParams, LeaveParams,
        Notice, PairId, RoomName, RoomSpec, Run, Topic,
    },
};

/// How often a specification is written anew because another was written meanwhile.
const TRIES: usize = 8;
/// How long after a notice it is looked whether all members have left.
const REPEAT: Duration = Duration::from_millis(500);
/// How many rooms are looked at in one go for those that somebody may enter, and how often.
const PAGE: usize = 1_000;
const MOST_PAGES: usize = 100;
/// How often mail for a member is tried to be left.
const DELIVERIES: u32 = 40;

impl Node {
    /// Sets a room's specification, or (with none) removes it; its members live under it from now on.
    ///
    /// # Errors
    /// [`Fault::Forbidden`] when the room is another's, [`Fault::NotFound`] when there is none to remove, what
    /// [`RoomSpec::check`] says, or when the broker can't be reached.
    pub async fn set_room(
        &self,
        name: &RoomName,
        spec: Option<RoomSpec>,
        by: &Authority,
        cause: Option<Cause>,
    ) -> Result<RoomState, Failure> {
        if let Some(spec) = &spec {
            spec.check(self.settings.max_message_bytes)?;
        }
        let spec = spec.map(Arc::new);
        for _ in 0..TRIES {
            let census = self.registry.census(&Group::Room(name.clone())).await?;
            owns(by, &self.room_state(name, &census))?;
            let before = census.rule.as_ref().map_or(0, |rule| rule.version);
            if spec.is_none() && before == 0 {
                return Err(Failure::new(Fault::NotFound, "the room has no specification that was set"));
            }
            let ruling = match &spec {
                Some(spec) => {
                    let version = rand::random::<u64>().max(1);
                    Ruling { spec: Arc::clone(spec), owner: Some(by.account.clone()), version }
                }
                None => self.ruling(name, None),
            };
            let rule = ruling.rule();
            let speaks = spoken(&census).map(|spoken| ruling.spec.speaks_after(spoken));
            let charter = speaks.map(|format| bytes::Bytes::from_static(format.as_str().as_bytes()));
            if !self.registry.lay_down(name, before, rule, charter).await? {
                continue;
            }
            // Who came in between the look and the rule may have settled on something else: once more, knowing it.
            let after = self.room(name).await?;
            let unsettled = after.speaks.is_some_and(|spoken| ruling.spec.speaks_after(spoken) != spoken);
            if !unsettled || after.ruling.version != ruling.version {
                self.notify(name, &Notice::Changed(cause))?;
                return Ok(RoomState { name: name.clone(), ruling, ..after });
            }
        }
        Err(Failure::new(Fault::Conflict, "the specification is being changed by others: read it, and try again"))
    }

    /// Closes a room: the client sockets of all who are in it are closed.
    ///
    /// # Errors
    /// [`Fault::Forbidden`] when the room is another's, [`Fault::Timeout`] when some did not leave in time, or when
    /// the broker can't be reached.
    pub async fn close_room(
        &self,
        name: &RoomName,
        reason: Option<String>,
        by: &Authority,
        cause: Option<Cause>,
    ) -> Result<Value, Failure> {
        let state = self.room(name).await?;
        owns(by, &state)?;
        let notice = Notice::Closed { reason: reason.unwrap_or_default(), cause };
        let deadline = Instant::now() + self.settings.command_timeout;
        let (mut members, mut repeat) = (state.members, Instant::now());
        while members > 0 {
            let now = Instant::now();
            if now >= deadline {
                return Err(timed_out());
            }
            // A notice that was lost is sent again.
            if now >= repeat {
                self.notify(name, &notice)?;
                repeat = now + REPEAT;
            }
            sleep(BETWEEN_LOOKS).await;
            members = self.room(name).await?.members;
        }
        Ok(json!({"room": name, "closed": state.members}))
    }

    /// Closes the client socket of a member.
    ///
    /// # Errors
    /// [`Fault::Forbidden`] when the room is another's, [`Fault::NotFound`] when the pair is not in it, or what asking
    /// the member fails with.
    pub async fn kick(
        self: &Arc<Self>,
        name: &RoomName,
        params: KickParams,
        by: &Authority,
        cause: Cause,
    ) -> Result<Value, Failure> {
        owns(by, &self.room(name).await?)?;
        let KickParams { pair, code, reason } = params;
        let not_here = || Failure::new(Fault::NotFound, format!("{pair} is not in this room"));
        let leave = Command::Leave(LeaveParams { room: name.clone(), code, reason });
        self.ask(pair, leave, cause, &Line::default()).await.map_err(|failure| match failure.fault {
            Fault::NotFound | Fault::Gone | Fault::ClientDetached => not_here(),
            _ => failure,
        })
    }

    /// Publishes one frame in a room, from no member.
    ///
    /// # Errors
    /// What [`super::Ruling::admits`] says, [`Fault::Forbidden`] where not everyone may publish,
    /// [`Fault::NoCommonFormat`] and [`Fault::TooLarge`] for a frame that does not fit, or when the broker can't be
    /// reached.
    pub async fn post_frame(
        &self,
        name: &RoomName,
        kind: FrameKind,
        payload: &[u8],
        by: &Authority,
    ) -> Result<Value, Failure> {
        let state = self.room(name).await?;
        state.ruling.admits(by, name)?;
        if !state.ruling.lets_publish(by) {
            return Err(may_not_publish());
        }
        let spec = &state.ruling.spec;
        let speaks = state.speaks.or_else(|| spec.format.first().copied()).unwrap_or(Format::Any);
        if !speaks.carries(kind) {
            let message = format!(
                "the room speaks {speaks}: text/plain and application/json make a text frame, other types a binary one"
            );
            return Err(Failure::new(Fault::NoCommonFormat, message));
        }
        let most = spec.max_message_bytes.unwrap_or(self.settings.max_message_bytes);
        if payload.len() > most {
            return Err(Failure::new(Fault::TooLarge, format!("a frame has at most {most} bytes in this room")));
        }
        if let Some(history) = spec.keeps() {
            let kept = [&Envelope::ordered_head(None)[..], Run::of(kind, payload).wire()].concat();
            let share = Share { weight: 1, payload: kept.into() };
            self.contribute(name, None, &[share], history).await?;
            return Ok(json!({"room": name, "members": state.members}));
        }
        let here = self.hub.room(name).unwrap_or_else(|| Arc::new(Room::new(name.clone(), &self.hub.postmen)));
        if !self.publish(&here, spec, &Run::of(kind, payload), None) {
            return Err(Failure::new(Fault::BrokerUnavailable, "the broker is behind: try again"));
        }
        Ok(json!({"room": name, "members": state.members}))
    }

    /// A page of the rooms with specifications that were set, those which `by` may enter. It names no other: a page goes
    /// on from the last room that it shows.
    ///
    /// # Errors
    /// [`Fault::Overloaded`] when too many rooms of others lie between, or when the broker can't be reached.
    pub async fn rooms(&self, after: Option<&str>, limit: usize, by: &Authority) -> Result<Value, Failure> {
        let (mut after, mut mine) = (after.map(str::to_owned), Vec::new());
        for _ in 0..MOST_PAGES {
            let rules = self.registry.rules(after.as_deref(), PAGE).await?;
            let last = rules.len() < PAGE;
            after = rules.last().map(|(name, _)| name.to_string());
            mine.extend(rules.into_iter().map(|(name, _)| name).filter(|name| by.covers(name)));
            if last || mine.len() > limit {
                let more = mine.len() > limit;
                mine.truncate(limit);
                let looks = futures_util::future::try_join_all(mine.iter().map(|name| self.room(name))).await?;
                let rooms: Vec<_> = looks.iter().map(RoomState::told).collect();
                return Ok(json!({"rooms": rooms, "after": mine.last().filter(|_| more)}));
            }
        }
        Err(Failure::new(Fault::Overloaded, "too many rooms of others lie between: begin further on, with ?after="))
    }

    pub(super) fn notify(&self, room: &RoomName, notice: &Notice) -> Result<(), Failure> {
        self.broker.publish(&Topic::Room(room.clone()), Envelope::notice(notice)?)?;
        Ok(())
    }

    /// A notice for a room's members arrived.
    pub(super) fn noticed(self: &Arc<Self>, room: &RoomName, notice: Notice) {
        match notice {
            Notice::Changed(cause) => {
                self.rules_heard.fetch_add(1, Relaxed);
                self.look_at_room_soon(room, cause);
            }
            Notice::Closed { reason, cause } => {
                self.tell_members(room, || ClientMail::RoomClosed {
                    room: room.clone(),
                    reason: reason.clone(),
                    cause: cause.clone(),
                });
            }
            Notice::Cut { to, number, second } => self.cut(to, number, second),
        }
    }

    /// What changed in rooms while live deliveries were interrupted was not heard of: all are looked at.
    pub(super) fn look_at_rooms(self: &Arc<Self>) {
        self.rules_heard.fetch_add(1, Relaxed);
        let (node, names) = (Arc::clone(self), self.hub.room_names());
        self.spawn("rooms", async move {
            for name in names {
                node.look_at_room(&name, None).await;
            }
        });
    }

    /// Has the members here told what holds in their room by now.
    pub(super) fn look_at_room_soon(self: &Arc<Self>, room: &RoomName, cause: Option<Cause>) {
        let (node, room) = (Arc::clone(self), room.clone());
        self.spawn("room changed", async move { node.look_at_room(&room, cause.as_ref()).await });
    }

    /// Tells the members here what holds in their room by now.
    async fn look_at_room(self: &Arc<Self>, room: &RoomName, cause: Option<&Cause>) {
        let census = loop {
            match self.registry.census(&Group::Room(room.clone())).await {
                Ok(census) => break census,
                // When it comes back, all rooms are looked at.
                Err(_) if !self.broker_reachable() => return,
                Err(_) => {
                    if self.stopped.run_until_cancelled(sleep(super::story::RETRY)).await.is_none() {
                        return;
                    }
                }
            }
        };
        let state = self.room_state(room, &census);
        self.tell_members(room, || ClientMail::RoomChanged { state: state.clone(), cause: cause.cloned() });
    }

    /// Leaves mail for every member here. Who has too much mail gets it as soon as there is room.
    fn tell_members(self: &Arc<Self>, room: &RoomName, mail: impl Fn() -> ClientMail) {
        let Some(room) = self.hub.room(room) else { return };
        let busy = |pair| match self.hub.send(pair, mail()) {
            Err(Absent::Busy(mail)) => Some((pair, mail)),
            Ok(()) | Err(Absent::NotHere(_)) => None,
        };
        let again: Vec<(PairId, ClientMail)> = room.pairs().into_iter().filter_map(busy).collect();
        if again.is_empty() {
            return;
        }
        let node = Arc::clone(self);
        self.spawn("mail for busy members", async move {
            for (pair, mail) in again {
                let mut mail = mail;
                for _ in 0..DELIVERIES {
                    match node.hub.send(pair, mail) {
                        Err(Absent::Busy(back)) => mail = back,
                        _ => break,
                    }
                    sleep(BETWEEN_LOOKS).await;
                }
            }
        });
    }
}

/// Whether somebody may decide about a room: its owner; the admin; where nobody has specified it, whoever it is for.
fn owns(by: &Authority, room: &RoomState) -> Result<(), Failure> {
    let owned = match (&by.account, &room.ruling.owner) {
        (Account::Admin, _) => true,
        (Account::Anonymous, _) => false,
        (account, Some(owner)) => account == owner && by.covers(&room.name),
        (Account::Named(_), None) => by.covers(&room.name),
    };
    if owned {
        return Ok(());
    }
    Err(Failure::new(
        Fault::Forbidden,
        "the room is not this account's: only its owner and the admin decide about it",
    ))
}

/// The refusal of a frame where not everyone may publish.
#[must_use]
pub fn may_not_publish() -> Failure {
    let grant = crate::protocol::PUBLISH;
    Failure::new(
        Fault::Forbidden,
        format!("not everyone may publish in this room: the pair's maker needs the grant {grant}"),
    )
}
