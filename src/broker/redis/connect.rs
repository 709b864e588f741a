//! From a URL to connections that are there, and come back by themselves.

use std::time::Duration;

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::ClientLike,
    socket2::TcpKeepalive,
    types::{
        Builder, RespVersion,
        config::{
            Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, Server, ServerConfig, TcpConfig,
            UnresponsiveConfig,
        },
    },
};
use tokio::time::Instant;

/// How long a caller waits for an answer. Longer than a reconnect after a hiccup, shorter than anyone's patience.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// A connection that owes an answer for so long is given up: Redis hangs, or the network swallows.
pub(super) const SILENCE: Duration = Duration::from_secs(4);

/// How long it may take to connect.
pub(super) const CONNECT: Duration = Duration::from_secs(4);

/// After how long without traffic, and how often then, the systems ask each other whether they are there.
pub(super) const KEEP_ALIVE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(3)];

/// How long what was written may go without the other system's receipt.
pub(super) const ALIVE: Duration = Duration::from_secs(8);

/// How long a connection that broke is not tried again, in milliseconds: at first, and at most, as it grows.
const PAUSES: [u32; 2] = [50, 2_000];

/// And so many more, by chance: the nodes of a cluster are not to come back as one.
const JITTER: u32 = 100;

/// How long one that was not there in time may take to be left.
const PARTING: Duration = Duration::from_millis(50);

/// What one of fred's connections is for decides how much may wait in it.
pub(super) struct Purpose {
    /// Commands that wait for the connection at most, before they are refused.
    pub(super) commands: usize,
    /// How long fred waits for an answer.
    pub(super) answer: Duration,
}

/// For commands that have an answer.
pub(super) const COMMANDS: Purpose = Purpose { commands: 65_536, answer: ANSWER };

/// When a connection that broke is tried again.
pub(super) struct Retry {
    tries: u32,
    at: Instant,
}

impl Retry {
    /// At once, as if nothing had failed before.
    pub(super) fn soon() -> Self {
        Self { tries: 0, at: Instant::now() }
    }

    /// Later than the last time: the connection could not be made, or was of no use.
    pub(super) fn failed(&mut self) {
        let [first, most] = PAUSES;
        let pause = first.saturating_mul(1 << self.tries.min(8)).min(most);
        self.tries += 1;
        self.at = Instant::now() + Duration::from_millis(u64::from(pause + rand::random_range(0..JITTER)));
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }
}

/// Connects to one server through fred, or fails after `limit`.
pub(super) async fn connect(config: &Config, purpose: &Purpose, limit: Duration) -> Result<Client, Error> {
    // Without a policy fred never reconnects.
    let [first, most] = PAUSES;
    let mut policy = ReconnectPolicy::new_exponential(0, first, most, 2);
    policy.set_jitter(JITTER);
    let client = Builder::from_config(config.clone())
        .set_policy(policy)
        .set_connection_config(ConnectionConfig {
            connection_timeout: CONNECT,
            internal_command_timeout: Duration::from_secs(4),
            // What was written and not answered may have happened: a second attempt would do it twice.
            max_command_attempts: 1,
            max_command_buffer_len: purpose.commands,
            unresponsive: UnresponsiveConfig { max_timeout: Some(SILENCE), interval: Duration::from_secs(1) },
            // A refusal is an answer to one command. fred would drop the connection over it, and give all other
            // commands under way the same answer, although they may have been carried out.
            reconnect_errors: Vec::new(),
            tcp: TcpConfig {
                nodelay: Some(true),
                keepalive: Some(
                    TcpKeepalive::new().with_time(KEEP_ALIVE[0]).with_interval(KEEP_ALIVE[1]).with_retries(3),
                ),
                // fred does not bound its writes: without this a Redis that no longer reads holds them for ever.
                user_timeout: Some(ALIVE),
                ..TcpConfig::default()
            },
            ..ConnectionConfig::default()
        })
        .set_performance_config(PerformanceConfig {
            default_command_timeout: purpose.answer,
            ..PerformanceConfig::default()
        })
        .build()?;
    let late = |_| Error::new(ErrorKind::Timeout, "no connection in time");
    match tokio::time::timeout(limit, client.init()).await.map_err(late) {
        Ok(Ok(_runs_by_itself)) => Ok(client),
        Ok(Err(error)) | Err(error) => {
            // Ends fred's task, which would go on trying; it is told, and not waited for, since it may hang.
            drop(tokio::time::timeout(PARTING, client.quit()).await);
            Err(error)
        }
    }
}

/// Closes a connection. A server that hangs would be waited for as long as it does.
pub(super) async fn quit(client: &Client) {
    drop(tokio::time::timeout(ANSWER, client.quit()).await);
}

/// What a URL says.
#[derive(Debug)]
pub(super) struct Target {
    /// How to find the primaries.
    pub(super) setup: Setup,
    /// What a connection to any of them is like; of its server only the host and port differ.
    config: Config,
}

/// The three ways to run Redis.
#[derive(Debug)]
pub(super) enum Setup {
    /// One server.
    Single(Server),
    /// Sentinels that know the primary of a service.
    Sentinel { sentinels: Vec<Server>, service: String },
    /// Some members of a Redis Cluster.
    Cluster(Vec<Server>),
}

impl Target {
    /// A connection to one server with data.
    pub(super) fn to(&self, server: &Server) -> Config {
        let server = ServerConfig::Centralized { server: server.clone() };
        Config { server, ..self.config.clone() }
    }

