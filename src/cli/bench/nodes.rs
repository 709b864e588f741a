//! Frames across three nodes, beside what one Redis publishes and delivers by itself in batches of the same size.

use std::{net::SocketAddr, time::Duration};

use super::{
    BenchArgs, Outcome,
    child::{Meter, Process},
    complete,
    fan::{Fan, Pace, Turn},
    fan_out::{SIZES, samples},
    latency::payload,
    messages::Messages,
    raw::{Raw, connect},
    report::{Report, Samples, Unit},
    resp::Resp,
};

/// Messages a second when it is asked how long one takes.
const PACE: f64 = 200.0;
/// The Redis hop that a frame's is compared with.
const HOP: &str = "1 Redis hop";

/// A sender may be ahead by more than on one node: frames are in the sockets, queues and buffers of several.
const FARTHER: u64 = 2;

/// A Redis, and the three nodes on it.
struct Three {
    redis: SocketAddr,
    nodes: Vec<Process>,
    /// Of the nodes and of Redis together, and of Redis alone. Without a server of our own, nobody knows Redis' part.
    meters: [Meter; 2],
    /// Each by itself.
    parts: Vec<(&'static str, Meter)>,
}

pub(super) async fn measure(
    args: &BenchArgs,
    (redis, url): (SocketAddr, &str),
    server: Option<&Process>,
    report: &mut Report,
) -> Outcome<()> {
    let nodes = (0..3).map(|_| complete::start(url)).collect::<Outcome<Vec<_>>>()?;
    let meters = [Meter::of_all(nodes.iter().chain(server)), Meter::of_all(server)];
    let mut parts = vec![
        ("CPU a delivery, sender's node", nodes[0].meter()),
        ("CPU a delivery, receivers' nodes", Meter::of_all(&nodes[1..])),
    ];
    parts.extend(server.map(|server| ("CPU a delivery, Redis", server.meter())));
    let three = Three { redis, nodes, meters, parts };
    for (size, size_is) in SIZES {
        three.saturate(args, size, size_is, report).await?;
    }
    three.hop(args, report).await
}

impl Three {
    async fn saturate(&self, args: &BenchArgs, size: usize, size_is: &str, report: &mut Report) -> Outcome<()> {
        let lasting = args.turn(2 * SIZES.len() as u32);
        let addresses: Vec<SocketAddr> = self.nodes.iter().map(|node| node.address).collect();
        let mut ours = complete::fan(&addresses, &format!("fan-{size}"), 2, size).await?.farther(FARTHER);
        let mut counter = Resp::open(self.redis).await?;
        let before = (ours.sent(), counter.calls().await?);
        ours.turn(lasting, Pace::Saturating, &self.meters[0]).await?;
        let published = counter.calls().await?.since(&before.1).of(&["publish", "spublish"]);
        let published = published.max(1);
        let batch = ((ours.sent() - before.0 + published / 2) / published).max(1);
        // A frame in a batch has its header with it.
        let mut bare = raw(self.redis, 2, batch as usize * (size + 2)).await?.farther(FARTHER);
        let [mut rate, mut cpu] = [const { Samples::new() }; 2];
        let cpu_of_parts = || self.parts.iter().map(|(_, meter)| meter.cpu()).collect::<Outcome<Vec<_>>>();
        let (mut deliveries, mut used) = (0, vec![Duration::ZERO; self.parts.len()]);
        for _ in 0..args.turns {
            let floor = bare.turn(lasting, Pace::Saturating, &self.meters[1]).await?;
            let before = (ours.sent(), cpu_of_parts()?);
            let gateway = ours.turn(lasting, Pace::Saturating, &self.meters[0]).await?;
            deliveries += 2 * (ours.sent() - before.0);
            let now = cpu_of_parts()?;
            used.iter_mut()
                .zip(now.iter().zip(&before.1))
                .for_each(|(used, (now, before))| *used += now.saturating_sub(*before));
            rate.add(gateway.rate(), floor.rate() * batch as f64);
            cpu.add(gateway.server(), floor.server() / batch as f64);
        }
        let name = format!("3 nodes, Redis, 2 × {size_is}");
        report.add(&name, "deliveries", Unit::PerSecond, "raw PUBLISH", &rate);
        if self.meters[1] != Meter::of([]) {
            report.add(&name, "servers' CPU a delivery", Unit::Nanoseconds, "raw PUBLISH", &cpu);
        }
        for ((part, _), used) in self.parts.iter().zip(used) {
            report.tell(&name, part, Unit::Nanoseconds, used.as_secs_f64() * 1e9 / deliveries as f64);
        }
        report.tell(&name, "frames a PUBLISH", Unit::Count, batch as f64);
        Ok(())
    }

    /// What a frame's way to another node takes longer than its way on one node.
    async fn hop(&self, args: &BenchArgs, report: &mut Report) -> Outcome<()> {
        let size = 64;
        let address = |node: usize| self.nodes[node].address;
        let mut here = complete::fan(&[address(0)], "fan-here", 1, size).await?;
        let mut there = complete::fan(&[address(0), address(1)], "fan-there", 1, size).await?;
        let mut bare = raw(self.redis, 1, size).await?;
        let (lasting, pace) = (args.turn(3), Pace::Set(PACE));
        let mut turns = Vec::new();
        for _ in 0..args.turns {
            let floor = bare.turn(lasting, pace, &self.meters[1]).await?;
            let near = here.turn(lasting, pace, &self.meters[0]).await?;
            let mut far = there.turn(lasting, pace, &self.meters[0]).await?;
            far.latency[0] -= near.latency[0];
            turns.push([far, floor]);
        }
        // Only medians can be told apart like this: a tail less another tail is no tail of anything.
        let added = samples(&turns, |turn: &Turn| turn.latency[0]);
        report.add("3 nodes, Redis, 64 B, 200 a second", "p50 added to local", Unit::Microseconds, HOP, &added);
        Ok(())
    }
}

/// A connection that publishes, and some that have subscribed.
pub(super) async fn raw(redis: SocketAddr, receivers: u32, size: usize) -> Outcome<Fan> {
    let channel = format!("bench:fan:{size}:{receivers}");
    let blob = |text: &[u8]| [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat();
    let list = |words: [&[u8]; 3]| [b"*3\r\n".to_vec(), blob(words[0]), blob(words[1]), blob(words[2])].concat();
    let delivered = list([b"message", channel.as_bytes(), &payload(size)]).len();
    let mut open = Vec::new();
    for _ in 0..receivers {
        let mut raw = Raw::bare(connect(redis).await?, Messages::alike(delivered));
        let subscribe = [b"*2\r\n".to_vec(), blob(b"SUBSCRIBE"), blob(channel.as_bytes())].concat();
        raw.write(&subscribe).await?;
        raw.hear(b":1\r\n").await?;
        open.push(raw);
    }
    let publish = list([b"PUBLISH", channel.as_bytes(), &payload(size)]);
    Ok(Fan::new(Raw::bare(connect(redis).await?, Messages::alike(1)), &publish, open, size))
}
