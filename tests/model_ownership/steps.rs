//! The steps of the ownership model: what each does at the registry, on a node, and to the story.

#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A release tells `closed` in the same step.
    pub release_tells: bool,
    /// A claim waits until nobody holds the pair.
    pub claim_waits: bool,
    /// A claim that is made again under its nonce, since the reply was lost, is answered as it was.
    pub claim_repeats: bool,
    /// A node is condemned before its pairs are released.
    pub condemns: bool,
    /// What a socket tells is refused unless its fence holds the pair.
    pub fenced: bool,
    /// A claim is refused unless its node is known to the registry and not condemned: whom nobody would bury may hold
    /// nothing.
    pub claim_of_the_known: bool,
    /// To release and to forget for a burial is refused unless the node is condemned at that moment: another may have
    /// buried it meanwhile.
    pub burial_checks: bool,
    /// A node is forgotten only if it holds nothing at that moment: between the look and this it may have been buried,
    /// have come back, and be condemned again.
    pub forgets_the_empty: bool,
    /// A node compares what it serves with the registry now and then, not only when it is told that its lease lapsed.
    pub audit: bool,
    /// A condemned node that has closed everything may bury itself: perhaps nobody else is there.
    pub buries_itself: bool,
}

pub const SOUND: Rules = Rules {
    release_tells: true,
    claim_waits: true,
    claim_repeats: true,
    condemns: true,
    fenced: true,
    claim_of_the_known: true,
    burial_checks: true,
    forgets_the_empty: true,
    audit: true,
    buries_itself: true,
};

/// What the checker may do, at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub nodes: usize,
    /// The node of each client socket that may come.
    pub sockets: &'static [usize],
    pub crashes: u8,
    pub lapses: u8,
    pub lost_replies: u8,
    /// Whether sockets tell other things, and pairs are ended.
    pub chatter: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lease {
    Live,
    Lapsed,
    Condemned,
    Forgotten,
}

/// A burial, as the node that does it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Burial {
    No,
    /// What does the node hold?
    Look(usize),
    Release(usize, u8),
    /// Released, and not told yet.
    Tell(usize, u8),
    Forget(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub up: bool,
    /// It was told that it is condemned.
    pub shut: bool,
    /// What the registry says.
    pub lease: Lease,
    pub burial: Burial,
}

/// A client socket; numbers are epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    Waiting,
    Claiming,
    /// The holder of this epoch was asked to let go; a claim that does not wait has won another already.
    Asking(u8, Option<u8>),
    Opening(u8),
    Serving(u8),
    /// It delivers nothing any more; if true, the pair ends with it.
    Leaving(u8, bool),
    /// Released, and not told yet.
    Telling(u8),
    /// Its client went while it claimed, and whether it won is not known: it claims again, to give up what it has.
    Abandoning,
    /// Its node died while it claimed: the claim may still arrive.
    Sent,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Said {
    Opened(u8),
    Noted(u8),
    Closed(u8),
    Ended,
}

/// What siblings have heard so far, as far as it matters for what comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Story {
    pub open: Option<u8>,
    /// The last epoch that was opened or closed.
    pub last: u8,
    pub ended: bool,
    pub wrong: bool,
}

impl Story {
    pub fn tell(&mut self, said: Said) {
        let (right, open) = match said {
            Said::Opened(epoch) => (self.open.is_none() && epoch > self.last, Some(epoch)),
            Said::Noted(epoch) => (self.open == Some(epoch), self.open),
            // A socket that was lost while it opened is closed without having been opened.
            Said::Closed(epoch) => (self.open == Some(epoch) || (self.open.is_none() && epoch > self.last), None),
            Said::Ended => (self.open.is_none(), None),
        };
        self.wrong |= self.ended || !right;
        self.open = open;
        self.ended |= said == Said::Ended;
        if let Said::Opened(epoch) | Said::Closed(epoch) = said {
            self.last = self.last.max(epoch);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub epoch: u8,
    pub holder: Option<usize>,
    /// The socket that claimed last: the nonce of its claim.
    pub claimant: usize,
    pub ended: bool,
    pub story: Story,
    pub nodes: Vec<Node>,
    pub sockets: Vec<Socket>,
    /// Asks under way, a bit for each epoch.
    pub asks: u16,
    /// An idle pair of this epoch is to be ended.
    pub ender: Option<u8>,
    pub noted: bool,
    pub robbed: bool,
    pub crashes: u8,
    pub lapses: u8,
    pub lost_replies: u8,
}

/// The last part of a step at the registry says whether the reply arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Arrive(usize),
    Claim(usize, bool),
    Answered(usize),
    /// No answer: the opener releases the holder's fence.
    Force(usize),
    Open(usize, bool),
    /// The client goes before it is served.
    GiveUp(usize),
    Note(usize),
    Yield(usize),
    /// The client goes; if true, the pair is to end.
    Leave(usize, bool),
    Release(usize, bool),
    Tell(usize),
    LookToEnd,
    EndIdle,
    Crash(usize),
    Lapse(usize),
    Beat(usize, bool),
    Audit(usize),
    /// This node begins to bury that one.
    Condemn(usize, usize),
    Bury(usize),
}

#[derive(Clone, Copy)]
pub struct Ownership {
    pub rules: Rules,
    pub bounds: Bounds,
}

impl Ownership {
    pub fn holds(&self, w: &World, socket: usize, epoch: u8) -> bool {
        w.holder == Some(self.bounds.sockets[socket]) && w.epoch == epoch
    }

