//! The distributed back end: Redis (or Valkey), through fred.
//!
//! To each primary there is a *lane* of three connections ([`lane`]): one that only listens ([`listener`], which is asked
//! through [`live`] and hands on through the [`outlet`]), one that only publishes ([`publish`]), and one for everything
//! that has an answer ([`commands`]). The first two carry live traffic and are our own ([`wire`]); the third is fred's,
//! as are those that ask who the primaries are. A single server and a service behind Sentinels have one lane, Redis
//! Cluster has one for each primary. What has which lane stands on the [`board`]; the [`lookout`] changes it when
//! primaries change ([`topology`] says who they are). Whatever must be atomic is a Lua script ([`script`]) whose keys,
//! and whose channel, share a hash tag ([`keys`]). It takes Redis 7 or Valkey.
//!
//! A history is a list of packed entries and not one of Redis' streams: a stream takes 4 KiB for its first entry, of which
//! each of many thousand idle pairs has one, and its fields cost a script that reads them more than all the rest.
//!
//! # When primaries change
//! The new lane is connected first; all that the old one is listened to for comes into force there; then, in one step,
//! slots, channels and what waits to be published change lanes; then the node is told [`Lost`](super::Delivery::Lost). It is told
//! [`Down`](super::Delivery::Down) when the first of all lanes is lost. What arrives through the others goes on.
//!
//! # Tasks
//! Two for each lane, both on the tracker that [`connect()`] is given: the publisher and the listener (and one of fred's
//! own for commands); the lookout, unless there is a single server; and one that strikes notes ([`holds`]).
//! They end when the token is cancelled: the publisher after it has sent what was queued, for two seconds at most.
//! Nothing works after that, so cancel it when the node has released what it held.

