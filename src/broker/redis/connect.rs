//! From a URL to three connections that are there, and come back by themselves.

use std::time::Duration;

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::ClientLike,
    socket2::TcpKeepalive,
    types::{
        Builder, RespVersion,
        config::{Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TcpConfig, UnresponsiveConfig},
    },
};

use super::script::unavailable;
use crate::broker::BrokerError;

/// How long a caller waits for an answer. Longer than a reconnect after a hiccup, shorter than anyone's patience.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// How long the first connection may take.
const START: Duration = Duration::from_secs(9);

/// A connection that owes an answer for so long is given up: Redis hangs, or the network swallows.
const SILENCE: Duration = Duration::from_secs(4);

/// What one connection is for decides how much may wait in it.
pub(super) struct Purpose {
    /// Commands that wait for the connection at most, before they are refused.
    pub(super) commands: usize,
    /// Published messages that wait at most for the one that reads them, before the oldest are forgotten.
    pub(super) messages: usize,
    /// How long fred waits for an answer; zero waits until the connection is given up.
    pub(super) answer: Duration,
}

/// Connects, or fails within ten seconds.
pub(super) async fn connect(config: &Config, purpose: &Purpose) -> Result<Client, BrokerError> {
    // Without a policy fred never reconnects. The jitter keeps the nodes of a cluster from coming back as one.
    let mut policy = ReconnectPolicy::new_exponential(0, 50, 2_000, 2);
    policy.set_jitter(100);
    let client = Builder::from_config(config.clone())
        .set_policy(policy)
        .set_connection_config(ConnectionConfig {
            connection_timeout: Duration::from_secs(4),
            internal_command_timeout: Duration::from_secs(4),
            // What was written and not answered may have happened: a second attempt would do it twice.
            max_command_attempts: 1,
            max_command_buffer_len: purpose.commands,
            unresponsive: UnresponsiveConfig { max_timeout: Some(SILENCE), interval: Duration::from_secs(1) },
            tcp: TcpConfig {
                nodelay: Some(true),
                keepalive: Some(
                    TcpKeepalive::new()
                        .with_time(Duration::from_secs(10))
                        .with_interval(Duration::from_secs(3))
                        .with_retries(3),
                ),
                // fred does not bound its writes: without this a Redis that no longer reads holds them for ever.
                user_timeout: Some(Duration::from_secs(8)),
                ..TcpConfig::default()
            },
            ..ConnectionConfig::default()
        })
        .set_performance_config(PerformanceConfig {
            default_command_timeout: purpose.answer,
            broadcast_channel_capacity: purpose.messages,
            ..PerformanceConfig::default()
        })
        .build()
        .map_err(unavailable)?;
    let late = |_| Error::new(ErrorKind::Timeout, "no connection in time");
    match tokio::time::timeout(START, client.init()).await.map_err(late) {
        Ok(Ok(_runs_by_itself)) => Ok(client),
        Ok(Err(error)) | Err(error) => {
            // Ends fred's task, which would go on trying.
            drop(client.quit().await);
            Err(unavailable(error))
        }
    }
}

/// Reads `redis://`, `rediss://`, `redis-sentinel://host:port,host:port/service` and
/// `redis-cluster://host:port,host:port`, with `user:password@` before the hosts.
pub(super) fn read_url(url: &str) -> Result<Config, BrokerError> {
    let mut config = Config::from_url(&in_freds_words(url)).map_err(unavailable)?;
    // In RESP3 a subscribed connection still answers PING, which is how a subscription is confirmed (see live.rs).
    config.version = RespVersion::RESP3;
    config.fail_fast = true;
    Ok(config)
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
    use fred::types::config::ServerConfig;

    use super::*;

    #[test]
    fn urls_are_read() {
        let one = read_url("redis://:secret@localhost:7000/3").unwrap();
        assert_eq!(one.server, ServerConfig::new_centralized("localhost", 7000));
        assert_eq!((one.password.as_deref(), one.database), (Some("secret"), Some(3)));

        let watched = read_url("redis-sentinel://u:p@a:1,b:2/main/4").unwrap();
        let ServerConfig::Sentinel { hosts, service_name, .. } = watched.server else { panic!("not a sentinel") };
        assert_eq!((hosts.len(), service_name.as_str(), watched.database), (2, "main", Some(4)));

        let cluster = read_url("redis-cluster://a:1,b:2,c:3").unwrap();
        assert_eq!(cluster.server.hosts().len(), 3);
        assert!(read_url("nonsense").is_err());
    }
}
