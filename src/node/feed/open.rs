//! Where a feed begins.

use std::sync::Arc;

use super::{
    Feed,
    merge::Merge,
    signs::{look_up, named_at, tail, where_it_is},
};
use crate::{
    hub::Ear,
    node::{Node, follow::Follower},
    protocol::{Cursor, Failure, PairId, Place, Position, Topic, Watching},
};

impl Feed {
    /// Listens to a pair: from a cursor on, or from now on.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn open(node: &Arc<Node>, pair: PairId, cursor: Option<Cursor>) -> Result<Self, Failure> {
        let place = match cursor {
            Some(Cursor::Place(place)) => place,
            Some(Cursor::Start) => {
                let facts = look_up(node, pair).await?;
                let room = facts.and_then(|facts| facts.first.or_else(|| Some((facts.room, facts.since?))));
                Place { pair: Position::START, room, watching: Watching::default() }
            }
            // What was said in its room before was told, or not, without a place of its own.
            Some(Cursor::First(at)) => return Self::open_now(node, pair, Some(at)).await,
            None => return Self::open_now(node, pair, None).await,
        };
        let ear = Arc::new(Ear::new(pair, place.watching));
        let story = Follower::open_as(node, Topic::Pair(pair), Some(place.pair), Some(Arc::clone(&ear)));
        let talk = async {
            let Some((room, at)) = &place.room else { return Ok(None) };
            let topic = Topic::Talk(room.clone());
            Follower::open_as(node, topic, Some(*at), Some(Arc::clone(&ear))).await.map(Some)
        };
        let (story, talk) = tokio::try_join!(story, talk)?;
        let merge = Merge::new(Arc::clone(&ear), place);
        Ok(Self::new(node, ear, story, talk, merge))
    }

    /// Begins now in the room's talk, and in the pair's own history too, unless that is said to be elsewhere.
    async fn open_now(node: &Arc<Node>, pair: PairId, after: Option<Position>) -> Result<Self, Failure> {
        let ear = Arc::new(Ear::new(pair, Watching::default()));
        let story = Follower::open_as(node, Topic::Pair(pair), after, Some(Arc::clone(&ear))).await?;
        let at = story.position();
        let (facts, tail) = tokio::try_join!(look_up(node, pair), tail(node, pair, at))?;
        let (room, watching) = where_it_is(facts, &tail);
        let Some((room, since)) = room else {
            let merge = Merge::new(Arc::clone(&ear), Place { pair: at, room: None, watching });
            return Ok(Self::new(node, ear, story, None, merge));
        };
        let topic = Topic::Talk(room.clone());
        let talk = Follower::open_as(node, topic.clone(), None, Some(Arc::clone(&ear))).await?;
        let named = named_at(node, &topic, (since, talk.position()), (pair, watching)).await?;
        let place = Place { pair: at, room: Some((room, named.at)), watching };
        let merge = Merge::behind(Arc::clone(&ear), place, named);
        Ok(Self::new(node, ear, story, Some(talk), merge))
    }
}
