//! Counting words: the first half of training. Texts come in batches, each is counted by some thread into a map of its
//! own, and the maps are added up at the end. Counts have 64 bits.

#![forbid(unsafe_code)]

use crate::split::Splitter;
use crate::words::WordMap;

/// Distinct words and how often they occur.
pub struct WordCounts {
    counts: WordMap<u64>,
}

impl WordCounts {
    pub fn new() -> Self {
        WordCounts { counts: WordMap::with_capacity(1 << 12) }
    }

    /// Add the words of one text; returns how many there were.
    pub fn add(&mut self, splitter: &Splitter, text: &str) -> Result<u64, String> {
        let mut words = 0;
        splitter.for_each_word(text, |start, end| {
            *self.counts.entry(text.as_bytes(), start, end) += 1;
            words += 1;
        })?;
        Ok(words)
    }

    /// Add another's counts.
    pub fn merge(&mut self, other: WordCounts) {
        other.counts.for_each(|word, count| *self.counts.entry(word, 0, word.len()) += count);
    }

    /// Call `each(word, count)` for all words, in no order that means anything.
    pub fn for_each(&self, each: impl FnMut(&[u8], u64)) {
        self.counts.for_each(each);
    }
}
