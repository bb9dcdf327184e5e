//! Applying merges: text to token ids, exactly as tiktoken defines them.
//!
//! Within a word, the adjacent pair whose concatenation is the token of lowest rank is joined, leftmost first, until no
//! two neighbours make a token; a word that is a token as a whole is taken as it is. Rank and id are the same number.
//!
//! How it is fast:
//! - A pair of ids is looked up, never a concatenation of bytes. For each token at most one pair can ever be joined
//!   into it (see `Merges::new`), so that table is no larger than the vocabulary.
//! - The ids of words met before are remembered (`Cache`), a cache for each thread.
//! - Words of a few bytes: the lowest rank is searched anew for each join, in an array on the stack. Longer ones:
//!   a queue with a bucket for every rank. A join can only make pairs of higher rank than its own, so the queue is
//!   worked off once from the lowest rank to the highest: linear time, whatever the text.

#![forbid(unsafe_code)]

use std::sync::{Mutex, OnceLock};

use ahash::{AHashMap, RandomState};

use crate::split::{Splitter, Visitor};
use crate::words::{Sought, WordMap, AHEAD};

/// No token.
const NONE: u32 = u32::MAX;

// ---------------------------------------------------------------------------------------------------- the merges

/// Which two ids make which third.
struct Merges {
    byte_ids: [u32; 256],
    byte_pairs: Box<[u32]>, // [left byte * 256 + right byte]: the first round of every word, without hashing
    slots: Vec<(u32, u32)>, // (right, joined), open addressing by the hash of (left, right); joined = NONE: free
    multiplier: u64,        // of the hash, drawn anew each time: nobody can prepare a vocabulary that collides
    parts: Vec<(u32, u32)>, // by id: the pair that is joined into it, (NONE, NONE) where none is
    lens: Vec<u32>,         // by id: bytes
}

