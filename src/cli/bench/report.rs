//! What was found: rows of a gateway's figure, its floor's, and their ratio.

use std::io::Write as _;

use serde::Serialize;

use super::Outcome;

/// What a figure counts.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    PerSecond,
    Nanoseconds,
    Microseconds,
    Bytes,
    Count,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond if value >= 1e6 => format!("{:.2} M/s", value / 1e6),
            Self::PerSecond if value >= 1e4 => format!("{:.0} k/s", value / 1e3),
            Self::PerSecond => format!("{value:.0} /s"),
            Self::Nanoseconds => format!("{value:.0} ns"),
            Self::Microseconds => format!("{value:.0} µs"),
            Self::Count if value >= 100.0 => format!("{value:.0}"),
            Self::Count => format!("{value:.3}"),
            Self::Bytes => format!("{:.2} KiB", value / 1_024.0),
        }
    }
}

/// One figure, as each turn found it, beside what its floor came to in the same turn.
pub(super) struct Samples {
    turns: Vec<(f64, f64)>,
}

impl Samples {
    pub(super) const fn new() -> Self {
        Self { turns: Vec::new() }
    }

    pub(super) fn add(&mut self, gateway: f64, floor: f64) {
        self.turns.push((gateway, floor));
    }
}

#[derive(Serialize)]
struct Row {
    workload: String,
    figure: &'static str,
    unit: Unit,
    gateway: f64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    beside: Option<Beside>,
}

/// What a figure is compared with.
#[derive(Serialize)]
struct Beside {
    floor: f64,
    floor_is: &'static str,
    ratio: f64,
    ratio_low: f64,
    ratio_high: f64,
    turns: usize,
}

/// All rows.
#[derive(Default, Serialize)]
pub(super) struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    /// Adds a figure.
    pub(super) fn add(
        &mut self,
        workload: &str,
        figure: &'static str,
        unit: Unit,
        floor_is: &'static str,
        samples: &Samples,
    ) {
        let mut ratios: Vec<f64> = samples.turns.iter().map(|(gateway, floor)| gateway / floor).collect();
        let row = Row {
            workload: workload.into(),
            figure,
            unit,
            gateway: median(&mut samples.turns.iter().map(|turn| turn.0).collect::<Vec<_>>()),
            beside: Some(Beside {
                floor: median(&mut samples.turns.iter().map(|turn| turn.1).collect::<Vec<_>>()),
                floor_is,
                ratio: median(&mut ratios),
                ratio_low: ratios.first().copied().unwrap_or(f64::NAN),
                ratio_high: ratios.last().copied().unwrap_or(f64::NAN),
                turns: samples.turns.len(),
            }),
        };
        self.push(row);
    }

    /// Adds a figure that stands by itself.
    pub(super) fn tell(&mut self, workload: &str, figure: &'static str, unit: Unit, value: f64) {
        self.push(Row { workload: workload.into(), figure, unit, gateway: value, beside: None });
    }

    fn push(&mut self, row: Row) {
        match &row.beside {
            Some(beside) => {
                eprintln!("{}, {}: {:.2} of {}", row.workload, row.figure, beside.ratio, beside.floor_is);
            }
            None => eprintln!("{}, {}: {}", row.workload, row.figure, row.unit.show(row.gateway)),
        }
        self.rows.push(row);
    }

    /// Adds something that the reader should know.
    pub(super) fn note(&mut self, note: &str) {
        self.notes.push(note.into());
    }

    /// Prints it.
    pub(super) fn print(&self, json: bool) -> Outcome<()> {
        let mut out = std::io::stdout().lock();
        let printed = if json {
            serde_json::to_string_pretty(self).map_err(|e| e.to_string()).map(|text| writeln!(out, "{text}"))?
        } else {
            self.table(&mut out)
        };
        printed.map_err(|error| format!("the figures could not be printed: {error}"))
    }

    fn table(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        let head = ["workload", "figure", "gateway", "floor", "ratio", "(turns)"];
        let mut lines = vec![head.map(String::from)];
        for row in &self.rows {
            let beside = row.beside.as_ref().map_or([const { String::new() }; 3], |beside| {
                [
                    format!("{} {}", row.unit.show(beside.floor), beside.floor_is),
                    ratio(beside.ratio),
                    format!("{}–{}", ratio(beside.ratio_low), ratio(beside.ratio_high)),
                ]
            });
            let [floor, ratio, turns] = beside;
            let gateway = row.unit.show(row.gateway);
            lines.push([row.workload.clone(), row.figure.into(), gateway, floor, ratio, turns]);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        for line in &lines {
            let cells: Vec<String> =
                line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "({note})"))
    }
}

/// With as many digits as matter: beside a peer it may be a hundredth.
fn ratio(ratio: f64) -> String {
    if ratio.abs() < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") }
}

/// The middle one; sorts on the way.
pub(super) fn median(values: &mut [f64]) -> f64 {
    percentile(values, 50)
}

/// The value that so many percent of the values do not exceed; sorts on the way.
pub(super) fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_tail() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert!((percentile(&mut values, 99) - 99.0).abs() < 1e-9);
        assert!((median(&mut values) - 50.0).abs() < 1e-9);
        assert!((median(&mut [7.0]) - 7.0).abs() < 1e-9);
        assert!(median(&mut []).is_nan());
    }
}
