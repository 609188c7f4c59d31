//! [`Slots`]: items in numbered slots, which stay fixed while the items live, so that a
//! checkpoint can traverse them in pieces between changes.

/// The fraction of its length by which a table grows.
const GROWTH_DIVISOR: usize = 8;

/// Grows a full table by a fraction instead of doubling it: it lives long, and there are
/// many.
pub(super) fn grow<T>(table: &mut Vec<T>) {
    if table.len() == table.capacity() {
        table.reserve_exact(1 + table.len() / GROWTH_DIVISOR);
    }
}

/// Shrinks a table that is less than half full.
pub(super) fn shrink<T>(table: &mut Vec<T>) {
    if table.len() <= table.capacity() / 2 {
        table.shrink_to(table.len() + table.len() / GROWTH_DIVISOR);
    }
}

/// Items by slot number. Free slots are reused.
#[derive(Debug)]
pub(super) struct Slots<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    /// Inserts an item into a free slot and returns its number, or returns the item if
    /// all 2³² are in use.
    pub(super) fn insert(&mut self, item: T) -> Result<u32, T> {
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.items.get_mut(slot as usize)
        {
            *place = Some(item);
            return Ok(slot);
        }
        let Ok(slot) = u32::try_from(self.items.len()) else {
            return Err(item);
        };
        self.items.push(Some(item));
        Ok(slot)
    }

    /// Inserts an item into a given slot and returns its former item.
    /// [`Self::collect_free`] must be called before the next [`Self::insert`].
    pub(super) fn place(&mut self, slot: u32, item: T) -> Option<T> {
        let slot = slot as usize;
        if slot >= self.items.len() {
            self.items.resize_with(slot + 1, || None);
        }
        self.items
            .get_mut(slot)
            .and_then(|place| place.replace(item))
    }

    /// Collects the free slots after calls of [`Self::place`].
    pub(super) fn collect_free(&mut self) {
        let free = self
            .items
            .iter()
            .zip(0..)
            .filter(|(item, _)| item.is_none());
        self.free = free.map(|(_, slot)| slot).collect();
        // The lowest is used first.
        self.free.reverse();
    }

    /// Removes an item.
    pub(super) fn remove(&mut self, slot: u32) -> Option<T> {
        let item = self.items.get_mut(slot as usize)?.take();
        if item.is_some() {
            self.free.push(slot);
        }
        item
    }

    /// Returns the item in a slot.
    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.items.get(slot as usize)?.as_ref()
    }

    /// Returns the item in a slot.
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.items.get_mut(slot as usize)?.as_mut()
    }

    /// Returns the used slots from `from` on, and their items.
    pub(super) fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &T)> {
        let items = self.items.get(from as usize..).unwrap_or_default();
        items
            .iter()
            .zip(from..)
            .filter_map(|(item, slot)| item.as_ref().map(|item| (slot, item)))
    }

    /// Returns all items.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut().flatten()
    }

    /// Returns all items by value.
    pub(super) fn into_items(self) -> impl Iterator<Item = T> {
        self.items.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_used_again_and_the_others_stay() {
        let mut slots = Slots::default();
        let [a, b, c] = ["a", "b", "c"].map(|item| slots.insert(item).unwrap());
        assert_eq!(slots.remove(b), Some("b"));
        assert_eq!(slots.remove(b), None);
        assert_eq!(
            (slots.get(a), slots.get(b), slots.get(c)),
            (Some(&"a"), None, Some(&"c"))
        );
        assert_eq!(slots.insert("d"), Ok(b));
        assert_eq!(
            slots.iter_from(b).collect::<Vec<_>>(),
            [(b, &"d"), (c, &"c")]
        );
        assert_eq!(slots.iter_from(c + 1).count(), 0);
    }

    #[test]
    fn items_in_certain_places_leave_the_rest_free() {
        let mut slots = Slots::default();
        assert_eq!(slots.place(2, "c"), None);
        assert_eq!(slots.place(2, "d"), Some("c"));
        slots.collect_free();
        assert_eq!(
            ["x", "y", "z"].map(|item| slots.insert(item).unwrap()),
            [0, 1, 3]
        );
    }
}
