//! Idling: the memory of sockets that do nothing, and how fast they were opened.

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep},
};

use super::{
    BenchArgs, Outcome,
    child::{Pages, Process, need_files},
    floor::IDLE,
    raw::{Raw, connect},
    report::{Report, Samples, Unit},
};

/// How many handshakes are under way.
const AT_ONCE: usize = 64;
/// How many clients share a room.
const A_ROOM: u32 = 10;
/// What a process has when it has just served its first is not what its sockets cost.
const WARM_UP: u32 = 20;
/// How long after the last handshake the memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

pub(super) async fn measure(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    let pairs = args.pairs;
    let most = u64::from(pairs + WARM_UP) * 2 + 100;
    need_files(most, &format!("use fewer --pairs than {pairs}"))?;

    let floor = Process::floor(1, Pages::Small)?;
    let (bare_memory, bare_rate) = {
        drop(open_all(WARM_UP, |_| bare(floor.address)).await?);
        let (_sockets, grown, rate) = grow(&floor, pairs, |_| bare(floor.address)).await?;
        (grown, rate)
    };
    let gateway = Process::gateway("memory", Pages::Small)?;
    let address = gateway.address;
    let _warm = {
        let clients = open_all(WARM_UP, |number| client(address, number)).await?;
        let siblings = open_all(WARM_UP, |number| sibling(address, &clients[number as usize])).await?;
        (clients, siblings)
    };
    let (clients, client_memory, client_rate) = grow(&gateway, pairs, |n| client(address, n)).await?;
    let (_siblings, sibling_memory, sibling_rate) =
        grow(&gateway, pairs, |n| sibling(address, &clients[n as usize])).await?;

    let one = |gateway: f64, floor: f64| {
        let mut samples = Samples::new();
        samples.add(gateway, floor);
        samples
    };
    let name = format!("idle, {pairs} pairs");
    let memory = [
        ("memory a client socket", client_memory, bare_memory),
        ("memory a sibling socket", sibling_memory, bare_memory),
        ("memory a pair", client_memory + sibling_memory, 2.0 * bare_memory),
    ];
    for (figure, ours, bare) in memory {
        report.add(&name, figure, Unit::Bytes, "bare connections", &one(ours, bare));
    }
    report.add(&name, "clients opened", Unit::PerSecond, "bare connections", &one(client_rate, bare_rate));
    report.add(&name, "siblings opened", Unit::PerSecond, "bare connections", &one(sibling_rate, bare_rate));
    Ok(())
}

/// Opens sockets: they, the memory that each added to the process in bytes, and how many were opened in a second.
async fn grow<T, F>(process: &Process, count: u32, open: impl Fn(u32) -> F) -> Outcome<(Vec<T>, f64, f64)>
where
    F: Future<Output = Outcome<T>>,
{
    let before = process.memory()?;
    let since = Instant::now();
    let sockets = open_all(count, open).await?;
    let rate = f64::from(count) / since.elapsed().as_secs_f64();
    sleep(SETTLE).await;
    Ok((sockets, (process.memory()? - before) / f64::from(count), rate))
}

async fn open_all<T, F>(count: u32, open: impl Fn(u32) -> F) -> Outcome<Vec<T>>
where
    F: Future<Output = Outcome<T>>,
{
    stream::iter(0..count).map(open).buffered(AT_ONCE).try_collect().await
}

async fn bare(address: SocketAddr) -> Outcome<tokio::net::TcpStream> {
    let mut tcp = connect(address).await?;
    let there = async {
        tcp.write_u8(IDLE).await?;
        tcp.read_u8().await
    };
    there.await.map_err(|error| format!("the bare program hung up: {error}"))?;
    Ok(tcp)
}

async fn client(address: SocketAddr, number: u32) -> Outcome<Raw> {
    Raw::open(address, &format!("/v1/rooms/idle-{}/client", number / A_ROOM), None).await
}

/// A sibling is there when it was told `ready`.
async fn sibling(address: SocketAddr, client: &Raw) -> Outcome<Raw> {
    let (pair, ticket) = (client.header("sibling-pair")?, client.header("sibling-ticket")?);
    let mut sibling = Raw::open(address, &format!("/v1/pairs/{pair}/sibling"), Some(ticket)).await?;
    sibling.next().await?;
    Ok(sibling)
}