impl Merges {
    /// For each token T: the pair that the process reaches on the bytes of T alone when two parts are left, if it does.
    ///
    /// No other pair can ever be joined into T, in any text. Where T comes about, no join crossed its borders before;
    /// so inside of them the same joins were made in the same order as on the bytes of T alone, which is a single
    /// sequence with a single state of two parts. That sequence needs tokens shorter than T only: shortest first.
    fn new(tokens: &[Vec<u8>]) -> Result<Self, String> {
        let mut merges = Merges {
            byte_ids: [NONE; 256],
            byte_pairs: vec![NONE; 1 << 16].into(),
            slots: vec![(0, NONE); (2 * tokens.len()).next_power_of_two()],
            multiplier: RandomState::new().hash_one(1) | 1,
            parts: vec![(NONE, NONE); tokens.len()],
            lens: tokens.iter().map(|token| token.len() as u32).collect(),
        };
        let mut seen = AHashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = seen.insert(token.as_slice(), id) {
                return Err(format!("tokens {other} and {id} are the same"));
            }
        }
        let mut scratch = Scratch::default();
        let mut by_len: Vec<u32> = (0..tokens.len() as u32).collect();
        by_len.sort_by_key(|&id| tokens[id as usize].len());
        for id in by_len {
            match tokens[id as usize].as_slice() {
                [] => return Err(format!("token {id} is empty")),
                &[byte] => merges.byte_ids[usize::from(byte)] = id,
                word => {
                    merges.join(word, &mut scratch);
                    if let [left, right] = scratch.ids[..] {
                        if left > id || right > id {
                            return Err(format!("token {id} comes before its own parts, {left} and {right}"));
                        }
                        merges.insert(left, right, id);
                        if let &[left, right] = word {
                            merges.byte_pairs[usize::from(left) << 8 | usize::from(right)] = id;
                        }
                    }
                }
            }
        }
        match merges.byte_ids.iter().position(|&id| id == NONE) {
            Some(byte) => Err(format!("the byte {byte} is missing: each single byte must be a token")),
            None => Ok(merges),
        }
    }

    /// The first slot to look at for a pair.
    #[inline(always)]
    fn slot_of(&self, left: u32, right: u32) -> usize {
        let key = u64::from(left) << 32 | u64::from(right);
        (key.wrapping_mul(self.multiplier) >> 32) as usize & (self.slots.len() - 1)
    }

    fn insert(&mut self, left: u32, right: u32, joined: u32) {
        self.parts[joined as usize] = (left, right);
        let mut at = self.slot_of(left, right);
        while self.slots[at].1 != NONE {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = (right, joined);
    }

    /// The token that `left` and `right` make, or NONE.
    #[inline(always)]
    fn get(&self, left: u32, right: u32) -> u32 {
        let mut at = self.slot_of(left, right);
        loop {
            let (its_right, joined) = self.slots[at];
            if joined == NONE || its_right == right && self.parts[joined as usize].0 == left {
                return joined;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    #[inline(always)]
    fn len_of(&self, id: u32) -> usize {
        self.lens[id as usize] as usize
    }

    /// Leave the ids of a word in `scratch.ids`. Returns how many places in it were looked at.
    fn join(&self, word: &[u8], scratch: &mut Scratch) -> u64 {
        if word.len() <= FEW {
            self.join_few(word, &mut scratch.ids)
        } else {
            let queue = scratch.queue.get_or_insert_with(|| Queue::new(self.parts.len()));
            self.join_many(word, queue, &mut scratch.ids)
        }
    }

    /// For words of a few bytes: the lowest rank is searched anew for each join.
    fn join_few(&self, word: &[u8], ids: &mut Vec<u32>) -> u64 {
        // By the place of a token's first byte: its id, what it makes with the next one, and where the next one and
        // the one before begin. (The place behind the word is there, so that it can be written to.)
        let (mut id, mut joined) = ([NONE; FEW + 1], [NONE; FEW + 1]);
        let (mut next, mut before) = ([0u8; FEW + 1], [0u8; FEW + 1]);
        let n = word.len();
        for (i, &byte) in word.iter().enumerate() {
            id[i] = self.byte_ids[usize::from(byte)];
            (next[i], before[i + 1]) = (i as u8 + 1, i as u8);
        }
        for (i, two) in word.windows(2).enumerate() {
            joined[i] = self.byte_pairs[usize::from(two[0]) << 8 | usize::from(two[1])];
        }
        let mut steps = 0;
        loop {
            steps += n as u64;
            let (mut at, mut lowest) = (0, NONE);
            for (i, &id) in joined[..n].iter().enumerate() {
                if id < lowest {
                    (at, lowest) = (i, id);
                }
            }
            if lowest == NONE {
                break;
            }
            let middle = usize::from(next[at]);
            let end = usize::from(next[middle]);
            id[at] = lowest;
            joined[middle] = NONE;
            next[at] = end as u8;
            before[end] = at as u8;
            joined[at] = if end < n { self.get(lowest, id[end]) } else { NONE };
            if at > 0 {
                let left = usize::from(before[at]);
                joined[left] = self.get(id[left], lowest);
            }
        }
        ids.clear();
        let mut at = 0;
        while at < n {
            ids.push(id[at]);
            at = usize::from(next[at]);
        }
        steps
    }

    /// For words of any length, by the queue: each byte and each join adds at most two places to look at.
    fn join_many(&self, word: &[u8], queue: &mut Queue, ids: &mut Vec<u32>) -> u64 {
        queue.ids.clear();
        queue.ids.push(NONE);
        queue.ids.extend(word.iter().map(|&byte| self.byte_ids[usize::from(byte)]));
        queue.ids.push(NONE);
        for (i, two) in word.windows(2).enumerate() {
            let joined = self.byte_pairs[usize::from(two[0]) << 8 | usize::from(two[1])];
            if joined != NONE {
                queue.push(joined, i + 1);
            }
        }
        let (mut steps, mut group) = (word.len() as u64, 0);
        while let Some(rank) = queue.pop(&mut group) {
            let new = rank as u32;
            let (left, right) = self.parts[rank];
            let (left_len, right_len) = (self.len_of(left), self.len_of(right));
            let mut places = std::mem::take(&mut queue.buckets[rank]);
            steps += places.len() as u64;
            for place in places.drain(..) {
                let place = place as usize;
                let (middle, end) = (place + left_len, place + left_len + right_len);
                if queue.ids[place] != left || queue.ids[middle] != right {
                    continue; // one of the two was joined with another token meanwhile
                }
                queue.ids[middle] = NONE;
                queue.ids[place] = new;
                queue.ids[end - 1] = new;
                let (before, next) = (queue.ids[place - 1], queue.ids[end]);
                if before != NONE {
                    let joined = self.get(before, new);
                    if joined != NONE {
                        queue.push(joined, place - self.len_of(before));
                    }
                }
                if next != NONE {
                    let joined = self.get(new, next);
                    if joined != NONE {
                        queue.push(joined, place);
                    }
                }
            }
            queue.buckets[rank] = places; // empty; its memory serves again
        }
        ids.clear();
        let mut place = 1;
        while queue.ids[place] != NONE {
            ids.push(queue.ids[place]);
            place += self.len_of(queue.ids[place]);
        }
        steps
    }
}

/// Up to so many bytes `join_few` is faster.
const FEW: usize = 48;

/// Memory that joining needs, used again for each word.
#[derive(Default)]
struct Scratch {
    ids: Vec<u32>, // the result
    queue: Option<Queue>,
}

/// A word while it is joined, and the places of each rank that waits to be joined.
struct Queue {
    ids: Vec<u32>, // a slot a byte: a token's id in the slots of its first and last byte, NONE at both ends
    buckets: Vec<Vec<u32>>, // by rank: the places of left halves, ascending; some out of date
    waiting: [Vec<u64>; 2], // a bit a bucket: not empty; and a bit for each 64 of those
}

impl Queue {
    fn new(vocab_size: usize) -> Self {
        let words = vocab_size.div_ceil(64);
        Queue {
            ids: Vec::new(),
            buckets: vec![Vec::new(); vocab_size],
            waiting: [vec![0; words], vec![0; words.div_ceil(64)]],
        }
    }

    #[inline]
    fn push(&mut self, rank: u32, place: usize) {
        let rank = rank as usize;
        self.buckets[rank].push(place as u32);
        self.waiting[0][rank / 64] |= 1 << (rank % 64);
        self.waiting[1][rank / 4096] |= 1 << (rank / 64 % 64);
    }

    /// The lowest rank that waits, taken off the queue; `group` is where the search left off.
    fn pop(&mut self, group: &mut usize) -> Option<usize> {
        while *group < self.waiting[1].len() {
            if self.waiting[1][*group] != 0 {
                let word = *group * 64 + self.waiting[1][*group].trailing_zeros() as usize;
                let rank = word * 64 + self.waiting[0][word].trailing_zeros() as usize;
                self.waiting[0][word] &= self.waiting[0][word] - 1;
                if self.waiting[0][word] == 0 {
                    self.waiting[1][*group] &= self.waiting[1][*group] - 1;
                }
                return Some(rank);
            }
            *group += 1;
        }
        None
    }
}

// ------------------------------------------------------------------------------------------------------ the encoder

/// The ids of words met before, for one thread; in the beginning those of the words that are tokens themselves.
pub struct Cache {
    words: WordMap<Ids>,
    more: Vec<u32>, // the ids of words of more than three
    held: usize,    // bytes, roughly
    scratch: Scratch,
    /// Places looked at so far for words that were not known: the measure of work, see tests/test_rustbpe.py.
    pub steps: u64,
}

/// Up to three ids of a word, and their number; or of more: where they begin in `Cache::more`, 0, 0, their number.
type Ids = [u32; 4];

/// So many bytes of words are remembered by a thread, and no word longer than `MAX_CACHED_LEN`.
const MAX_CACHED: usize = 1 << 25;
const MAX_CACHED_LEN: usize = 128;

/// After a word of more bytes than this the memory for joining it is given back.
const LONG: usize = 1 << 20;

/// A vocabulary with its split pattern.
pub struct Encoder {
    splitter: Splitter,
    tokens: Vec<Vec<u8>>,
    merges: OnceLock<Merges>,  // who only trains needs none
    caches: Mutex<Vec<Cache>>, // those that no thread uses at the moment
}

impl Encoder {
    /// `tokens`: the bytes of each id. Says what is wrong with a table that byte-pair encoding cannot have made.
    pub fn new(tokens: Vec<Vec<u8>>, splitter: Splitter) -> Result<Self, String> {
        let merges = OnceLock::from(Merges::new(&tokens)?);
        Ok(Encoder { splitter, tokens, merges, caches: Mutex::new(Vec::new()) })
    }

    /// The same for tokens that were just learned.
    pub fn trained(tokens: Vec<Vec<u8>>, splitter: Splitter) -> Self {
        Encoder { splitter, tokens, merges: OnceLock::new(), caches: Mutex::new(Vec::new()) }
    }

    fn merges(&self) -> &Merges {
        self.merges.get_or_init(|| Merges::new(&self.tokens).expect("what training gives can be encoded with"))
    }

    pub fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    pub fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }

    /// Run `work` with a cache that is this thread's own meanwhile. It is kept for the next one who asks.
    pub fn with_cache<R>(&self, work: impl FnOnce(&mut Cache) -> R) -> R {
        let idle = self.caches.lock().expect("no thread panics with the lock").pop();
        let mut cache = idle.unwrap_or_else(|| self.new_cache());
        let result = work(&mut cache);
        self.caches.lock().expect("no thread panics with the lock").push(cache);
        result
    }

    fn new_cache(&self) -> Cache {
        let mut words = WordMap::with_capacity(2 * self.tokens.len());
        for (id, token) in (0..).zip(&self.tokens) {
            let sought = words.seek(token, 0, token.len());
            *words.entry(token, &sought) = [id, 0, 0, 1];
        }
        Cache { words, more: Vec::new(), held: 0, scratch: Scratch::default(), steps: 0 }
    }

    /// Append the ids of `text` to `out`. `splitter` is this thread's own, `another` of `self.splitter()`.
    pub fn encode(&self, splitter: &Splitter, text: &str, cache: &mut Cache, out: &mut Vec<u32>) -> Result<(), String> {
        let (merges, text_bytes) = (self.merges(), text.as_bytes());
        let mut encoding =
            Encoding { merges, text: text_bytes, cache, out, sought: [Sought::default(); AHEAD], waiting: 0 };
        splitter.split(text, &mut encoding)?;
        encoding.encode();
        Ok(())
    }
}

/// A text on its way to ids.
struct Encoding<'a> {
    merges: &'a Merges,
    text: &'a [u8],
    cache: &'a mut Cache,
    out: &'a mut Vec<u32>,
    sought: [Sought; AHEAD],
    waiting: usize, // so many of `sought` are not yet encoded
}

impl Visitor for Encoding<'_> {
    #[inline(always)]
    fn word(&mut self, start: usize, end: usize) {
        self.sought[self.waiting] = self.cache.words.seek(self.text, start, end);
        self.waiting += 1;
        if self.waiting == AHEAD {
            self.encode();
        }
    }
}

