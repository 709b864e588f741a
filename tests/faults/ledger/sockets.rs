//! Rule 3, sockets: each opened once and closed once, one after the other; who was lost was harmed; and how they ended.

use std::collections::HashMap;

use serde_json::Value;

use super::Findings;
use crate::record::{Book, Page};
use crate::support::kind_of;

pub fn check(book: &Book, page: &Page, found: &mut Findings) {
    // A kept history tells all; else what was heard does, as far as no gap was announced.
    if book.promises.histories {
        let since = page.heard.iter().skip(page.settled).map(|heard| &heard.params);
        order(book, page, page.told.iter().chain(since), found);
    } else {
        order(book, page, page.heard.iter().map(|heard| &heard.params), found);
    }
    ends(book, page, found);
}

fn order<'p>(book: &Book, page: &Page, story: impl Iterator<Item = &'p Value>, found: &mut Findings) {
    // The epoch that is open, the newest one, and whether all before is known.
    let (mut open, mut newest, mut known): (Option<u64>, u64, bool) = (None, 0, true);
    let mut nodes: HashMap<u64, String> = HashMap::new();
    for params in story {
        let data = &params["data"];
        let epoch = data["epoch"].as_u64().unwrap_or(0);
        match kind_of(params) {
            "gap" => (open, known) = (None, false),
            "client.opened" => {
                if epoch <= newest {
                    found.wrong("sockets", page, format!("epoch {epoch} opened, after {newest} had"));
                } else if let Some(open) = open {
                    found.wrong("sockets", page, format!("epoch {epoch} opened while {open} was not told closed"));
                }
                (open, newest, known) = (Some(epoch), newest.max(epoch), true);
                nodes.insert(epoch, data["node"].as_str().unwrap_or_default().to_owned());
            }
            "client.closed" => {
                if open != Some(epoch) && (known || epoch < newest) {
                    found.wrong("sockets", page, format!("epoch {epoch} closed while {open:?} was open: {params}"));
                }
                if open == Some(epoch) || !known {
                    (open, newest) = (None, newest.max(epoch));
                }
                let node = nodes.get(&epoch).map_or("", String::as_str);
                // Of a socket that never was told open nobody knows the node.
                let may_be_lost = if node.is_empty() { !book.harmed.is_empty() } else { book.harmed.contains(node) };
                if data["by"] == "node_lost" && !may_be_lost {
                    found.wrong("sockets", page, format!("epoch {epoch} by node_lost, and its node {node} was well"));
                }
            }
            _ => {}
        }
    }
    let held = page.pipes.iter().filter(|pipe| pipe.ended.is_none()).count();
    if held > 0 && open.is_none() && known {
        found.wrong("sockets", page, format!("epoch {newest} was told closed, and the agent holds {held} sockets"));
    }
}

fn ends(book: &Book, page: &Page, found: &mut Findings) {
    for (at, pipe) in page.pipes.iter().enumerate() {
        let Some((_, closed, false)) = &pipe.ended else { continue };
        *found.closes.entry(closed.code.unwrap_or(0)).or_default() += 1;
        let of = book.names.get(&pipe.node).map_or("?", String::as_str);
        if book.promises.pipes {
            found.wrong("sockets", page, format!("socket {at} on {of} was closed: {closed:?}"));
        } else if book.promises.draining && closed.code != Some(1012) {
            found.wrong("sockets", page, format!("socket {at} on {of} was closed in a drain with {closed:?}"));
        }
        if !matches!(closed.code, None | Some(1012 | 1013 | 3000..=3499 | 3509)) {
            found.wrong("sockets", page, format!("socket {at} on {of} was closed for good: {closed:?}"));
        }
    }
    for (at, link) in page.links.iter().enumerate().filter(|_| book.promises.draining) {
        if let Some(closed) = &link.ended
            && (closed.code != Some(1012) || !link.warned)
        {
            let warned = if link.warned { "" } else { ", not told node.draining before" };
            found.wrong("sockets", page, format!("sibling connection {at} ended in a drain with {closed:?}{warned}"));
        }
    }
}
