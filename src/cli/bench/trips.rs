//! Trips: from a command to its reply, and from a command to its event; one at a time.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use super::{
    BenchArgs, Cluster, Outcome,
    child::{Meter, Pages, Process},
    floor::ECHO,
    raw::connect,
    report::{Report, Samples, Unit, percentile},
    resp::{Reply, Resp},
    sibling::{Pair, Sibling},
};

/// What the trips of the floors carry, in bytes: about as much as a command with its envelope.
const LOAD: [u8; 200] = [b'x'; 200];
/// What the nodes have Redis do for an event.
const APPEND: &str = concat!(
    include_str!("../../broker/redis/lua/record.lua"),
    include_str!("../../broker/redis/lua/entries.lua"),
    include_str!("../../broker/redis/lua/history.lua"),
    include_str!("../../broker/redis/lua/append.lua")
);

/// A sibling at the first node commands a client socket at the last one.
pub(super) async fn commands(args: &BenchArgs, cluster: &Cluster, report: &mut Report) -> Outcome<()> {
    let pair = Pair::open(cluster.last()).await?;
    let sibling = pair.attach(cluster.first()).await?;
    let name = format!("command, {}", cluster.name);
    let floors = match cluster.redis {
        Some(redis) => vec![Trip::two_hops(redis).await?, Trip::both(Trip::two_hops(redis).await?).await?],
        None => vec![Trip::echo().await?],
    };
    compare(args, &name, (Trip::Command(Box::new(sibling)), &cluster.meter()), floors, report).await
}

/// A sibling at the first node, where the client socket is, raises events; one at the last node hears them.
pub(super) async fn events(args: &BenchArgs, cluster: &Cluster, report: &mut Report) -> Outcome<()> {
    let pair = Pair::open(cluster.first()).await?;
    let (giver, hearer) = (pair.attach(cluster.first()).await?, pair.attach(cluster.last()).await?);
    let name = format!("event, {}", cluster.name);
    let floors = match cluster.redis {
        Some(redis) => vec![Trip::entry(redis).await?, Trip::both(Trip::entry(redis).await?).await?],
        None => vec![Trip::echo().await?],
    };
    compare(args, &name, (Trip::Event(Box::new([giver, hearer]), false), &cluster.meter()), floors, report).await
}

/// Something that goes and comes back, or arrives.
enum Trip {
    /// A command that raises no event, and its reply.
    Command(Box<Sibling>),
    /// A command, and its event at another sibling. By turns one that stops frames and one that lets them go on, since
    /// these write nothing but their events.
    Event(Box<[Sibling; 2]>, bool),
    /// Bytes to a bare program and back.
    Echo(TcpStream, #[expect(dead_code, reason = "dropping it stops the program")] Process),
    /// A message through Redis to somebody who answers through Redis. Dropping it ends the other side.
    TwoHops { asker: Resp, there: String, ear: Resp, _other: JoinSet<Outcome<()>> },
    /// An entry in a history, by the script that the nodes have, and the message that tells of it.
    Entry { writer: Resp, ear: Resp, digest: Vec<u8>, tag: String },
    /// One after the other: the way through Redis, and the way from a client to a node and back.
    Both(Box<[Trip; 2]>),
}

impl Trip {
    async fn echo() -> Outcome<Self> {
        let floor = Process::floor(1, Pages::Usual)?;
        let mut tcp = connect(floor.address).await?;
        tcp.write_all(&[ECHO]).await.map_err(|error| format!("the bare program hung up: {error}"))?;
        Ok(Self::Echo(tcp, floor))
    }

    async fn two_hops(redis: SocketAddr) -> Outcome<Self> {
        let [there, back] = [(); 2].map(|()| format!("bench:{}", rand::random::<u64>()));
        let (mut ear, mut mouth) = (Resp::subscribed(redis, &there).await?, Resp::open(redis).await?);
        let answer = back.clone();
        let mut other = JoinSet::new();
        other.spawn(async move {
            loop {
                ear.reply().await?;
                mouth.ask(&[b"PUBLISH", answer.as_bytes(), &LOAD]).await?;
            }
        });
        let ear = Resp::subscribed(redis, &back).await?;
        Ok(Self::TwoHops { asker: Resp::open(redis).await?, there, ear, _other: other })
    }

    async fn entry(redis: SocketAddr) -> Outcome<Self> {
        let (mut writer, mut ear) = (Resp::open(redis).await?, Resp::open(redis).await?);
        let tag = format!("bench:{{{}}}", rand::random::<u64>());
        ear.ask(&[b"SSUBSCRIBE", tag.as_bytes()]).await?;
        match writer.ask(&[b"SCRIPT", b"LOAD", APPEND.as_bytes()]).await? {
            Reply::One(digest) => Ok(Self::Entry { writer, ear, digest, tag }),
            other => Err(format!("Redis does not take the script: {other:?}")),
        }
    }

