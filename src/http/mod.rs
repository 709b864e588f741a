//! Floor 4: the front door.
//!
//! `server` accepts connections, `upgrade` answers WebSocket handshakes, `sockets`, `pairs` and `rooms` are the routes,
//! `auth` says who may (`accounts` whose token it is), `limits` how much, `problem` how a refusal looks, `page` what a
//! browser sees.

mod accounts;
mod address;
mod auth;
mod authorize;
mod events;
mod fetch;
mod jwks;
mod keys;
mod limits;
mod page;
mod pairs;
mod probes;
mod problem;
mod rates;
mod revocations;
mod rooms;
mod server;
mod sockets;
mod tokens;
mod upgrade;

use std::{collections::HashSet, sync::Arc};

use axum::{
    Router,
    routing::{any, get, post},
};
use parking_lot::Mutex;

pub use accounts::{Accounts, Checker};
pub use address::{BadNetwork, Network};
pub use auth::Asks;
pub use fetch::{Background, Endpoint};
pub use keys::Key;
pub use limits::{LimitSettings, Limits};
pub use server::{Door, listen};
pub use tokens::Rules;

use crate::{node::Node, protocol::Fault};

/// Who may do what at the front door.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The bearer of the admin routes; `None` means that there are none.
    pub admin_key: Option<String>,
    /// Who checks the tokens of applications' accounts.
    pub accounts: Accounts,
    /// Whether those without a token may use public rooms.
    pub anonymous: bool,
    /// Origins of pages that may open sockets, beside the gateway's own; `*` is any.
    pub allowed_origins: Vec<String>,
    /// Whether pages from loopback addresses may open sockets too.
    pub loopback_origins: bool,
    /// The scheme and authority that clients reach the gateway by; else the request's `Host`.
    pub public_url: Option<String>,
    /// What may be used up.
    pub limits: LimitSettings,
}

/// What every route needs.
pub struct Gateway {
    /// The node behind the door.
    pub node: Arc<Node>,
    /// Who may do what.
    pub access: Access,
    checker: Checker,
    /// How much is used up.
    pub limits: Arc<Limits>,
    /// Origins that were refused and logged: each is logged once.
    refused_origins: Mutex<HashSet<String>>,
}

impl Gateway {
    /// A gateway before a node.
    #[must_use]
    pub fn new(node: Arc<Node>, access: Access) -> Arc<Self> {
        let background = Background { tasks: node.tasks.clone(), stopped: node.stopped.clone() };
        let checker = Checker::new(&access.accounts, background);
        let limits = Arc::new(Limits::new(&access.limits));
        Arc::new(Self { node, access, checker, limits, refused_origins: Mutex::default() })
    }
}

/// The routes of the internal port.
pub fn probe_routes(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/livez", get(probes::live))
        .route("/readyz", get(probes::ready))
        .route("/startupz", get(probes::ready))
        .with_state(gateway)
}

/// The routes of the public port; with the probes, unless they have a port of their own. Probes are not limited: a
/// node that is asked much is not a sick one.
pub fn routes(gateway: Arc<Gateway>, with_probes: bool) -> Router {
    let probes = if with_probes { probe_routes(Arc::clone(&gateway)) } else { Router::new() };
    Router::new()
        .route("/v1/pairs", post(pairs::create))
        .route("/v1/pairs/{pair}", get(pairs::read).delete(pairs::end))
        .route("/v1/pairs/{pair}/commands", post(pairs::command))
        .route("/v1/pairs/{pair}/events", get(events::stream))
        .route("/v1/pairs/{pair}/client", any(sockets::client))
        .route("/v1/pairs/{pair}/sibling", any(sockets::sibling))
        .route("/v1/rooms", get(rooms::list))
        .route("/v1/rooms/{room}", get(rooms::read).put(rooms::set).delete(rooms::unset))
        .route("/v1/rooms/{room}/members", get(rooms::members))
        .route("/v1/rooms/{room}/messages", post(rooms::post))
        .route("/v1/rooms/{room}/client", any(sockets::room_client))
        .route("/v1/nodes", get(probes::nodes))
        .route("/v1/revocations", post(revocations::create))
        .route("/v1/validate", get(sockets::validate))
        .route("/openrpc.json", get(page::open_rpc))
        .route("/", get(page::index))
        .route("/page.js", get(page::script))
        .route("/page.css", get(page::style))
        .route("/favicon.ico", get(page::no_icon))
        .fallback(|| async { problem::Problem::new(Fault::NotFound, "there is no such path") })
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(axum::middleware::from_fn(problem::whole_body))
        .layer(axum::middleware::from_fn(problem::one_host))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&gateway), limits::admit))
        .with_state(gateway)
        .merge(probes)
}
