//! One client socket per pair: claims, releases, dead nodes and nodes that come back, in every order of steps.
//!
//! A pair has a record in the registry (its epoch, its holder, whether it has ended) and a story that siblings hear.
//! Every step at the registry is atomic, but none sees a record and the list of nodes at once: in a cluster they are in
//! different places. Nodes stop for ever or stall at any point; a stalled node does not know it.
//!
//! 1. *Claim*: wins only if nobody holds the pair, under the next epoch; then `opened` is told under that fence. A node
//!    claims only while its lease runs by its own count, which runs out before the registry's, and gives up without a
//!    word what it won if its lease ran out meanwhile, or if the client is gone.
//! 2. *Ask*: a holder is asked to let go: it stops delivering, then releases, which tells `closed` in the same step if
//!    `opened` was told. If no answer comes, whoever asked releases that fence itself; then it claims again.
//! 3. *Bury*: a node whose lease ran out is condemned; what it holds is listed; if it is still condemned under the same
//!    sentence then, what was listed is released under exactly the listed fences; this again until nothing is listed;
//!    then it is forgotten, if still under that sentence. A condemned node's beat is refused: it closes its sockets,
//!    and buries itself when nobody else does. When a beat renews its lease again, it compares what it serves with the
//!    registry before it takes sockets.
//!
//! Each field of [`Rules`] is a part of that which one might leave out, or did not think of at first; for each there
//! is a test that the checker finds what goes wrong without it.
//!
//! Bounded: one pair and the numbers in [`Bounds`]. Where this differs from what is shipped: time is only an order
//! of steps, so a holder that answers may be taken for lost as well as a silent one (shipped: after 6 s and 2 s),
//! and that an answer to a claim is waited for less long than a lease lasts is a rule ([`Rules::one_term`]); an
//! audit looks at all sockets of a node at once (shipped: a few at each beat, all when deliveries were
//! interrupted); how a node that is drained signs off, a registry that loses something (a fence is its epoch here),
//! rooms, siblings and keepers are left out. Nor does the look of who missed the answer to a claim overtake that
//! claim. An ask that is never heard is lost. "In the end" means: from every state, one fair continuation without
//! further faults gets there ([`Ownership::quiet`]).

#[path = "model_ownership/steps.rs"]
mod steps;
#[path = "model_ownership/world.rs"]
mod world;

use std::cell::RefCell;

use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Act, Bounds, Burial, Lease, Node, Outlook, Ownership, Rules, SOUND, Socket, Story, World};

const STORY: &str = "every opened has one closed, in order, and nothing follows the end";
const ONE: &str = "the registry recognises at most one socket";
const ROBBED: &str = "burial takes nothing that is served under a lease";
const CLOSED: &str = "in the end, no pair is held or open without a socket";
const ZOMBIE: &str = "in the end, nobody delivers for a pair that it does not hold";
const SHUT: &str = "in the end, every node that lives takes sockets";

thread_local! {
    /// A thread checks one model.
    static LAST: RefCell<Option<(World, Outlook)>> = const { RefCell::new(None) };
}

