//! Who is in a group.

use bytes::Bytes;
use uuid::Uuid;

use crate::broker::Member;

/// A group: its charter, and its members in the order of their ids.
pub(super) struct Roll {
    pub(super) charter: Bytes,
    /// A list: most groups are the one or two siblings of a pair. In large ones those who come are last, because ids sort
    /// by their time, and who leaves moves but pointers.
    #[allow(clippy::vec_box, reason = "so that there is little to move")]
    members: Vec<Box<Member>>,
}

impl Roll {
    pub(super) fn new(charter: Bytes) -> Self {
        Self { charter, members: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn count(&self) -> u64 {
        self.members.len() as u64
    }

    fn find(&self, id: Uuid) -> Result<usize, usize> {
        self.members.binary_search_by_key(&id, |member| member.id)
    }

    pub(super) fn get(&self, id: Uuid) -> Option<&Member> {
        self.find(id).ok().map(|at| &*self.members[at])
    }

    /// Writes somebody in, in the place of who had the same id.
    pub(super) fn add(&mut self, member: Member) {
        match self.find(member.id) {
            Ok(at) => *self.members[at] = member,
            Err(at) => {
                // Most groups are small.
                if self.members.is_empty() {
                    self.members.reserve_exact(1);
                }
                self.members.insert(at, Box::new(member));
            }
        }
    }

    pub(super) fn remove(&mut self, id: Uuid) {
        if let Ok(at) = self.find(id) {
            self.members.remove(at);
        }
    }

    /// Those whose ids come after this one; all without one.
    pub(super) fn after(&self, id: Option<Uuid>) -> impl Iterator<Item = &Member> {
        let from = id.map_or(0, |id| self.find(id).map_or_else(|at| at, |at| at + 1));
        self.members[from..].iter().map(|member| &**member)
    }
}
