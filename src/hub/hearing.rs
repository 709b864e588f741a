//! What of all that a room says is for one of its outboxes.

/// From where something comes to an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From a member of this node, at once.
    Here,
    /// Out of the broker, and had not been given to the members here.
    Abroad,
    /// Out of the broker, and had been given to the members here when it left this node.
    Back,
}

/// What of all that the room says is for an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hearing {
    /// Everything, as soon as it is here.
    All,
    /// Nothing: it catches up with what the room has kept, or waits for its turn.
    Nothing,
    /// What comes out of the broker for the members here: what they say themselves is heard elsewhere already.
    Abroad,
    /// What comes out of the broker, and all of that: in the one order that it has there.
    Broker,
    /// What members here say.
    Here,
}

impl Hearing {
    pub(super) fn hears(self, source: Source) -> bool {
        match source {
            Source::Here => matches!(self, Self::All | Self::Here),
            Source::Abroad => matches!(self, Self::All | Self::Abroad | Self::Broker),
            Source::Back => self == Self::Broker,
        }
    }
}
