//! One run: a stage, the load, faults with healing between them, the ledger, and one line of numbers.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::agent::Style;
use super::ending::{compare_states, end_pairs, nothing_stays, read_all};
use super::ledger::{Findings, Violation, check};
use super::load::{HEALING, Load, Recovery};
use super::record::{Ms, Promises, now};
use super::stage::Stage;

/// Each run loads the machine: there is one at a time.
static ONE: Mutex<()> = Mutex::const_new(());
/// How long the load runs undisturbed before each fault, so that the fault hits everything in its course.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// A recovery that takes longer is printed in detail, in milliseconds.
const SLOW: Ms = 4_000;
/// As many violations are printed in full of each rule.
const PRINTED: usize = 15;

/// What a run is like.
pub struct Plan {
    /// The fault's name.
    pub fault: &'static str,
    pub promises: Promises,
    pub style: Style,
}

impl Plan {
    /// A fault that leaves histories and pipes as they are.
    pub fn of(fault: &'static str) -> Self {
        let promises = Promises { histories: true, pipes: true, answers: true, draining: false };
        let style = Style {
            frames_every: Duration::from_millis(700),
            orders_every: Duration::from_millis(700),
            filling: 16,
            impatient: false,
            tardy: None,
        };
        Self { fault, promises, style }
    }

    /// One that costs client sockets.
    pub fn costs_pipes(mut self) -> Self {
        self.promises.pipes = false;
        self
    }

    /// One in which a node dies in the middle of commands: what became of those, nobody may know.
    pub fn costs_answers(mut self) -> Self {
        self.promises.answers = false;
        self
    }

    /// One that costs histories.
    pub fn costs_histories(mut self) -> Self {
        self.promises.histories = false;
        self
    }
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Runs a fault as often as is wished over one stage under one load. `inject` returns when the fault is over.
pub async fn run(
    stage: impl Future<Output = Stage>,
    plan: Plan,
    mut inject: impl AsyncFnMut(&mut Stage, &Load, usize),
) {
    let _one = ONE.lock().await;
    let (pairs, rounds) = (number("FAULT_PAIRS", 200), number("FAULT_ROUNDS", 1));
    let mut stage = stage.await;
    let memory = stage.used_memory().await;
    let load = Load::start(&stage, pairs, plan.style, plan.promises).await;
    let (mut wrong, mut recoveries) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        tokio::time::sleep(UNDISTURBED).await;
        inject(&mut stage, &load, round).await;
        let since = now();
        if let Err(what) = stage.until_whole(Instant::now() + HEALING).await {
            wrong.push(Violation { rule: "healing", pair: format!("nodes, round {round}"), what });
        }
        let Recovery { times, slowest, missing } = load.recovered(since).await;
        if times.iter().any(|time| *time > SLOW) {
            println!("  slowest after round {round} of {}: {slowest}", plan.fault);
        }
        recoveries.extend(times);
        let unhealed = !missing.is_empty();
        wrong.extend(missing.into_iter().map(|who| Violation {
            rule: "healing",
            pair: who,
            what: format!("not served again after round {round}"),
        }));
        if unhealed {
            break;
        }
    }
    let unfinished = load.finish().await;
    wrong.extend(unfinished.into_iter().map(|who| Violation {
        rule: "healing",
        pair: who,
        what: "its last command was not answered, or that command's event was not heard".into(),
    }));
    wrong.extend(read_all(&stage, &load).await);
    wrong.extend(compare_states(&stage, &load).await);
    // What is recorded until here is the run; what comes is its end.
    let book = load.copy(&stage, plan.promises);
    wrong.extend(end_pairs(&stage, &load).await);
    load.stop().await;
    wrong.extend(nothing_stays(&mut stage, memory).await);
    let mut found = check(&book);
    wrong.append(&mut found.violations);
    report(plan.fault, rounds, pairs, &found, &mut recoveries, &wrong);
    assert!(wrong.is_empty(), "{}: {} violations, printed above", plan.fault, wrong.len());
}

fn report(fault: &str, rounds: usize, pairs: usize, found: &Findings, recoveries: &mut [Ms], wrong: &[Violation]) {
    let mut text = String::new();
    for rule in ["healing", "events", "effects", "sockets", "frames", "odd", "end"] {
        let of_rule: Vec<_> = wrong.iter().filter(|violation| violation.rule == rule).collect();
        for Violation { pair, what, .. } in of_rule.iter().take(PRINTED) {
            let _ = writeln!(text, "  {rule}: {pair}: {what}");
        }
        if of_rule.len() > PRINTED {
            let _ = writeln!(text, "  {rule}: and {} more", of_rule.len() - PRINTED);
        }
    }
    recoveries.sort_unstable();
    let p50 = recoveries.get(recoveries.len() / 2).copied().unwrap_or(0);
    let max = recoveries.last().copied().unwrap_or(0);
    let Findings { frames, frames_lost, events, commands, unknown, lost, repeated, gaps, announced, closes, .. } =
        found;
    // One write: other tests of this process print, too.
    println!(
        "{text}FAULT {fault}: times {rounds}, pairs {pairs}, frames {frames} (missed {frames_lost}), events {events}, \
         commands {commands} (unknown {unknown}), lost {lost}, repeated {repeated}, gaps {gaps} (sum {announced}), \
         recovery p50 {p50} ms max {max} ms, closes {closes:?}, violations {}",
        wrong.len()
    );
}
