//! `sibling serve`: the life of a node.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use serde_json::Map;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{FAILED, UNAVAILABLE, USAGE, say};
use crate::{
    broker::{BrokerError, Link, memory::Memory, redis},
    config::{BadConfig, Config, ServeArgs},
    http::{Gateway, listen, probe_routes, routes},
    node::{NewPair, Node},
    protocol::{Authority, Format, Grants, NodeId, Side},
    telemetry,
};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("can't listen on {0}: {1}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The broker can't be reached.
    #[error("can't reach the broker {0}: is it running, and is the URL right?")]
    Broker(String, #[source] BrokerError),
}

/// A node that runs.
pub struct Running {
    /// The node.
    pub node: Arc<Node>,
    /// Where it listens.
    pub address: SocketAddr,
}

pub(super) async fn run(args: ServeArgs) -> ExitCode {
    let config = match Config::mean(args) {
        Ok(config) => config,
        Err(BadConfig(mistakes)) => {
            for mistake in mistakes {
                eprintln!("sibling: {mistake}");
            }
            return ExitCode::from(USAGE);
        }
    };
    if let Err(mistake) = telemetry::start(&config.args.log, config.args.log_json) {
        eprintln!("sibling: {mistake}");
        return ExitCode::from(USAGE);
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let running = match start(&config, None).await {
        Ok(running) => running,
        Err(error) => {
            eprintln!("sibling: {error}");
            tracing::debug!(error = &error as &dyn std::error::Error, "not started");
            return ExitCode::from(if matches!(error, StartError::Broker(..)) { UNAVAILABLE } else { FAILED });
        }
    };
    say(&format!("sibling: listening on {} with broker {}", running.address, without_password(&config.args.broker)));
    if config.dev {
        banner(&running).await;
    }
    wait_for_signal().await;
    // A node that could not end everything in time has still told everyone: that is no failure.
    running.node.drain().await;
    ExitCode::SUCCESS
}

/// Starts a node: on the broker that the configuration names, or on one that is there already (nodes in one process).
///
/// # Errors
/// [`StartError`].
pub async fn start(config: &Config, link: Option<(NodeId, Link)>) -> Result<Running, StartError> {
    let args = &config.args;
    let (tasks, stopped) = (TaskTracker::new(), CancellationToken::new());
    let open = |address: SocketAddr| {
        listen(address, args.max_connections).map_err(|error| StartError::Listen(address, error))
    };
    let door = open(args.listen)?;
    let internal = args.internal_listen.map(open).transpose()?;
    let address = door.address().map_err(|error| StartError::Listen(args.listen, error))?;

    let unreachable = |error| StartError::Broker(without_password(&args.broker), error);
    let (id, link) = match link {
        Some(there) => there,
        None => {
            let id = NodeId::fresh();
            // The broker's own tasks go on until the node's last words are sent.
            let link = if args.broker == "memory" {
                let memory = Memory::new();
                memory.sweep(&tasks, &stopped);
                memory.link(id)
            } else {
                redis::connect(&args.broker, id, &args.key_prefix, &tasks, &stopped).await.map_err(unreachable)?
            };
            (id, link)
        }
    };
    let node = Node::start(id, config.node.clone(), link, tasks, stopped).await.map_err(unreachable)?;
    let gateway = Gateway::new(Arc::clone(&node), config.access.clone());
    if let Some(internal) = internal {
        node.spawn(
            "internal door",
            internal.serve(Arc::clone(&node), Arc::default(), probe_routes(Arc::clone(&gateway))),
        );
    }
    let limits = Arc::clone(&gateway.limits);
    node.spawn("door", door.serve(Arc::clone(&node), limits, routes(gateway, args.internal_listen.is_none())));
    Ok(Running { node, address })
}

pub(super) async fn wait_for_signal() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// What a developer can do at once: a page that moves, and three lines for three terminals that work as they are.
async fn banner(running: &Running) {
    let Running { node, address } = running;
    let new = NewPair {
        room: match "demo".parse() {
            Ok(room) => room,
            Err(_) => return,
        },
        offers: vec![Format::Text],
        meta: Map::new(),
        linger: Some(Duration::from_secs(86_400)),
        authority: Authority::anonymous(),
    };
    let Ok((pair, _)) = node.create_pair(new).await else { return };
    let ticket = |side, grants| {
        node.sign_ticket(side, pair, grants, None).ok().and_then(|said| Some(said["ticket"].as_str()?.to_owned()))
    };
    let (Some(client), Some(sibling)) =
        (ticket(Side::Client, Grants::default()), ticket(Side::Sibling, Grants::of_a_sibling()))
    else {
        return;
    };
    let tool = std::env::args().next().unwrap_or_else(|| "sibling".into());
    let url = if address.port() == 8080 { String::new() } else { format!(" --url http://{address}") };
    say(&format!(
        "
  Development server: public rooms, fresh keys, nothing is kept after it stops.

  See it move       http://{address}/

  Or in three terminals:
  open a pipe       {tool} pipe demo{url} --pair {pair} --ticket {client}
  attach a sibling  {tool} attach {pair}{url} --ticket {sibling}
  make it act       {tool} attach {pair}{url} --ticket {sibling} client.push '{{\"text\":\"hello\"}}'

  Ctrl-C stops it.
"
    ));
}

fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}://…{}", &url[..scheme], &url[at..]),
        _ => url.into(),
    }
}
