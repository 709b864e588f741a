//! Comparing what one sibling was told with the story that another heard live.

use std::collections::HashMap;

use serde_json::Value;

use super::kind_of;

/// The events of `story` behind `cursor`.
pub fn after<'s>(story: &'s [Value], cursor: &str) -> &'s [Value] {
    let at = story.iter().position(|params| params["cursor"] == cursor);
    &story[at.unwrap_or_else(|| panic!("no event has the cursor {cursor}")) + 1..]
}

/// Checks that `told` is a run of `story` whose every hole was announced, with its true size, and
/// that it reaches the end; `due` is the place of the first event, where it is known. Returns how
/// many events were announced as lost.
pub fn check_run(told: &[Value], story: &[Value], mut due: Option<usize>) -> usize {
    let places: HashMap<_, _> =
        story.iter().enumerate().map(|(at, params)| (params["cursor"].as_str(), at)).collect();
    let place = |params: &Value| {
        let same = places.get(&params["cursor"].as_str());
        *same.unwrap_or_else(|| panic!("never told live: {params}"))
    };
    let (mut gaps, mut all_lost) = (Vec::new(), 0);
    for params in told {
        if kind_of(params) == "gap" {
            let lost = params["data"]["lost"].as_u64().expect("the true count");
            gaps.push(usize::try_from(lost).expect("a count"));
            continue;
        }
        let at = place(params);
        assert_eq!(*params, story[at], "told live and told again are the same, field for field");
        if let Some(due) = due {
            // One that woke from the cursor of a gap may be told the whole gap anew, or its rest.
            let sums = [gaps.iter().sum(), gaps.last().copied().unwrap_or(0)];
            let hole = at.wrapping_sub(due);
            assert!(sums.contains(&hole), "event {due} was due, {at} came, announced: {gaps:?}");
            all_lost += hole;
        }
        due = Some(at + 1);
        gaps.clear();
    }
    assert_eq!(due, Some(story.len()), "the run reaches the end of the story");
    all_lost
}
