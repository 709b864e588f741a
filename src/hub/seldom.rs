//! What few have: of many thousand idle sockets, most never come to need it.

use std::ops::{Deref, DerefMut};

/// Something that is as it is at first for most who have it, and takes memory for those who change it.
#[derive(Debug)]
pub struct Seldom<T>(Option<Box<T>>);

/// What may be had so.
pub trait AtFirst: Default + 'static {
    /// What it is at first, as [`Default`] says.
    const AT_FIRST: &'static Self;
}

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Seldom<T> {
    /// Unless it was never changed. Whoever would change nothing that is as it was at first asks by this.
    pub fn there(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }
}

impl<T: AtFirst> Deref for Seldom<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::AT_FIRST)
    }
}

impl<T: AtFirst> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Count(u64);

    impl AtFirst for Count {
        const AT_FIRST: &'static Self = &Self(0);
    }

    #[test]
    fn what_was_never_changed_takes_nothing() {
        let mut count = Seldom::<Count>::default();
        assert_eq!((count.0.is_none(), (*count).0, count.there().is_none()), (true, 0, true));
        (*count).0 += 7;
        assert_eq!(((*count).0, count.there().map(|count| count.0)), (7, Some(7)));
    }
}
