//! What Redis has to do for the gateway: its commands and its memory.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::time::sleep;

use super::{
    BenchArgs, Cluster, Outcome,
    child::{Meter, need_files},
    complete,
    fan::Pace,
    idle,
    report::{Report, Unit},
    resp::Resp,
    sibling::Pair,
};

/// Events that are raised one after the other.
const EVENTS: u64 = 500;
/// How long the idle pairs are watched: a few leases of a node.
const WATCH: Duration = Duration::from_secs(10);
const SCRIPTS: [&str; 4] = ["eval", "evalsha", "fcall", "evalsha_ro"];
const PUBLISHES: [&str; 2] = ["publish", "spublish"];

pub(super) async fn measure(
    args: &BenchArgs,
    cluster: &Cluster,
    redis: SocketAddr,
    report: &mut Report,
) -> Outcome<()> {
    need_files(u64::from(args.pairs) * 2 + 200, "use fewer --pairs")?;
    let mut counter = Resp::open(redis).await?;
    let addresses = [cluster.first(), cluster.last()];

    let mut fan = complete::fan(&addresses, "fan-costs", 10, 64).await?;
    let (before, sent) = (counter.calls().await?, fan.sent());
    fan.turn(args.turn(1), Pace::Saturating, &Meter::of_all(&cluster.nodes)).await?;
    let calls = counter.calls().await?.since(&before);
    let batches = calls.of(&PUBLISHES) as f64;
    let name = "Redis, a room on 2 nodes";
    report.tell(name, "frames a batch", Unit::Count, (fan.sent() - sent) as f64 / batches);
    report.tell(name, "commands a batch", Unit::Count, calls.all() as f64 / batches);
    drop(fan);

    let pair = Pair::open(cluster.last()).await?;
    let mut sibling = pair.attach(cluster.first()).await?;
    let before = counter.calls().await?;
    for number in 0..EVENTS {
        // Unlike client.set, these write nothing but their events.
        let id = match number % 2 {
            0 => sibling.give("client.pause", json!({"direction": "in", "policy": "buffer"})).await?,
            _ => sibling.give("client.resume", json!({"direction": "in"})).await?,
        };
        sibling.answered(id).await?;
    }
    let calls = counter.calls().await?.since(&before);
    let name = "Redis, commands with an event";
    let each = |calls: u64| calls as f64 / EVENTS as f64;
    report.tell(name, "scripts an event", Unit::Count, each(calls.of(&SCRIPTS)));
    report.tell(name, "PUBLISHes of command, event and reply", Unit::Count, each(calls.of(&PUBLISHES)));
    report.tell(name, "commands an event, in scripts too", Unit::Count, each(calls.all()));
    report.note(&format!("Redis' commands for {EVENTS} events: {calls}"));

    // Pairs are rooms' members: the memory of a pair is that of its share in a room, too.
    let before = counter.memory().await?;
    let _pairs = idle::pairs(cluster.first(), args.pairs).await?;
    // What is still to be said about them is said within two seconds.
    sleep(Duration::from_secs(3)).await;
    let grown = counter.memory().await? - before;
    let calls = counter.calls().await?;
    sleep(WATCH).await;
    let calls = counter.calls().await?.since(&calls);
    let name = format!("Redis, {} idle pairs", args.pairs);
    let second = calls.all() as f64 / WATCH.as_secs_f64();
    report.tell(&name, "memory a pair", Unit::Bytes, grown / f64::from(args.pairs));
    report.tell(&name, "commands a second", Unit::Count, second);
    report.tell(&name, "commands a pair and second", Unit::Count, second / f64::from(args.pairs));
    report.note(&format!("Redis' commands in {} s of idling: {calls}", WATCH.as_secs()));
    Ok(())
}
