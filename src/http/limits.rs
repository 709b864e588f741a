//! Limits: what one address, one account and one pair may use up at the front door.
//!
//! Whoever asks for more is told so with the status 429 (a page with the close code 3429), and when to come back.
//! Sockets that are open are not told, but read more slowly: see `socket::pace`.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use axum::{
    extract::{FromRequestParts as _, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use parking_lot::Mutex;

use super::{
    Gateway,
    address::{Network, counted, origin},
    problem::Problem,
    rates::Rates,
    server::Permit,
    upgrade::Handshake,
};
use crate::protocol::{Account, Failure, Fault, MOST_IN_BATCH, PairId};

/// So many connections over its limit an address may have for as long as it takes to tell each of them why it is
/// refused. Beyond, they are answered unheard.
const TOLD_AT_A_TIME: usize = 16;

/// What may be used up; `None` is without limit.
#[derive(Debug, Clone, Default)]
pub struct LimitSettings {
    /// Connections of one address at a time.
    pub connections_per_address: Option<NonZeroU32>,
    /// Requests and handshakes of one address, a second.
    pub requests_per_second: Option<NonZeroU32>,
    /// Requests and handshakes of one account, a second.
    pub requests_per_account: Option<NonZeroU32>,
    /// Commands for one pair over HTTP, a second.
    pub commands_per_second: Option<NonZeroU32>,
    /// Proxies that are believed when they say for whom they ask.
    pub trusted_proxies: Vec<Network>,
}

/// The peer of a request's connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// How much of everything is used up; the default is without limits.
#[derive(Default)]
pub struct Limits {
    trusted: Vec<Network>,
    guests: Option<Arc<Guests>>,
    requests: Option<Rates>,
    accounts: Option<Rates>,
    commands: Option<Rates>,
    /// It was logged that an address is at a limit. Once is enough to look for a proxy that is not named.
    warned: AtomicBool,
}

impl Limits {
    /// Nothing is used up yet.
    #[must_use]
    pub fn new(settings: &LimitSettings) -> Self {
        let rates = |limit: Option<NonZeroU32>| limit.map(|limit| Rates::new(limit, NonZeroU32::MIN));
        // A batch is taken or refused as a whole.
        let batch = NonZeroU32::new(MOST_IN_BATCH as u32).unwrap_or(NonZeroU32::MIN);
        Self {
            trusted: settings.trusted_proxies.clone(),
            guests: settings.connections_per_address.map(Guests::new),
            requests: rates(settings.requests_per_second),
            accounts: rates(settings.requests_per_account),
            commands: settings.commands_per_second.map(|limit| Rates::new(limit, batch)),
            warned: AtomicBool::new(false),
        }
    }

    /// Counts a request of an account: once for each time that it is asked on whose behalf something is done.
    ///
    /// # Errors
    /// [`Fault::RateLimited`].
    pub fn account(&self, account: &Account) -> Result<(), Failure> {
        match (account, &self.accounts) {
            (Account::Named(name), Some(rates)) => rates.spend(name, 1).map_err(|wait| {
                Failure::new(Fault::RateLimited, "too many requests of this account: wait").retry_after(wait)
            }),
            _ => Ok(()),
        }
    }

    /// Counts commands for a pair that come over HTTP.
    ///
    /// # Errors
    /// [`Fault::RateLimited`].
    pub(super) fn commands(&self, pair: PairId, count: usize) -> Result<(), Failure> {
        let Some(rates) = &self.commands else { return Ok(()) };
        rates.spend(pair, count).map_err(|wait| {
            Failure::new(
                Fault::RateLimited,
                "too many commands for this pair: wait, or send them on a sibling socket",
            )
            .retry_after(wait)
        })
    }

    /// A seat for a connection; `Ok(None)` when it needs none, or when it is a proxy's, whose requests have seats each.
    ///
    /// # Errors
    /// Its address has so many that this one is not even heard.
    pub(super) fn seat(&self, peer: IpAddr) -> Result<Option<Arc<Seat>>, Failure> {
        match &self.guests {
            Some(guests) if !self.is_proxy(peer) => guests.seat(peer).map(Some).inspect_err(|_| self.warn(peer)),
            _ => Ok(None),
        }
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Counts a request.
    fn admit(&self, request: &mut Request) -> Result<(), Failure> {
        let Some(Peer(peer)) = request.extensions().get().copied() else { return Ok(()) };
        let address = origin(peer, request.headers(), &self.trusted);
        if let Some(rates) = &self.requests
            && let Err(wait) = rates.spend(counted(address), 1)
        {
            self.warn(address);
            return Err(
                Failure::new(Fault::RateLimited, "too many requests from this address: wait").retry_after(wait)
            );
        }
        if let Some(guests) = &self.guests
            && let Some(permit) = request.extensions_mut().get_mut::<Permit>()
        {
            if permit.seat.is_none() {
                permit.seat = guests.seat(address).ok();
            }
            if permit.seat.as_ref().is_none_or(|seat| seat.over) {
                self.warn(address);
                return Err(too_many());
            }
        }
        Ok(())
    }

    fn warn(&self, address: IpAddr) {
        if !self.warned.swap(true, Relaxed) {
            tracing::warn!(%address, "an address is at its limit: if it is a proxy's, set SIBLING_TRUSTED_PROXIES");
        }
    }
}

fn too_many() -> Failure {
    Failure::new(Fault::RateLimited, "too many connections from this address: close some, or wait")
}

/// Counts every request, and answers those that are over a limit.
pub(super) async fn admit(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let Err(failure) = gateway.limits.admit(&mut request) else { return next.run(request).await };
    let (mut head, _) = request.into_parts();
    match Handshake::from_request_parts(&mut head, &()).await {
        Ok(handshake) => handshake.refuse(&gateway, failure),
        Err(_) => Problem(failure).into_response(),
    }
}

/// Those who are here, counted by address. There are never more than connections.
pub(super) struct Guests {
    most: usize,
    here: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among the connections of one address, for as long as it is kept.
pub(super) struct Seat {
    guests: Arc<Guests>,
    address: IpAddr,
    /// It is over the limit: to be told so, and nothing else.
    pub(super) over: bool,
}

impl Guests {
    fn new(most: NonZeroU32) -> Arc<Self> {
        Arc::new(Self { most: most.get() as usize, here: Mutex::default() })
    }

    fn seat(self: &Arc<Self>, address: IpAddr) -> Result<Arc<Seat>, Failure> {
        let address = counted(address);
        let mut here = self.here.lock();
        let count = here.entry(address).or_default();
        if *count >= self.most + TOLD_AT_A_TIME {
            return Err(too_many());
        }
        *count += 1;
        Ok(Arc::new(Seat { guests: Arc::clone(self), address, over: *count > self.most }))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.guests.here.lock().entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_exact_and_forgotten() {
        let guests = Guests::new(NonZeroU32::new(2).unwrap());
        let seat = |address: &str| guests.seat(address.parse().unwrap());
        let (a, b) = (seat("192.0.2.1").unwrap(), seat("::ffff:192.0.2.1").unwrap());
        assert!(!a.over && !b.over);
        assert!(seat("192.0.2.1").unwrap().over, "a third is over");
        assert!(!seat("192.0.2.2").unwrap().over, "another address has its own");
        drop(a);
        let again = seat("192.0.2.1").unwrap();
        assert!(!again.over, "a seat that is left is free");
        let told: Vec<_> = (0..TOLD_AT_A_TIME).map(|_| seat("192.0.2.1").unwrap()).collect();
        assert!(told.iter().all(|seat| seat.over));
        assert!(seat("192.0.2.1").is_err());
        drop((b, again, told));
        assert!(guests.here.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_and_pairs_have_rates_of_their_own() {
        let one = NonZeroU32::new(1);
        let limits = Limits::new(&LimitSettings {
            requests_per_account: one,
            commands_per_second: one,
            ..LimitSettings::default()
        });
        let (a, b) = (Account::Named("a".into()), Account::Named("b".into()));
        limits.account(&a).unwrap();
        limits.account(&a).unwrap();
        let failure = limits.account(&a).unwrap_err();
        assert_eq!((failure.fault, failure.retry_after_ms()), (Fault::RateLimited, Some(1_000)));
        limits.account(&b).unwrap();
        for _ in 0..100 {
            limits.account(&Account::Anonymous).unwrap();
            limits.account(&Account::Admin).unwrap();
        }
        let pair = PairId::fresh();
        limits.commands(pair, MOST_IN_BATCH).unwrap();
        let failure = limits.commands(pair, MOST_IN_BATCH).unwrap_err();
        assert_eq!(
            failure.retry_after_ms(),
            Some(MOST_IN_BATCH as u64 * 1_000),
            "the rate is exact for batches, too"
        );
        limits.commands(PairId::fresh(), 1).unwrap();
    }
}