    /// With an echo before it.
    async fn both(self) -> Outcome<Self> {
        Ok(Self::Both(Box::new([Self::echo().await?, self])))
    }

    /// One trip: how long it took.
    async fn take(&mut self) -> Outcome<Duration> {
        let since = Instant::now();
        match self {
            Self::Command(sibling) => {
                let id = sibling.give("client.push", json!({"base64": "c2l4dGVlbiBieXRlcyEh"})).await?;
                sibling.answered(id).await?;
                Ok(since.elapsed())
            }
            Self::Event(siblings, paused) => {
                let [giver, hearer] = &mut **siblings;
                let (method, params) = match *paused {
                    false => ("client.pause", json!({"direction": "in", "policy": "buffer"})),
                    true => ("client.resume", json!({"direction": "in"})),
                };
                *paused = !*paused;
                let id = giver.give(method, params).await?;
                hearer.hear(|message| message["params"]["cause"]["id"] == id).await?;
                let took = since.elapsed();
                giver.answered(id).await?;
                Ok(took)
            }
            Self::Echo(tcp, _) => {
                let lost = |error| format!("the bare program hung up: {error}");
                tcp.write_all(&LOAD).await.map_err(lost)?;
                tcp.read_exact(&mut [0; LOAD.len()]).await.map_err(lost)?;
                Ok(since.elapsed())
            }
            Self::TwoHops { asker, there, ear, .. } => {
                asker.send(&[b"PUBLISH", there.as_bytes(), &LOAD]).await?;
                ear.reply().await?;
                let took = since.elapsed();
                asker.reply().await?;
                Ok(took)
            }
            Self::Entry { writer, ear, digest, tag } => {
                // As a node has it written whose room keeps a thousand for an hour; each has a nonce of its own.
                let nonce: [u8; 8] = rand::random();
                let (log, record) = (format!("{tag}:log"), format!("{tag}:pair"));
                let keep: [&[u8]; 7] = [tag.as_bytes(), b"1000", b"3600000", b"1000", b"3600000", b"", b""];
                let keys: [&[u8]; 5] = [b"EVALSHA", digest, b"2", log.as_bytes(), record.as_bytes()];
                let draft: [&[u8]; 2] = [&nonce, &LOAD];
                writer.send(&[&keys[..], &keep, &draft].concat()).await?;
                ear.reply().await?;
                let took = since.elapsed();
                writer.reply().await?;
                Ok(took)
            }
            Self::Both(trips) => {
                let mut took = Duration::ZERO;
                for trip in &mut **trips {
                    took += Box::pin(trip.take()).await?;
                }
                Ok(took)
            }
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Command(_) | Self::Event(..) => "gateway",
            Self::Echo(..) => "bare echo",
            Self::TwoHops { .. } => "2 Redis hops",
            Self::Entry { .. } => "a hop with the script",
            Self::Both(trips) => match trips[1] {
                Self::TwoHops { .. } => "2 hops and an echo",
                _ => "a hop with the script, and an echo",
            },
        }
    }

    /// Trips for as long as told, in microseconds.
    async fn turn(&mut self, lasting: Duration) -> Outcome<Vec<f64>> {
        let until = Instant::now() + lasting;
        let mut took = Vec::new();
        while took.is_empty() || Instant::now() < until {
            took.push(self.take().await?.as_secs_f64() * 1e6);
        }
        Ok(took)
    }
}

async fn compare(
    args: &BenchArgs,
    name: &str,
    (mut ours, nodes): (Trip, &Meter),
    mut floors: Vec<Trip>,
    report: &mut Report,
) -> Outcome<()> {
    let turn = args.turn(1 + floors.len() as u32);
    // The first trips find caches cold and homes unknown.
    ours.turn(turn / 10).await?;
    let mut figures = Vec::new();
    for floor in &mut floors {
        floor.turn(turn / 10).await?;
        figures.push([("p50", 50, Samples::new()), ("p99", 99, Samples::new())]);
    }
    let (mut trips, mut used) = (0, Duration::ZERO);
    for _ in 0..args.turns {
        let before = nodes.cpu()?;
        let mut gateway = ours.turn(turn).await?;
        used += nodes.cpu()?.saturating_sub(before);
        trips += gateway.len();
        for (floor, figures) in floors.iter_mut().zip(&mut figures) {
            let mut bare = floor.turn(turn).await?;
            for (_, percent, samples) in figures {
                samples.add(percentile(&mut gateway, *percent), percentile(&mut bare, *percent));
            }
        }
    }
    for (floor, figures) in floors.iter().zip(&figures) {
        for (figure, _, samples) in figures {
            report.add(name, figure, Unit::Microseconds, floor.what(), samples);
        }
    }
    report.tell(name, "CPU a trip, all nodes", Unit::Microseconds, used.as_secs_f64() * 1e6 / trips as f64);
    Ok(())
}
