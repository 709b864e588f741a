//! Fan-out: one sender and many receivers, as fast as the slowest of them takes it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
    time::{Instant, interval, timeout},
};

use super::{
    BenchArgs, Outcome,
    child::{Pages, Process, need_files, own_cpu},
    floor::{DRIVER, RECEIVER},
    raw::{Raw, connect, write_head},
    report::{Report, Samples, Unit},
};

/// How far the sender may be ahead of the slowest receiver, in bytes: far from the bound where a gateway closes.
const WINDOW: usize = 256 << 10;
/// How long nothing may arrive at the slowest receiver.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many frames a second are sent when each has to be written on its own.
const PACE: u32 = 500;
const CASES: [Case; 4] = [
    Case { payload: 64, name: "64 B", paced: false },
    Case { payload: 1 << 10, name: "1 KiB", paced: false },
    Case { payload: 16 << 10, name: "16 KiB", paced: false },
    Case { payload: 64, name: "64 B, 500 a second", paced: true },
];

struct Case {
    payload: usize,
    name: &'static str,
    paced: bool,
}

pub(super) async fn measure(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    let receivers = args.receivers;
    need_files(u64::from(receivers) * 8 + 100, "use fewer --receivers")?;
    let gateway = Process::gateway("memory", Pages::Usual)?;
    let mut fans = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let floor = Process::floor(case.payload, Pages::Usual)?;
        let room = format!("/v1/rooms/fan-{number}/client?format=binary");
        let ours = Fan::of_gateway(gateway.address, &room, receivers, case.payload).await?;
        let bare = Fan::of_floor(floor.address, receivers, case.payload).await?;
        fans.push((case, floor, ours, bare, [const { Samples::new() }; 3]));
    }
    let turn = args.turn(2 * CASES.len() as u32);
    for _ in 0..args.turns {
        for (case, floor, ours, bare, samples) in &mut fans {
            let bare = bare.turn(turn, case.paced, floor).await?;
            let ours = ours.turn(turn, case.paced, &gateway).await?;
            for (samples, figure) in samples.iter_mut().zip([Turn::rate, Turn::server, Turn::load]) {
                samples.add(figure(&ours), figure(&bare));
            }
        }
    }
    for (case, _, _, _, [rate, server, load]) in &fans {
        let name = format!("fan-out {receivers} × {}", case.name);
        report.add(&name, "deliveries", Unit::PerSecond, "bare writes", rate);
        report.add(&name, "server CPU a delivery", Unit::Nanoseconds, "bare writes", server);
        report.add(&name, "load CPU a delivery", Unit::Nanoseconds, "bare writes", load);
    }
    Ok(())
}

/// What a turn used and did.
pub(super) struct Turn {
    deliveries: f64,
    seconds: f64,
    server: Duration,
    load: Duration,
}

impl Turn {
    pub(super) fn rate(&self) -> f64 {
        self.deliveries / self.seconds
    }

    pub(super) fn server(&self) -> f64 {
        self.server.as_secs_f64() * 1e9 / self.deliveries
    }

    fn load(&self) -> f64 {
        self.load.as_secs_f64() * 1e9 / self.deliveries
    }
}

/// A sender and its receivers.
pub(super) struct Fan {
    source: Source,
    progress: Arc<Progress>,
    sent: u64,
    window: u64,
    /// Dropping it ends the receivers.
    _receivers: JoinSet<()>,
}

enum Source {
    /// Writes frames into a room, from a store of a window's worth.
    Gateway { tcp: TcpStream, frames: Vec<u8>, frame: usize },
    /// Tells the bare program how much to write.
    Floor { tcp: TcpStream },
}

impl Source {
    async fn send(&mut self, frames: u64, total: u64) -> Outcome<()> {
        let sending = async {
            match self {
                Self::Gateway { tcp, frames: store, frame } => {
                    tcp.write_all(&store[..*frame * frames as usize]).await
                }
                Self::Floor { tcp } => tcp.write_all(&total.to_be_bytes()).await,
            }
        };
        match timeout(PATIENCE, sending).await {
            Ok(sent) => sent.map_err(|error| format!("the sender's connection broke: {error}")),
            Err(_) => Err(format!("the sender could not send for {} s", PATIENCE.as_secs())),
        }
    }
}

/// How far the receivers have come.
struct Progress {
    received: Vec<AtomicU64>,
    /// What the sender waits for each to have received.
    awaited: AtomicU64,
    reached: Notify,
    broken: Mutex<Option<String>>,
}

impl Progress {
    fn add(&self, receiver: usize, frames: u64) {
        let before = self.received[receiver].fetch_add(frames, SeqCst);
        let awaited = self.awaited.load(SeqCst);
        if before < awaited && before + frames >= awaited {
            self.reached.notify_one();
        }
    }

    fn slowest(&self) -> u64 {
        self.received.iter().map(|received| received.load(SeqCst)).min().unwrap_or(0)
    }

    fn total(&self) -> u64 {
        self.received.iter().map(|received| received.load(SeqCst)).sum()
    }

