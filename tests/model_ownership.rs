//! One client socket per pair: claims, releases, dead nodes and nodes that come back, in every order of steps.
//!
//! A pair has a record in the registry (its epoch, its holder, whether it has ended) and a story that siblings hear.
//! Every step at the registry is atomic, and what it tells is told in the same step. A caller may lose the reply and
//! does the step again. Nodes stop for ever or stall at any point; a stalled node does not know it.
//!
//! 1. *Claim*: wins only if nobody holds the pair, under the next epoch; then `opened` is told under that fence.
//! 2. *Ask*: a holder is asked to let go: it stops delivering, then releases, which tells `closed`. If no answer
//!    comes, whoever asked releases that fence itself; then it claims again.
//! 3. *Bury*: a node whose lease ran out is condemned, then its pairs are released, then it is forgotten. A condemned
//!    node's beat is refused; it closes its sockets and takes none until it is forgotten.
//!
//! Each field of [`Rules`] is a part of that which one might leave out; for each there is a test that the checker
//! finds what goes wrong without it.
//!
//! Bounded: one pair and the numbers in [`Bounds`]. An ask that is never heard is lost. "In the end" means: from every
//! state, one fair continuation without further faults gets there ([`Ownership::quiet`]). The registry itself loses
//! nothing here (a fence is its epoch; the nonce is for registries that do), and time is only an order of steps.

use stateright::{Checker, HasDiscoveries, Model, Property};

const STORY: &str = "every opened has one closed, in order, and nothing follows the end";
const ONE: &str = "the registry recognises at most one socket";
const ROBBED: &str = "burial takes nothing from a node whose lease lives";
const CLOSED: &str = "in the end, no pair is held or open without a socket";
const ZOMBIE: &str = "in the end, nobody delivers for a pair that it does not hold";
const SHUT: &str = "in the end, every node that lives takes sockets";

#[derive(Clone, Copy, Debug)]
struct Rules {
    /// A release tells `closed` in the same step.
    release_tells: bool,
    /// A claim waits until nobody holds the pair.
    claim_waits: bool,
    /// A claim that is made again under its nonce, since the reply was lost, is answered as it was.
    claim_repeats: bool,
    /// A node is condemned before its pairs are released.
    condemns: bool,
    /// What a socket tells is refused unless its fence holds the pair.
    fenced: bool,
    /// A claim is refused unless its node is known to the registry and not condemned: whom nobody would bury may hold
    /// nothing.
    claim_of_the_known: bool,
    /// To release and to forget for a burial is refused unless the node is condemned at that moment: another may have
    /// buried it meanwhile.
    burial_checks: bool,
    /// A node compares what it serves with the registry now and then, not only when it is told that its lease lapsed.
    audit: bool,
    /// A condemned node that has closed everything may bury itself: perhaps nobody else is there.
    buries_itself: bool,
}

const SOUND: Rules = Rules {
    release_tells: true,
    claim_waits: true,
    claim_repeats: true,
    condemns: true,
    fenced: true,
    claim_of_the_known: true,
    burial_checks: true,
    audit: true,
    buries_itself: true,
};

/// What the checker may do, at most.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    nodes: usize,
    /// The node of each client socket that may come.
    sockets: &'static [usize],
    crashes: u8,
    lapses: u8,
    lost_replies: u8,
    /// Whether sockets tell other things, and pairs are ended.
    chatter: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lease {
    Live,
    Lapsed,
    Condemned,
    Forgotten,
}

/// A burial, as the node that does it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Burial {
    No,
    /// What does the node hold?
    Look(usize),
    Release(usize, u8),
    /// Released, and not told yet.
    Tell(usize, u8),
    Forget(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Node {
    up: bool,
    /// It was told that it is condemned.
    shut: bool,
    /// What the registry says.
    lease: Lease,
    burial: Burial,
}

/// A client socket; numbers are epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Socket {
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
enum Said {
    Opened(u8),
    Noted(u8),
    Closed(u8),
    Ended,
}

/// What siblings have heard so far, as far as it matters for what comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Story {
    open: Option<u8>,
    /// The last epoch that was opened or closed.
    last: u8,
    ended: bool,
    wrong: bool,
}

