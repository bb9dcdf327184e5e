//! Byte-pair encoding without Python: split text into words, count them, learn merges, apply merges.
//!
//! A tokenizer is an ordered list of merges. Merge k joins two ids into the new id 256 + k; ids 0..=255 are the bytes.
//! Tie rule: the pair with the highest count is merged first; among equal counts the smallest (left id, right id).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ahash::AHashMap;
use fancy_regex::Regex;
use rayon::prelude::*;

pub type Pair = (u32, u32);
pub type WordCounts = AHashMap<String, u64>;

/// The GPT-4 style split with digits in groups of one or two (see nanochat/tokenizer.py).
pub const DEFAULT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// Longer runs of whitespace are cut: `\s+(?!\S)` backtracks over a whole run, and the regex stack holds a million.
const MAX_SPACE_RUN: usize = 16_384;

// ------------------------------------------------------------------------------------------ splitting and counting

/// `text` in parts without a whitespace run over the limit; ordinary text comes back as one part.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut run) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        run = if c.is_whitespace() { run + 1 } else { 0 };
        if run > MAX_SPACE_RUN {
            parts.push(&text[begin..i]);
            (begin, run) = (i, 1);
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// Call `each` with every word of `text` in order.
fn for_each_word(regex: &Regex, text: &str, mut each: impl FnMut(&str)) -> Result<(), String> {
    for part in parts(text) {
        for word in regex.find_iter(part) {
            each(word.map_err(|e| format!("the split pattern failed on a text: {e}"))?.as_str());
        }
    }
    Ok(())
}

/// Add the words of `texts` to `counts`, on all cores.
pub fn count_words<T: AsRef<str> + Sync>(regex: &Regex, texts: &[T], counts: &mut WordCounts) -> Result<(), String> {
    let share = texts.len().div_ceil(4 * rayon::current_num_threads()).max(1);
    let shares: Vec<WordCounts> = texts
        .par_chunks(share)
        .map(|texts| {
            let regex = regex.clone(); // its own scratch space: threads that share one wait for each other
            let mut counts = WordCounts::new();
            for text in texts {
                for_each_word(&regex, text.as_ref(), |word| match counts.get_mut(word) {
                    Some(count) => *count += 1,
                    None => {
                        counts.insert(word.to_owned(), 1);
                    }
                })?;
            }
            Ok(counts)
        })
        .collect::<Result<_, String>>()?;
    for share in shares {
        for (word, count) in share {
            *counts.entry(word).or_insert(0) += count;
        }
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------------- learning

/// Distinct words as ids in one flat array; word w occupies `ids[start[w]..start[w] + len[w]]`.
struct Words {
    ids: Vec<u32>,
    start: Vec<usize>,
    len: Vec<usize>,
    count: Vec<u64>,
}

impl Words {
    fn new(counts: WordCounts) -> Self {
        let mut words = Words { ids: Vec::new(), start: Vec::new(), len: Vec::new(), count: Vec::new() };
        for (word, count) in counts {
            words.start.push(words.ids.len());
            words.len.push(word.len());
            words.count.push(count);
            words.ids.extend(word.bytes().map(u32::from));
        }
        words
    }

    fn word(&mut self, w: usize) -> &mut [u32] {
        &mut self.ids[self.start[w]..self.start[w] + self.len[w]]
    }
}

/// Join `pair` into `new_id` from left to right, in place; returns the new length.
/// `change(pair, delta)` hears of every adjacency that came (+1) or went (-1), except those of `pair` itself.
///
/// ids=[1, 2, 3, 1, 2], pair=(1, 2), new_id=4 -> [4, 3, 4]; changes (2,3)-1 (4,3)+1 (3,1)-1 (3,4)+1
fn merge_in_place(ids: &mut [u32], pair: Pair, new_id: u32, mut change: impl FnMut(Pair, i64)) -> usize {
    let (mut read, mut write) = (0, 0);
    while read < ids.len() {
        if read + 1 < ids.len() && (ids[read], ids[read + 1]) == pair {
            if write > 0 {
                let left = ids[write - 1];
                change((left, pair.0), -1);
                change((left, new_id), 1);
            }
            if read + 2 < ids.len() {
                let right = ids[read + 2];
                change((pair.1, right), -1);
                change((new_id, right), 1);
            }
            ids[write] = new_id;
            read += 2;
        } else {
            ids[write] = ids[read];
            read += 1;
        }
        write += 1;
    }
    write
}

/// The first `wanted` merges of the corpus, fewer when no adjacent pair is left.
///
/// Counts are exact at any time; the heap is lazy. A count can only fall after its pair was pushed (a merge creates
/// only pairs that hold its new id), so an entry that is out of date is too high: it is pushed back when it surfaces.
pub fn learn_merges<E>(
    counts: WordCounts,
    wanted: usize,
    mut on_merge: impl FnMut() -> Result<(), E>,
) -> Result<Vec<Pair>, E> {
    let mut words = Words::new(counts);
    let mut pair_counts: AHashMap<Pair, i64> = AHashMap::new();
    let mut places: AHashMap<Pair, Vec<u32>> = AHashMap::new(); // words that hold the pair, or once did
    for w in 0..words.len.len() {
        let count = words.count[w] as i64;
        for two in words.word(w).windows(2) {
            let pair = (two[0], two[1]);
            *pair_counts.entry(pair).or_insert(0) += count;
            note_place(&mut places, pair, w);
        }
    }
    let mut heap: BinaryHeap<(i64, Reverse<Pair>)> = pair_counts.iter().map(|(&p, &c)| (c, Reverse(p))).collect();

    let mut merges = Vec::with_capacity(wanted);
    while merges.len() < wanted {
        let Some((count, Reverse(pair))) = heap.pop() else { break };
        let exact = pair_counts.get(&pair).copied().unwrap_or(0);
        if exact != count {
            if exact > 0 {
                heap.push((exact, Reverse(pair)));
            }
            continue;
        }
        let new_id = 256 + merges.len() as u32;
        merges.push(pair);
        pair_counts.remove(&pair);
        let mut changes: AHashMap<Pair, i64> = AHashMap::new();
        for w in places.remove(&pair).unwrap_or_default() {
            let w = w as usize;
            let count = words.count[w] as i64;
            words.len[w] = merge_in_place(words.word(w), pair, new_id, |changed, delta| {
                *changes.entry(changed).or_insert(0) += delta * count;
                if delta > 0 {
                    note_place(&mut places, changed, w);
                }
            });
        }
        changes.remove(&pair); // runs such as "aaa" report the pair itself; it is gone as a whole
        for (changed, delta) in changes {
            let count = pair_counts.entry(changed).or_insert(0);
            *count += delta;
            let count = *count;
            if count == 0 {
                pair_counts.remove(&changed);
                places.remove(&changed);
            } else if changed.0 == new_id || changed.1 == new_id {
                heap.push((count, Reverse(changed)));
            }
        }
        on_merge()?;
    }
    Ok(merges)
}

/// Words are visited one at a time, so looking at the last entry is enough to keep a list free of doubles.
fn note_place(places: &mut AHashMap<Pair, Vec<u32>>, pair: Pair, word: usize) {
    let list = places.entry(pair).or_default();
    if list.last() != Some(&(word as u32)) {
        list.push(word as u32);
    }
}

// ---------------------------------------------------------------------------------------------------- the result

/// A split pattern and its merges.
pub struct Bpe {
    pub regex: Regex,
    ranks: AHashMap<Pair, u32>,
    /// The bytes of every id.
    pub tokens: Vec<Vec<u8>>,
}

impl Bpe {
    pub fn new(regex: Regex, merges: &[Pair]) -> Self {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut ranks = AHashMap::with_capacity(merges.len());
        for &(left, right) in merges {
            ranks.insert((left, right), tokens.len() as u32);
            tokens.push([tokens[left as usize].as_slice(), tokens[right as usize].as_slice()].concat());
        }
        Bpe { regex, ranks, tokens }
    }

    /// Ids of `text`: in every word the earliest merge is applied everywhere, then the next, until none is left.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        let mut word_ids: Vec<u32> = Vec::new();
        for_each_word(&self.regex, text, |word| {
            word_ids.clear();
            word_ids.extend(word.bytes().map(u32::from));
            while let Some((new_id, pair)) = self.earliest_merge(&word_ids) {
                let len = merge_in_place(&mut word_ids, pair, new_id, |_, _| ());
                word_ids.truncate(len);
            }
            ids.extend_from_slice(&word_ids);
        })?;
        Ok(ids)
    }

    fn earliest_merge(&self, ids: &[u32]) -> Option<(u32, Pair)> {
        let pairs = ids.windows(2).map(|two| (two[0], two[1]));
        pairs.filter_map(|pair| self.ranks.get(&pair).map(|&new_id| (new_id, pair))).min()
    }
}
