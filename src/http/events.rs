//! A pair's events as Server-Sent Events: the sibling's feed, for those who only listen.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Query, State},
    response::{
        IntoResponse, Sse,
        sse::{Event as SseEvent, KeepAlive},
    },
};
use futures_util::stream;
use http::{HeaderMap, Uri};
use serde::Deserialize;
use serde_json::json;

use super::{
    Gateway,
    auth::Bearer,
    problem::{Named, Problem},
    server::Permit,
    sockets::Listening,
};
use crate::{
    node::{FeedItem, Node, Term, now},
    protocol::{Event, EventKind, Failure, Fault, PairId, Said, write_cursor},
};

/// How often a quiet stream says that it is still there.
const STILL_THERE: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
struct EventsQuery {
    cursor: Option<String>,
}

/// `GET /v1/pairs/{pair}/events`
pub(super) async fn stream(
    State(gateway): State<Arc<Gateway>>,
    permit: Option<Extension<Permit>>,
    Named(pair): Named,
    headers: HeaderMap,
    uri: Uri,
) -> Result<impl IntoResponse, Problem> {
    let node = Arc::clone(&gateway.node);
    if node.draining.is_cancelled() {
        return Err(Problem::new(Fault::Draining, "the node is draining: come back, another one answers"));
    }
    let query = Query::<EventsQuery>::try_from_uri(&uri)
        .map_err(|error| Failure::new(Fault::InvalidParams, format!("query: {error}")))?;
    // What can't be read is a cursor nevertheless, and refused as one.
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("unreadable")).filter(|id| !id.is_empty());
    let cursor = last.map(Into::into).or(query.0.cursor);
    let bearer = Bearer::of(&headers, &uri)?;
    let Listening { pair, grants, pass, feed, state } = gateway.listen_to(&pair, &bearer, cursor.as_deref()).await?;
    let place = feed.place();
    let data = json!({
        "pair": pair, "node": node.id, "cursor": write_cursor(pair, &place, &node.settings.ticket_keys), "grants": grants, "state": state,
        "protocol": 1,
    });
    let ready = Event::new(EventKind::Ready, now(), &Said { data, cause: None }, None);
    let first: FeedItem = (Arc::new(ready), place);
    // The token has a drain wait for the stream, and the stream ends in the drain's time. Its seat is its address'.
    let token = (node.sockets.token(), permit);
    let items = stream::unfold((feed, Some(first), pass, token), move |(mut feed, first, mut pass, token)| {
        let node = Arc::clone(&node);
        async move {
            let drained = async {
                node.draining.cancelled().await;
                tokio::time::sleep(node.drain_plan().siblings).await;
            };
            let mut drained = std::pin::pin!(drained);
            let item = match first {
                Some(item) => item,
                None => loop {
                    tokio::select! {
                        biased;
                        term = pass.next() => match term {
                            Term::Expiring(data) => feed.say(EventKind::TicketExpiring, data),
                            // Whoever comes again is told why.
                            Term::Over(_) => return None,
                        },
                        item = feed.next() => break item,
                        () = &mut drained => return None,
                    }
                },
            };
            Some((Ok::<_, Infallible>(sse(&node, pair, &item)), (feed, None, pass, token)))
        }
    });
    Ok(Sse::new(items).keep_alive(KeepAlive::new().interval(STILL_THERE)))
}

/// No `event:` field, so that a plain `onmessage` sees all.
fn sse(node: &Node, pair: PairId, (event, place): &FeedItem) -> SseEvent {
    let cursor = write_cursor(pair, place, &node.settings.ticket_keys);
    let mut told = Vec::new();
    event.write(&cursor, &mut told);
    SseEvent::default().id(cursor).data(String::from_utf8(told).unwrap_or_default())
}
