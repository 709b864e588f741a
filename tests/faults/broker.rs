//! Faults of a single Redis. None of them costs a client socket.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::sleep;

use crate::run::{Plan, run};
use crate::stage::{LEASE, LONG_LEASE, Stage, cli};
use crate::support::{Redis, eventually};

/// Longer than a node's lease.
const LONG: Duration = LEASE.saturating_mul(3);

/// A Redis that keeps what it has confirmed, over a node's usual lease here.
async fn durable() -> Stage {
    Stage::over(lasting().await, LEASE).await
}

async fn lasting() -> Redis {
    Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "local"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_killed_and_comes_back_with_its_data() {
    run(durable(), Plan::of("Redis kill -9, data kept"), async |stage, _, _| stage.redis_mut().restart().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_killed_and_comes_back_empty() {
    let stage = async { Stage::over(Redis::start().await, LEASE).await };
    let plan = Plan::of("Redis kill -9, data lost").costs_histories();
    run(stage, plan, async |stage, _, _| stage.redis_mut().restart().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_away_for_longer_than_the_leases() {
    run(durable(), Plan::of("Redis away for longer than a lease"), async |stage, _, _| {
        stage.redis_mut().kill();
        sleep(LONG).await;
        stage.redis_mut().restart().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_pauses_its_clients() {
    run(durable(), Plan::of("CLIENT PAUSE 3 s"), async |stage, _, _| {
        assert_eq!(stage.cli(&["CLIENT", "PAUSE", "3000", "ALL"]).await, "OK");
        sleep(Duration::from_secs(3)).await;
    })
    .await;
}

/// Returns when Redis is awake again.
async fn debug_sleep(stage: &Stage, seconds: &str) {
    assert_eq!(stage.cli(&["DEBUG", "SLEEP", seconds]).await, "OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_sleeps_for_less_than_a_lease() {
    let stage = async { Stage::over(lasting().await, LONG_LEASE).await };
    run(stage, Plan::of("DEBUG SLEEP 3"), async |stage, _, _| debug_sleep(stage, "3").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_sleeps_for_longer_than_the_leases() {
    run(durable(), Plan::of("DEBUG SLEEP 6, longer than a lease"), async |stage, _, _| {
        debug_sleep(stage, &LONG.as_secs().to_string()).await;
    })
    .await;
}

/// Kills all connections of one type.
async fn kill_connections(stage: &Stage, kind: &str) {
    let killed = stage.cli(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).await;
    assert!(killed.parse::<u32>().is_ok_and(|killed| killed > 0), "connections of type {kind} were there: {killed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_kills_its_subscribers() {
    run(durable(), Plan::of("CLIENT KILL TYPE pubsub"), async |stage, _, _| kill_connections(stage, "pubsub").await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_kills_its_other_clients() {
    run(durable(), Plan::of("CLIENT KILL TYPE normal"), async |stage, _, _| kill_connections(stage, "normal").await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cuts_slow_subscribers() {
    let mut plan = Plan::of("output-buffer cut of subscribers");
    plan.style.filling = 6_000;
    run(durable(), plan, async |stage, _, _| {
        let port = stage.ports[0];
        let subscribers = async || {
            let list = cli(port, &["CLIENT", "LIST", "TYPE", "pubsub"]).await;
            list.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect::<HashSet<_>>()
        };
        let before = subscribers().await;
        assert!(!before.is_empty(), "nodes have subscribed");
        let limit = async |text: &str| {
            assert_eq!(cli(port, &["CONFIG", "SET", "client-output-buffer-limit", text]).await, "OK");
        };
        limit("pubsub 8192 0 0").await;
        eventually("Redis has cut every subscriber", async || subscribers().await.is_disjoint(&before).then_some(()))
            .await;
        limit("pubsub 33554432 8388608 60").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_out_of_memory() {
    run(durable(), Plan::of("OOM"), async |stage, _, _| {
        assert_eq!(stage.cli(&["CONFIG", "SET", "maxmemory", "1"]).await, "OK");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(stage.cli(&["CONFIG", "SET", "maxmemory", "0"]).await, "OK");
    })
    .await;
}
