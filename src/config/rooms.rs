//! Specifications of rooms in the configuration file: one table a room, or a pattern of rooms.

use std::{path::Path, sync::Arc};

use super::BadConfig;
use crate::protocol::{Failure, Pattern, RoomSpec};

/// The table that they stand in: `[rooms."cams/*"]`.
pub(super) const TABLE: &str = "rooms";

/// Reads them; `largest` is the largest frame that the node takes, in bytes.
///
/// # Errors
/// Every mistake, with the room's name and the field.
pub(super) fn read(path: &Path, largest: usize) -> Result<Vec<(Pattern, Arc<RoomSpec>)>, BadConfig> {
    let said = |why: String| BadConfig(vec![format!("{}: {why}", path.display())]);
    let text = std::fs::read_to_string(path).map_err(|error| said(error.to_string()))?;
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| said(error.to_string()))?;
    let Some(rooms) = table.remove(TABLE) else { return Ok(Vec::new()) };
    let toml::Value::Table(rooms) = rooms else {
        return Err(said(format!("{TABLE} is a table of rooms: [{TABLE}.\"lobby\"]")));
    };
    let (mut specs, mut wrong) = (Vec::new(), Vec::new());
    for (name, spec) in rooms {
        let mut mistake = |why: String| wrong.push(format!("{}: {TABLE}.{name:?}: {why}", path.display()));
        match (name.parse::<Pattern>(), one(spec, largest)) {
            (Ok(pattern), Ok(spec)) => specs.push((pattern, Arc::new(spec))),
            (Err(bad), _) => mistake(bad.to_string()),
            (_, Err(failure)) => mistake(failure.message),
        }
    }
    if wrong.is_empty() { Ok(specs) } else { Err(BadConfig(wrong)) }
}

fn one(spec: toml::Value, largest: usize) -> Result<RoomSpec, Failure> {
    let spec = serde_json::to_value(spec).unwrap_or_default();
    let spec: RoomSpec =
        serde_path_to_error::deserialize(spec).map_err(|error| Failure::misfit("specification", &error))?;
    spec.check(largest).map(|()| spec)
}
