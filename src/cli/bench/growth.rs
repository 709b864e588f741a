//! Growth: what a frame, a command and an event cost on a node with few pairs, with many, and with many rooms.

use serde_json::json;
use tokio::time::Instant;

use super::{
    BenchArgs, Outcome,
    child::{Meter, Process, need_files},
    complete,
    fan::{Fan, Pace},
    report::{Report, Samples, Unit},
    sibling::{Pair, Sibling},
};

/// Pairs of the small node, in one room.
const FEW: u32 = 100;
/// How many pairs share a room where there are many rooms.
const SHARED: u32 = 2;
const RECEIVERS: u32 = 100;
/// Frames a second that are each written on their own.
const PACE: f64 = 500.0;
const FIGURES: [&str; 4] = ["CPU a delivery", "CPU a delivery, 500 a second", "CPU a command", "CPU an event"];

/// A node with pairs that idle, and with one that does not.
struct Grown {
    name: String,
    meter: Meter,
    fan: Fan,
    sibling: Sibling,
    _pair: Pair,
    _processes: [Process; 2],
}

impl Grown {
    async fn open(pairs: u32, rooms: u32) -> Outcome<Self> {
        let gateway = complete::start("memory")?;
        let idle = Process::crowd(gateway.address, pairs, rooms)?;
        let fan = complete::fan(&[gateway.address], "fan-grown", RECEIVERS, 64).await?;
        let pair = Pair::open(gateway.address).await?;
        let sibling = pair.attach(gateway.address).await?;
        let name = format!("{pairs} pairs in {rooms} rooms");
        Ok(Self { name, meter: gateway.meter(), fan, sibling, _pair: pair, _processes: [gateway, idle] })
    }

    /// Each figure once, in nanoseconds.
    async fn turn(&mut self, args: &BenchArgs) -> Outcome<[f64; 4]> {
        let lasting = args.turn(3 * FIGURES.len() as u32);
        let fast = self.fan.turn(lasting, Pace::Saturating, &self.meter).await?.server();
        let slow = self.fan.turn(lasting, Pace::Set(PACE), &self.meter).await?.server();
        let mut costs = [0.0; 2];
        for (cost, raises) in costs.iter_mut().zip([false, true]) {
            let (until, before, mut given) = (Instant::now() + lasting, self.meter.cpu()?, 0);
            while given < 2 || Instant::now() < until {
                let id = match (raises, given % 2) {
                    (false, _) => self.sibling.give("client.push", json!({"base64": "c2l4dGVlbiBieXRlcyEh"})).await?,
                    (true, 0) => {
                        let params = json!({"direction": "in", "policy": "buffer"});
                        self.sibling.give("client.pause", params).await?
                    }
                    (true, _) => self.sibling.give("client.resume", json!({"direction": "in"})).await?,
                };
                self.sibling.answered(id).await?;
                given += 1;
            }
            *cost = self.meter.cpu()?.saturating_sub(before).as_secs_f64() * 1e9 / f64::from(given);
        }
        Ok([fast, slow, costs[0], costs[1]])
    }
}

pub(super) async fn measure(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    let many = args.crowd;
    // Each node, and each load of idle pairs, is a process with files of its own.
    need_files(u64::from(many) + 400, &format!("use a smaller --crowd than {many}"))?;
    let mut nodes = Vec::new();
    for (pairs, rooms) in [(FEW, 1), (many, 1), (many, (many / SHARED).max(1))] {
        nodes.push(Grown::open(pairs, rooms).await?);
    }
    let mut all: Vec<Vec<[f64; 4]>> = vec![Vec::new(); nodes.len()];
    for number in 0..args.turns as usize {
        // Whoever comes later finds a warmer machine: each is first once.
        for step in 0..nodes.len() {
            let at = (number + step) % nodes.len();
            all[at].push(nodes[at].turn(args).await?);
        }
    }
    for (node, turns) in nodes.iter().zip(&all).skip(1) {
        for (at, figure) in FIGURES.into_iter().enumerate() {
            let mut samples = Samples::new();
            turns.iter().zip(&all[0]).for_each(|(grown, few)| samples.add(grown[at], few[at]));
            report.add(&format!("growth, {}", node.name), figure, Unit::Nanoseconds, "100 pairs", &samples);
        }
    }
    Ok(())
}
