//! The cluster's chronicle: the one history that every node reads, from its beginning and then live.
//!
//! It tells what is revoked. A node takes each entry when it hears it, in whatever order; a hole in the chain, an
//! interruption, or a look that shows a newer entry has it read what it missed. If the history is another one than it
//! was (a broker that came back empty, or without its tail), the node reads it from the beginning, and appends again
//! what it remembers and does not find there: what was revoked stays so for as long as one node remembers it.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::sleep};

use super::{
    Node,
    clock::now_millis,
    pass::Holders,
    replay::{Admit, Replay},
    revoked::{MOST, Revoked},
    story::RETRY,
};
use crate::{
    broker::{BrokerError, DRAFTS, Draft, Entry, Keep, Page},
    protocol::{CLOCKS_DIFFER, Failure, Fault, LONGEST_TICKET, PairId, Position, Revocation, Topic},
};

/// How many entries a page has.
const PAGE: usize = 1_024;

/// All that could still void something stays, an hour longer, since the broker's clock may be another; and no more than
/// a few nodes that tell it again at once would make of it.
const KEEP: Keep = Keep { events: 1, age: Duration::from_secs(LONGEST_TICKET + 3_600), most: 4 * MOST as u64 };

/// Where a node stands in the chronicle, and what it knows by it.
pub(super) struct Chronicle {
    inside: Mutex<Inside>,
    wake: Notify,
}

/// Behind one lock, so that whoever opens a socket is either refused or found.
pub(super) struct Inside {
    pub(super) revoked: Revoked,
    pub(super) holders: Holders,
    replay: Replay,
    /// A page is on its way: what arrives meanwhile is taken, but can't be put in its place.
    reading: bool,
    /// Something did.
    overtaken: bool,
}

impl Default for Chronicle {
    fn default() -> Self {
        let inside = Inside {
            revoked: Revoked::default(),
            holders: Holders::default(),
            replay: Replay::new(Position::START),
            reading: false,
            overtaken: false,
        };
        Self { inside: Mutex::new(inside), wake: Notify::new() }
    }
}

impl Chronicle {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    /// Something may have been missed.
    pub(super) fn read_again(&self) {
        self.wake.notify_one();
    }

    /// A live entry arrived.
    pub(super) fn hear(&self, entry: &Entry) {
        let mut inside = self.lock();
        inside.take(entry, now_millis());
        if inside.reading {
            inside.overtaken = true;
        } else if inside.replay.admit(entry.position, entry.previous) == Admit::Missing {
            self.read_again();
        }
    }

    /// The page did not come.
    fn give_up(&self) {
        self.lock().reading = false;
    }

    fn begin_reading(&self, anew: bool) -> Position {
        let mut inside = self.lock();
        if anew {
            inside.replay = Replay::new(Position::START);
        }
        (inside.reading, inside.overtaken) = (true, false);
        inside.replay.at()
    }

    /// What was read; whether there is more, and whether this is another history.
    fn turn(&self, page: Page) -> (bool, bool) {
        let mut inside = self.lock();
        inside.reading = false;
        let turn = inside.replay.page(page, PAGE);
        let now = now_millis();
        for entry in &turn.entries {
            inside.take(entry, now);
        }
        let parted = turn.gap.is_some_and(|gap| gap.lost.is_none());
        if parted {
            inside.revoked.doubt_all();
        }
        (turn.again || std::mem::take(&mut inside.overtaken), parted)
    }
}

impl Inside {
    /// An entry of the history takes effect.
    fn take(&mut self, entry: &Entry, now: u64) {
        match Revocation::decode(&entry.payload) {
            Some(revocation) => {
                self.revoked.hear(revocation, now);
                self.holders.tell(&revocation);
            }
            None => {
                tracing::debug!(position = %entry.position, "the cluster's history has something of another version");
            }
        }
    }
}

impl Node {
    /// Reads what this node has not heard of the chronicle, and tells again what is missing there.
    pub(super) async fn read_chronicle(&self) -> Result<(), BrokerError> {
        // Anew once: a history that is damaged seems to part each time that it is read.
        let (mut parted_before, mut anew) = (false, false);
        loop {
            let at = self.chronicle.begin_reading(std::mem::take(&mut anew));
            let page = self.broker.read(&Topic::Cluster, at, PAGE).await.inspect_err(|_| self.chronicle.give_up())?;
            let (again, parted) = self.chronicle.turn(page);
            anew = parted && !parted_before;
            parted_before |= parted;
            if !again && !anew {
                break;
            }
        }
        self.tell_again().await
    }

