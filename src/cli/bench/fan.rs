//! One sender and many receivers: as fast as the slowest of them takes it, or at a pace that was set before.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::Notify,
    task::{JoinSet, block_in_place},
    time::timeout,
};

use super::{
    Outcome,
    child::{Meter, own_cpu},
    floor::{DRIVER, RECEIVER, SENDER},
    latency::{Latencies, Stamps, nanoseconds, payload, stamp},
    messages::Messages,
    raw::{Raw, connect, write_head},
};

/// How far the sender may be ahead of the slowest receiver, in bytes: far from the bound where a gateway closes.
const WINDOW: usize = 256 << 10;
/// How long nothing may arrive at the slowest receiver.
const PATIENCE: Duration = Duration::from_secs(10);
/// A sender does not wake up more often than this: at a faster pace, what is due by then leaves together.
const TICK: Duration = Duration::from_millis(1);
/// How late the kernel may wake a sleeper: so much is waited for awake.
const SLACK: Duration = Duration::from_micros(80);

/// Bytes of what the bare program is told.
const ORDER: usize = 16;

/// How messages are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// As fast as the slowest receiver takes them.
    Saturating,
    /// The same with a load that looks for stamps, which costs it something.
    SaturatingTimed,
    /// So many a second, at times that do not depend on how it goes.
    Set(f64),
}

/// What a turn used and did.
pub(super) struct Turn {
    deliveries: f64,
    seconds: f64,
    server: Duration,
    load: Duration,
    /// Microseconds that half, 99 % and 99.9 % of the messages did not exceed; none if they were not timed.
    pub(super) latency: [f64; 3],
}

impl Turn {
    pub(super) fn rate(&self) -> f64 {
        self.deliveries / self.seconds
    }

    pub(super) fn server(&self) -> f64 {
        self.server.as_secs_f64() * 1e9 / self.deliveries
    }

    pub(super) fn load(&self) -> f64 {
        self.load.as_secs_f64() * 1e9 / self.deliveries
    }
}

/// A sender and its receivers.
pub(super) struct Fan {
    source: Source,
    progress: Arc<Progress>,
    sent: u64,
    /// How many messages it may be ahead, and how many it can write at once.
    window: u64,
    store: u64,
    /// Siblings, say: they stay open as long as this does.
    pub(super) beside: Vec<Raw>,
    /// Dropping it ends the receivers.
    _tasks: JoinSet<()>,
}

/// Where messages come from.
pub(super) enum Source {
    /// Written by the load, from a store of a window's worth; each has its payload at the same place.
    Load { tcp: OwnedWriteHalf, store: Vec<u8>, length: usize, payload: usize },
    /// Written by the bare program, which is told how much, with so many bytes of a store behind that for each message.
    Floor { tcp: OwnedWriteHalf, store: Vec<u8>, length: usize },
}

impl Source {
    async fn send(&mut self, messages: u64, total: u64) -> Outcome<()> {
        let sending = async {
            match self {
                Self::Load { tcp, store, length, .. } => tcp.write_all(&store[..*length * messages as usize]).await,
                Self::Floor { tcp, store, length } => {
                    tcp.write_all(ordered(store, *length, messages, total, 0)).await
                }
            }
        };
        match timeout(PATIENCE, sending).await {
            Ok(sent) => sent.map_err(|error| format!("the sender's connection broke: {error}")),
            Err(_) => Err(format!("the sender could not send for {} s", PATIENCE.as_secs())),
        }
    }

    /// The same without a task, and with stamps.
    fn send_stamped(&mut self, messages: u64, total: u64, due: Instant) -> Outcome<()> {
        let due = nanoseconds(due);
        let (tcp, mut wire) = match self {
            Self::Load { tcp, store, length, payload } => {
                let wire = &mut store[..*length * messages as usize];
                wire.chunks_mut(*length).for_each(|message| stamp(&mut message[*payload..], due));
                (tcp, &*wire)
            }
            Self::Floor { tcp, store, length } => (tcp, ordered(store, *length, messages, total, due)),
        };
        let until = Instant::now() + PATIENCE;
        while !wire.is_empty() {
            match tcp.try_write(wire) {
                Ok(n) => wire = &wire[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => thread::sleep(SLACK),
                Err(error) => return Err(format!("the sender's connection broke: {error}")),
            }
        }
        Ok(())
    }
}

/// What the bare program is told: how much each receiver is to have been sent by then, and when it was due; and so many
/// messages of a store that begins with room for that.
fn ordered(store: &mut [u8], length: usize, messages: u64, total: u64, due: u64) -> &[u8] {
    store[..ORDER].copy_from_slice(&(u128::from(total) << 64 | u128::from(due)).to_be_bytes());
    &store[..ORDER + length * messages as usize]
}

/// How far the receivers have come.
struct Progress {
    received: Vec<AtomicU64>,
    /// What the sender waits for each to have received.
    awaited: AtomicU64,
    reached: Notify,
    broken: Mutex<Option<String>>,
    /// Whether the messages carry when they were due.
    timed: AtomicBool,
    latencies: Latencies,
}

impl Progress {
    fn add(&self, receiver: usize, messages: u64) {
        let before = self.received[receiver].fetch_add(messages, SeqCst);
        let awaited = self.awaited.load(SeqCst);
        if before < awaited && before + messages >= awaited {
            self.reached.notify_one();
        }
    }

