//! `sibling bench`: what the gateway costs, beside floors that are measured in the same run.
//!
//! A figure alone says something about a machine; a ratio says something about the gateway. So every workload is
//! measured in short turns, now the gateway, now its floor (a bare program, a bare Redis, a bare connection), and
//! what is printed is the median over the turns. Gateways and floors are child processes of this executable: the
//! kernel tells their CPU time and memory apart from the load's.

mod child;
mod complete;
mod connects;
mod costs;
mod fan;
mod fan_out;
mod floor;
mod growth;
mod idle;
mod latency;
mod limits;
mod messages;
mod nodes;
mod peers;
mod raw;
mod replay;
mod report;
mod resp;
mod sibling;
mod trips;

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{FAILED, serve::wait_for_signal};
use child::Process;
use fan_out::Floor;
use peers::Peer;
use report::Report;

/// What came of something, or a sentence that says why nothing did.
type Outcome<T> = Result<T, String>;

/// How to measure.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    workloads: Vec<Workload>,
    /// Seconds that each workload measures
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// How often the gateway and its floor take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    turns: u32,
    /// Receivers of the fan-out; several numbers, several fan-outs
    #[arg(long, default_value = "100", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000))]
    receivers: Vec<u32>,
    /// Pairs that idle
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pairs: u32,
    /// Pairs of the crowded nodes, whose costs are compared with those of a node with 100
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    crowd: u32,
    /// Events to replay
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    events: u32,
    /// The Redis between two nodes, redis://host:port [default: a redis-server started for this, where there is one]
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// A peer that runs, as often as there are peers; see tests/peers
    #[arg(long = "peer", value_name = "NAME=HOST:PORT,PID")]
    peers: Vec<Peer>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Be the bare program, with frames of this many bytes of payload
    #[arg(long, hide = true)]
    floor: Option<usize>,
    /// Be clients of this gateway that idle
    #[arg(long, hide = true)]
    crowd_of: Option<SocketAddr>,
    #[arg(long, hide = true, default_value_t = 1)]
    crowd_rooms: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// One sender, many receivers, as fast as they take it
    FanOut,
    /// The same beside a bare program that reads what it writes from a sender, as the gateway does
    Relay,
    /// The same in 100 rooms of 10
    Rooms,
    /// The same at paces, with the latencies: 500 messages a second, and 10 %, 50 % and 80 % of the most
    Paced,
    /// The same beside other servers; only those that --peer names
    Peers,
    /// The same with limits and grants, beside a node without
    Limits,
    /// A sibling's command and its reply, one at a time
    Commands,
    /// From a command to its event at another sibling, one at a time
    Events,
    /// A sibling that reads a history from its start
    Replay,
    /// One sender, receivers on two other nodes, and a Redis between them
    Nodes,
    /// Redis' commands and memory for frames, events and pairs that idle
    Redis,
    /// Memory of sockets that do nothing, also after traffic
    Idle,
    /// Client sockets opened with tickets
    Connects,
    /// Frames, commands and events on nodes with many pairs and many rooms
    Growth,
}

/// One or two nodes that know each other, and the Redis between them.
struct Cluster {
    name: &'static str,
    nodes: Vec<Process>,
    redis: Option<SocketAddr>,
}

impl Cluster {
    /// One node on the embedded broker.
    fn single() -> Outcome<Self> {
        Ok(Self { name: "1 node, memory", nodes: vec![complete::start("memory")?], redis: None })
    }

    /// Two nodes on one Redis.
    fn double(redis: SocketAddr, url: &str) -> Outcome<Self> {
        let nodes = vec![complete::start(url)?, complete::start(url)?];
        Ok(Self { name: "2 nodes, Redis", nodes, redis: Some(redis) })
    }

    /// What tells the CPU time of all nodes.
    fn meter(&self) -> child::Meter {
        child::Meter::of_all(&self.nodes)
    }

    /// Where siblings that command connect.
    fn first(&self) -> SocketAddr {
        self.nodes[0].address
    }

    /// The node that is not the first, where there are two.
    fn last(&self) -> SocketAddr {
        self.nodes[self.nodes.len() - 1].address
    }
}

pub(super) async fn run(args: BenchArgs) -> ExitCode {
    let outcome = match (args.floor, args.crowd_of) {
        (Some(size), _) => floor::serve(size).await,
        (_, Some(gateway)) => idle::crowd(gateway, args.crowd, args.crowd_rooms).await,
        _ => measure(&args).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sibling: {why}");
            ExitCode::from(FAILED)
        }
    }
}

