//! Counting words: the first half of training. Texts come in batches, each is counted by some thread into a map of its
//! own, and the maps are added up at the end. Counts have 64 bits.

#![forbid(unsafe_code)]

use crate::split::{Splitter, Visitor};
use crate::words::{Sought, WordMap, AHEAD};

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
        let (text_bytes, counts) = (text.as_bytes(), &mut self.counts);
        let mut counter =
            Counter { text: text_bytes, counts, sought: [Sought::default(); AHEAD], waiting: 0, words: 0 };
        splitter.split(text, &mut counter)?;
        counter.count();
        Ok(counter.words)
    }

    /// Add another's counts.
    pub fn merge(&mut self, other: WordCounts) {
        other.counts.for_each(|word, count| {
            let sought = self.counts.seek(word, 0, word.len());
            *self.counts.entry(word, &sought) += count;
        });
    }

    /// Call `each(word, count)` for all words, in no order that means anything.
    pub fn for_each(&self, each: impl FnMut(&[u8], u64)) {
        self.counts.for_each(each);
    }
}

/// A text being counted.
struct Counter<'a> {
    text: &'a [u8],
    counts: &'a mut WordMap<u64>,
    sought: [Sought; AHEAD],
    waiting: usize, // so many of `sought` are not yet counted
    words: u64,
}

impl Counter<'_> {
    #[inline(always)]
    fn count(&mut self) {
        for word in &self.sought[..self.waiting] {
            *self.counts.entry(self.text, word) += 1;
        }
        self.words += self.waiting as u64;
        self.waiting = 0;
    }
}

impl Visitor for Counter<'_> {
    #[inline(always)]
    fn word(&mut self, start: usize, end: usize) {
        self.sought[self.waiting] = self.counts.seek(self.text, start, end);
        self.waiting += 1;
        if self.waiting == AHEAD {
            self.count();
        }
    }
}
