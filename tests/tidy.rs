//! The house keeps its own rules: modules import their own floor and those below, and files fit in the head.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Floors from the ground up; rooms on one floor do not meet.
const FLOORS: &[&[&str]] =
    &[&["protocol"], &["hub", "broker"], &["node"], &["socket"], &["http"], &["config", "telemetry"], &["cli"]];
/// A file that is longer is too long for a person to hold in the head.
const LONGEST_FILE: usize = 440;

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// What a source file may not import from where it stands, as sentences.
fn trespasses(room: &str, source: &str) -> Vec<String> {
    let Some(own) = floor_of(room) else { return Vec::new() };
    // Tests of a room may reach up to make what they need; the product may not.
    let product = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String =
        product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    rooms_named(&code)
        .into_iter()
        .filter(|other| *other != room && floor_of(other).is_some_and(|floor| floor >= own))
        .map(|other| format!("{room} imports {other}"))
        .collect()
}

/// The rooms that come behind `crate::`, alone or in a group of imports.
fn rooms_named(code: &str) -> Vec<&str> {
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut begins) = (1, true);
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => begins = true,
                    c if begins && c.is_alphabetic() => {
                        rooms.push(word(&group[i..]));
                        begins = false;
                    }
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            rooms.push(word(rest));
        }
    }
    rooms
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            files.extend(sources(&entry.path()));
        } else if entry.path().extension().is_some_and(|kind| kind == "rs") {
            files.push(entry.path());
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn no_module_reaches_up_or_sideways() {
    let src = root().join("src");
    for file in sources(&src) {
        let inside = file.strip_prefix(&src).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        let found = trespasses(room, &fs::read_to_string(&file).unwrap());
        assert!(found.is_empty(), "{}: {found:?}", inside.display());
    }
}

#[test]
fn planted_trespasses_are_found() {
    for (room, source) in [
        ("hub", "use crate::broker::Broker;"),
        ("broker", "use crate::{hub::Hub, protocol::Run};"),
        ("protocol", "use crate::{\n    node::{Node, Feed},\n};"),
        ("node", "fn f() { crate::socket::open_rpc(); }"),
        ("http", "use crate::cli;"),
    ] {
        assert_eq!(trespasses(room, source).len(), 1, "{room}: {source}");
    }
    for (room, source) in [
        ("node", "use crate::{broker::Broker, hub::{Hub, Room}, protocol::Run};"),
        ("hub", "// use crate::broker::Broker;\n#[cfg(test)] mod tests { use crate::node::Node; }"),
        ("socket", "use crate::protocol::{self, strict};"),
    ] {
        assert!(trespasses(room, source).is_empty(), "{room}: {source}");
    }
}

#[test]
fn files_fit_in_the_head() {
    for file in sources(&root().join("src")) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines: at most {LONGEST_FILE}", file.display());
    }
}

#[test]
fn tasks_are_spawned_where_a_drain_sees_them() {
    for file in sources(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let inside = file.strip_prefix(root().join("src")).unwrap().to_str().unwrap();
        // The conformance clauses are tests that both back ends' users can run.
        if !inside.starts_with("broker/conformance") && !inside.starts_with("cli/bench") {
            assert!(!product.contains("tokio::spawn("), "{inside}: use Node::spawn");
            assert!(!product.contains(".unwrap()"), "{inside}: say why it can't fail, with expect");
        }
    }
}
