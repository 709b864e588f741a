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
    child::{Pages, Process},
    floor::ECHO,
    raw::connect,
    report::{Report, Samples, Unit, percentile},
    resp::Resp,
    sibling::{Pair, Sibling},
};

/// What the trips of the floors carry, in bytes: about as much as a command with its envelope.
const LOAD: [u8; 200] = [b'x'; 200];

/// A sibling at the first node commands a client socket at the last one.
pub(super) async fn commands(args: &BenchArgs, cluster: &Cluster, report: &mut Report) -> Outcome<()> {
    let pair = Pair::open(cluster.last()).await?;
    let sibling = pair.attach(cluster.first()).await?;
    let name = format!("command, {}", cluster.name);
    let floor = match cluster.redis {
        Some(redis) => Trip::two_hops(redis).await?,
        None => Trip::echo().await?,
    };
    compare(args, &name, Trip::Command(Box::new(sibling)), floor, report).await
}

/// A sibling at the first node, where the client socket is, raises events; one at the last node hears them.
pub(super) async fn events(args: &BenchArgs, cluster: &Cluster, report: &mut Report) -> Outcome<()> {
    let pair = Pair::open(cluster.first()).await?;
    let (giver, hearer) = (pair.attach(cluster.first()).await?, pair.attach(cluster.last()).await?);
    let name = format!("event, {}", cluster.name);
    let floor = match cluster.redis {
        Some(redis) => Trip::entry(redis).await?,
        None => Trip::echo().await?,
    };
    compare(args, &name, Trip::Event(Box::new([giver, hearer]), false), floor, report).await
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
    /// A message through Redis to somebody who answers through Redis: asker, ear, and the other side's task.
    TwoHops(Resp, Resp, #[expect(dead_code, reason = "dropping it ends the other side")] JoinSet<Outcome<()>>),
    /// An entry in a stream together with a message that tells of it: writer and ear.
    Entry(Resp, Resp),
}

impl Trip {
    async fn echo() -> Outcome<Self> {
        let floor = Process::floor(1, Pages::Usual)?;
        let mut tcp = connect(floor.address).await?;
        tcp.write_all(&[ECHO]).await.map_err(|error| format!("the bare program hung up: {error}"))?;
        Ok(Self::Echo(tcp, floor))
    }

    async fn two_hops(redis: SocketAddr) -> Outcome<Self> {
        let (mut ear, mut mouth) = (Resp::subscribed(redis, "bench:there").await?, Resp::open(redis).await?);
        let mut other = JoinSet::new();
        other.spawn(async move {
            loop {
                ear.reply().await?;
                mouth.ask(&[b"PUBLISH", b"bench:back", &LOAD]).await?;
            }
        });
        Ok(Self::TwoHops(Resp::open(redis).await?, Resp::subscribed(redis, "bench:back").await?, other))
    }

    async fn entry(redis: SocketAddr) -> Outcome<Self> {
        Ok(Self::Entry(Resp::open(redis).await?, Resp::subscribed(redis, "bench:told").await?))
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
            Self::TwoHops(asker, ear, _) => {
                asker.send(&[b"PUBLISH", b"bench:there", &LOAD]).await?;
                ear.reply().await?;
                let took = since.elapsed();
                asker.reply().await?;
                Ok(took)
            }
            Self::Entry(writer, ear) => {
                writer.send(&[b"XADD", b"bench:stream", b"MAXLEN", b"~", b"1000", b"*", b"p", &LOAD]).await?;
                writer.send(&[b"PUBLISH", b"bench:told", &LOAD]).await?;
                ear.reply().await?;
                let took = since.elapsed();
                writer.reply().await?;
                writer.reply().await?;
                Ok(took)
            }
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Command(_) | Self::Event(..) => "gateway",
            Self::Echo(..) => "bare echo",
            Self::TwoHops(..) => "2 Redis hops",
            Self::Entry(..) => "XADD + PUBLISH",
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

async fn compare(args: &BenchArgs, name: &str, mut ours: Trip, mut bare: Trip, report: &mut Report) -> Outcome<()> {
    let turn = args.turn(2);
    let mut figures = [("p50", 50, Samples::new()), ("p99", 99, Samples::new())];
    // The first trips find caches cold and homes unknown.
    ours.turn(turn / 10).await?;
    bare.turn(turn / 10).await?;
    for _ in 0..args.turns {
        let mut floor = bare.turn(turn).await?;
        let mut gateway = ours.turn(turn).await?;
        for (_, percent, samples) in &mut figures {
            samples.add(percentile(&mut gateway, *percent), percentile(&mut floor, *percent));
        }
    }
    for (figure, _, samples) in &figures {
        report.add(name, figure, Unit::Microseconds, bare.what(), samples);
    }
    Ok(())
}
