//! Faults of nodes, of their wires and of clients.

use std::time::Duration;

use tokio::time::sleep;

use crate::agent::Wish;
use crate::run::{Plan, run};
use crate::stage::{LEASE, LONG_LEASE, Stage};
use crate::support::Redis;
use crate::wire::State;

/// Longer than a lease and the quarter of it after which others look.
const LONG: Duration = LEASE.saturating_mul(3);
/// How long a drained node may take to end; its own limit is five seconds.
const DRAIN: Duration = Duration::from_secs(60);

async fn stage() -> Stage {
    Stage::over(Redis::start().await, LEASE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed() {
    let mut plan = Plan::of("kill -9 of a node").costs_pipes().costs_answers();
    // Some come back at once, some after the dead node is buried.
    plan.style.tardy = Some(LONG);
    run(stage(), plan, async |stage, _, round| {
        let at = round % stage.nodes.len();
        stage.field.harm(stage.nodes[at].addr);
        stage.retire(at);
        stage.nodes[at].kill();
        stage.replace(at).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_stopped_for_longer_than_its_lease() {
    let mut plan = Plan::of("SIGSTOP for longer than a lease").costs_pipes();
    plan.style.impatient = true;
    run(stage(), plan, async |stage, _, round| {
        let node = &stage.nodes[round % stage.nodes.len()];
        stage.field.harm(node.addr);
        node.signal("STOP");
        sleep(LONG).await;
        node.signal("CONT");
    })
    .await;
}

/// Cuts one node's wire: silently at first, the next time by hanging up.
async fn cut(stage: &Stage, round: usize, length: Duration) {
    let wire = &stage.wires[round % stage.nodes.len()];
    wire.set(if round.is_multiple_of(2) { State::Silent } else { State::Closed });
    sleep(length).await;
    wire.set(State::Whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_cut_off_from_redis_for_a_moment() {
    let stage = async { Stage::wired(Redis::start().await, LONG_LEASE).await };
    run(stage, Plan::of("cut off for less than a lease"), async |stage, _, round| {
        cut(stage, round, Duration::from_secs(3)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_cut_off_from_redis_for_longer_than_its_lease() {
    let stage = async { Stage::wired(Redis::start().await, LEASE).await };
    let mut plan = Plan::of("cut off for longer than a lease").costs_pipes();
    plan.style.tardy = Some(LONG);
    run(stage, plan, async |stage, _, round| {
        stage.field.harm(stage.nodes[round % stage.nodes.len()].addr);
        cut(stage, round, LONG).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_restarted_one_after_the_other() {
    let mut plan = Plan::of("rolling restart").costs_pipes();
    plan.promises.draining = true;
    run(stage(), plan, async |stage, _, _| {
        for at in 0..stage.nodes.len() {
            stage.nodes[at].signal("TERM");
            // Agents may still come to it, and are sent on.
            let status = stage.nodes[at].exit(DRAIN).await;
            assert_eq!(status.code(), Some(0), "a drained node ends well: {status}");
            stage.retire(at);
            stage.replace(at).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_storm_and_vanish() {
    run(stage(), Plan::of("take-overs and disconnects").costs_pipes(), async |_, load, _| {
        // Every client opens five more sockets at random nodes, all at the same time.
        load.wish(Wish::Storm(5));
        sleep(Duration::from_secs(3)).await;
        load.wish_of_some(3, Wish::Vanish);
    })
    .await;
}
