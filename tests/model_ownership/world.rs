//! The world of the ownership model: the registry's record and nodes, client sockets, and the story that is told.

/// The parts of the protocol that one might leave out.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A release tells `closed` in the same step.
    pub release_tells: bool,
    /// A release tells nothing of a fence that nothing was told of.
    pub heard: bool,
    /// A claim waits until nobody holds the pair.
    pub claim_waits: bool,
    /// Who missed the answer to its claim looks whether it won, and gives up what it has.
    pub disclaims: bool,
    /// A node takes pairs only while its own lease runs by its own count, and gives up what it won when it has not.
    pub leased_claims: bool,
    /// It gives up what it won also when its lease ran out and was renewed since it began to claim. (Shipped: it does
    /// not wait so long for the answer.)
    pub one_term: bool,
    /// Who gave up what it won does not claim again under the same nonce.
    pub gives_up_for_good: bool,
    /// What a socket tells is refused unless its fence holds the pair.
    pub fenced: bool,
    /// A node is condemned before its pairs are released.
    pub condemns: bool,
    /// What a node was seen to hold counts only if it is condemned also after the look.
    pub looks_again: bool,
    /// Condemned means: under the same sentence as at first.
    pub sentences: bool,
    /// Only what was seen is released, not what the node holds by then.
    pub listed_fences: bool,
    /// A node compares what it serves with the registry now and then, not only when its lease had lapsed.
    pub audit: bool,
    /// A node that stays condemned buries itself: perhaps nobody else is there.
    pub buries_itself: bool,
}

pub const SOUND: Rules = Rules {
    release_tells: true,
    heard: true,
    claim_waits: true,
    disclaims: true,
    leased_claims: true,
    one_term: true,
    gives_up_for_good: true,
    fenced: true,
    condemns: true,
    looks_again: true,
    sentences: true,
    listed_fences: true,
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
    /// How often a lease runs out although its node lives.
    pub lapses: u8,
    pub lost_replies: u8,
    /// Whether sockets tell other things, and pairs are ended.
    pub chatter: bool,
    /// Whether a claim may take effect when the lease of the node that sent it has run out, or when the node is dead.
    pub late_claims: bool,
}

/// What the registry says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lease {
    Live,
    Lapsed,
    /// Under this sentence.
    Condemned(u8),
    Forgotten,
}

/// A burial, as the node that does it sees it: whose, and under which sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Burial {
    No,
    /// What does the node hold?
    List(usize, u8),
    /// Is it still condemned, now that this was listed?
    LookAgain(usize, u8, Option<u8>),
    Release(usize, u8, u8),
    /// Released, and not told yet.
    Tell(usize, u8, u8),
    Forget(usize, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub up: bool,
    /// By its own count, its lease runs: it began to count before the registry did.
    pub leased: bool,
    /// Its lease had run out and is renewed: it compares what it serves with the registry.
    pub settling: bool,
    /// It was told that it is condemned.
    pub shut: bool,
    pub lease: Lease,
    pub burial: Burial,
}

/// How a hold ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parting {
    /// Without a word, before anything was told.
    Unheard,
    Told,
    PairEnds,
}

/// A client socket; numbers are epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    Waiting,
    Claiming,
    /// The claim was won, and its node does not know it yet.
    Won(u8),
    /// The answer to the claim did not come.
    Disclaiming,
    /// The holder of this epoch was asked to let go; a claim that does not wait has won another already.
    Asking(u8, Option<u8>),
    Opening(u8),
    Serving(u8),
    /// It delivers nothing any more.
    Leaving(u8, Parting),
    /// Released, and not told yet.
    Telling(u8),
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
    /// The last epoch that was opened.
    pub last: u8,
    pub ended: bool,
    pub wrong: bool,
}

impl Story {
    pub fn tell(&mut self, said: Said) {
        let (right, open) = match said {
            Said::Opened(epoch) => (self.open.is_none() && epoch > self.last, Some(epoch)),
            Said::Noted(epoch) => (self.open == Some(epoch), self.open),
            Said::Closed(epoch) => (self.open == Some(epoch), None),
            Said::Ended => (self.open.is_none(), None),
        };
        self.wrong |= self.ended || !right;
        self.open = open;
        self.ended |= said == Said::Ended;
        if let Said::Opened(epoch) = said {
            self.last = self.last.max(epoch);
        }
    }
}

/// What is wrong in the end, if nothing more happens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outlook {
    pub unclosed: bool,
    pub zombie: bool,
    pub shut: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub epoch: u8,
    pub holder: Option<usize>,
    /// The socket that claimed last: the nonce of its claim.
    pub claimant: usize,
    /// Whether anything was told under this fence.
    pub heard: bool,
    pub ended: bool,
    pub story: Story,
    pub nodes: Vec<Node>,
    pub sentences: u8,
    pub sockets: Vec<Socket>,
    /// Sockets whose node's lease ran out since they began to claim, a bit each.
    pub lapsed: u8,
    /// Asks under way, a bit for each epoch.
    pub asks: u16,
    /// What is being given up beside a socket that claims again, a bit for each epoch.
    pub given_up: u16,
    /// An idle pair of this epoch is to be ended.
    pub ender: Option<u8>,
    pub noted: bool,
    pub robbed: bool,
    pub crashes: u8,
    pub lapses: u8,
    pub lost_replies: u8,
}

/// The last part of a step at the registry says whether the reply arrives (that of a claim may come later).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Arrive(usize),
    Claim(usize, bool),
    HearClaim(usize),
    /// The answer to a claim does not come in time.
    MissClaim(usize),
    Disclaim(usize),
    Answered(usize),
    /// No answer: the opener releases the holder's fence.
    Force(usize),
    Open(usize),
    /// The client went before it was served.
    GiveUp(usize),
    ReleaseGivenUp(u8),
    Note(usize),
    Yield(usize),
    /// The client goes; if true, the pair is to end.
    Leave(usize, bool),
    Release(usize, bool),
    Tell(usize),
    LookToEnd,
    EndIdle,
    Crash(usize),
    /// A node's lease runs out by its own count, then the registry's.
    Expire(usize),
    Lapse(usize),
    Beat(usize, bool),
    Settle(usize),
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