    /// A connection to whom the primaries are asked of.
    pub(super) fn to_guide(&self, server: &Server) -> Config {
        let mut config = self.to(server);
        if let ServerConfig::Sentinel { username, password, .. } = &self.config.server {
            // A Sentinel has its own passwords, no databases, and speaks RESP3 only in new versions.
            (config.username, config.password) = (username.clone(), password.clone());
            (config.database, config.version) = (None, RespVersion::RESP2);
        }
        config
    }
}

/// The forms of URL that [`read_url`] takes, for whoever wrote another one.
const FORMS: &str = "use redis://host:port/db, redis-sentinel://host:port,…/service or redis-cluster://host:port,… \
                     (rediss… for TLS)";

/// Says what is wrong with a URL, without looking whether anyone is there.
///
/// # Errors
/// A sentence that names the forms that are right.
pub fn check_url(url: &str) -> Result<(), String> {
    read_url(url).map(drop).map_err(|error| format!("{}: {FORMS}", error.details()))
}

/// Reads `redis://`, `redis-sentinel://host:port,host:port/service` and `redis-cluster://host:port,host:port`, each
/// also as `rediss`, with `user:password@` before the hosts.
pub(super) fn read_url(url: &str) -> Result<Target, Error> {
    let wrong = |why: &'static str| Error::new(ErrorKind::Config, why);
    let scheme = url.split_once("://").map(|(scheme, _)| scheme).ok_or_else(|| wrong("it is no URL"))?;
    let kind = scheme.strip_prefix("rediss").or_else(|| scheme.strip_prefix("redis"));
    if !matches!(kind, Some("" | "-sentinel" | "-cluster")) {
        return Err(wrong("its scheme is not known"));
    }
    let place = url.split('?').next().unwrap_or_default().rsplit('@').next().unwrap_or_default();
    let place = place.split_once("://").map_or(place, |(_, place)| place);
    let path = place.split_once('/').map_or("", |(_, path)| path);
    match kind {
        Some("-cluster") if !matches!(path, "" | "0") => return Err(wrong("Redis Cluster has no databases")),
        Some("-sentinel") if path.split('/').next() == Some("") && !url.contains("sentinelServiceName=") => {
            return Err(wrong("it names no service after the Sentinels"));
        }
        _ => {}
    }
    let mut config = Config::from_url(&in_freds_words(url))?;
    // In RESP3 a subscribed connection still answers commands, by which subscriptions are confirmed (see live.rs).
    config.version = RespVersion::RESP3;
    config.fail_fast = true;
    let setup = match &config.server {
        ServerConfig::Centralized { server } => Setup::Single(server.clone()),
        ServerConfig::Sentinel { hosts, service_name, .. } => {
            Setup::Sentinel { sentinels: hosts.clone(), service: service_name.clone() }
        }
        ServerConfig::Clustered { hosts, .. } => Setup::Cluster(hosts.clone()),
    };
    Ok(Target { setup, config })
}

/// fred takes one host, and the others and the service as query parameters.
fn in_freds_words(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    if !(scheme.ends_with("-sentinel") || scheme.ends_with("-cluster")) {
        return url.to_owned();
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut hosts = hosts.split(',');
    let mut words = format!("{scheme}://{user}");
    if !user.is_empty() {
        words.push('@');
    }
    words += hosts.next().unwrap_or_default();
    let mut parameters: Vec<String> = hosts.map(|host| format!("node={host}")).collect();
    if scheme.ends_with("-sentinel") {
        let (service, database) = path.split_once('/').unwrap_or((path, ""));
        words = format!("{words}/{database}");
        if !service.is_empty() {
            parameters.push(format!("sentinelServiceName={service}"));
        }
    }
    if !query.is_empty() {
        parameters.push(query.to_owned());
    }
    format!("{words}?{}", parameters.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let one = read_url("redis://:secret@localhost:7000/3").unwrap();
        assert!(matches!(one.setup, Setup::Single(server) if server == Server::new("localhost", 7000)));
        assert_eq!((one.config.password.as_deref(), one.config.database), (Some("secret"), Some(3)));

        let watched = read_url("redis-sentinel://u:p@a:1,b:2/main/4").unwrap();
        let Setup::Sentinel { sentinels, service } = &watched.setup else { panic!("not a sentinel") };
        assert_eq!((sentinels.len(), service.as_str(), watched.config.database), (2, "main", Some(4)));
        let (data, guide) = (watched.to(&Server::new("c", 3)), watched.to_guide(&sentinels[0]));
        assert_eq!((data.username.as_deref(), data.password.as_deref()), (Some("u"), Some("p")));
        assert_eq!((guide.password, guide.database), (None, None), "a Sentinel's password is its own");
        assert_eq!(data.server, ServerConfig::new_centralized("c", 3));

        let cluster = read_url("rediss-cluster://u:p@a:1,b:2,c:3").unwrap();
        assert!(matches!(&cluster.setup, Setup::Cluster(hosts) if hosts.len() == 3));
        assert!(cluster.to(&Server::new("d", 4)).tls.is_some());
    }

    #[test]
    fn other_urls_are_refused_with_the_right_forms() {
        for wrong in ["nonsense", "http://a:1", "redisx://a:1", "redis-sentinel://a:1", "redis-cluster://a:1/3", ""] {
            assert!(check_url(wrong).unwrap_err().contains("redis-cluster://"), "{wrong}");
        }
        check_url("redis://localhost").unwrap();
    }
}
