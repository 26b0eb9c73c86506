//! A store of values by small index, with free places used again.
//!
//! Never decides when a value may go.

use std::ops::{Index, IndexMut};

/// Values by index.
#[derive(Clone, Debug)]
pub(crate) struct Slots<T> {
    values: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(at) = self.free.pop() {
            self.values[at as usize] = Some(value);
            at
        } else {
            self.values.push(Some(value));
            (self.values.len() - 1) as u32
        }
    }

    /// Takes out the value at an index that is in use.
    pub(crate) fn remove(&mut self, at: u32) -> T {
        let value = self.values[at as usize].take();
        self.free.push(at);
        value.unwrap_or_else(|| unreachable!("slot {at} is empty"))
    }

    pub(crate) fn get(&self, at: u32) -> Option<&T> {
        self.values.get(at as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.values.get_mut(at as usize)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.values.iter().enumerate().filter_map(|(at, value)| Some((at as u32, value.as_ref()?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        self.values.iter_mut().enumerate().filter_map(|(at, value)| Some((at as u32, value.as_mut()?)))
    }

    /// Number of places, used or free.
    pub(crate) fn places(&self) -> usize {
        self.values.len()
    }
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: u32) -> &T {
        self.values[at as usize].as_ref().unwrap_or_else(|| unreachable!("slot {at} is empty"))
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut T {
        self.values[at as usize].as_mut().unwrap_or_else(|| unreachable!("slot {at} is empty"))
    }
}
