//! Grants: which commands a ticket's bearer may give.

use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use super::{Failure, Fault};

/// The most grants that a ticket carries.
const MOST: usize = 64;

/// Names of commands; `client.*` stands for all of a family and `*` for all.
///
/// Each pair and each sibling has some, and most have what a sibling has when nothing else is said: these share it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct Grants(Arc<[String]>);

/// What a pair's sibling may do when nothing else is said.
static OF_A_SIBLING: LazyLock<Grants> = LazyLock::new(|| {
    let names = "pair.* client.* events.* room.get room.members room.watch room.unwatch room.signal";
    Grants(names.split(' ').map(Into::into).collect())
});

impl Default for Grants {
    /// None.
    fn default() -> Self {
        Vec::new().into()
    }
}

impl From<Vec<String>> for Grants {
    fn from(names: Vec<String>) -> Self {
        if *OF_A_SIBLING.0 == names[..] { OF_A_SIBLING.clone() } else { Self(names.into()) }
    }
}

impl From<Grants> for Vec<String> {
    fn from(grants: Grants) -> Self {
        grants.0.to_vec()
    }
}

impl Grants {
    /// All that there is.
    #[must_use]
    pub fn all() -> Self {
        vec!["*".into()].into()
    }

    /// What a pair's sibling may do when nothing else is said: everything about its own pair.
    #[must_use]
    pub fn of_a_sibling() -> Self {
        OF_A_SIBLING.clone()
    }

    /// Reads a list, refusing what can't be a grant.
    ///
    /// # Errors
    /// [`Fault::InvalidParams`], naming the grant.
    pub fn read(names: Vec<String>) -> Result<Self, Failure> {
        if names.len() > MOST {
            return Err(Failure::new(Fault::InvalidParams, format!("grants: at most {MOST}")));
        }
        let word = |w: &str| !w.is_empty() && w.len() <= 32 && w.bytes().all(|c| c.is_ascii_lowercase());
        for name in &names {
            let fits = match name.split_once('.') {
                Some((family, rest)) => word(family) && (rest == "*" || word(rest)),
                None => name == "*",
            };
            if !fits {
                let message = format!("grants: {name:?} is no grant: use a command's name, \"client.*\" or \"*\"");
                return Err(Failure::new(Fault::InvalidParams, message));
            }
        }
        Ok(names.into())
    }

    /// Whether `name`, a command's or a wildcard, is within these.
    #[must_use]
    pub fn cover(&self, name: &str) -> bool {
        self.0.iter().any(|grant| {
            grant == "*"
                || grant == name
                || grant.strip_suffix('*').is_some_and(|family| family.ends_with('.') && name.starts_with(family))
        })
    }

    /// What both cover.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let of_both = self.0.iter().filter(|name| other.cover(name));
        let of_other = other.0.iter().filter(|name| self.cover(name) && !self.0.contains(name));
        of_both.chain(of_other).cloned().collect::<Vec<_>>().into()
    }

    /// The first of `wanted` that goes beyond these.
    #[must_use]
    pub fn lacking<'a>(&self, wanted: &'a Self) -> Option<&'a str> {
        wanted.0.iter().find(|name| !self.cover(name)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(names: &[&str]) -> Grants {
        Grants::read(names.iter().map(ToString::to_string).collect()).unwrap()
    }

    #[test]
    fn wildcards_cover_their_family_only() {
        let some = grants(&["client.*", "room.get"]);
        assert!(some.cover("client.close") && some.cover("client.*") && some.cover("room.get"));
        assert!(!some.cover("room.set") && !some.cover("clients.close") && !some.cover("*"));
        assert_eq!(some.lacking(&grants(&["client.send", "room.*"])), Some("room.*"));
        assert_eq!(Grants::all().lacking(&grants(&["*", "room.*"])), None);
    }

    #[test]
    fn what_two_have_in_common_is_within_both() {
        let sibling = Grants::of_a_sibling();
        assert_eq!(sibling.common(&Grants::all()), sibling);
        assert_eq!(Grants::all().common(&sibling), sibling);
        let few = grants(&["client.send", "room.*", "pair.*"]);
        let names =
            ["pair.*", "room.get", "room.members", "room.watch", "room.unwatch", "room.signal", "client.send"];
        assert_eq!(sibling.common(&few), grants(&names));
        assert_eq!(sibling.common(&grants(&["room.set"])), grants(&[]));
    }

    #[test]
    fn odd_names_are_refused() {
        for name in ["", "client", "client.", ".x", "Client.*", "a.b.c", "**", "client.*x"] {
            assert!(Grants::read(vec![name.into()]).is_err(), "{name:?}");
        }
    }
}