    fn slowest(&self) -> u64 {
        self.received.iter().map(|received| received.load(SeqCst)).min().unwrap_or(0)
    }

    fn total(&self) -> u64 {
        self.received.iter().map(|received| received.load(SeqCst)).sum()
    }

    /// Waits until each receiver has so many messages.
    async fn all_have(&self, messages: u64) -> Outcome<()> {
        self.awaited.store(messages, SeqCst);
        while self.slowest() < messages {
            let late = timeout(PATIENCE, self.reached.notified()).await.is_err();
            self.fail_if_broken()?;
            if late && self.slowest() < messages {
                return Err(format!("a receiver got nothing for {} s", PATIENCE.as_secs()));
            }
        }
        Ok(())
    }

    fn fail_if_broken(&self) -> Outcome<()> {
        self.broken.lock().take().map_or(Ok(()), Err)
    }
}

impl Fan {
    /// A sender and receivers in the room that a path opens.
    pub(super) async fn of_gateway(address: SocketAddr, path: &str, count: u32, size: usize) -> Outcome<Self> {
        let mut receivers = Vec::new();
        for _ in 0..count {
            receivers.push(Raw::open(address, path, None).await?);
        }
        Ok(Self::new(Raw::open(address, path, None).await?, &frame(size), receivers, size))
    }

    /// The same from the bare program, which must have been started with this size.
    pub(super) async fn of_floor(address: SocketAddr, count: u32, size: usize) -> Outcome<Self> {
        Self::of_bare(address, count, size, DRIVER, &[]).await
    }

    /// The same from the bare program, which reads each frame from a sender.
    pub(super) async fn of_relay(address: SocketAddr, count: u32, size: usize) -> Outcome<Self> {
        Self::of_bare(address, count, size, SENDER, &frame(size)).await
    }

    async fn of_bare(address: SocketAddr, count: u32, size: usize, role: u8, message: &[u8]) -> Outcome<Self> {
        let open = async |role: u8| {
            let mut tcp = connect(address).await?;
            tcp.write_all(&[role]).await.map_err(|error| format!("the bare program hung up: {error}"))?;
            Ok::<_, String>(tcp)
        };
        let mut receivers = Vec::new();
        for _ in 0..count {
            receivers.push(Raw::bare(open(RECEIVER).await?, Messages::frames(0)));
        }
        let (back, tcp) = open(role).await?.into_split();
        let store = [vec![0; ORDER], message.repeat(window(size) as usize)].concat();
        let mut fan = Self::with(Source::Floor { tcp, store, length: message.len() }, back, receivers, size);
        fan.source.send(0, count.into()).await?;
        Ok(fan)
    }

    /// A sender that writes this message, with its payload at its end or near it.
    pub(super) fn new(sender: Raw, message: &[u8], receivers: Vec<Raw>, size: usize) -> Self {
        let (back, tcp) = sender.tcp.into_split();
        let text = payload(size);
        let at = message.windows(size).rposition(|part| part == text).unwrap_or(0);
        let store = message.repeat(window(size) as usize);
        Self::with(Source::Load { tcp, store, length: message.len(), payload: at }, back, receivers, size)
    }

