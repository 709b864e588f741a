//! Probes: is the process alive, may it be sent work, and which others are there.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::{HeaderMap, Uri};
use serde_json::{Value, json};

use super::{Gateway, auth::Bearer, problem::Problem};
use crate::protocol::Fault;

/// Alive: it answers. The broker is never asked, since restarting a node does not mend a broker.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Ready: it has its broker and its lease, and is not about to stop.
pub(super) async fn ready(State(gateway): State<Arc<Gateway>>) -> Result<&'static str, Problem> {
    if gateway.node.draining.is_cancelled() {
        return Err(Problem::new(Fault::Draining, "the node is draining"));
    }
    if !gateway.node.broker_reachable() {
        return Err(Problem::new(Fault::BrokerUnavailable, "the broker can't be reached"));
    }
    gateway.node.must_be_leased()?;
    Ok("ok\n")
}

/// `GET /v1/nodes`
pub(super) async fn nodes(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    gateway.check_admin(&Bearer::of(&headers, &uri)?)?;
    Ok(Json(json!({"nodes": gateway.node.live_nodes().await?})))
}
