//! Settings: said on the command line, in the environment or in a file, in this order of precedence; then meant.

mod accounts;
mod rooms;

use std::{net::SocketAddr, num::NonZeroU32, path::Path, time::Duration};

use clap::{Args, CommandFactory as _, ValueEnum};

pub use accounts::{AccountArgs, Remarks};

use crate::{
    broker::{Keep, redis::check_url},
    http::{Access, LimitSettings, Network},
    node::{NodeSettings, RoomDefaults},
    protocol::{Settings, Slow, TicketKeys, Violations},
};

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// What happens to a slow receiver, as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum SlowArg {
    /// Its socket is closed with 3413.
    Close,
    /// The oldest queued frames make room.
    DropOldest,
    /// New frames are not queued.
    DropNewest,
}

/// What happens to frames that are not allowed, as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ViolationsArg {
    /// The client's socket is closed.
    Close,
    /// The frame is dropped.
    Drop,
}

/// Everything that can be set on a node.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// A TOML file with any of these settings, by their long names
    #[arg(long, env = "SIBLING_CONFIG", value_name = "FILE")]
    pub config: Option<std::path::PathBuf>,
    /// Where to listen
    #[arg(long, env = "SIBLING_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Where probes listen instead
    #[arg(long, env = "SIBLING_INTERNAL_LISTEN", value_name = "ADDR")]
    pub internal_listen: Option<SocketAddr>,
    /// memory, redis://host:port/db, redis-sentinel://host:port,…/service or redis-cluster://host:port (rediss-… for
    /// TLS)
    #[arg(long, env = "SIBLING_BROKER", default_value = "memory", value_name = "URL")]
    pub broker: String,
    /// What all keys and channels in Redis begin with
    #[arg(long, env = "SIBLING_KEY_PREFIX", default_value = "sib:", value_name = "TEXT")]
    pub key_prefix: String,
    /// Be a development server although there is a secret: rooms are public, pages on loopback addresses may connect
    #[arg(long, env = "SIBLING_DEV")]
    pub dev: bool,
    /// Keys that sign tickets, separated by commas: the first signs, all verify
    #[arg(long, env = "SIBLING_SECRET", hide_env_values = true, value_name = "KEYS")]
    pub secret: Option<String>,
    /// The bearer of the admin routes
    #[arg(long, env = "SIBLING_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    pub admin_key: Option<String>,
    /// Who checks the tokens of applications.
    #[command(flatten)]
    pub accounts: AccountArgs,
    /// The address that clients reach the gateway by (https://host), for the URLs in answers
    #[arg(long, env = "SIBLING_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Origins of pages that may open sockets, separated by commas; * is any
    #[arg(long, env = "SIBLING_ALLOWED_ORIGINS", value_delimiter = ',', value_name = "ORIGINS")]
    pub allowed_origins: Vec<String>,
    /// Whether those without a token may use public rooms
    #[arg(long, env = "SIBLING_ANONYMOUS", default_value = "on", value_name = "on|off")]
    pub anonymous: Switch,
    /// Whether rooms without a specification are public [default: on in development, else off]
    #[arg(long, env = "SIBLING_DEFAULT_PUBLIC", value_name = "on|off")]
    pub default_public: Option<Switch>,
    /// The most connections at a time
    #[arg(long, env = "SIBLING_MAX_CONNECTIONS", default_value_t = 65_536, value_name = "N")]
    pub max_connections: usize,
    /// The most connections of one address (IPv6: of its /64) at a time [default: no limit]
    #[arg(long, env = "SIBLING_CONNECTIONS_PER_ADDRESS", value_name = "N")]
    pub connections_per_address: Option<NonZeroU32>,
    /// The most requests and handshakes of one address each second; twice as many at once [default: no limit]
    #[arg(long, env = "SIBLING_REQUESTS_PER_SECOND", value_name = "N")]
    pub requests_per_second: Option<NonZeroU32>,
    /// The most requests and handshakes of one account each second; twice as many at once [default: no limit]
    #[arg(long, env = "SIBLING_REQUESTS_PER_ACCOUNT", value_name = "N")]
    pub requests_per_account: Option<NonZeroU32>,
    /// The most commands of one sibling each second, and of one pair over HTTP [default: no limit]
    #[arg(long, env = "SIBLING_COMMANDS_PER_SECOND", value_name = "N")]
    pub commands_per_second: Option<NonZeroU32>,
    /// Proxies whose X-Forwarded-For is believed: addresses or networks (10.0.0.0/8), separated by commas
    #[arg(long, env = "SIBLING_TRUSTED_PROXIES", value_delimiter = ',', value_name = "ADDRS")]
    pub trusted_proxies: Vec<Network>,
    /// The largest frame that a client may send, in bytes
    #[arg(long, env = "SIBLING_MAX_MESSAGE_BYTES", default_value_t = 1 << 20, value_name = "BYTES")]
    pub max_message_bytes: usize,
    /// The bound of the queue towards a client, in bytes
    #[arg(long, env = "SIBLING_QUEUE_BYTES", default_value_t = 1 << 20, value_name = "BYTES")]
    pub queue_bytes: usize,
    /// What happens when that queue is full
    #[arg(long, env = "SIBLING_SLOW", default_value = "close", value_name = "POLICY")]
    pub slow: SlowArg,
    /// What happens to a client that sends a frame of the wrong kind
    #[arg(long, env = "SIBLING_VIOLATIONS", default_value = "close", value_name = "POLICY")]
    pub violations: ViolationsArg,
    /// Seconds between pings
    #[arg(long, env = "SIBLING_PING_SECONDS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    pub ping_seconds: u64,
    /// Seconds that a ping may stay unanswered
    #[arg(long, env = "SIBLING_PONG_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    pub pong_seconds: u64,
    /// Seconds that a pair waits for a client socket, unless it says so itself
    #[arg(long, env = "SIBLING_LINGER_SECONDS", default_value_t = 60, value_name = "SECONDS")]
    pub linger_seconds: u64,
    /// The most seconds that it may say
    #[arg(long, env = "SIBLING_MAX_LINGER_SECONDS", default_value_t = 86_400, value_name = "SECONDS")]
    pub max_linger_seconds: u64,
    /// Seconds that a ticket lives
    #[arg(long, env = "SIBLING_TICKET_SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86400), value_name = "SECONDS")]
    pub ticket_seconds: u64,
    /// At least this many events of each pair are kept
    #[arg(long, env = "SIBLING_HISTORY_EVENTS", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub history_events: u64,
    /// Events are kept for at least this long
    #[arg(long, env = "SIBLING_HISTORY_SECONDS", default_value_t = 3_600, value_name = "SECONDS")]
    pub history_seconds: u64,
    /// Never more than this many events of a pair are kept [default: 16384, or history-events if that is more]
    #[arg(long, env = "SIBLING_HISTORY_MAX", value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub history_max: Option<u64>,
    /// Seconds that a command waits for its reply
    #[arg(long, env = "SIBLING_COMMAND_TIMEOUT_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=300), value_name = "SECONDS")]
    pub command_timeout_seconds: u64,
    /// Seconds that a command's key is remembered
    #[arg(long, env = "SIBLING_KEY_SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86400), value_name = "SECONDS")]
    pub key_seconds: u64,
    /// Seconds of silence after which a node is taken for dead
    #[arg(long, env = "SIBLING_NODE_LEASE_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300), value_name = "SECONDS")]
    pub node_lease_seconds: u64,
    /// Seconds that a drain may take
    #[arg(long, env = "SIBLING_DRAIN_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    pub drain_seconds: u64,
    /// What is logged, as a tracing filter (warn, info, sibling_sockets=debug, …)
    #[arg(long, env = "SIBLING_LOG", default_value = "info,fred=error", value_name = "FILTER")]
    pub log: String,
    /// Log lines as JSON
    #[arg(long, env = "SIBLING_LOG_JSON")]
    pub log_json: bool,
}

