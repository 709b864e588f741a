//! The steps of the ownership model: what each does at the registry, on a node, and to the story.

use super::world::{Act, Burial, Lease, Node, Ownership, Parting, Said, Socket, World};

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

    pub fn on(&self, node: usize) -> impl Iterator<Item = usize> {
        (0..self.bounds.sockets.len()).filter(move |socket| self.bounds.sockets[*socket] == node)
    }

    /// One atomic step: nothing if the fence does not hold the pair.
    fn release(&self, w: &mut World, epoch: u8, parting: Parting) -> bool {
        let held = w.epoch == epoch && w.holder.is_some();
        if held {
            w.holder = None;
            let tells = parting != Parting::Unheard && (w.heard || !self.rules.heard);
            if tells && self.rules.release_tells {
                w.story.tell(Said::Closed(epoch));
            }
            if parting == Parting::PairEnds {
                w.ended = true;
                w.story.tell(Said::Ended);
            }
        }
        held
    }

    /// One atomic step. A claim that is made again under its nonce is answered as it was.
    fn claim(&self, w: &mut World, socket: usize) -> Socket {
        if w.ended {
            return Socket::Gone;
        }
        if w.holder.is_some() && w.claimant == socket {
            return Socket::Won(w.epoch);
        }
        let older = w.holder.map(|_| w.epoch);
        if older.is_none() || !self.rules.claim_waits {
            w.epoch += 1;
            w.holder = Some(self.bounds.sockets[socket]);
            w.claimant = socket;
            w.heard = false;
        }
        match older {
            None => Socket::Won(w.epoch),
            Some(older) => {
                w.asks |= 1 << older;
                Socket::Asking(older, (!self.rules.claim_waits).then_some(w.epoch))
            }
        }
    }

    /// A node learns that its socket has the pair, and looks at its lease once more.
    fn win(&self, w: &mut World, socket: usize, epoch: u8) -> Socket {
        let node = self.bounds.sockets[socket];
        let leased = w.nodes[node].leased && !(self.rules.one_term && w.lapsed & 1 << socket != 0);
        if self.rules.leased_claims && !leased {
            if self.rules.gives_up_for_good {
                return Socket::Leaving(epoch, Parting::Unheard);
            }
            // Its lease runs again by now, it thinks.
            w.lapsed &= !(1 << socket);
            w.given_up |= 1 << epoch;
            return Socket::Claiming;
        }
        // Its place in the hub is the newest one's.
        for other in self.on(node) {
            if let Socket::Serving(older) = w.sockets[other]
                && older < epoch
            {
                w.sockets[other] = Socket::Leaving(older, Parting::Told);
            }
        }
        Socket::Opening(epoch)
    }

    /// Closes what a node serves and does not hold: who released it has told it.
    fn audit(&self, w: &mut World, node: usize) {
        for socket in self.on(node) {
            if Self::fence(w.sockets[socket]).is_some_and(|epoch| !self.holds(w, socket, epoch)) {
                w.sockets[socket] = Socket::Gone;
            }
        }
    }

    fn beat(&self, w: &mut World, node: usize, heard: bool) {
        let refused = matches!(w.nodes[node].lease, Lease::Condemned(_));
        let kept = w.nodes[node].lease == Lease::Live;
        if !refused {
            w.nodes[node].lease = Lease::Live;
        }
        if !heard {
            return;
        }
        w.nodes[node].shut = refused;
        if refused {
            for socket in self.on(node) {
                if let Socket::Serving(epoch) = w.sockets[socket] {
                    w.sockets[socket] = Socket::Leaving(epoch, Parting::Told);
                }
            }
        } else if !(kept && w.nodes[node].leased) {
            w.nodes[node].settling = true;
        }
    }

    /// A node is declared dead if its lease has run out. The sentence is the same until it is forgotten.
    fn condemn(&self, w: &mut World, node: usize) -> Option<u8> {
        if !self.rules.condemns {
            return Some(0);
        }
        if w.nodes[node].lease == Lease::Lapsed {
            w.sentences += 1;
            w.nodes[node].lease = Lease::Condemned(w.sentences);
        }
        if let Lease::Condemned(sentence) = w.nodes[node].lease { Some(sentence) } else { None }
    }

    fn bury(&self, w: &mut World, digger: usize) {
        let rules = self.rules;
        w.nodes[digger].burial = match w.nodes[digger].burial {
            Burial::No => Burial::No,
            Burial::List(dead, sentence) => {
                let listed = (w.holder == Some(dead)).then_some(w.epoch);
                Burial::LookAgain(dead, sentence, listed)
            }
            Burial::LookAgain(dead, sentence, listed) => {
                let now = if rules.looks_again { self.condemn(w, dead) } else { Some(sentence) };
                match listed {
                    _ if now.is_none() || (rules.sentences && now != Some(sentence)) => Burial::No,
                    Some(epoch) => Burial::Release(dead, sentence, epoch),
                    None => Burial::Forget(dead, sentence),
                }
            }
            Burial::Release(dead, sentence, epoch) => {
                let epoch = if rules.listed_fences || w.holder != Some(dead) { epoch } else { w.epoch };
                let serves = |s: usize| Self::fence(w.sockets[s]) == Some(epoch) && self.holds(w, s, epoch);
                w.robbed |= w.nodes[dead].leased && self.on(dead).any(serves);
                let released = self.release(w, epoch, Parting::Told);
                if released && !rules.release_tells {
                    Burial::Tell(dead, sentence, epoch)
                } else {
                    Burial::List(dead, sentence)
                }
            }
            Burial::Tell(dead, sentence, epoch) => {
                w.story.tell(Said::Closed(epoch));
                Burial::List(dead, sentence)
            }
            Burial::Forget(dead, sentence) => {
                let condemned = match w.nodes[dead].lease {
                    Lease::Condemned(now) => now == sentence || !rules.sentences,
                    _ => !rules.condemns,
                };
                if condemned {
                    w.nodes[dead].lease = Lease::Forgotten;
                }
                Burial::No
            }
        };
    }

    pub fn step(&self, w: &mut World, act: Act) {
        match act {
            Act::Arrive(s) => w.sockets[s] = Socket::Claiming,
            Act::Claim(s, heard) => {
                let next = self.claim(w, s);
                w.sockets[s] = match (w.sockets[s], next) {
                    (Socket::Sent, _) => Socket::Gone,
                    (_, Socket::Won(epoch)) if heard => self.win(w, s, epoch),
                    (_, next) => next,
                };
            }
            Act::HearClaim(s) => {
                let Socket::Won(epoch) = w.sockets[s] else { return };
                w.sockets[s] = self.win(w, s, epoch);
            }
            Act::MissClaim(s) => {
                w.sockets[s] = if self.rules.disclaims { Socket::Disclaiming } else { Socket::Gone };
            }
            Act::Disclaim(s) => {
                let won = w.holder == Some(self.bounds.sockets[s]) && w.claimant == s;
                w.sockets[s] = if won { Socket::Leaving(w.epoch, Parting::Unheard) } else { Socket::Gone };
            }
            Act::Answered(s) | Act::Force(s) => {
                let Socket::Asking(older, won) = w.sockets[s] else { return };
                if act == Act::Force(s) {
                    let tells = won.is_some() || (self.release(w, older, Parting::Told) && !self.rules.release_tells);
                    if tells {
                        w.story.tell(Said::Closed(older));
                    }
                }
                w.sockets[s] = won.map_or(Socket::Claiming, Socket::Opening);
            }
            Act::Open(s) => {
                let Socket::Opening(epoch) = w.sockets[s] else { return };
                let holds = self.holds(w, s, epoch);
                if holds {
                    w.heard = true;
                    w.story.tell(Said::Opened(epoch));
                }
                w.sockets[s] = if holds { Socket::Serving(epoch) } else { Socket::Gone };
            }
            Act::GiveUp(s) => {
                let Socket::Opening(epoch) = w.sockets[s] else { return };
                w.sockets[s] = Socket::Leaving(epoch, Parting::Unheard);
            }
            Act::ReleaseGivenUp(epoch) => {
                w.given_up &= !(1 << epoch);
                self.release(w, epoch, Parting::Unheard);
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
                let ends = act == Act::Leave(s, true);
                w.sockets[s] = Socket::Leaving(epoch, if ends { Parting::PairEnds } else { Parting::Told });
            }
            Act::Release(s, heard) => {
                let Socket::Leaving(epoch, parting) = w.sockets[s] else { return };
                let released = self.release(w, epoch, parting);
                if heard {
                    // A socket that was displaced by a claim that does not wait tells its end all the same.
                    let tells = if released { !self.rules.release_tells } else { !self.rules.claim_waits };
                    let tells = tells && parting != Parting::Unheard;
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
                let lease = w.nodes[node].lease;
                w.nodes[node] =
                    Node { up: false, leased: false, settling: false, shut: false, lease, burial: Burial::No };
                w.crashes += 1;
                for s in self.on(node) {
                    let sent = w.sockets[s] == Socket::Claiming && self.bounds.late_claims;
                    w.sockets[s] = if sent { Socket::Sent } else { Socket::Gone };
                }
            }
            Act::Expire(node) => {
                w.nodes[node].leased = false;
                w.lapses += 1;
                for s in self.on(node) {
                    if matches!(w.sockets[s], Socket::Claiming | Socket::Won(_) | Socket::Asking(..)) {
                        w.lapsed |= 1 << s;
                    }
                }
            }
            Act::Lapse(node) => w.nodes[node].lease = Lease::Lapsed,
            Act::Beat(node, heard) => self.beat(w, node, heard),
            Act::Settle(node) => {
                self.audit(w, node);
                // The lease counts from before the beat: it may have run out meanwhile.
                w.nodes[node].leased = w.nodes[node].lease == Lease::Live;
                w.nodes[node].settling = false;
            }
            Act::Audit(node) => self.audit(w, node),
            Act::Condemn(digger, dead) => {
                w.nodes[digger].burial = self.condemn(w, dead).map_or(Burial::No, |now| Burial::List(dead, now));
            }
            Act::Bury(digger) => self.bury(w, digger),
        }
        if let Act::Claim(_, false) | Act::Release(_, false) | Act::Beat(_, false) = act {
            w.lost_replies += 1;
        }
        forget_what_has_no_effect(w);
    }
}

/// So that worlds that go on alike are the same.
fn forget_what_has_no_effect(w: &mut World) {
    let (mut claiming, mut served) = (0, 0);
    for (s, socket) in w.sockets.iter().enumerate() {
        match *socket {
            Socket::Claiming | Socket::Asking(..) => claiming |= 1 << s,
            Socket::Won(epoch) => (claiming, served) = (claiming | 1 << s, served | 1 << epoch),
            Socket::Opening(epoch) | Socket::Serving(epoch) => served |= 1 << epoch,
            _ => {}
        }
    }
    w.lapsed &= claiming;
    w.asks &= served;
    if w.holder.is_none() {
        (w.claimant, w.heard) = (0, false);
    }
    if w.ender.is_some_and(|epoch| epoch != w.epoch) {
        w.ender = None;
    }
}
