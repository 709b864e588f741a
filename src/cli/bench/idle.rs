//! Idling: the memory of sockets that do nothing, before and after they did something.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

use super::{
    BenchArgs, Outcome,
    child::{Pages, Process, need_files},
    complete,
    floor::IDLE,
    latency::payload,
    messages::Messages,
    raw::{Raw, connect},
    report::{Report, Samples, Unit},
};

/// How many handshakes are under way.
const AT_ONCE: usize = 64;
/// How many clients share a room.
const A_ROOM: u32 = 10;
/// What a process has when it has served its first is not what its sockets cost: nor is what so many handshakes take that
/// are under way at once, nor what frames take on their way.
const WARM_UP: u32 = 2 * AT_ONCE as u32;
/// How many connections leave from one address: fewer than half of its ports, since the kernel parts them between those
/// that are bound and those that are not.
const AN_ADDRESS: u32 = 10_000;
/// What a client sends in the traffic, so that buffers grow.
const FRAME: usize = 16 << 10;
const FRAMES: u64 = 4;
/// How often memory is looked at until it falls no further, and for how long at most.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS: u32 = 40;

pub(super) async fn measure(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    let pairs = args.pairs;
    let most = u64::from(pairs + WARM_UP) * 2 + 200;
    need_files(most, &format!("use fewer --pairs than {pairs}"))?;

    let floor = Process::floor(1, Pages::Small)?;
    let bare_memory = {
        drop(open_all(WARM_UP, |at| bare(floor.address, at)).await?);
        let before = floor.memory()?;
        let _sockets = open_all(pairs, |at| bare(floor.address, at)).await?;
        (settled(&floor).await? - before) / f64::from(pairs)
    };
    let gateway = complete::start_with("memory", Pages::Small)?;
    let address = gateway.address;
    let (mut clients, mut siblings) = self::pairs(address, WARM_UP).await?;
    exchange(&mut clients, &mut siblings).await?;
    let _warm = (clients, siblings);
    let before = settled(&gateway).await?;
    let each = |memory: f64| (memory - before) / f64::from(pairs);
    let mut clients = open_all(pairs, |at| client(address, at)).await?;
    let client_memory = each(settled(&gateway).await?);
    let mut siblings = open_all(pairs, |at| sibling(address, at, &clients[at as usize])).await?;
    let pair_memory = each(settled(&gateway).await?);
    exchange(&mut clients, &mut siblings).await?;
    let after = each(settled(&gateway).await?);

    let name = format!("idle, {pairs} pairs");
    let memory = [
        ("memory a client socket", client_memory, bare_memory),
        ("memory a sibling socket", pair_memory - client_memory, bare_memory),
        ("memory a pair", pair_memory, 2.0 * bare_memory),
        ("memory a pair, after traffic", after, 2.0 * bare_memory),
    ];
    for (figure, ours, bare) in memory {
        let mut samples = Samples::new();
        samples.add(ours, bare);
        report.add(&name, figure, Unit::Bytes, "bare connections", &samples);
    }
    Ok(())
}

/// The memory of a process when it falls no further: an allocator gives back when it comes to it.
async fn settled(process: &Process) -> Outcome<f64> {
    let mut least = f64::INFINITY;
    let mut quiet = 0;
    for _ in 0..LOOKS {
        sleep(LOOK).await;
        let now = process.memory()?;
        quiet = if now < least * 0.998 { 0 } else { quiet + 1 };
        least = least.min(now);
        if quiet == 4 {
            break;
        }
    }
    process.memory()
}

/// Connects, from the first address or, by its number, another.
pub(super) async fn reach(address: SocketAddr, from: u32) -> Outcome<TcpStream> {
    if from == 0 {
        return connect(address).await;
    }
    let host = Ipv4Addr::new(127, 0, (from >> 8) as u8, (from + 1) as u8);
    let reaching = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((host, 0).into())?;
        let tcp = socket.connect(address).await?;
        tcp.set_nodelay(true)?;
        Ok::<_, std::io::Error>(tcp)
    };
    reaching.await.map_err(|error| format!("can't connect from {host} to {address}: {error}"))
}