    fn with(source: Source, back: OwnedReadHalf, receivers: Vec<Raw>, size: usize) -> Self {
        let progress = Arc::new(Progress {
            received: receivers.iter().map(|_| AtomicU64::new(0)).collect(),
            awaited: AtomicU64::new(0),
            reached: Notify::new(),
            broken: Mutex::new(None),
            timed: AtomicBool::new(false),
            latencies: Latencies::new(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(forget(back));
        for (number, receiver) in receivers.into_iter().enumerate() {
            tasks.spawn(receive(receiver, number, Stamps::new(size), Arc::clone(&progress)));
        }
        let store = window(size);
        Self { source, progress, sent: 0, window: store, store, beside: Vec::new(), _tasks: tasks }
    }

    /// Is ahead by so many times as much: what is on its way may be in several places.
    pub(super) fn farther(mut self, times: u64) -> Self {
        self.window *= times;
        self
    }

    /// Sends for as long as told; what happens in the first fifth is not counted.
    pub(super) async fn turn(&mut self, lasting: Duration, pace: Pace, server: &Meter) -> Outcome<Turn> {
        turn(std::slice::from_mut(self), lasting, pace, server).await
    }

    async fn go_on(&mut self, lasting: Duration, pace: Pace) -> Outcome<()> {
        match pace {
            Pace::Saturating | Pace::SaturatingTimed => self.saturate(lasting).await,
            Pace::Set(rate) => block_in_place(|| self.keep_pace(lasting, rate)),
        }
    }

    async fn saturate(&mut self, lasting: Duration) -> Outcome<()> {
        let until = Instant::now() + lasting;
        let step = (self.store / 4).max(1);
        while Instant::now() < until {
            let free = self.progress.slowest() + self.window - self.sent;
            if free >= step {
                self.send(free.min(self.store)).await?;
            } else {
                self.progress.all_have(self.sent + step - self.window).await?;
            }
        }
        Ok(())
    }

    /// Sends at the times of a schedule. Who is late has the schedule's time in the stamps all the same.
    fn keep_pace(&mut self, lasting: Duration, rate: f64) -> Outcome<()> {
        #[expect(clippy::cast_sign_loss, reason = "a pace is positive")]
        let each = ((rate * TICK.as_secs_f64()).round() as u64).clamp(1, self.store);
        let (tick, begun) = (Duration::from_secs_f64(each as f64 / rate), Instant::now());
        let mut due = begun;
        while due < begun + lasting {
            if let Some(rest) = due.checked_duration_since(Instant::now() + SLACK) {
                thread::sleep(rest);
            }
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            let until = Instant::now() + PATIENCE;
            while self.sent > self.progress.slowest() + self.window {
                self.progress.fail_if_broken()?;
                if Instant::now() > until {
                    return Err(format!("a receiver stayed behind for {} s", PATIENCE.as_secs()));
                }
                thread::sleep(SLACK);
            }
            self.sent += each;
            self.source.send_stamped(each, self.sent, due)?;
            due += tick;
        }
        Ok(())
    }

    async fn send(&mut self, messages: u64) -> Outcome<()> {
        self.sent += messages;
        self.source.send(messages, self.sent).await
    }

    /// Sends so many messages at once (of the bare program, without a window) and waits until they have arrived.
    pub(super) async fn burst(&mut self, messages: u64) -> Outcome<Duration> {
        let since = Instant::now();
        self.send(messages).await?;
        self.progress.all_have(self.sent).await?;
        Ok(since.elapsed())
    }

    /// How many messages were sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }
}

/// Several senders at once, each with receivers of its own.
pub(super) async fn turn(fans: &mut [Fan], lasting: Duration, pace: Pace, server: &Meter) -> Outcome<Turn> {
    for fan in &*fans {
        fan.progress.timed.store(pace != Pace::Saturating, SeqCst);
    }
    try_join_all(fans.iter_mut().map(|fan| fan.go_on(lasting / 5, pace))).await?;
    let total = |fans: &[Fan]| fans.iter().map(|fan| fan.progress.total()).sum::<u64>();
    for fan in &*fans {
        fan.progress.latencies.clear();
    }
    let before = (total(fans), Instant::now(), server.cpu()?, own_cpu()?);
    try_join_all(fans.iter_mut().map(|fan| fan.go_on(lasting * 4 / 5, pace))).await?;
    let mut turn = Turn {
        deliveries: (total(fans) - before.0) as f64,
        seconds: before.1.elapsed().as_secs_f64(),
        server: server.cpu()?.saturating_sub(before.2),
        load: own_cpu()?.saturating_sub(before.3),
        latency: [f64::NAN; 3],
    };
    // The next turn is somebody else's: nothing of this one may still be under way.
    try_join_all(fans.iter().map(|fan| fan.progress.all_have(fan.sent))).await?;
    if let Some(fan) = fans.first() {
        turn.latency = [500, 990, 999].map(|share| fan.progress.latencies.per_mille(share));
    }
    if turn.deliveries == 0.0 || (turn.server.is_zero() && *server != Meter::of([])) {
        return Err("a turn was too short to measure: raise --seconds or --receivers".into());
    }
    Ok(turn)
}

/// A client's frame.
pub(super) fn frame(size: usize) -> Vec<u8> {
    [write_head(2, size, true), payload(size)].concat()
}

async fn receive(mut receiver: Raw, number: usize, mut stamps: Stamps, progress: Arc<Progress>) {
    loop {
        let look = |bytes: &[u8]| {
            if progress.timed.load(SeqCst) {
                let now = nanoseconds(Instant::now());
                stamps.find(bytes, |due, times| progress.latencies.add(now.saturating_sub(due), times));
            }
        };
        match receiver.next_seen(look).await {
            Ok((messages, _)) => progress.add(number, messages),
            Err(why) => break *progress.broken.lock() = Some(why),
        }
    }
    progress.reached.notify_one();
}

/// Reads what a sender is answered.
async fn forget(mut back: OwnedReadHalf) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(1..) = back.read(&mut bytes).await {}
}

/// The window in messages of so much payload.
fn window(payload: usize) -> u64 {
    (WINDOW / (payload + 4)).max(4) as u64
}