    /// Waits until each receiver has so many frames.
    async fn all_have(&self, frames: u64) -> Outcome<()> {
        self.awaited.store(frames, SeqCst);
        while self.slowest() < frames {
            if timeout(PATIENCE, self.reached.notified()).await.is_err() {
                return Err(format!("a receiver got nothing for {} s", PATIENCE.as_secs()));
            }
            if let Some(why) = self.broken.lock().take() {
                return Err(why);
            }
        }
        Ok(())
    }
}

impl Fan {
    /// A sender and receivers in the room that a path opens.
    pub(super) async fn of_gateway(address: SocketAddr, path: &str, count: u32, size: usize) -> Outcome<Self> {
        let mut receivers = Vec::new();
        for _ in 0..count {
            receivers.push(Raw::open(address, path, None).await?);
        }
        let tcp = Raw::open(address, path, None).await?.tcp;
        let mut frame = write_head(2, size, true);
        frame.resize(frame.len() + size, 7);
        let source = Source::Gateway { tcp, frames: frame.repeat(window(size) as usize), frame: frame.len() };
        Ok(Self::new(source, receivers, size))
    }

    /// The same from the bare program, which must have been started with this size.
    pub(super) async fn of_floor(address: SocketAddr, count: u32, size: usize) -> Outcome<Self> {
        let open = async |role: u8| {
            let mut tcp = connect(address).await?;
            tcp.write_all(&[role]).await.map_err(|error| format!("the bare program hung up: {error}"))?;
            Ok::<_, String>(tcp)
        };
        let mut receivers = Vec::new();
        for _ in 0..count {
            receivers.push(Raw::bare(open(RECEIVER).await?));
        }
        let mut fan = Self::new(Source::Floor { tcp: open(DRIVER).await? }, receivers, size);
        fan.source.send(0, count.into()).await?;
        Ok(fan)
    }

    fn new(source: Source, receivers: Vec<Raw>, size: usize) -> Self {
        let progress = Arc::new(Progress {
            received: receivers.iter().map(|_| AtomicU64::new(0)).collect(),
            awaited: AtomicU64::new(0),
            reached: Notify::new(),
            broken: Mutex::new(None),
        });
        let mut tasks = JoinSet::new();
        for (number, mut receiver) in receivers.into_iter().enumerate() {
            let progress = Arc::clone(&progress);
            tasks.spawn(async move {
                loop {
                    match receiver.next().await {
                        Ok((frames, _)) => progress.add(number, frames),
                        Err(why) => break *progress.broken.lock() = Some(why),
                    }
                }
                progress.reached.notify_one();
            });
        }
        Self { source, progress, sent: 0, window: window(size), _receivers: tasks }
    }

    /// Sends for as long as told; what happens in the first fifth is not counted.
    pub(super) async fn turn(&mut self, lasting: Duration, paced: bool, server: &Process) -> Outcome<Turn> {
        self.go_on(lasting / 5, paced).await?;
        let before = (self.progress.total(), Instant::now(), server.cpu()?, own_cpu()?);
        self.go_on(lasting * 4 / 5, paced).await?;
        let turn = Turn {
            deliveries: (self.progress.total() - before.0) as f64,
            seconds: before.1.elapsed().as_secs_f64(),
            server: server.cpu()?.saturating_sub(before.2),
            load: own_cpu()?.saturating_sub(before.3),
        };
        // The next turn is somebody else's: nothing of this one may still be under way.
        self.progress.all_have(self.sent).await?;
        if turn.deliveries == 0.0 || turn.server.is_zero() {
            return Err("a turn was too short to measure: raise --seconds or --receivers".into());
        }
        Ok(turn)
    }

    async fn go_on(&mut self, lasting: Duration, paced: bool) -> Outcome<()> {
        if !paced {
            return self.saturate(lasting).await;
        }
        let mut tick = interval(Duration::from_secs(1) / PACE);
        for _ in 0..lasting.as_micros() * u128::from(PACE) / 1_000_000 {
            tick.tick().await;
            self.send(1).await?;
        }
        Ok(())
    }

    async fn saturate(&mut self, lasting: Duration) -> Outcome<()> {
        let until = Instant::now() + lasting;
        let step = (self.window / 4).max(1);
        while Instant::now() < until {
            let free = self.progress.slowest() + self.window - self.sent;
            if free >= step {
                self.send(free).await?;
            } else {
                self.progress.all_have(self.sent + step - self.window).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, frames: u64) -> Outcome<()> {
        self.sent += frames;
        self.source.send(frames, self.sent).await
    }

    /// Sends so many frames at once (of the bare program, without a window) and waits until they have arrived.
    pub(super) async fn burst(&mut self, frames: u64) -> Outcome<Duration> {
        let since = Instant::now();
        self.send(frames).await?;
        self.progress.all_have(self.sent).await?;
        Ok(since.elapsed())
    }
}

/// The window in frames of so much payload.
fn window(payload: usize) -> u64 {
    (WINDOW / (payload + 4)).max(4) as u64
}
