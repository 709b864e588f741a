//! Whose token it is.

use std::time::Duration;

use super::{
    auth::Asks,
    authorize::Authorizer,
    fetch::{Background, Endpoint},
    jwks::KeySet,
    keys::Key,
    tokens::{Head, Rules, check_shape, refuse},
};
use crate::protocol::{Authority, Failure};

/// Who checks the tokens of applications' accounts.
#[derive(Debug, Clone, Default)]
pub enum Accounts {
    /// Nobody: there are no accounts.
    #[default]
    None,
    /// This gateway, with one key.
    Key(Key, Rules),
    /// This gateway, with the keys that are at an address; they are used for so long before they are fetched again.
    KeySet(Endpoint, Duration, Rules),
    /// The server at an address, in this time. It is asked about every token, but for the admin key and tickets; those
    /// without a token it is not asked about.
    Authorizer(Endpoint, Duration),
}

/// Checks tokens.
pub struct Checker(Way);

enum Way {
    None,
    Key(Box<Key>, Rules),
    KeySet(Box<KeySet>, Rules),
    Authorizer(Box<Authorizer>),
}

impl Checker {
    /// Who checks; what it does on the side runs in `background`.
    #[must_use]
    pub fn new(accounts: &Accounts, background: Background) -> Self {
        Self(match accounts {
            Accounts::None => Way::None,
            Accounts::Key(key, rules) => Way::Key(Box::new(key.clone()), rules.clone()),
            Accounts::KeySet(endpoint, fresh, rules) => {
                Way::KeySet(Box::new(KeySet::new(endpoint, *fresh, background)), rules.clone())
            }
            Accounts::Authorizer(endpoint, patience) => {
                Way::Authorizer(Box::new(Authorizer::new(endpoint, *patience, background)))
            }
        })
    }

    /// What a token is good for.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`](crate::protocol::Fault::Unauthorized) or [`Fault::Forbidden`](crate::protocol::Fault::Forbidden) with a sentence that tells which check failed,
    /// [`Fault::AuthorizerUnavailable`](crate::protocol::Fault::AuthorizerUnavailable) when it can't be checked at present.
    pub async fn check(&self, token: &str, asks: Asks<'_>) -> Result<Authority, Failure> {
        check_shape(token)?;
        match &self.0 {
            Way::None => refuse(
                "the token is not the admin key, and no others are taken here: \
                 SIBLING_JWT_KEY, SIBLING_JWKS_URL or SIBLING_AUTHORIZE_URL says what checks them",
            ),
            Way::Key(key, rules) => rules.read(token, &Head::of(token)?, key),
            Way::KeySet(keys, rules) => {
                let head = Head::of(token)?;
                rules.read(token, &head, &keys.key(&head).await?)
            }
            Way::Authorizer(authorizer) => authorizer.decide(token, asks).await,
        }
    }
}
