//! Who asks, and whether it may.

use std::sync::Arc;

use http::{HeaderMap, Uri, header};
use serde::Deserialize;

use super::Gateway;
use crate::{
    node::{Pass, now_seconds},
    protocol::{Authority, Failure, Fault, Grants, PairId, RoomName, Side},
};

/// How many refused origins are remembered, so that each is logged once.
const MOST_ORIGINS: usize = 256;

/// Who asks.
#[derive(Debug, Clone)]
pub(super) enum Bearer {
    /// Nobody said who it is.
    Nobody,
    /// Somebody with this token.
    Token(String),
}

/// What somebody asks for; an authorizer wants to know.
#[derive(Debug, Clone, Copy)]
pub struct Asks<'a> {
    /// What is to be done, in a word.
    pub action: &'static str,
    /// The room that it is about.
    pub room: Option<&'a RoomName>,
}

/// What was found of who asks for something of a pair.
pub(super) struct Admitted {
    /// What it may do.
    pub(super) grants: Grants,
    /// For how long.
    pub(super) pass: Pass,
}

#[derive(Deserialize)]
struct TicketQuery {
    ticket: Option<String>,
}

impl Bearer {
    /// The token of a request: from its `Authorization`, else from its subprotocols, else from its query.
    pub(super) fn of(headers: &HeaderMap, uri: &Uri) -> Result<Self, Failure> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let token = value.to_str().ok().and_then(|v| v.split_once(' '));
            return match token {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                    Ok(Self::Token(token.trim().into()))
                }
                _ => Err(Failure::new(Fault::Unauthorized, "Authorization: must be \"Bearer\" and a token")),
            };
        }
        let offered = super::upgrade::offered(headers);
        if let Some(token) = offered.into_iter().find_map(|protocol| protocol.strip_prefix("bearer.")) {
            return Ok(Self::Token(token.into()));
        }
        let query = axum::extract::Query::<TicketQuery>::try_from_uri(uri).ok();
        Ok(query.and_then(|query| query.0.ticket).map_or(Self::Nobody, Self::Token))
    }
}

impl Gateway {
    fn is_admin(&self, token: &str) -> bool {
        // Compared without telling by the time it takes how much of it was right.
        self.access.admin_key.as_ref().is_some_and(|key| {
            key.len() == token.len() && key.bytes().zip(token.bytes()).fold(0, |d, (a, b)| d | (a ^ b)) == 0
        })
    }

    /// That the bearer is the admin.
    pub(super) fn check_admin(&self, bearer: &Bearer) -> Result<(), Failure> {
        match bearer {
            Bearer::Token(token) if self.is_admin(token) => Ok(()),
            _ => Err(Failure::new(Fault::Unauthorized, "the admin key is needed, as Authorization: Bearer")),
        }
    }

    /// What the bearer may do with a pair: its ticket for this side says it, the admin key is good for all.
    pub(super) fn grants_for_pair(&self, bearer: &Bearer, pair: PairId, side: Side) -> Result<Admitted, Failure> {
        match bearer {
            Bearer::Nobody => Err(Failure::new(
                Fault::Unauthorized,
                format!(
                    "a {} ticket of this pair is needed: as Authorization: Bearer, as subprotocol bearer.…, or as ?ticket=",
                    side.as_str()
                ),
            )),
            Bearer::Token(token) if self.is_admin(token) => {
                Ok(Admitted { grants: Grants::all(), pass: Pass::default() })
            }
            Bearer::Token(token) => {
                let ticket = self.node.settings.ticket_keys.verify(token, side, pair, now_seconds())?;
                Ok(Admitted { pass: self.node.admit(&ticket)?, grants: ticket.grants })
            }
        }
    }

    /// On whose behalf the bearer asks, and how far that goes.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`] or [`Fault::Forbidden`] with a sentence that tells which check failed,
    /// [`Fault::AuthorizerUnavailable`] when it can't be checked at present, [`Fault::RateLimited`] when the account asks
    /// too often.
    pub(super) async fn authority(&self, bearer: &Bearer, asks: Asks<'_>) -> Result<Authority, Failure> {
        let authority = match bearer {
            Bearer::Nobody if self.access.anonymous => Authority::anonymous(),
            Bearer::Nobody => {
                let message =
                    "a token is needed, as Authorization: Bearer; SIBLING_ANONYMOUS=on lets others into public rooms";
                return Err(Failure::new(Fault::Unauthorized, message));
            }
            Bearer::Token(token) if self.is_admin(token) => Authority::admin(),
            Bearer::Token(token) => self.checker.check(token, asks).await?,
        };
        self.limits.account(&authority.account)?;
        Ok(authority)
    }

    /// Whether a page of this origin may open sockets. Requests without an origin come from no page.
    pub(super) fn check_origin(self: &Arc<Self>, headers: &HeaderMap) -> Result<(), Failure> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or("null");
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let access = &self.access;
        let loopback = || {
            let host = authority.map(|a| a.rsplit_once(':').map_or(a, |(host, _)| host));
            access.loopback_origins && matches!(host, Some("localhost" | "127.0.0.1" | "[::1]"))
        };
        if (authority.is_some() && authority == host)
            || access.allowed_origins.iter().any(|allowed| allowed == "*" || allowed == origin)
            || loopback()
        {
            return Ok(());
        }
        let mut refused = self.refused_origins.lock();
        if refused.len() < MOST_ORIGINS && refused.insert(origin.into()) {
            tracing::warn!(?origin, "a page's origin was refused: add it to SIBLING_ALLOWED_ORIGINS to allow it");
        }
        Err(Failure::new(Fault::Forbidden, "origin not allowed"))
    }
}