/// What is wrong with the settings: one sentence for each mistake.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct BadConfig(pub Vec<String>);

/// What the settings mean.
#[derive(Debug)]
pub struct Config {
    /// What was said.
    pub args: ServeArgs,
    /// Whether this is a development server.
    pub dev: bool,
    /// For the node.
    pub node: NodeSettings,
    /// For the front door.
    pub access: Access,
    /// Things that work and are not advisable.
    pub warnings: Vec<String>,
}

/// How long a pair waits that a development server made for its banner.
const ALL_DAY: Duration = Duration::from_secs(86_400);

impl Config {
    /// Finds what the settings mean.
    ///
    /// # Errors
    /// Every combination that can't be meant.
    pub fn mean(args: ServeArgs) -> Result<Self, BadConfig> {
        let (mut wrong, mut warnings) = (Vec::new(), Vec::new());
        let embedded = args.broker == "memory";
        let dev = args.dev || args.secret.is_none();
        if args.secret.is_none() && !args.dev && !args.listen.ip().is_loopback() {
            let address = args.listen;
            wrong.push(format!("{address} can be reached by others: set SIBLING_SECRET, or --dev if that is meant"));
        }
        let secrets: Vec<Vec<u8>> = match &args.secret {
            Some(keys) => keys.split(',').map(|key| key.trim().as_bytes().to_vec()).collect(),
            None => vec![rand::random::<[u8; 32]>().to_vec()],
        };
        if secrets.iter().any(Vec::is_empty) {
            wrong.push("SIBLING_SECRET has an empty key: write keys separated by single commas".into());
        } else if secrets.iter().any(|key| key.len() < 32) {
            warnings.push(
                "a key in SIBLING_SECRET is shorter than 32 bytes: openssl rand -hex 32 makes a good one".into(),
            );
        }
        if args.secret.is_none() && !embedded {
            warnings.push("without SIBLING_SECRET, this node's tickets open nothing on other nodes: set it, the same on all of them".into());
        }
        if args.admin_key.as_ref().is_some_and(String::is_empty) {
            wrong.push("SIBLING_ADMIN_KEY is empty: leave it unset for no admin".into());
        }
        let mut others: Vec<_> = secrets.iter().map(|key| ("SIBLING_SECRET", key.as_slice())).collect();
        others.extend(args.admin_key.as_ref().map(|key| ("SIBLING_ADMIN_KEY", key.as_bytes())));
        let mut remarks = Remarks { wrong, warnings };
        let accounts = args.accounts.mean(&others, &mut remarks);
        Remarks { wrong, warnings } = remarks;
        if !embedded && let Err(why) = check_url(&args.broker) {
            // Without the URL, which may have a password in it.
            wrong.push(format!("the broker's URL is wrong, {why}; or memory for a node that is alone"));
        }
        let history_max = args.history_max.unwrap_or(args.history_events.max(16_384));
        if history_max < args.history_events {
            wrong.push("history-max is less than history-events: raise it".into());
        }
        if args.linger_seconds > args.max_linger_seconds {
            wrong.push("linger-seconds is more than max-linger-seconds: lower it".into());
        }
        if args.queue_bytes < 1_024 {
            wrong.push("queue-bytes: at least 1024".into());
        }
        if args.max_message_bytes == 0 {
            wrong.push("max-message-bytes: at least 1".into());
        }
        if args.key_prefix.contains(['{', '}']) {
            wrong
                .push("key-prefix: braces have a meaning of their own in Redis Cluster, use other characters".into());
        }
        for origin in args.allowed_origins.iter().map(|origin| origin.trim()) {
            let host = origin.split_once("://").map_or("", |(_, host)| host);
            if origin != "*" && (host.is_empty() || host.contains('/')) {
                wrong.push(format!("allowed-origins: {origin:?} is no origin: write it as https://example.org"));
            }
        }
        let public_url = args.public_url.as_deref().map(|url| match url.split_once("://") {
            Some(("http" | "ws", rest)) => format!("ws://{}", rest.trim_end_matches('/')),
            Some(("https" | "wss", rest)) => format!("wss://{}", rest.trim_end_matches('/')),
            _ => {
                wrong.push(format!("public-url {url:?}: write it with its scheme, as in https://example.org"));
                String::new()
            }
        });
        let specs = match &args.config {
            Some(path) => rooms::read(path, args.max_message_bytes).unwrap_or_else(|BadConfig(mistakes)| {
                wrong.extend(mistakes);
                Vec::new()
            }),
            None => Vec::new(),
        };
        if !wrong.is_empty() {
            return Err(BadConfig(wrong));
        }
        let node = NodeSettings {
            lease: Duration::from_secs(args.node_lease_seconds),
            command_timeout: Duration::from_secs(args.command_timeout_seconds),
            key_memory: Duration::from_secs(args.key_seconds),
            keep: Keep {
                events: args.history_events,
                age: Duration::from_secs(args.history_seconds),
                most: history_max,
            },
            linger: Duration::from_secs(args.linger_seconds),
            longest_linger: Duration::from_secs(args.max_linger_seconds),
            pipe: Settings {
                queue_bytes: args.queue_bytes,
                slow: match args.slow {
                    SlowArg::Close => Slow::Close,
                    SlowArg::DropOldest => Slow::DropOldest,
                    SlowArg::DropNewest => Slow::DropNewest,
                },
                rate: None,
                ping: args.ping_seconds,
            },
            max_message_bytes: args.max_message_bytes,
            violations: match args.violations {
                ViolationsArg::Close => Violations::Close,
                ViolationsArg::Drop => Violations::Drop,
            },
            rooms: RoomDefaults { public: args.default_public.map_or(dev, |switch| switch == Switch::On), specs },
            commands_per_second: args.commands_per_second,
            pong: Duration::from_secs(args.pong_seconds),
            drain: Duration::from_secs(args.drain_seconds),
            // Nobody balances a development server: it ends at once.
            farewell: if dev { Duration::ZERO } else { Duration::from_secs(args.drain_seconds) / 5 },
            ticket_keys: TicketKeys::new(secrets.iter().map(Vec::as_slice)),
            ticket_ttl: if dev { ALL_DAY } else { Duration::from_secs(args.ticket_seconds) },
        };
        let access = Access {
            admin_key: args.admin_key.clone(),
            accounts,
            anonymous: args.anonymous == Switch::On,
            allowed_origins: args.allowed_origins.iter().map(|o| o.trim().to_owned()).collect(),
            loopback_origins: dev,
            public_url,
            limits: LimitSettings {
                connections_per_address: args.connections_per_address,
                requests_per_second: args.requests_per_second,
                requests_per_account: args.requests_per_account,
                commands_per_second: args.commands_per_second,
                trusted_proxies: args.trusted_proxies.clone(),
            },
        };
        Ok(Self { args, dev, node, access, warnings })
    }
}

