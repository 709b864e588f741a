//! Revocations: tickets that are void before their end, on every node.

use std::sync::Arc;

use axum::{body::Bytes, extract::State};
use http::{HeaderMap, StatusCode, Uri};
use serde::Deserialize;
use uuid::Uuid;

use super::{Gateway, auth::Bearer, pairs::body, problem::Problem};
use crate::{
    node::now_seconds,
    protocol::{Failure, Fault, PairId, Revocation, Side, Ticket},
};

/// The body of `POST /v1/revocations`: one of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeBody {
    jti: Option<Uuid>,
    ticket: Option<String>,
    pair: Option<PairId>,
}

/// Who revokes.
enum Revoker {
    Admin,
    /// A sibling, which may do so within its pair.
    Sibling(PairId),
}

/// `POST /v1/revocations`
pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    uri: Uri,
    bytes: Bytes,
) -> Result<StatusCode, Problem> {
    let node = &gateway.node;
    let revoker = gateway.revoker(&Bearer::of(&headers, &uri)?)?;
    let within = |pair: PairId| match revoker {
        Revoker::Sibling(own) if own != pair => {
            Err(Failure::new(Fault::Forbidden, "a sibling's ticket revokes within its own pair: use the admin key"))
        }
        _ => Ok(()),
    };
    let revocation = match body(&bytes)? {
        RevokeBody { jti: Some(jti), ticket: None, pair: None } => {
            if let Revoker::Sibling(_) = revoker {
                let message = "jti: for the admin key only, send the ticket itself: {\"ticket\": \"…\"}";
                return Err(Problem::new(Fault::Forbidden, message));
            }
            Revocation::of_name(jti, now_seconds() * 1_000)?
        }
        RevokeBody { jti: None, ticket: Some(text), pair: None } => {
            let ticket: Ticket = node
                .settings
                .ticket_keys
                .recognise(&text)
                .map_err(|_| Failure::new(Fault::InvalidParams, "ticket: not a ticket of this gateway"))?;
            within(ticket.pair)?;
            Revocation::of_ticket(&ticket)
        }
        RevokeBody { jti: None, ticket: None, pair: Some(pair) } => {
            within(pair)?;
            node.all_of_pair(pair)
        }
        _ => return Err(Problem::new(Fault::InvalidParams, "body: one of jti, ticket and pair")),
    };
    node.revoke(revocation, matches!(revoker, Revoker::Admin)).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Gateway {
    /// Who may revoke: the admin, and siblings that may hand tickets out.
    fn revoker(&self, bearer: &Bearer) -> Result<Revoker, Failure> {
        if self.check_admin(bearer).is_ok() {
            return Ok(Revoker::Admin);
        }
        let Bearer::Token(token) = bearer else {
            let message = "the admin key or a sibling's ticket is needed, as Authorization: Bearer";
            return Err(Failure::new(Fault::Unauthorized, message));
        };
        let ticket = self.node.settings.ticket_keys.read(token, now_seconds())?;
        self.node.check_revoked(&ticket)?;
        if ticket.aud != Side::Sibling || !ticket.grants.cover("pair.ticket") {
            return Err(Failure::new(Fault::Forbidden, "the grant pair.ticket is missing"));
        }
        Ok(Revoker::Sibling(ticket.pair))
    }
}