mod board;
mod commands;
mod connect;
mod holds;
mod keys;
mod lane;
mod listener;
mod live;
mod lookout;
mod message;
mod outlet;
mod publish;
mod registry;
mod reply;
mod rules;
mod script;
mod standing;
mod topology;
mod wire;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use fred::{
    error::{Error, ErrorKind},
    types::Value,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use self::connect::check_url;
use self::{
    board::Board,
    commands::Commands,
    connect::Setup,
    holds::{Doubts, GivenUp},
    keys::Keys,
    live::Shared,
    lookout::Lookout,
    reply::{
        as_appended, as_entries, as_page, as_parsed, as_position, millis, write_fence, write_number, write_position,
    },
    script::unavailable,
    standing::Standing,
};
use super::{
    Appended, Broker, BrokerError, CROWD, Counted, Draft, Entry, Group, Keep, LEFT_ALONE, Link, Page, STAY, Share,
    Under, Writer,
};
use crate::protocol::{NodeId, PairId, Position, Topic};

/// How many deliveries wait for the node before the reader does.
const DELIVERIES: usize = 16_384;

/// How long a history without a record lives at least.
const ORPHAN: Duration = Duration::from_secs(60);

struct Redis {
    commands: Commands,
    keys: Keys,
    shared: Shared,
    doubts: Doubts,
    given_up: GivenUp,
    stop: CancellationToken,
    /// One script may have keys of several topics: not in Redis Cluster, where each has its own slot.
    together: bool,
}

/// Connects a node. All keys and channels begin with `prefix`, which must not contain braces.
///
/// # Errors
/// [`BrokerError::Unavailable`] within ten seconds, when Redis can't be reached or the URL is wrong.
pub async fn connect(
    url: &str,
    node: NodeId,
    prefix: &str,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Link, BrokerError> {
    let refused = || unavailable(Error::new(ErrorKind::Config, "the prefix must not contain braces"));
    let keys = Keys::new(prefix).ok_or_else(refused)?;
    let target = connect::read_url(url).map_err(unavailable)?;
    let together = !matches!(target.setup, Setup::Cluster(_));
    let (sender, deliveries) = mpsc::channel(DELIVERIES);
    let shared = Shared {
        keys: keys.clone(),
        board: Arc::new(Board::new()),
        standing: Arc::new(Standing::new(sender.downgrade())),
        deliveries: sender.downgrade(),
    };
    Lookout::start(target, &shared, sender, tasks, stop).await.map_err(unavailable)?;
    tracing::info!(%node, "connected to redis");
    let commands = Commands::new(shared.clone());
    let (doubts, given_up) = (Doubts::default(), GivenUp::default());
    let redis = Arc::new(Redis { commands, keys, shared, doubts, given_up, stop: stop.clone(), together });
    tasks.spawn(Arc::clone(&redis).keep_striking());
    Ok(Link { broker: redis.clone(), registry: redis, deliveries })
}

impl Redis {
    /// What the scripts by which members come and go are told first: of their talk, if anything is told there.
    fn talk_args(&self, group: &Group, told: Option<(&Counted, &Keep)>) -> Vec<Value> {
        match (group, told) {
            (Group::Room(room), Some((_, keep))) => self.history_args(&Topic::Talk(room.clone()), keep),
            _ => vec!["".into(); 5],
        }
    }

    /// What every script that appends is told first, see `lua/history.lua`.
    fn history_args(&self, topic: &Topic, keep: &Keep) -> Vec<Value> {
        vec![
            self.keys.live(topic).into(),
            keep.events.to_string().into(),
            millis(keep.age).into(),
            keep.most.to_string().into(),
            millis(keep.age.max(ORPHAN)).into(),
        ]
    }
}

/// What is told of a room's member that comes or goes, if anything is, see `lua/counted.lua`.
fn push_counted(args: &mut Vec<Value>, member: Uuid, told: Option<&Counted>) {
    if let Some(Counted { nonce, before, after }) = told {
        push_drafts(args, &[Draft { nonce: *nonce, payload: before.clone() }]);
        args.extend([after.clone().into(), CROWD.to_string().into(), PairId::from_uuid(member).to_string().into()]);
    }
}

fn push_drafts(args: &mut Vec<Value>, drafts: &[Draft]) {
    for Draft { nonce, payload } in drafts {
        args.extend([write_number(*nonce), payload.clone().into()]);
    }
}

#[async_trait]
impl Broker for Redis {
    fn publish_behind(&self, topic: &Topic, head: &[u8], body: Bytes) -> Result<(), BrokerError> {
        self.shared.board.publish(self.keys.live(topic), head, body)
    }

    /// Others may come at any time.
    fn has_others(&self) -> bool {
        true
    }

    async fn subscribe(&self, topic: &Topic) -> Result<(), BrokerError> {
        self.shared.subscribe(topic, true, &self.stop).await
    }

    async fn unsubscribe(&self, topic: &Topic) -> Result<(), BrokerError> {
        self.shared.subscribe(topic, false, &self.stop).await
    }

    async fn append(
        &self,
        topic: &Topic,
        under: Option<Under>,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Appended, BrokerError> {
        let mut args = self.history_args(topic, keep);
        args.extend(match under {
            Some(Under { fence, after }) => [write_fence(fence), after.map_or_else(|| "".into(), write_position)],
            None => [""; 2].map(Value::from),
        });
        push_drafts(&mut args, drafts);
        let keys = vec![self.keys.log(topic), self.keys.record(topic)];
        as_appended(script::APPEND.call(&self.commands, keys, args).await?)
    }

    async fn contribute(
        &self,
        topic: &Topic,
        writer: Option<&Writer>,
        shares: &[Share],
        keep: &Keep,
    ) -> Result<Position, BrokerError> {
        let mut keys = vec![self.keys.log(topic)];
        keys.extend(writer.map(|writer| self.keys.writer(topic, &writer.name)));
        let (batch, total) = writer.map_or((rand::random(), 0), |writer| (writer.batch, writer.total));
        let mut args: Vec<Value> = vec![
            self.keys.live(topic).into(),
            keep.most.to_string().into(),
            millis(keep.age).into(),
            millis(keep.age.max(LEFT_ALONE)).into(),
            rand::random::<u32>().to_string().into(),
            batch.to_string().into(),
            total.to_string().into(),
        ];
        for (at, Share { weight, payload }) in (0..).zip(shares) {
            args.extend([write_number(batch.wrapping_add(at)), weight.to_string().into(), payload.clone().into()]);
        }
        as_position(&script::CONTRIBUTE.call(&self.commands, keys, args).await?)
    }

    async fn contributed(&self, topic: &Topic, writer: &str) -> Result<Option<u64>, BrokerError> {
        let total = self.commands.hget(self.keys.writer(topic, writer), "total").await.map_err(unavailable)?;
        if total.is_null() { Ok(None) } else { as_parsed(&total).map(Some) }
    }

    async fn latest(&self, topic: &Topic, before: Option<Position>, limit: usize) -> Result<Vec<Entry>, BrokerError> {
        let mut args: Vec<Value> = vec![limit.to_string().into()];
        args.extend(before.map(write_position));
        let reply = script::LATEST.call(&self.commands, vec![self.keys.log(topic)], args).await?;
        let mut entries = as_entries(reply)?;
        entries.reverse();
        Ok(entries)
    }

    async fn read(&self, topic: &Topic, after: Position, limit: usize) -> Result<Page, BrokerError> {
        let args = vec![write_position(after), limit.to_string().into()];
        as_page(script::READ.call(&self.commands, vec![self.keys.log(topic)], args).await?)
    }

    /// A plain look is five times cheaper than a script, which takes each entry out of Redis' hands and gives it back.
    /// Where the entries stand is counted from the oldest one. That it has not gone since, and that this is the history
    /// that was read before, shows in the first of them, which names the one before it.
    async fn read_on(
        &self,
        topic: &Topic,
        after: Position,
        oldest: Position,
        limit: usize,
    ) -> Result<Option<Vec<Entry>>, BrokerError> {
        let Some(from) = after.offset.saturating_add(1).checked_sub(oldest.offset) else { return Ok(None) };
        let to = from.saturating_add(limit as u64).saturating_sub(1);
        let entries = as_entries(self.commands.lrange(self.keys.log(topic), from, to).await.map_err(unavailable)?)?;
        let follows = entries.first().is_some_and(|first| first.previous == after);
        Ok(follows.then_some(entries))
    }

    async fn trim(&self, topic: &Topic, before: Position) -> Result<(), BrokerError> {
        let args = vec![write_position(before), STAY.to_string().into()];
        script::CUT.call(&self.commands, vec![self.keys.log(topic)], args).await.map(drop)
    }

    async fn heads(&self, topics: &[Topic]) -> Result<Vec<Position>, BrokerError> {
        let keys = topics.iter().map(|topic| self.keys.log(topic)).collect();
        let heads = script::HEADS.call_for_each(&self.commands, keys, self.together).await?;
        if heads.len() != topics.len() {
            return Err(BrokerError::Garbled(format!("{} heads for {} topics", heads.len(), topics.len())));
        }
        heads.iter().map(as_position).collect()
    }
}