impl Encoding<'_> {
    #[inline(always)]
    fn encode(&mut self) {
        for i in 0..std::mem::take(&mut self.waiting) {
            match self.cache.words.get(self.text, &self.sought[i]) {
                Some(&[a, b, c, count @ 0..=3]) => {
                    self.out.extend_from_slice(&[a, b, c]); // always three, and back: no branch a word
                    self.out.truncate(self.out.len() - 3 + count as usize);
                }
                Some(&[first, _, _, count]) => {
                    self.out.extend_from_slice(&self.cache.more[first as usize..first as usize + count as usize]);
                }
                None => self.encode_new(i),
            }
        }
    }

    /// A word that is not in the cache.
    #[inline(never)]
    fn encode_new(&mut self, i: usize) {
        let (sought, cache) = (&self.sought[i], &mut *self.cache);
        let word = &self.text[sought.range()];
        cache.steps += self.merges.join(word, &mut cache.scratch);
        let ids = &cache.scratch.ids;
        self.out.extend_from_slice(ids);
        if cache.held < MAX_CACHED && word.len() <= MAX_CACHED_LEN {
            cache.held += 64 + word.len() + 4 * ids.len(); // a slot, more or less, and what lies outside of it
            let value = match ids[..] {
                [a] => [a, 0, 0, 1],
                [a, b] => [a, b, 0, 2],
                [a, b, c] => [a, b, c, 3],
                _ => {
                    let first = cache.more.len() as u32;
                    cache.more.extend_from_slice(ids);
                    [first, 0, 0, ids.len() as u32]
                }
            };
            *cache.words.entry(self.text, sought) = value;
        }
        if word.len() > LONG {
            cache.scratch = Scratch::default();
        }
    }
}