    /// The fence that a socket believes to hold.
    pub fn fence(socket: Socket) -> Option<u8> {
        match socket {
            Socket::Opening(epoch) | Socket::Serving(epoch) => Some(epoch),
            _ => None,
        }
    }

    /// One atomic step: nothing if the fence does not hold the pair.
    pub fn release(&self, w: &mut World, epoch: u8, end: bool) -> bool {
        let held = w.epoch == epoch && w.holder.is_some();
        if held {
            w.holder = None;
            if self.rules.release_tells {
                w.story.tell(Said::Closed(epoch));
            }
            if end {
                w.ended = true;
                w.story.tell(Said::Ended);
            }
        }
        held
    }

    pub fn claim(&self, w: &mut World, socket: usize) -> Socket {
        let node = self.bounds.sockets[socket];
        let known = matches!(w.nodes[node].lease, Lease::Live | Lease::Lapsed);
        if w.ended || (self.rules.claim_of_the_known && !known) {
            return Socket::Gone;
        }
        if self.rules.claim_repeats && w.holder.is_some() && w.claimant == socket {
            return Socket::Opening(w.epoch);
        }
        let older = w.holder.map(|_| w.epoch);
        if older.is_none() || !self.rules.claim_waits {
            w.epoch += 1;
            w.holder = Some(node);
            w.claimant = socket;
        }
        match older {
            None => Socket::Opening(w.epoch),
            Some(older) => {
                w.asks |= 1 << older;
                Socket::Asking(older, (!self.rules.claim_waits).then_some(w.epoch))
            }
        }
    }

    /// Closes what a node serves and does not hold, quietly: who released it has told it.
    pub fn audit(&self, w: &mut World, node: usize) {
        for socket in self.on(node) {
            if Self::fence(w.sockets[socket]).is_some_and(|epoch| !self.holds(w, socket, epoch)) {
                w.sockets[socket] = Socket::Gone;
            }
        }
    }

    pub fn beat(&self, w: &mut World, node: usize, heard: bool) {
        match w.nodes[node].lease {
            // It is not condemned any more: it was buried, and the beat that told it so was not heard.
            Lease::Live => w.nodes[node].shut &= !heard,
            Lease::Condemned if heard => {
                w.nodes[node].shut = true;
                w.nodes[node].burial = Burial::No;
                for socket in self.on(node) {
                    w.sockets[socket] = match w.sockets[socket] {
                        Socket::Waiting => Socket::Waiting,
                        Socket::Opening(epoch) | Socket::Serving(epoch) => Socket::Leaving(epoch, false),
                        leaving @ (Socket::Leaving(..) | Socket::Telling(_)) => leaving,
                        _ => Socket::Gone,
                    };
                }
            }
            Lease::Condemned => {}
            Lease::Lapsed | Lease::Forgotten => {
                w.nodes[node].lease = Lease::Live;
                if heard {
                    w.nodes[node].shut = false;
                    self.audit(w, node);
                }
            }
        }
    }

    pub fn bury(&self, w: &mut World, digger: usize) {
        let refused = |w: &World, dead: usize| self.rules.burial_checks && w.nodes[dead].lease != Lease::Condemned;
        w.nodes[digger].burial = match w.nodes[digger].burial {
            Burial::Look(dead) if w.holder == Some(dead) => Burial::Release(dead, w.epoch),
            Burial::Look(dead) => Burial::Forget(dead),
            // Another has buried it meanwhile.
            Burial::Release(dead, _) | Burial::Forget(dead) if refused(w, dead) => Burial::No,
            Burial::Release(dead, epoch) => {
                let released = self.release(w, epoch, false);
                w.robbed |= released && w.nodes[dead].lease == Lease::Live;
                if released && !self.rules.release_tells { Burial::Tell(dead, epoch) } else { Burial::Look(dead) }
            }
            Burial::Tell(dead, epoch) => {
                w.story.tell(Said::Closed(epoch));
                Burial::Look(dead)
            }
            Burial::Forget(dead) if self.rules.forgets_the_empty && w.holder == Some(dead) => Burial::Look(dead),
            Burial::Forget(dead) => {
                w.nodes[dead].lease = Lease::Forgotten;
                Burial::No
            }
            Burial::No => Burial::No,
        };
    }