pub(super) async fn open_all<T, F>(count: u32, open: impl Fn(u32) -> F) -> Outcome<Vec<T>>
where
    F: Future<Output = Outcome<T>>,
{
    stream::iter(0..count).map(open).buffered(AT_ONCE).try_collect().await
}

/// Pairs with a sibling each, which do nothing.
pub(super) async fn pairs(address: SocketAddr, count: u32) -> Outcome<(Vec<Raw>, Vec<Raw>)> {
    let clients = open_all(count, |at| client(address, at)).await?;
    let siblings = open_all(count, |at| sibling(address, at, &clients[at as usize])).await?;
    Ok((clients, siblings))
}

/// Opens client sockets in so many rooms, says so, and keeps them until it is killed.
pub(super) async fn crowd(address: SocketAddr, count: u32, rooms: u32) -> Outcome<()> {
    // Not from where others come: a port that is bound is bound for everyone.
    let first = (1 + u32::from(address.port() % 250)) << 8;
    let _clients = open_all(count, |at| async move {
        let path = format!("/v1/rooms/crowd-{}/client?format=binary", at % rooms);
        Raw::shake(reach(address, first + at / AN_ADDRESS).await?, &path, "", Messages::frames(0)).await
    })
    .await?;
    println!("crowd: listening on {address}");
    std::future::pending().await
}

async fn bare(address: SocketAddr, number: u32) -> Outcome<TcpStream> {
    let mut tcp = reach(address, number / AN_ADDRESS).await?;
    let there = async {
        tcp.write_u8(IDLE).await?;
        tcp.read_u8().await
    };
    there.await.map_err(|error| format!("the bare program hung up: {error}"))?;
    Ok(tcp)
}

async fn client(address: SocketAddr, number: u32) -> Outcome<Raw> {
    let path = format!("/v1/rooms/idle-{}/client?format=binary", number / A_ROOM);
    Raw::shake(reach(address, 2 * (number / AN_ADDRESS)).await?, &path, "", Messages::frames(0)).await
}

/// A sibling is there when it was told `ready`.
async fn sibling(address: SocketAddr, number: u32, client: &Raw) -> Outcome<Raw> {
    let (pair, ticket) = (client.header("sibling-pair")?, client.header("sibling-ticket")?);
    let (path, bearer) = (format!("/v1/pairs/{pair}/sibling"), format!("authorization: Bearer {ticket}\r\n"));
    let tcp = reach(address, 2 * (number / AN_ADDRESS) + 1).await?;
    let mut sibling = Raw::shake(tcp, &path, &bearer, Messages::frames(0)).await?;
    sibling.next().await?;
    Ok(sibling)
}

/// Traffic in a few rooms at a time.
async fn exchange(clients: &mut [Raw], siblings: &mut [Raw]) -> Outcome<()> {
    let rooms = clients.chunks_mut(A_ROOM as usize).zip(siblings.chunks_mut(A_ROOM as usize));
    stream::iter(rooms.map(Ok)).try_for_each_concurrent(4, |(clients, siblings)| traffic(clients, siblings)).await
}

/// One client of a room sends large frames, all others read them, and each sibling asks something.
async fn traffic(clients: &mut [Raw], siblings: &mut [Raw]) -> Outcome<()> {
    let Some((sender, receivers)) = clients.split_first_mut() else { return Ok(()) };
    for _ in 0..FRAMES {
        sender.say(2, &payload(FRAME)).await?;
    }
    for receiver in receivers {
        let mut received = 0;
        while received < FRAMES {
            received += receiver.next().await?.0;
        }
    }
    for sibling in siblings {
        sibling.say(1, br#"{"jsonrpc":"2.0","id":1,"method":"pair.get"}"#).await?;
        sibling.next().await?;
    }
    Ok(())
}