    /// What this node remembers and the history has not, as far as it is known. Other nodes are at it, too: what they
    /// have told meanwhile is not told once more.
    async fn tell_again(&self) -> Result<(), BrokerError> {
        let untold = self.chronicle.lock().revoked.untold();
        if !untold.is_empty() {
            tracing::warn!(revocations = untold.len(), "the broker lost revocations: they are told again");
        }
        for some in untold.chunks(DRAFTS) {
            let missing = {
                let inside = self.chronicle.lock();
                some.iter().filter(|revocation| !inside.revoked.stands(revocation)).filter_map(draft).collect()
            };
            let missing: Vec<Draft> = missing;
            if !missing.is_empty() {
                self.broker.append(&Topic::Cluster, None, &missing, &KEEP).await?;
            }
        }
        Ok(())
    }

    /// Reads the chronicle whenever something may have been missed.
    pub(super) async fn follow_chronicle(self: Arc<Self>) {
        let follow = async {
            loop {
                self.chronicle.wake.notified().await;
                while let Err(error) = self.read_chronicle().await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "the cluster's history was not read");
                    sleep(RETRY).await;
                }
            }
        };
        self.stopped.run_until_cancelled(follow).await;
    }

    /// A last entry that was lost on its way would not be noticed otherwise, nor one that a fail-over took back.
    pub(super) async fn look_at_chronicle(&self) {
        let Ok(heads) = self.broker.heads(&[Topic::Cluster]).await else { return };
        let mut inside = self.chronicle.lock();
        inside.revoked.forget(now_millis());
        let behind = heads.first().is_some_and(|head| !inside.reading && inside.replay.behind(*head));
        if behind || inside.revoked.has_untold() {
            self.chronicle.read_again();
        }
    }

    /// A revocation of all tickets that a pair has by now. Clocks differ: what another node signed before it hears of
    /// this may carry a later time. What is signed by a node that has heard of it is later ([`Node::sign_ticket`]).
    #[must_use]
    pub fn all_of_pair(&self, pair: PairId) -> Revocation {
        let before = self.chronicle.lock().revoked.pair(pair).unwrap_or_default();
        Revocation::Pair { pair, made: (now_millis() + CLOCKS_DIFFER).max(before + 1) }
    }

    /// Revokes: on every node, at once, and for those that are yet to start. Only the admin may use the last half of
    /// what all nodes remember, lest somebody else use it up.
    ///
    /// # Errors
    /// [`Fault::Overloaded`] when too much is revoked, or when the broker can't be reached: then it may have been done,
    /// and doing it again does no harm.
    pub async fn revoke(&self, revocation: Revocation, by_admin: bool) -> Result<(), Failure> {
        let most = if by_admin { MOST } else { MOST / 2 };
        {
            let (mut inside, now) = (self.chronicle.lock(), now_millis());
            inside.revoked.forget(now);
            if revocation.past() <= now || inside.revoked.stands(&revocation) {
                return Ok(());
            }
            if inside.revoked.len() >= most {
                let message = format!(
                    "{most} revocations are in force, and no more are taken: end the pair instead (DELETE \
                     /v1/pairs/…), change SIBLING_SECRET, or try again when old ones are past (a day at most)"
                );
                return Err(Failure::new(Fault::Overloaded, message));
            }
        }
        let draft = [Draft { nonce: rand::random(), payload: revocation.encode()? }];
        self.broker.append(&Topic::Cluster, None, &draft, &KEEP).await.map_err(|error| {
            tracing::debug!(error = &error as &dyn std::error::Error, "a revocation failed");
            let message = "the broker can't be reached: whether the revocation is in force is unknown, send it again";
            Failure::new(Fault::BrokerUnavailable, message)
        })?;
        // Here it need not wait for its delivery.
        let mut inside = self.chronicle.lock();
        inside.revoked.add(revocation, now_millis());
        inside.holders.tell(&revocation);
        Ok(())
    }
}

fn draft(revocation: &Revocation) -> Option<Draft> {
    Some(Draft { nonce: rand::random(), payload: revocation.encode().ok()? })
}
