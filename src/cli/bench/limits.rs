//! What limits and grants cost: fan-out with everything that can be limited limited, beside a node without.

use std::time::Duration;

use super::{
    BenchArgs, Outcome,
    child::{Pages, Process, need_files},
    complete::{self, KEY},
    fan::{Fan, Pace, Turn},
    report::{Report, Samples, Unit},
};

const SIZES: [(usize, &str); 3] = [(64, "64 B"), (1 << 10, "1 KiB"), (16 << 10, "16 KiB")];

pub(super) async fn measure(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    let receivers = args.receivers[0];
    need_files(u64::from(receivers) * 6 + 100, "use fewer --receivers")?;
    let (limited, free) = (complete::start("memory")?, Process::gateway("memory", Pages::Usual)?);
    let mut pairs = Vec::new();
    for (size, name) in SIZES {
        let path = format!("/v1/rooms/fan-{size}/client?format=binary");
        let ours = Fan::of_gateway(limited.address, &format!("{path}&ticket={KEY}"), receivers, size).await?;
        let without = Fan::of_gateway(free.address, &path, receivers, size).await?;
        pairs.push((name, ours, without, [const { Samples::new() }; 2]));
    }
    let turn: Duration = args.turn(2 * SIZES.len() as u32);
    for number in 0..args.turns {
        for (_, ours, without, samples) in &mut pairs {
            // Whoever comes second finds a warmer machine: they take that in turns, too.
            let (with, bare) = if number % 2 == 0 {
                let bare = without.turn(turn, Pace::Saturating, &free.meter()).await?;
                (ours.turn(turn, Pace::Saturating, &limited.meter()).await?, bare)
            } else {
                let with = ours.turn(turn, Pace::Saturating, &limited.meter()).await?;
                (with, without.turn(turn, Pace::Saturating, &free.meter()).await?)
            };
            for (samples, figure) in samples.iter_mut().zip([Turn::rate, Turn::server]) {
                samples.add(figure(&with), figure(&bare));
            }
        }
    }
    for (name, _, _, [rate, server]) in &pairs {
        let name = format!("fan-out {receivers} × {name}, limited");
        report.add(&name, "deliveries", Unit::PerSecond, "without limits", rate);
        report.add(&name, "server CPU a delivery", Unit::Nanoseconds, "without limits", server);
    }
    Ok(())
}
