//! Rule 4, frames: in their sender's order, never twice, and none that no agent sent.

use std::collections::HashMap;

use super::Findings;
use crate::record::{Book, Frame, Page};

pub fn check(book: &Book, page: &Page, found: &mut Findings) {
    for (at, pipe) in page.pipes.iter().enumerate() {
        // The last number that came from each socket of each sender.
        let mut last: HashMap<(usize, usize), u64> = HashMap::new();
        for frame in &pipe.got {
            match frame {
                Frame::Odd(text) => {
                    found.wrong("frames", page, format!("socket {at} got what no agent sends: {text:?}"));
                }
                Frame::Pushed(_) => found.frames += 1,
                Frame::Of(sender, socket, number) => {
                    found.frames += 1;
                    let name = format!("socket {at} got frame {number} of pair {sender}'s socket {socket}");
                    let from = book.pages.get(*sender);
                    let sent = from.and_then(|from| from.pipes.get(*socket));
                    if sent.is_none_or(|sent| sent.sent.binary_search(number).is_err()) {
                        found.wrong("frames", page, format!("{name}, which was never sent"));
                    } else if from.is_some_and(|from| !from.rooms.iter().any(|room| page.rooms.contains(room))) {
                        found.wrong("frames", page, format!("{name}, which is in another room"));
                    } else if from.is_some_and(|from| from.pair == page.pair) && at == *socket {
                        found.wrong("frames", page, format!("{name}, its own"));
                    }
                    match last.insert((*sender, *socket), *number) {
                        Some(before) if before == *number => {
                            found.wrong("frames", page, format!("{name} twice"));
                        }
                        Some(before) if before > *number => {
                            found.wrong("frames", page, format!("{name} after {before}"));
                        }
                        Some(before) => {
                            // The numbers of a pair's sockets interleave: only its own count.
                            let sent = sent.map_or(&[][..], |sent| &sent.sent);
                            let missed =
                                sent.partition_point(|n| *n < *number) - sent.partition_point(|n| *n <= before);
                            found.frames_lost += missed as u64;
                        }
                        None => {}
                    }
                }
            }
        }
    }
}