async fn measure(args: &BenchArgs) -> Outcome<()> {
    if !(0.1..=3_600.0).contains(&args.seconds) {
        return Err("--seconds: 0.1 to 3600".into());
    }
    let mut report = Report::default();
    // Who is stopped by a signal stops what it has started, too.
    let outcome = tokio::select! {
        outcome = measure_into(args, &mut report) => outcome,
        () = wait_for_signal() => Err("stopped".into()),
    };
    // What was found before something failed is worth as much.
    report.print(args.json).and(outcome)
}

async fn measure_into(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    let wanted = |workload: &Workload| args.workloads.is_empty() || args.workloads.contains(workload);
    for workload in Workload::value_variants().iter().filter(|workload| wanted(workload)) {
        match workload {
            Workload::FanOut => fan_out::measure(args, Floor::Writes, report).await?,
            Workload::Relay => fan_out::measure(args, Floor::Relay, report).await?,
            Workload::Rooms => fan_out::rooms(args, report).await?,
            Workload::Paced => fan_out::paced(args, report).await?,
            Workload::Peers if !args.peers.is_empty() => peers::measure(args, report).await?,
            Workload::Peers if args.workloads.is_empty() => {}
            Workload::Peers => return Err("--peer: name the peers, or have tests/peers/run do it".into()),
            Workload::Limits => limits::measure(args, report).await?,
            Workload::Idle => idle::measure(args, report).await?,
            Workload::Connects => connects::measure(args, report).await?,
            Workload::Growth => growth::measure(args, report).await?,
            // They share nodes.
            Workload::Commands | Workload::Events | Workload::Replay | Workload::Redis | Workload::Nodes => {}
        }
    }
    across(args, wanted, report).await
}

/// What needs more than one node, and the same on one.
async fn across(args: &BenchArgs, wanted: impl Fn(&Workload) -> bool, report: &mut Report) -> Outcome<()> {
    let all = [Workload::Commands, Workload::Events, Workload::Replay, Workload::Redis, Workload::Nodes];
    if !all.iter().any(&wanted) {
        return Ok(());
    }
    // Kept until the end: dropping it stops the server.
    let (server, redis) = find_redis(args.broker.as_deref()).await?;
    let mut clusters = vec![Cluster::single()?];
    match &redis {
        Some((address, url)) => clusters.push(Cluster::double(*address, url)?),
        None => report.note("there is no redis-server here: give --broker for the figures of more nodes"),
    }
    for cluster in &clusters {
        if wanted(&Workload::Commands) {
            trips::commands(args, cluster, report).await?;
        }
        if wanted(&Workload::Events) {
            trips::events(args, cluster, report).await?;
        }
        if wanted(&Workload::Replay) {
            replay::measure(args, cluster, report).await?;
        }
        if let Some(redis) = cluster.redis
            && wanted(&Workload::Redis)
        {
            costs::measure(args, cluster, redis, report).await?;
        }
    }
    drop(clusters);
    match &redis {
        Some((address, url)) if wanted(&Workload::Nodes) => {
            nodes::measure(args, (*address, url), server.as_ref(), report).await
        }
        _ => Ok(()),
    }
}

type Redis = Option<(SocketAddr, String)>;

/// The Redis that was named, or one that is started, or none.
async fn find_redis(url: Option<&str>) -> Outcome<(Option<Process>, Redis)> {
    let Some(url) = url else {
        return Ok(match Process::redis().await? {
            Some(server) => {
                let (address, url) = (server.address, format!("redis://{}", server.address));
                (Some(server), Some((address, url)))
            }
            None => (None, None),
        });
    };
    let bad =
        || format!("--broker {url}: write redis://host:port, of a Redis that takes commands without a password");
    let place = url.strip_prefix("redis://").and_then(|rest| rest.split('/').next()).ok_or_else(bad)?;
    let address = place.to_socket_addrs().ok().and_then(|mut all| all.next()).ok_or_else(bad)?;
    Ok((None, Some((address, url.into()))))
}

impl BenchArgs {
    /// How long a turn takes when a workload consists of so many of them in each repetition.
    fn turn(&self, in_a_repetition: u32) -> Duration {
        Duration::from_secs_f64(self.seconds / f64::from(self.turns * in_a_repetition))
    }
}
