//! Replay: a sibling that wakes late reads its pair's history from the start.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{
    BenchArgs, Cluster, Outcome,
    child::{Pages, Process},
    fan::Fan,
    raw::Raw,
    report::{Report, Samples, Unit},
    resp::{Reply, Resp},
    sibling::Pair,
};

/// How many commands are under way while the history is made: a sibling may have 64.
const AT_ONCE: u64 = 32;
/// How many entries a page has, as in the gateway.
const PAGE: &[u8] = b"256";
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn measure(args: &BenchArgs, cluster: &Cluster, report: &mut Report) -> Outcome<()> {
    let name = format!("replay, {}", cluster.name);
    let pair = Pair::open(cluster.first()).await?;
    let events = u64::from(args.events);
    raise(&pair, cluster.first(), events).await?;
    let (_, size) = replay(&pair, cluster.last(), events).await?;
    let mut floor = match cluster.redis {
        Some(redis) => Floor::of_redis(redis, events, size).await?,
        None => Floor::bare(size).await?,
    };
    let mut rate = Samples::new();
    let began = Instant::now();
    for turn in 0..args.turns.max(3) {
        if turn > 0 && began.elapsed().as_secs_f64() > args.seconds {
            break;
        }
        let bare = floor.read(events).await?;
        let (ours, _) = replay(&pair, cluster.last(), events).await?;
        rate.add(events as f64 / ours.as_secs_f64(), events as f64 / bare.as_secs_f64());
    }
    report.add(&name, "events", Unit::PerSecond, floor.what(), &rate);
    Ok(())
}

/// Makes a history, by as many commands as events.
async fn raise(pair: &Pair, address: SocketAddr, events: u64) -> Outcome<()> {
    let mut sibling = pair.attach(address).await?;
    for number in 1..=events + AT_ONCE {
        if number <= events {
            // Unlike client.set, these write nothing but their events.
            match number % 2 {
                1 => sibling.give("client.pause", json!({"direction": "in", "policy": "buffer"})).await?,
                _ => sibling.give("client.resume", json!({"direction": "in"})).await?,
            };
        }
        // Answers that come together need not come in order: they are counted.
        if number > AT_ONCE {
            sibling.hear(|message| message.get("id").is_some()).await?;
        }
    }
    Ok(())
}

/// Reads a history: how long it took from `ready` on, and how many bytes an event has.
async fn replay(pair: &Pair, address: SocketAddr, events: u64) -> Outcome<(Duration, usize)> {
    let path = format!("{}?cursor=start", pair.path());
    let mut sibling = Raw::open(address, &path, Some(&pair.ticket)).await?;
    let (mut frames, mut bytes, mut ready) = (0, 0, None);
    // `ready` and `client.opened` stand before the events.
    while frames < events + 2 {
        let next = timeout(PATIENCE, sibling.next()).await;
        let (more, read) =
            next.unwrap_or_else(|_| Err(format!("a replay stood still after {frames} of {events} events")))?;
        ready.get_or_insert_with(Instant::now);
        frames += more;
        bytes += read;
    }
    Ok((ready.map(|ready| ready.elapsed()).unwrap_or_default(), bytes / frames as usize))
}

/// The same entries without a gateway.
enum Floor {
    /// Written by a bare program.
    Bare {
        fan: Fan,
        #[expect(dead_code, reason = "dropping it stops the program")]
        process: Process,
    },
    /// Read from a stream, a page at a time.
    Redis(Resp),
}

impl Floor {
    async fn bare(size: usize) -> Outcome<Self> {
        let process = Process::floor(size, Pages::Usual)?;
        Ok(Self::Bare { fan: Fan::of_floor(process.address, 1, size).await?, process })
    }

    async fn of_redis(address: SocketAddr, events: u64, size: usize) -> Outcome<Self> {
        let mut redis = Resp::open(address).await?;
        redis.ask(&[b"DEL", b"bench:history"]).await?;
        for _ in 0..events {
            redis.ask(&[b"XADD", b"bench:history", b"*", b"p", &vec![b'x'; size]]).await?;
        }
        Ok(Self::Redis(redis))
    }

    async fn read(&mut self, events: u64) -> Outcome<Duration> {
        match self {
            Self::Bare { fan, .. } => fan.burst(events).await,
            Self::Redis(redis) => {
                let (since, mut after, mut read) = (Instant::now(), b"-".to_vec(), 0);
                while read < events {
                    let Reply::Many(page) =
                        redis.ask(&[b"XRANGE", b"bench:history", &after, b"+", b"COUNT", PAGE]).await?
                    else {
                        return Err("Redis answered XRANGE with something that is no list".into());
                    };
                    read += page.len() as u64;
                    match page.last() {
                        Some(Reply::Many(entry)) if let Some(Reply::One(id)) = entry.first() => {
                            after = [b"(", &id[..]].concat();
                        }
                        _ => return Err(format!("Redis kept {read} of {events} entries")),
                    }
                }
                Ok(since.elapsed())
            }
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Bare { .. } => "bare writes",
            Self::Redis(_) => "bare XRANGE",
        }
    }
}