#[derive(clap::Parser)]
struct Names {
    #[command(flatten)]
    _serve: ServeArgs,
}

/// The settings in a file, as arguments that the command line and the environment can override.
///
/// # Errors
/// A file that can't be read, and every name in it that is no setting.
pub fn read_file(path: &Path) -> Result<Vec<String>, BadConfig> {
    let said = |why: String| BadConfig(vec![format!("{}: {why}", path.display())]);
    let text = std::fs::read_to_string(path).map_err(|error| said(error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| said(error.to_string()))?;
    let command = Names::command();
    let names: Vec<_> = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg))).collect();
    let (mut args, mut wrong) = (Vec::new(), Vec::new());
    for (key, value) in table.iter().filter(|(key, _)| *key != rooms::TABLE) {
        let name = key.replace('_', "-");
        let Some((_, arg)) = names.iter().find(|(long, _)| *long == name && name != "config") else {
            let near =
                names.iter().map(|(long, _)| *long).max_by_key(|long| likeness(long, &name)).unwrap_or_default();
            let line = text.lines().position(|line| line.trim_start().starts_with(key.as_str())).unwrap_or(0) + 1;
            wrong.push(format!("{}:{line}: {key} is no setting: did you mean {near}?", path.display()));
            continue;
        };
        // The environment goes before the file, and clap puts arguments before the environment.
        if arg.get_env().is_some_and(|variable| std::env::var_os(variable).is_some()) {
            continue;
        }
        let value = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(items) => items.iter().filter_map(|item| item.as_str()).collect::<Vec<_>>().join(","),
            toml::Value::Boolean(true) if arg.get_num_args().is_none_or(|n| !n.takes_values()) => {
                args.push(format!("--{name}"));
                continue;
            }
            toml::Value::Boolean(false) if arg.get_num_args().is_none_or(|n| !n.takes_values()) => continue,
            toml::Value::Boolean(on) => if *on { "on" } else { "off" }.into(),
            other => other.to_string(),
        };
        args.push(format!("--{name}={value}"));
    }
    if wrong.is_empty() { Ok(args) } else { Err(BadConfig(wrong)) }
}

/// How much two names have in common, in thousandths: the share of pairs of letters that both have.
fn likeness(a: &str, b: &str) -> usize {
    let pairs = |text: &str| text.as_bytes().windows(2).map(<[u8]>::to_vec).collect::<std::collections::HashSet<_>>();
    let (a, b) = (pairs(a), pairs(b));
    2_000 * a.intersection(&b).count() / (a.len() + b.len()).max(1)
}