    pub fn on(&self, node: usize) -> impl Iterator<Item = usize> {
        (0..self.bounds.sockets.len()).filter(move |socket| self.bounds.sockets[*socket] == node)
    }

    pub fn step(&self, w: &mut World, act: Act) {
        match act {
            Act::Arrive(s) => w.sockets[s] = Socket::Claiming,
            Act::Claim(s, heard) => {
                let next = self.claim(w, s);
                w.sockets[s] = match (w.sockets[s], next) {
                    (Socket::Sent, _) => Socket::Gone,
                    (unheard, _) if !heard => unheard,
                    (Socket::Abandoning, Socket::Opening(epoch)) => Socket::Leaving(epoch, false),
                    (Socket::Abandoning, _) => Socket::Gone,
                    (_, next) => next,
                };
            }
            Act::Answered(s) | Act::Force(s) => {
                let Socket::Asking(older, won) = w.sockets[s] else { return };
                if act == Act::Force(s) {
                    let tells = won.is_some() || (self.release(w, older, false) && !self.rules.release_tells);
                    if tells {
                        w.story.tell(Said::Closed(older));
                    }
                }
                w.sockets[s] = won.map_or(Socket::Claiming, Socket::Opening);
            }
            Act::Open(s, heard) => {
                let Socket::Opening(epoch) = w.sockets[s] else { return };
                let holds = self.holds(w, s, epoch);
                // What was appended before a reply was lost is not appended again.
                if holds && w.story.open != Some(epoch) {
                    w.story.tell(Said::Opened(epoch));
                }
                if heard {
                    w.sockets[s] = if holds { Socket::Serving(epoch) } else { Socket::Gone };
                }
            }
            Act::GiveUp(s) => {
                w.sockets[s] = match w.sockets[s] {
                    Socket::Claiming => Socket::Abandoning,
                    Socket::Opening(epoch) => Socket::Leaving(epoch, false),
                    _ => Socket::Gone,
                }
            }
            Act::Note(s) => {
                let Socket::Serving(epoch) = w.sockets[s] else { return };
                w.noted = true;
                if self.holds(w, s, epoch) || !self.rules.fenced {
                    w.story.tell(Said::Noted(epoch));
                } else {
                    w.sockets[s] = Socket::Gone;
                }
            }
            Act::Yield(s) | Act::Leave(s, _) => {
                let Socket::Serving(epoch) = w.sockets[s] else { return };
                w.sockets[s] = Socket::Leaving(epoch, act == Act::Leave(s, true));
            }
            Act::Release(s, heard) => {
                let Socket::Leaving(epoch, end) = w.sockets[s] else { return };
                let released = self.release(w, epoch, end);
                if heard {
                    // A socket that was displaced by a claim that does not wait tells its end all the same.
                    let tells = if released { !self.rules.release_tells } else { !self.rules.claim_waits };
                    w.sockets[s] = if tells { Socket::Telling(epoch) } else { Socket::Gone };
                }
            }
            Act::Tell(s) => {
                let Socket::Telling(epoch) = w.sockets[s] else { return };
                w.story.tell(Said::Closed(epoch));
                w.sockets[s] = Socket::Gone;
            }
            Act::LookToEnd => w.ender = Some(w.epoch),
            Act::EndIdle => {
                if w.ender.take() == Some(w.epoch) && w.holder.is_none() && !w.ended {
                    w.ended = true;
                    w.story.tell(Said::Ended);
                }
            }
            Act::Crash(node) => {
                w.nodes[node] = Node { up: false, burial: Burial::No, ..w.nodes[node] };
                w.crashes += 1;
                for s in self.on(node) {
                    w.sockets[s] = if matches!(w.sockets[s], Socket::Claiming | Socket::Abandoning) {
                        Socket::Sent
                    } else {
                        Socket::Gone
                    };
                }
            }
            Act::Lapse(node) => {
                w.nodes[node].lease = Lease::Lapsed;
                w.lapses += 1;
            }
            Act::Beat(node, heard) => self.beat(w, node, heard),
            Act::Audit(node) => self.audit(w, node),
            Act::Condemn(digger, dead) => {
                if self.rules.condemns {
                    w.nodes[dead].lease = Lease::Condemned;
                }
                w.nodes[digger].burial = Burial::Look(dead);
            }
            Act::Bury(digger) => self.bury(w, digger),
        }
        if let Act::Claim(_, false) | Act::Open(_, false) | Act::Release(_, false) | Act::Beat(_, false) = act {
            w.lost_replies += 1;
        }
    }
}
