//! Handles: small, `Copy`, and checked against their generation, so that a stale one never reaches another connection.

use std::fmt;

use crate::prefetch::prefetch;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            slot: u32,
            generation: u32,
        }

        impl $name {
            pub(crate) const fn new(slot: u32, generation: u32) -> Self {
                Self { slot, generation }
            }

            /// Index of the slot. Slots are reused, lowest numbers first in use.
            #[must_use]
            #[inline]
            pub const fn slot(self) -> usize {
                self.slot as usize
            }

            /// How many ids this slot carried before.
            #[must_use]
            #[inline]
            pub const fn generation(self) -> u32 {
                self.generation
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}.{}"), self.slot, self.generation)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }

        impl From<Id> for $name {
            fn from(id: Id) -> Self {
                Self::new(id.slot, id.generation)
            }
        }

        impl From<$name> for Id {
            fn from(id: $name) -> Self {
                Self { slot: id.slot, generation: id.generation }
            }
        }
    };
}

id!(
    /// A stream connection of one engine.
    ConnId,
    "conn-"
);
id!(
    /// A listening socket of one engine.
    ListenerId,
    "listener-"
);
id!(
    /// A datagram socket of one engine.
    UdpId,
    "udp-"
);

/// What every id is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Id {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Slots with generations: what an id points to.
pub(crate) struct Table<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Table<T> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert<I: From<Id>>(&mut self, value: T) -> I {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, value: None });
            self.entries.len() as u32 - 1
        });
        let entry = &mut self.entries[slot as usize];
        debug_assert!(entry.value.is_none());
        entry.value = Some(value);
        I::from(Id { slot, generation: entry.generation })
    }

    #[inline]
    pub(crate) fn get(&self, id: impl Into<Id>) -> Option<&T> {
        let id = id.into();
        let entry = self.entries.get(id.slot as usize)?;
        if entry.generation == id.generation { entry.value.as_ref() } else { None }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: impl Into<Id>) -> Option<&mut T> {
        let id = id.into();
        let entry = self.entries.get_mut(id.slot as usize)?;
        if entry.generation == id.generation { entry.value.as_mut() } else { None }
    }

    /// The entry of a slot in use with its id, for an engine that packs less than a whole id into what the kernel hands
    /// back.
    #[allow(dead_code, reason = "the engines of Windows get the whole id back")]
    #[inline]
    pub(crate) fn slot_mut<I: From<Id>>(&mut self, slot: u32) -> Option<(I, &mut T)> {
        let entry = self.entries.get_mut(slot as usize)?;
        let id = I::from(Id { slot, generation: entry.generation });
        Some((id, entry.value.as_mut()?))
    }

    /// Has the processor fetch the entry of a slot.
    #[allow(dead_code, reason = "the engines of Windows look at one completion after the other")]
    #[inline]
    pub(crate) fn prefetch(&self, slot: usize) {
        self.entries.get(slot).into_iter().for_each(prefetch);
    }

    /// Empties the slot; its next id has a new generation.
    pub(crate) fn remove(&mut self, id: impl Into<Id>) -> Option<T> {
        let id = id.into();
        let entry = self.entries.get_mut(id.slot as usize).filter(|entry| entry.generation == id.generation)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Ids in use, in the order of their slots.
    pub(crate) fn ids<I: From<Id>>(&self) -> Vec<I> {
        let used = self.entries.iter().enumerate().filter(|(_, entry)| entry.value.is_some());
        used.map(|(slot, entry)| I::from(Id { slot: slot as u32, generation: entry.generation })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A stale id is an error and never another connection, whatever was inserted and removed (F17).
        #[test]
        fn stale_ids_reach_nothing(steps in proptest::collection::vec((any::<bool>(), any::<usize>()), 1..200)) {
            let mut table = Table::new();
            let (mut live, mut dead) = (Vec::<(ConnId, usize)>::new(), Vec::<ConnId>::new());
            for (number, (insert, pick)) in steps.into_iter().enumerate() {
                if insert || live.is_empty() {
                    let id: ConnId = table.insert(number);
                    prop_assert!(!dead.contains(&id) && live.iter().all(|(other, _)| *other != id));
                    live.push((id, number));
                } else {
                    let (id, value) = live.swap_remove(pick % live.len());
                    prop_assert_eq!(table.remove(id), Some(value));
                    dead.push(id);
                }
                for (id, value) in &live {
                    prop_assert_eq!(table.get(*id), Some(value));
                }
                for id in &dead {
                    prop_assert_eq!(table.get(*id), None);
                    prop_assert_eq!(table.remove(*id), None);
                }
                prop_assert_eq!(table.len(), live.len());
            }
        }
    }
}
