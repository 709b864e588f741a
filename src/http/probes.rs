//! Probes: is the process alive, and may it be sent work.

use std::sync::Arc;

use axum::extract::State;

use super::{Gateway, problem::Problem};
use crate::protocol::Fault;

/// Alive: it answers. The broker is never asked, since restarting a node does not mend a broker.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Ready: it has its broker and is not about to stop.
pub(super) async fn ready(State(gateway): State<Arc<Gateway>>) -> Result<&'static str, Problem> {
    if gateway.node.draining.is_cancelled() {
        return Err(Problem::new(Fault::Draining, "the node is draining"));
    }
    if !gateway.node.broker_reachable() {
        return Err(Problem::new(Fault::BrokerUnavailable, "the broker can't be reached"));
    }
    Ok("ok\n")
}
