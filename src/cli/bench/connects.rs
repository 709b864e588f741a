//! Connects: client sockets of pairs that were made before, each with its ticket, beside a bare WebSocket accept loop.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    BenchArgs, Outcome,
    child::{Meter, Pages, Process, need_files, own_cpu},
    complete::{self, Maker},
    idle::open_all,
    messages::Messages,
    raw::{Raw, connect},
    report::{Report, Samples, Unit},
};

/// Sockets that a turn opens.
const A_TURN: u32 = 1_000;

pub(super) async fn measure(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    need_files(u64::from(args.turns + 2) * u64::from(A_TURN) + 100, "use fewer --turns")?;
    let (gateway, floor) = (complete::start("memory")?, Process::floor(1, Pages::Usual)?);
    let mut maker = Maker::open(gateway.address).await?;
    let (mut open, [mut rate, mut cpu, mut load]) = (Vec::new(), [const { Samples::new() }; 3]);
    // The first turn finds a cold machine: it does not count.
    for number in 0..=args.turns {
        let mut made = Vec::new();
        for pair in 0..A_TURN {
            made.push(maker.make(&format!("fan-{}", pair / 10)).await?);
        }
        let address = floor.address;
        let (bare, floor) = timed(&floor.meter(), |_| async move {
            Raw::shake(connect(address).await?, "/", "", Messages::frames(0)).await
        })
        .await?;
        let (address, made) = (gateway.address, &made);
        let (clients, ours) =
            timed(&gateway.meter(), |at| async move { made[at as usize].open(connect(address).await?, 0).await })
                .await?;
        // The gateway's stay open until the end: who closes one has it tell that.
        open.push(clients);
        drop(bare);
        if number > 0 {
            for (at, samples) in [&mut rate, &mut cpu, &mut load].into_iter().enumerate() {
                samples.add(ours[at], floor[at]);
            }
        }
    }
    report.add("connects", "clients opened", Unit::PerSecond, "bare accepts", &rate);
    report.add("connects", "server CPU a connect", Unit::Microseconds, "bare accepts", &cpu);
    report.add("connects", "load CPU a connect", Unit::Microseconds, "bare accepts", &load);
    Ok(())
}

/// A turn's sockets; how many were opened a second, and the microseconds that server and load used for each.
async fn timed<F>(server: &Meter, open: impl Fn(u32) -> F) -> Outcome<(Vec<Raw>, [f64; 3])>
where
    F: Future<Output = Outcome<Raw>>,
{
    let (since, before) = (Instant::now(), [server.cpu()?, own_cpu()?]);
    let sockets = open_all(A_TURN, open).await?;
    let took = since.elapsed();
    let each = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() * 1e6 / f64::from(A_TURN);
    let cpu = [each(server.cpu()?, before[0]), each(own_cpu()?, before[1])];
    Ok((sockets, [f64::from(A_TURN) / took.as_secs_f64(), cpu[0], cpu[1]]))
}
