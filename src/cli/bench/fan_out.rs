//! Fan-out on one node: saturating with frames of three sizes, in one room and in many, and at paces.

use super::{
    BenchArgs, Outcome,
    child::{Meter, Pages, Process, need_files},
    complete,
    fan::{Fan, Pace, Turn, turn},
    report::{Report, Samples, Unit, median},
};

/// Payloads of a frame.
pub(super) const SIZES: [(usize, &str); 3] = [(64, "64 B"), (1 << 10, "1 KiB"), (16 << 10, "16 KiB")];
/// How many messages a second are sent when each has to be written on its own.
const SLOW: f64 = 500.0;
/// Percent of what the gateway takes at most.
const SHARES: [u32; 3] = [10, 50, 80];
/// Rooms, and the receivers of each.
const ROOMS: [u32; 2] = [100, 10];

/// What the bare program does.
#[derive(Clone, Copy)]
pub(super) enum Floor {
    /// It writes, and knows what.
    Writes,
    /// It reads as much from a sender as each receiver gets, too.
    Relay,
}

impl Floor {
    fn what(self) -> &'static str {
        match self {
            Self::Writes => "bare writes",
            Self::Relay => "bare relay",
        }
    }
}

/// Turns of the gateway and of the bare program.
struct Both {
    gateway: Vec<Fan>,
    floor: Vec<Fan>,
    meters: [Meter; 2],
    /// Dropping them stops them.
    _processes: [Process; 2],
}

impl Both {
    async fn open(rooms: u32, receivers: u32, size: usize, floor: Floor) -> Outcome<Self> {
        need_files(u64::from(rooms * receivers) * 3 + u64::from(rooms) * 2 + 100, "use fewer --receivers")?;
        let (gateway, bare) = (complete::start("memory")?, Process::floor(size, Pages::Usual)?);
        let mut fans = Vec::new();
        for room in 0..rooms {
            fans.push(complete::fan(&[gateway.address], &format!("fan-{room}"), receivers, size).await?);
        }
        // The bare program writes the same to all: its rooms would not differ.
        let floor = match floor {
            Floor::Writes => Fan::of_floor(bare.address, rooms * receivers, size).await?,
            Floor::Relay => Fan::of_relay(bare.address, rooms * receivers, size).await?,
        };
        let meters = [gateway.meter(), bare.meter()];
        Ok(Self { gateway: fans, floor: vec![floor], meters, _processes: [gateway, bare] })
    }

    /// As many turns as asked for, each side's beside the other's.
    async fn turns(&mut self, args: &BenchArgs, cases: u32, pace: Pace) -> Outcome<Vec<[Turn; 2]>> {
        let lasting = args.turn(2 * cases);
        let mut turns = Vec::new();
        for number in 0..args.turns {
            // Whoever comes second finds a warmer machine: they take that in turns, too.
            let early = if number % 2 == 0 { None } else { Some(self.ours(lasting, pace).await?) };
            let floor = turn(&mut self.floor, lasting, pace, &self.meters[1]).await?;
            turns.push([if let Some(early) = early { early } else { self.ours(lasting, pace).await? }, floor]);
        }
        Ok(turns)
    }

    async fn ours(&mut self, lasting: std::time::Duration, pace: Pace) -> Outcome<Turn> {
        turn(&mut self.gateway, lasting, pace, &self.meters[0]).await
    }
}

/// A figure of both sides in all turns.
pub(super) fn samples<'a>(turns: impl IntoIterator<Item = &'a [Turn; 2]>, figure: impl Fn(&Turn) -> f64) -> Samples {
    let mut samples = Samples::new();
    for [ours, floor] in turns {
        samples.add(figure(ours), figure(floor));
    }
    samples
}

pub(super) fn add_costs(report: &mut Report, name: &str, floor: &'static str, turns: &[[Turn; 2]]) {
    report.add(name, "server CPU a delivery", Unit::Nanoseconds, floor, &samples(turns, Turn::server));
    report.add(name, "load CPU a delivery", Unit::Nanoseconds, floor, &samples(turns, Turn::load));
}

/// Saturating, in one room.
pub(super) async fn measure(args: &BenchArgs, floor: Floor, report: &mut Report) -> Outcome<()> {
    for receivers in &args.receivers {
        saturate(args, report, [1, *receivers], &format!("fan-out {receivers}"), floor).await?;
    }
    Ok(())
}

/// Saturating, in many rooms.
pub(super) async fn rooms(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    let [rooms, receivers] = ROOMS;
    saturate(args, report, ROOMS, &format!("{rooms} rooms of {receivers}"), Floor::Writes).await
}

async fn saturate(
    args: &BenchArgs,
    report: &mut Report,
    [rooms, receivers]: [u32; 2],
    what: &str,
    floor: Floor,
) -> Outcome<()> {
    for (size, size_is) in SIZES {
        let mut both = Both::open(rooms, receivers, size, floor).await?;
        let turns = both.turns(args, SIZES.len() as u32, Pace::Saturating).await?;
        let name = format!("{what} × {size_is}");
        report.add(&name, "deliveries", Unit::PerSecond, floor.what(), &samples(&turns, Turn::rate));
        add_costs(report, &name, floor.what(), &turns);
    }
    Ok(())
}

/// At paces: what a frame costs when it comes alone, and how long frames take.
pub(super) async fn paced(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    let cases = 1 + SHARES.len() as u32;
    for receivers in &args.receivers {
        let size = 64;
        let mut both = Both::open(1, *receivers, size, Floor::Writes).await?;
        let mut most = Vec::new();
        for _ in 0..args.turns {
            most.push(both.ours(args.turn(4 * cases), Pace::SaturatingTimed).await?.rate());
        }
        let most = median(&mut most) / f64::from(*receivers);
        let shares = SHARES.map(|share| (format!("{share} %"), most * f64::from(share) / 100.0));
        for (pace_is, rate) in [(format!("{SLOW} a second"), SLOW)].into_iter().chain(shares) {
            let turns = both.turns(args, cases, Pace::Set(rate)).await?;
            let name = format!("paced {receivers} × 64 B, {pace_is}");
            report.add(&name, "deliveries", Unit::PerSecond, "bare writes", &samples(&turns, Turn::rate));
            add_latencies(report, &name, "bare writes", &turns);
            add_costs(report, &name, Floor::Writes.what(), &turns);
        }
    }
    Ok(())
}

pub(super) fn add_latencies(report: &mut Report, name: &str, floor: &'static str, turns: &[[Turn; 2]]) {
    for (at, figure) in ["p50", "p99", "p99.9"].into_iter().enumerate() {
        report.add(name, figure, Unit::Microseconds, floor, &samples(turns, |turn| turn.latency[at]));
    }
}
