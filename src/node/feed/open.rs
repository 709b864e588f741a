//! Where a feed begins.

use std::sync::Arc;

use super::{
    Feed,
    signs::{last_told, look_up, tail, where_it_is},
};
use crate::{
    hub::Ear,
    node::{Facts, Node, follow::Follower},
    protocol::{Cursor, Failure, PairId, Place, Position, Topic, Watching},
};

impl Feed {
    /// Listens to a pair: from a cursor on, or from now on.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn open(node: &Arc<Node>, pair: PairId, cursor: Option<Cursor>) -> Result<Self, Failure> {
        let spoken = matches!(cursor, Some(Cursor::Place(_)));
        let place = match cursor {
            Some(Cursor::Place(place)) => place,
            Some(Cursor::Start) => {
                let facts = look_up(node, pair).await?;
                let room = facts.and_then(|facts| facts.first.or_else(|| Some((facts.room, facts.since?))));
                Place { pair: Position::START, room, watching: Watching::default() }
            }
            Some(Cursor::First(at)) => {
                let facts = look_up(node, pair).await?;
                let watching = facts.as_ref().map(|facts| facts.watching).unwrap_or_default();
                let room = match facts {
                    Some(Facts { room, .. }) => node.talk_head(&room).await.map(|head| (room, head)),
                    None => None,
                };
                Place { pair: at, room, watching }
            }
            None => return Self::open_now(node, pair).await,
        };
        let ear = Arc::new(Ear::new(pair, place.watching));
        let story = Follower::open_as(node, Topic::Pair(pair), Some(place.pair), Some(Arc::clone(&ear)));
        let talk = async {
            let Some((room, at)) = &place.room else { return Ok(None) };
            let topic = Topic::Talk(room.clone());
            Follower::open_as(node, topic, Some(*at), Some(Arc::clone(&ear))).await.map(Some)
        };
        let (story, talk) = tokio::try_join!(story, talk)?;
        let mut feed = Self::new(node, ear, story, talk, place);
        feed.merge.spoken = spoken;
        Ok(feed)
    }

    async fn open_now(node: &Arc<Node>, pair: PairId) -> Result<Self, Failure> {
        let ear = Arc::new(Ear::new(pair, Watching::default()));
        let story = Follower::open_as(node, Topic::Pair(pair), None, Some(Arc::clone(&ear))).await?;
        let (facts, tail) = tokio::try_join!(look_up(node, pair), tail(node, pair, story.position()))?;
        let (room, watching, stood) = where_it_is(facts, &tail);
        ear.set(watching);
        let Some((room, since)) = room else {
            let pair = story.position();
            return Ok(Self::new(node, ear, story, None, Place { pair, room: None, watching }));
        };
        let topic = Topic::Talk(room.clone());
        let talk = Follower::open_as(node, topic.clone(), None, Some(Arc::clone(&ear))).await?;
        let head = talk.position();
        let named = last_told(node, &topic, [since.unwrap_or(head), head], (pair, watching, stood)).await?;
        let place = Place { pair: story.position(), room: Some((room, named)), watching };
        let mut feed = Self::new(node, ear, story, Some(talk), place);
        (feed.merge.passed, feed.merge.stood) = (head, stood);
        Ok(feed)
    }
}