impl Story {
    fn tell(&mut self, said: Said) {
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
struct World {
    epoch: u8,
    holder: Option<usize>,
    /// The socket that claimed last: the nonce of its claim.
    claimant: usize,
    ended: bool,
    story: Story,
    nodes: Vec<Node>,
    sockets: Vec<Socket>,
    /// Asks under way, a bit for each epoch.
    asks: u16,
    /// An idle pair of this epoch is to be ended.
    ender: Option<u8>,
    noted: bool,
    robbed: bool,
    crashes: u8,
    lapses: u8,
    lost_replies: u8,
}

/// The last part of a step at the registry says whether the reply arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
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
struct Ownership {
    rules: Rules,
    bounds: Bounds,
}

impl Ownership {
    fn holds(&self, w: &World, socket: usize, epoch: u8) -> bool {
        w.holder == Some(self.bounds.sockets[socket]) && w.epoch == epoch
    }

    /// The fence that a socket believes to hold.
    fn fence(socket: Socket) -> Option<u8> {
        match socket {
            Socket::Opening(epoch) | Socket::Serving(epoch) => Some(epoch),
            _ => None,
        }
    }

    /// One atomic step: nothing if the fence does not hold the pair.
    fn release(&self, w: &mut World, epoch: u8, end: bool) -> bool {
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

    fn claim(&self, w: &mut World, socket: usize) -> Socket {
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
    fn audit(&self, w: &mut World, node: usize) {
        for socket in self.on(node) {
            if Self::fence(w.sockets[socket]).is_some_and(|epoch| !self.holds(w, socket, epoch)) {
                w.sockets[socket] = Socket::Gone;
            }
        }
    }

    fn beat(&self, w: &mut World, node: usize, heard: bool) {
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

    fn bury(&self, w: &mut World, digger: usize) {
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
            Burial::Forget(dead) => {
                w.nodes[dead].lease = Lease::Forgotten;
                Burial::No
            }
            Burial::No => Burial::No,
        };
    }

    fn on(&self, node: usize) -> impl Iterator<Item = usize> {
        (0..self.bounds.sockets.len()).filter(move |socket| self.bounds.sockets[*socket] == node)
    }

    fn step(&self, w: &mut World, act: Act) {
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
                    if won.is_some() {
                        w.story.tell(Said::Closed(older));
                    } else if self.release(w, older, false) && !self.rules.release_tells {
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

    /// What the nodes and sockets that live do next; clients and faults aside.
    fn steps(&self, w: &World, acts: &mut Vec<Act>) {
        for (s, socket) in w.sockets.iter().enumerate() {
            match *socket {
                Socket::Claiming | Socket::Abandoning => acts.push(Act::Claim(s, true)),
                Socket::Sent => acts.push(Act::Claim(s, false)),
                Socket::Asking(older, None) if w.holder.is_none() || w.epoch != older => acts.push(Act::Answered(s)),
                Socket::Asking(older, Some(_)) if w.story.last >= older && w.story.open != Some(older) => {
                    acts.push(Act::Answered(s));
                }
                Socket::Opening(_) => acts.push(Act::Open(s, true)),
                Socket::Serving(epoch) if w.asks & 1 << epoch != 0 => acts.push(Act::Yield(s)),
                Socket::Leaving(..) => acts.push(Act::Release(s, true)),
                Socket::Telling(_) => acts.push(Act::Tell(s)),
                _ => {}
            }
        }
        for (node, is) in w.nodes.iter().enumerate().filter(|(_, is)| is.up) {
            if (is.lease != Lease::Live) != (is.lease != Lease::Forgotten && is.shut) {
                acts.push(Act::Beat(node, true));
            }
            if self.rules.audit {
                let stale = |s: usize| Self::fence(w.sockets[s]).is_some_and(|epoch| !self.holds(w, s, epoch));
                acts.extend(self.on(node).any(stale).then_some(Act::Audit(node)));
            }
            let closed = self.on(node).all(|s| matches!(w.sockets[s], Socket::Gone | Socket::Waiting));
            if is.burial != Burial::No {
                acts.push(Act::Bury(node));
            } else if is.shut && is.lease == Lease::Condemned && self.rules.buries_itself && closed {
                acts.push(Act::Condemn(node, node));
            } else if !is.shut {
                for (dead, was) in w.nodes.iter().enumerate().filter(|(dead, _)| *dead != node) {
                    if matches!(was.lease, Lease::Lapsed | Lease::Condemned) {
                        acts.push(Act::Condemn(node, dead));
                    }
                }
            }
        }
    }

    /// What becomes of a world in which no client comes or goes, asks under way are lost, dead nodes' leases run out,
    /// and otherwise everybody goes on.
    fn quiet(&self, world: &World) -> World {
        let mut w = World { asks: 0, ..world.clone() };
        for _ in 0..100 {
            let mut acts = Vec::new();
            if let Some(dead) = w.nodes.iter().position(|node| !node.up && node.lease == Lease::Live) {
                acts.push(Act::Lapse(dead));
            }
            self.steps(&w, &mut acts);
            let asking = (0..w.sockets.len()).filter(|s| matches!(w.sockets[*s], Socket::Asking(..)));
            acts.extend(asking.map(Act::Force));
            match acts.first() {
                Some(act) => self.step(&mut w, *act),
                None => return w,
            }
        }
        panic!("it goes on for ever: {world:?}");
    }
}

impl Model for Ownership {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let node = Node { up: true, shut: false, lease: Lease::Live, burial: Burial::No };
        vec![World {
            epoch: 0,
            holder: None,
            claimant: 0,
            ended: false,
            story: Story::default(),
            nodes: vec![node; self.bounds.nodes],
            sockets: vec![Socket::Waiting; self.bounds.sockets.len()],
            asks: 0,
            ender: None,
            noted: false,
            robbed: false,
            crashes: 0,
            lapses: 0,
            lost_replies: 0,
        }]
    }

    fn actions(&self, w: &World, acts: &mut Vec<Act>) {
        if w.story.wrong || w.robbed {
            return;
        }
        self.steps(w, acts);
        if w.lost_replies < self.bounds.lost_replies {
            let lose = |act: &Act| match *act {
                Act::Claim(s, true) => Some(Act::Claim(s, false)),
                Act::Open(s, true) => Some(Act::Open(s, false)),
                Act::Release(s, true) => Some(Act::Release(s, false)),
                Act::Beat(node, true) => Some(Act::Beat(node, false)),
                _ => None,
            };
            let lost: Vec<Act> = acts.iter().filter_map(lose).collect();
            acts.extend(lost);
        }
        for (s, socket) in w.sockets.iter().enumerate() {
            if matches!(socket, Socket::Claiming | Socket::Asking(..) | Socket::Opening(_)) {
                acts.push(Act::GiveUp(s));
            }
            match socket {
                Socket::Waiting if w.nodes[self.bounds.sockets[s]].up && !w.nodes[self.bounds.sockets[s]].shut => {
                    acts.push(Act::Arrive(s));
                }
                Socket::Asking(..) => acts.push(Act::Force(s)),
                Socket::Serving(_) => {
                    acts.push(Act::Leave(s, false));
                    if self.bounds.chatter {
                        acts.push(Act::Leave(s, true));
                        acts.extend((!w.noted).then_some(Act::Note(s)));
                    }
                }
                _ => {}
            }
        }
        match w.ender {
            Some(_) => acts.push(Act::EndIdle),
            None if self.bounds.chatter && w.holder.is_none() && !w.ended && w.epoch > 0 => acts.push(Act::LookToEnd),
            None => {}
        }
        for (node, is) in w.nodes.iter().enumerate() {
            if is.lease == Lease::Live && w.lapses < self.bounds.lapses {
                acts.push(Act::Lapse(node));
            }
            if is.up && w.crashes < self.bounds.crashes {
                acts.push(Act::Crash(node));
            }
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut next = world.clone();
        self.step(&mut next, act);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(STORY, |_, w: &World| !w.story.wrong),
            Property::always(ROBBED, |_, w: &World| !w.robbed),
            Property::always(ONE, |model: &Self, w: &World| {
                let recognised = |s: &usize| {
                    let socket = w.sockets[*s];
                    let leaving = if let Socket::Leaving(epoch, _) = socket { Some(epoch) } else { None };
                    Self::fence(socket).or(leaving).is_some_and(|epoch| model.holds(w, *s, epoch))
                };
                (0..w.sockets.len()).filter(recognised).count() <= 1
            }),
            Property::always(CLOSED, |model: &Self, w: &World| {
                let w = model.quiet(w);
                let serves = |epoch| {
                    (0..w.sockets.len()).any(|s| w.sockets[s] == Socket::Serving(epoch) && model.holds(&w, s, epoch))
                };
                w.story.wrong || (w.holder.is_none_or(|_| serves(w.epoch)) && w.story.open.is_none_or(serves))
            }),
            Property::always(ZOMBIE, |model: &Self, w: &World| {
                let w = model.quiet(w);
                let zombie = |s: usize| Self::fence(w.sockets[s]).is_some_and(|epoch| !model.holds(&w, s, epoch));
                w.story.wrong || !(0..w.sockets.len()).any(zombie)
            }),
            Property::always(SHUT, |model: &Self, w: &World| {
                model.quiet(w).nodes.iter().all(|node| !node.up || (!node.shut && node.lease == Lease::Live))
            }),
            Property::sometimes("a socket replaces another", |_, w: &World| w.story.open.is_some_and(|at| at > 1)),
        ];
        if self.bounds.lapses > 0 {
            let shut = |_: &Self, w: &World| w.nodes.iter().any(|node| node.shut);
            all.push(Property::sometimes("a node learns that it is condemned", shut));
        }
        all
    }
}

/// Nobody dies: three sockets on two nodes.
const QUIET: Bounds = Bounds { nodes: 2, sockets: &[0, 1, 0], crashes: 0, lapses: 0, lost_replies: 2, chatter: true };
const TWO_NODES: Bounds =
    Bounds { nodes: 2, sockets: &[0, 1], crashes: 1, lapses: 1, lost_replies: 1, chatter: true };
const THREE_NODES: Bounds =
    Bounds { nodes: 3, sockets: &[0, 0], crashes: 1, lapses: 1, lost_replies: 0, chatter: false };

fn assert_holds(bounds: Bounds) {
    let checker = Ownership { rules: SOUND, bounds }.checker().threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{bounds:?}: {states} states, {depth} deep, {} properties", checker.model().properties().len());
    checker.assert_properties();
}

/// Asserts that the checker finds how this goes wrong, and says the shortest way.
fn assert_fails(what: &str, rules: Rules, bounds: Bounds, property: &'static str) {
    for depth in 1..=20 {
        let checker = Ownership { rules, bounds }.checker().finish_when(HasDiscoveries::AnyOf([property].into()));
        let checker = checker.threads(2).target_max_depth(depth).spawn_bfs().join();
        if let Some(path) = checker.discovery(property) {
            let states = checker.unique_state_count();
            return println!("{what}: {states} states until \"{property}\" fails: {:?}", path.into_actions());
        }
    }
    panic!("{what} is not found out");
}

#[test]
fn sockets_replace_each_other() {
    assert_holds(QUIET);
}

#[test]
fn nodes_die_and_come_back() {
    assert_holds(TWO_NODES);
}

#[test]
fn two_survivors_bury_one_node() {
    assert_holds(THREE_NODES);
}

#[test]
fn a_close_that_is_told_after_the_release_is_lost() {
    assert_fails("told apart", Rules { release_tells: false, ..SOUND }, TWO_NODES, CLOSED);
}

#[test]
fn a_claim_that_does_not_wait_tells_out_of_order() {
    assert_fails("taken over at once", Rules { claim_waits: false, ..SOUND }, TWO_NODES, STORY);
}

#[test]
fn a_claim_whose_reply_is_lost_is_held_by_nobody() {
    assert_fails("not repeated", Rules { claim_repeats: false, ..SOUND }, QUIET, CLOSED);
}

#[test]
fn burial_without_condemning_takes_from_the_living() {
    let rules = Rules { condemns: false, burial_checks: false, ..SOUND };
    assert_fails("not condemned", rules, TWO_NODES, ROBBED);
}

#[test]
fn what_is_told_without_a_fence_comes_after_the_close() {
    assert_fails("not fenced", Rules { fenced: false, ..SOUND }, TWO_NODES, STORY);
}

#[test]
fn a_claim_of_the_forgotten_is_held_for_ever() {
    assert_fails("claimed by a stranger", Rules { claim_of_the_known: false, ..SOUND }, TWO_NODES, CLOSED);
}

#[test]
fn a_second_survivor_buries_who_came_back() {
    assert_fails("buried unchecked", Rules { burial_checks: false, ..SOUND }, THREE_NODES, ROBBED);
}

#[test]
fn without_audits_a_lost_ask_leaves_a_socket_that_nobody_recognises() {
    assert_fails("not audited", Rules { audit: false, ..SOUND }, TWO_NODES, ZOMBIE);
}

#[test]
fn the_last_node_stays_condemned() {
    assert_fails("nobody buries it", Rules { buries_itself: false, ..SOUND }, TWO_NODES, SHUT);
}
