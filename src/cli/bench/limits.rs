//! What limits and grants cost: fan-out with everything that can be limited limited, beside a node without.

use std::time::Duration;

use super::{
    BenchArgs, Outcome,
    child::{Pages, Process, need_files},
    fan::{Fan, Turn},
    report::{Report, Samples, Unit},
};

/// The bearer that may publish where not everyone may.
const KEY: &str = "the-key-of-a-benchmark";
/// Limits that nobody reaches, so that only keeping them is measured.
const ROOMS: &str = r#"
[rooms."fan-*"]
format = "binary"
publish = "granted"
violations = "drop"
capacity = 100000
max_message_bytes = 1000000
rate = { messages_per_second = 1e9, bytes_per_second = 1e12 }
"#;
const SIZES: [(usize, &str); 3] = [(64, "64 B"), (1 << 10, "1 KiB"), (16 << 10, "16 KiB")];

pub(super) async fn measure(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    need_files(u64::from(args.receivers) * 6 + 100, "use fewer --receivers")?;
    let file = std::env::temp_dir().join(format!("sibling-bench-{}.toml", std::process::id()));
    std::fs::write(&file, ROOMS).map_err(|error| format!("{}: {error}", file.display()))?;
    let limits = [
        ["--config", &file.to_string_lossy()],
        ["--admin-key", KEY],
        ["--connections-per-address", "100000"],
        ["--requests-per-second", "1000000"],
        ["--requests-per-account", "1000000"],
        ["--commands-per-second", "1000000"],
    ];
    let limited = Process::gateway_with("memory", Pages::Usual, limits.as_flattened());
    drop(std::fs::remove_file(&file));
    let (limited, free) = (limited?, Process::gateway("memory", Pages::Usual)?);
    let mut pairs = Vec::new();
    for (size, name) in SIZES {
        let path = format!("/v1/rooms/fan-{size}/client?format=binary");
        let ours = Fan::of_gateway(limited.address, &format!("{path}&ticket={KEY}"), args.receivers, size).await?;
        let without = Fan::of_gateway(free.address, &path, args.receivers, size).await?;
        pairs.push((name, ours, without, [const { Samples::new() }; 2]));
    }
    let turn: Duration = args.turn(2 * SIZES.len() as u32);
    for number in 0..args.turns {
        for (_, ours, without, samples) in &mut pairs {
            // Whoever comes second finds a warmer machine: they take that in turns, too.
            let (with, bare) = if number % 2 == 0 {
                let bare = without.turn(turn, false, &free).await?;
                (ours.turn(turn, false, &limited).await?, bare)
            } else {
                let with = ours.turn(turn, false, &limited).await?;
                (with, without.turn(turn, false, &free).await?)
            };
            for (samples, figure) in samples.iter_mut().zip([Turn::rate, Turn::server]) {
                samples.add(figure(&with), figure(&bare));
            }
        }
    }
    for (name, _, _, [rate, server]) in &pairs {
        let name = format!("fan-out {} × {name}, limited", args.receivers);
        report.add(&name, "deliveries", Unit::PerSecond, "without limits", rate);
        report.add(&name, "server CPU a delivery", Unit::Nanoseconds, "without limits", server);
    }
    Ok(())
}