impl Ownership {
    /// What the nodes and sockets that live do next; clients and faults aside.
    fn steps(&self, w: &World, acts: &mut Vec<Act>) {
        acts.extend((0..=w.epoch).filter(|epoch| w.given_up & 1 << epoch != 0).map(Act::ReleaseGivenUp));
        for (s, socket) in w.sockets.iter().enumerate() {
            let prompt = w.nodes[self.bounds.sockets[s]].leased || !self.rules.leased_claims;
            match *socket {
                Socket::Claiming if prompt || self.bounds.late_claims => acts.push(Act::Claim(s, true)),
                Socket::Sent => acts.push(Act::Claim(s, false)),
                Socket::Won(_) => acts.push(Act::HearClaim(s)),
                Socket::Disclaiming => acts.push(Act::Disclaim(s)),
                Socket::Asking(older, None) if w.holder.is_none() || w.epoch != older => acts.push(Act::Answered(s)),
                Socket::Asking(older, Some(_)) if w.story.last >= older && w.story.open != Some(older) => {
                    acts.push(Act::Answered(s));
                }
                Socket::Opening(_) => acts.push(Act::Open(s)),
                Socket::Serving(epoch) if w.asks & 1 << epoch != 0 => acts.push(Act::Yield(s)),
                Socket::Leaving(..) => acts.push(Act::Release(s, true)),
                Socket::Telling(_) => acts.push(Act::Tell(s)),
                _ => {}
            }
        }
        for (node, is) in w.nodes.iter().enumerate().filter(|(_, is)| is.up) {
            let stale = |s: usize| Self::fence(w.sockets[s]).is_some_and(|epoch| !self.holds(w, s, epoch));
            acts.extend((self.rules.audit && self.on(node).any(stale)).then_some(Act::Audit(node)));
            // One after the other: its beat, what follows from it, and the burial of others.
            if is.burial != Burial::No {
                acts.push(Act::Bury(node));
                continue;
            }
            if is.settling {
                acts.push(Act::Settle(node));
                continue;
            }
            let condemned = matches!(is.lease, Lease::Condemned(_));
            if is.shut != condemned || !(condemned || (is.leased && is.lease == Lease::Live)) {
                acts.push(Act::Beat(node, true));
            }
            if condemned && is.shut && self.rules.buries_itself {
                acts.push(Act::Condemn(node, node));
            }
            for (dead, was) in w.nodes.iter().enumerate().filter(|(dead, _)| is.leased && *dead != node) {
                if matches!(was.lease, Lease::Lapsed | Lease::Condemned(_)) {
                    acts.push(Act::Condemn(node, dead));
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

    /// Kept for the next question about the same world, since it takes longer than all the rest.
    fn outlook(&self, world: &World) -> Outlook {
        LAST.with_borrow_mut(|last| match last {
            Some((known, outlook)) if known == world => *outlook,
            _ => last.insert((world.clone(), self.look_ahead(world))).1,
        })
    }

    fn look_ahead(&self, world: &World) -> Outlook {
        if world.story.wrong || world.robbed {
            return Outlook::default();
        }
        let w = self.quiet(world);
        let all = 0..w.sockets.len();
        let served = |epoch| all.clone().any(|s| w.sockets[s] == Socket::Serving(epoch) && self.holds(&w, s, epoch));
        let closed = w.holder.is_none_or(|_| served(w.epoch)) && w.story.open.is_none_or(served);
        let zombie = |s: usize| Self::fence(w.sockets[s]).is_some_and(|epoch| !self.holds(&w, s, epoch));
        let shut = |node: &Node| node.up && (node.shut || !node.leased || node.lease != Lease::Live);
        Outlook {
            unclosed: !w.story.wrong && !closed,
            zombie: !w.story.wrong && all.clone().any(zombie),
            shut: w.nodes.iter().any(shut),
        }
    }
}

impl Model for Ownership {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let (lease, burial) = (Lease::Live, Burial::No);
        let node = Node { up: true, leased: true, settling: false, shut: false, lease, burial };
        vec![World {
            epoch: 0,
            holder: None,
            claimant: 0,
            heard: false,
            ended: false,
            story: Story::default(),
            nodes: vec![node; self.bounds.nodes],
            sentences: 0,
            sockets: vec![Socket::Waiting; self.bounds.sockets.len()],
            lapsed: 0,
            asks: 0,
            given_up: 0,
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
                Act::Claim(s, true) if w.holder.is_none() => Some(Act::Claim(s, false)),
                Act::Release(s, true) => Some(Act::Release(s, false)),
                Act::Beat(node, true) => Some(Act::Beat(node, false)),
                _ => None,
            };
            let lost: Vec<Act> = acts.iter().filter_map(lose).collect();
            acts.extend(lost);
        }
        for (s, socket) in w.sockets.iter().enumerate() {
            let node = &w.nodes[self.bounds.sockets[s]];
            match socket {
                Socket::Waiting if node.up && (node.leased || !self.rules.leased_claims) => acts.push(Act::Arrive(s)),
                Socket::Won(_) => acts.push(Act::MissClaim(s)),
                Socket::Opening(_) => acts.push(Act::GiveUp(s)),
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
            if is.leased && w.lapses < self.bounds.lapses {
                acts.push(Act::Expire(node));
            }
            if !is.leased && !is.settling && is.lease == Lease::Live {
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
            Property::always(CLOSED, |model: &Self, w: &World| !model.outlook(w).unclosed),
            Property::always(ZOMBIE, |model: &Self, w: &World| !model.outlook(w).zombie),
            Property::always(SHUT, |model: &Self, w: &World| !model.outlook(w).shut),
            Property::sometimes("as many sockets are served as may come", |_, w: &World| {
                w.story.open.is_some_and(|at| usize::from(at) >= w.sockets.len())
            }),
        ];
        if self.bounds.lapses > 0 {
            let shut = |_: &Self, w: &World| w.nodes.iter().any(|node| node.shut);
            all.push(Property::sometimes("a node learns that it is condemned", shut));
        }
        all
    }
}

/// Nobody dies: three sockets on two nodes.
const CALM: Bounds = Bounds {
    nodes: 2,
    sockets: &[0, 1, 0],
    crashes: 0,
    lapses: 0,
    lost_replies: 1,
    chatter: true,
    late_claims: false,
};
const TWO_NODES: Bounds = Bounds { sockets: &[0, 1], crashes: 1, lapses: 1, ..CALM };
const THREE_NODES: Bounds = Bounds { nodes: 3, sockets: &[0, 0], lost_replies: 0, chatter: false, ..TWO_NODES };
/// One node, or both, may be taken for dead twice.
const RETURNS: Bounds = Bounds { lapses: 2, lost_replies: 0, chatter: false, ..TWO_NODES };
/// Claims, and their answers, take as long as they like.
const LATE: Bounds = Bounds { late_claims: true, crashes: 0, chatter: false, ..TWO_NODES };

fn assert_holds(bounds: Bounds) {
    let checker = Ownership { rules: SOUND, bounds }.checker().threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{bounds:?}: {states} states, {depth} deep, {} properties", checker.model().properties().len());
    checker.assert_properties();
}

/// Asserts that the checker finds how this goes wrong, and says how.
fn assert_fails(what: &str, rules: Rules, bounds: Bounds, property: &'static str) {
    // One thread, so that a way is found that is short.
    let checker = Ownership { rules, bounds }.checker().finish_when(HasDiscoveries::AnyOf([property].into()));
    let checker = checker.target_max_depth(24).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{what} is not found out"));
    let states = checker.unique_state_count();
    println!("{what}: {states} states until \"{property}\" fails: {:?}", path.into_actions());
}

#[test]
fn sockets_replace_each_other() {
    assert_holds(CALM);
}

#[test]
fn nodes_die_and_come_back() {
    assert_holds(Bounds { lost_replies: 0, ..TWO_NODES });
    assert_holds(Bounds { chatter: false, ..TWO_NODES });
}

#[test]
fn nodes_come_back_and_are_buried_again() {
    assert_holds(RETURNS);
    assert_holds(Bounds { sockets: &[0], crashes: 0, lapses: 2, ..THREE_NODES });
}

#[test]
fn two_survivors_bury_one_node() {
    assert_holds(THREE_NODES);
}

#[test]
fn claims_may_be_late_where_nobody_dies() {
    assert_holds(LATE);
    assert_holds(Bounds { nodes: 3, sockets: &[0], lapses: 2, lost_replies: 0, ..LATE });
}

#[test]
fn a_close_that_is_told_after_the_release_is_lost() {
    let bounds = Bounds { lost_replies: 0, ..TWO_NODES };
    assert_fails("told apart", Rules { release_tells: false, ..SOUND }, bounds, CLOSED);
}

#[test]
fn what_was_never_opened_is_not_to_be_closed() {
    assert_fails("closed unheard", Rules { heard: false, ..SOUND }, TWO_NODES, STORY);
}

#[test]
fn a_claim_that_does_not_wait_tells_out_of_order() {
    let bounds = Bounds { lost_replies: 0, crashes: 0, ..TWO_NODES };
    assert_fails("taken over at once", Rules { claim_waits: false, ..SOUND }, bounds, STORY);
}

#[test]
fn a_claim_whose_reply_is_lost_is_held_by_nobody() {
    assert_fails("not disclaimed", Rules { disclaims: false, ..SOUND }, CALM, CLOSED);
}

#[test]
fn who_gave_up_what_it_won_does_not_win_it_again() {
    assert_fails("claimed again", Rules { gives_up_for_good: false, ..SOUND }, TWO_NODES, CLOSED);
}

#[test]
fn what_is_claimed_without_a_lease_is_held_for_ever() {
    assert_fails("claimed unleased", Rules { leased_claims: false, ..SOUND }, TWO_NODES, CLOSED);
}

#[test]
fn a_lease_that_ran_out_and_runs_again_is_not_the_same() {
    let bounds = Bounds { sockets: &[0], ..LATE };
    assert_fails("another term", Rules { one_term: false, ..SOUND }, bounds, ROBBED);
}

#[test]
fn burial_without_condemning_takes_from_the_living() {
    assert_fails("not condemned", Rules { condemns: false, ..SOUND }, TWO_NODES, ROBBED);
}

#[test]
fn what_is_told_without_a_fence_comes_after_the_close() {
    assert_fails("not fenced", Rules { fenced: false, ..SOUND }, TWO_NODES, STORY);
}

#[test]
fn a_second_survivor_buries_who_came_back() {
    let bounds = Bounds { crashes: 0, ..THREE_NODES };
    assert_fails("not looked again", Rules { looks_again: false, ..SOUND }, bounds, ROBBED);
}

#[test]
fn a_sentence_is_not_any_sentence() {
    let bounds = Bounds { sockets: &[0], lapses: 1, ..RETURNS };
    assert_fails("any sentence", Rules { sentences: false, ..SOUND }, bounds, CLOSED);
}

#[test]
fn what_was_not_listed_is_not_released() {
    let bounds = Bounds { crashes: 0, ..THREE_NODES };
    assert_fails("whatever it holds", Rules { listed_fences: false, ..SOUND }, bounds, ROBBED);
}

#[test]
fn without_audits_a_lost_ask_leaves_a_socket_that_nobody_recognises() {
    assert_fails("not audited", Rules { audit: false, ..SOUND }, TWO_NODES, ZOMBIE);
}

#[test]
fn the_last_node_stays_condemned() {
    assert_fails("nobody buries it", Rules { buries_itself: false, ..SOUND }, TWO_NODES, SHUT);
}

/// What the protocol does not see: a node sent a claim and is buried; the claim takes effect then, and the node is dead
/// before it can give the pair up. Nobody looks after what is held by a node that nobody knows, until the next client
/// socket of that pair comes: it takes the silent holder for lost.
#[test]
fn a_claim_of_the_buried_dead_waits_for_the_next_socket() {
    let bounds = Bounds { crashes: 1, lost_replies: 0, ..LATE };
    assert_fails("a late claim", SOUND, Bounds { sockets: &[0], ..bounds }, CLOSED);

    let model = Ownership { rules: SOUND, bounds };
    let checker = model.checker().threads(2).spawn_bfs().join();
    for property in [STORY, ROBBED, ONE, ZOMBIE, SHUT] {
        assert!(checker.discovery(property).is_none(), "{property}: that holds all the same");
    }
    let mut w = model.init_states().remove(0);
    let bury = [Act::Condemn(1, 0), Act::Bury(1), Act::Bury(1), Act::Bury(1)];
    for act in [[Act::Arrive(0), Act::Crash(0), Act::Lapse(0)].as_slice(), &bury, &[Act::Claim(0, false)]].concat() {
        model.step(&mut w, act);
    }
    assert!(model.outlook(&w).unclosed, "nobody serves it: {w:?}");
    model.step(&mut w, Act::Arrive(1));
    w = model.quiet(&w);
    assert!(matches!(w.sockets[1], Socket::Serving(_)) && !model.outlook(&w).unclosed, "{w:?}");
}
