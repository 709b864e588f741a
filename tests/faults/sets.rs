//! Fail-overs of Sentinel and of Redis Cluster, planned and not. None of them costs a client socket.
//!
//! Replication is asynchronous: what the old primary confirmed last may be lost with it. Only Redis Cluster's planned
//! fail-over waits until the replica has everything.

use std::time::Duration;

use crate::run::{Plan, run};
use crate::stage::Stage;
use crate::support::{RedisCluster, Sentinels};

/// After so much silence the Sentinels take a primary for dead.
const DOWN_AFTER: Duration = Duration::from_secs(1);

fn sentinel_stage(set: &Sentinels) -> impl Future<Output = Stage> + use<> {
    Stage::at(set.url(), set.servers.iter().map(|server| server.port).collect())
}

fn cluster_stage(set: &RedisCluster) -> impl Future<Output = Stage> + use<> {
    Stage::at(set.url(), set.members.iter().map(|member| member.port).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_fails_over_as_planned() {
    let set = Sentinels::start(DOWN_AFTER).await;
    let plan = Plan::of("Sentinel, planned").costs_histories();
    run(sentinel_stage(&set), plan, async |_, _, _| {
        set.fail_over().await;
        set.whole().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_fails_over_from_a_killed_primary() {
    let mut set = Sentinels::start(DOWN_AFTER).await;
    let plan = Plan::of("Sentinel, kill -9").costs_histories();
    run(sentinel_stage(&set), plan, async |_, _, _| {
        let before = set.primary();
        set.kill(before);
        set.elected(before).await;
        set.restart(before).await;
        set.whole().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_fails_over_as_planned() {
    let set = RedisCluster::start().await;
    run(cluster_stage(&set), Plan::of("Redis Cluster, planned"), async |_, _, round| {
        // The primary of other slots each time.
        let primary = set.primary_of_slot([100, 6_000, 12_000][round % 3]);
        set.fail_over(primary).await;
        set.whole().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_fails_over_from_a_killed_primary() {
    let mut set = RedisCluster::start().await;
    let plan = Plan::of("Redis Cluster, kill -9").costs_histories();
    run(cluster_stage(&set), plan, async |_, _, round| {
        let slot = [100, 6_000, 12_000][round % 3];
        let before = set.primary_of_slot(slot);
        set.kill(before);
        set.elected(slot, before).await;
        set.restart(before).await;
        set.whole().await;
    })
    .await;
}
