//! The bare program: what the kernel alone charges for what the gateway does.
//!
//! The first byte that a connection sends says what it is for.

use std::{io::Write as _, net::TcpStream as Blocking, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use parking_lot::{Condvar, Mutex};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::accept_async;

use super::{
    Outcome,
    latency::{payload, stamp},
    raw::write_head,
};

/// Receives what a driver has written.
pub(super) const RECEIVER: u8 = b'r';
/// Says, in pairs of numbers of 8 bytes: how many receivers there are; and then how many frames each is to have been
/// sent, and with which stamp (0: as they are).
pub(super) const DRIVER: u8 = b'd';
/// Says the same, and sends so many frames behind it, as a client would: they are read, and no more.
pub(super) const SENDER: u8 = b's';
/// Gets back what it sends.
pub(super) const ECHO: u8 = b'e';
/// Is answered with the same byte, and kept.
pub(super) const IDLE: u8 = b'i';
/// Begins a WebSocket's handshake, as every request does, and is kept.
const GET: u8 = b'G';

/// How many bytes are joined in one write, as in the gateway.
const BATCH: usize = 64 << 10;

/// Receivers that no driver has yet.
type Receivers = Arc<Mutex<Vec<Blocking>>>;
/// What the driver has said, and the bell that rings when it is more.
type Wanted = Arc<(Mutex<Vec<(u64, u64)>>, Condvar)>;

/// Serves until it is killed.
pub(super) async fn serve(payload: usize) -> Outcome<()> {
    let failed = |error: std::io::Error| format!("the bare program failed: {error}");
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    println!("floor: listening on {}", listener.local_addr().map_err(failed)?);
    let receivers = Receivers::default();
    loop {
        let (tcp, _) = listener.accept().await.map_err(failed)?;
        drop(tcp.set_nodelay(true));
        tokio::spawn(serve_one(tcp, Arc::clone(&receivers), payload));
    }
}

async fn serve_one(mut tcp: TcpStream, receivers: Receivers, payload: usize) {
    let mut first = [0];
    if matches!(tcp.peek(&mut first).await, Ok(1)) && first[0] == GET {
        if let Ok(mut socket) = accept_async(tcp).await {
            while let Some(Ok(_)) = socket.next().await {}
        }
        return;
    }
    match tcp.read_u8().await {
        Ok(RECEIVER) => {
            if let Ok(tcp) = tcp.into_std().and_then(|tcp| tcp.set_nonblocking(false).map(|()| tcp)) {
                receivers.lock().push(tcp);
            }
        }
        Ok(DRIVER) => drive(tcp, 0, &receivers, payload).await,
        Ok(SENDER) => drive(tcp, write_head(2, payload, true).len() + payload, &receivers, payload).await,
        Ok(ECHO) => echo(tcp).await,
        // Told that it is there, and kept until it hangs up.
        Ok(IDLE) => {
            drop(tcp.write_u8(IDLE).await);
            drop(tcp.read_u8().await);
        }
        // A peer that gave up again.
        _ => {}
    }
}

async fn echo(mut tcp: TcpStream) {
    // Not in the future: an idle connection's task has the size of the largest.
    let mut bytes = vec![0; 4_096];
    while let Ok(n @ 1..) = tcp.read(&mut bytes).await {
        if tcp.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

/// Shares the receivers out to one thread a core, and has them write what is wanted. So many bytes come with each frame.
async fn drive(driver: TcpStream, beside: usize, receivers: &Receivers, payload: usize) {
    let mut driver = BufReader::with_capacity(BATCH, driver);
    let Ok((count, _)) = hear(&mut driver).await else { return };
    while (receivers.lock().len() as u64) < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut receivers = std::mem::take(&mut *receivers.lock());
    let wanted = Wanted::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(receivers.len()).max(1);
    let share = receivers.len().div_ceil(threads);
    while !receivers.is_empty() {
        let group = receivers.split_off(receivers.len().saturating_sub(share));
        let wanted = Arc::clone(&wanted);
        std::thread::spawn(move || write_all(group, payload, &wanted));
    }
    let mut before = 0;
    while let Ok(said) = hear(&mut driver).await {
        if skip(&mut driver, beside * (said.0 - before) as usize).await.is_err() {
            return;
        }
        before = said.0;
        wanted.0.lock().push(said);
        wanted.1.notify_all();
    }
}

async fn hear(driver: &mut BufReader<TcpStream>) -> std::io::Result<(u64, u64)> {
    Ok((driver.read_u64().await?, driver.read_u64().await?))
}

async fn skip(driver: &mut BufReader<TcpStream>, mut bytes: usize) -> std::io::Result<()> {
    while bytes > 0 {
        let read = driver.fill_buf().await?.len().min(bytes);
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        driver.consume(read);
        bytes -= read;
    }
    Ok(())
}

fn write_all(mut receivers: Vec<Blocking>, size: usize, wanted: &Wanted) {
    let frame = [write_head(2, size, false), payload(size)].concat();
    let batch = (BATCH / frame.len()).max(1);
    let mut wire = frame.repeat(batch);
    let head = frame.len() - size;
    let (mut written, mut at) = (0, 0);
    loop {
        // All that has been said and is not written yet, as far as it fits in a batch.
        let (mut frames, mut spans) = (0, Vec::new());
        let mut all = wanted.0.lock();
        while all.len() <= at {
            wanted.1.wait(&mut all);
        }
        while let Some(&(total, due)) = all.get(at)
            && frames < batch
        {
            let more = (total - written - frames as u64).min((batch - frames) as u64) as usize;
            if due != 0 {
                spans.push((frames..frames + more, due));
            }
            frames += more;
            if written + frames as u64 == total {
                at += 1;
            }
        }
        drop(all);
        for (span, due) in spans {
            for number in span {
                stamp(&mut wire[number * frame.len() + head..], due);
            }
        }
        for receiver in &mut receivers {
            if receiver.write_all(&wire[..frame.len() * frames]).is_err() {
                return;
            }
        }
        written += frames as u64;
    }
}
