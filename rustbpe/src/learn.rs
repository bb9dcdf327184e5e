//! Learning merges from counted words: the second half of training.
//!
//! Rule: the pair of adjacent tokens with the highest count is joined everywhere into a new token, id 256 + its rank;
//! then again. Among equal counts the pair with the smallest (left id, right id) comes first. These are the merges of
//! rustbpe 0.1.0 (tests/test_rustbpe.py, bench/tokenizer.py).
//!
//! How it is fast:
//! - All distinct words lie in one array with a slot a *byte*. A token's id stands in the slots of its first and its
//!   last byte, so both neighbours of a pair are found without links, and joining writes three slots.
//! - Each pair has the list of the places where it occurs. No pair of existing tokens can come up again later, only
//!   pairs with the new token do: so a list is written once, in the order of the text, and checked when it is used.
//! - For the same reason counts only fall after a pair was first counted. Pairs below a floor are not kept at all; when
//!   none above it is left, all are counted again with a lower floor. Most pairs are rare: this saves most of the work.
//! - Within a merge, changes are added up in an array by neighbour; the map of pairs hears of each neighbour once.
//! - The heap is lazy: an entry may be too high, never too low; it is put right when it comes to the top.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ahash::AHashMap;

use crate::count::WordCounts;
use crate::words::prefetch;

pub type Pair = (u32, u32);

/// Stands between words, and in the first slot of a token's right half, where no token begins any more.
const NONE: u32 = u32::MAX;

/// After a count of all pairs, those with at least 1/FLOOR_RATIO of the highest count are kept.
const FLOOR_RATIO: u64 = 1024;

/// So many places ahead memory is asked for a word.
const AHEAD: usize = 16;

#[derive(Clone, Copy)]
struct Slot {
    id: u32,
    weight: u32, // which of `Words::weights` is the count of its word
}

/// All distinct words, a slot a byte, with one slot of NONE before, between and behind them.
pub struct Words {
    slots: Vec<Slot>,
    weights: Vec<u64>,
    token_len: Vec<u32>, // bytes of each id
}

impl Words {
    /// A copy of the words of `counts`.
    pub fn new(counts: &WordCounts) -> Result<Self, String> {
        let gap = Slot { id: NONE, weight: 0 };
        let mut words = Words { slots: vec![gap], weights: Vec::new(), token_len: vec![1; 256] };
        let mut known: AHashMap<u64, u32> = AHashMap::new();
        counts.for_each(|word, count| {
            if word.len() > 1 {
                let weight = *known.entry(count).or_insert_with(|| {
                    words.weights.push(count);
                    words.weights.len() as u32 - 1
                });
                words.slots.extend(word.iter().map(|&byte| Slot { id: u32::from(byte), weight }));
                words.slots.push(gap);
            }
        });
        if words.slots.len() > NONE as usize {
            return Err("the corpus holds more than 4 GB of distinct words: train on less text".to_owned());
        }
        Ok(words)
    }

    fn len_of(&self, id: u32) -> usize {
        self.token_len[id as usize] as usize
    }

    /// Call `each(pair, place, count)` for every two adjacent tokens, in the order of the array.
    fn for_each_pair(&self, mut each: impl FnMut(Pair, usize, u64)) {
        let mut place = 1;
        while place < self.slots.len() {
            let Slot { id: left, weight } = self.slots[place];
            if left == NONE {
                place += 1;
                continue;
            }
            let next = place + self.len_of(left);
            let right = self.slots[next].id;
            if right != NONE {
                each((left, right), place, self.weights[weight as usize]);
            }
            place = next;
        }
    }
}

/// What is known of a pair: its exact count, and its places `Learner::places[first..first + len]`, some out of date.
#[derive(Clone, Copy, Default)]
struct Known {
    count: u64,
    first: usize,
    len: usize,
}

/// New pairs of one side of the new token, added up by the neighbour's id.
#[derive(Default)]
struct Side {
    sums: Vec<Sum>,
    neighbours: Vec<u32>,    // those with places, in the order met
    places: Vec<(u32, u32)>, // (neighbour, place of the new pair)
}

#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    places: u32,
    next: usize, // where in `Learner::places` its next place belongs; MAX: the pair is below the floor
}

impl Side {
    #[inline(always)]
    fn note(&mut self, neighbour: u32, place: usize, count: u64) {
        let sum = &mut self.sums[neighbour as usize];
        if sum.places == 0 {
            self.neighbours.push(neighbour);
        }
        sum.places += 1;
        sum.count += count;
        self.places.push((neighbour, place as u32));
    }
}

struct Learner<'a> {
    words: &'a mut Words,
    pairs: AHashMap<Pair, Known>,
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
    places: Vec<u32>,
    floor: u64,
    sides: [Side; 2], // pairs (neighbour, new) and (new, neighbour)
}

/// The first `wanted` merges, fewer when no pair is left. `on_merge(done)` may stop it with an error.
pub fn learn_merges<E>(
    words: &mut Words,
    wanted: usize,
    mut on_merge: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Pair>, E> {
    let mut learner = Learner {
        words,
        pairs: AHashMap::new(),
        heap: BinaryHeap::new(),
        places: Vec::new(),
        floor: u64::MAX,
        sides: Default::default(),
    };
    let mut merges = Vec::new();
    while merges.len() < wanted {
        let Some(pair) = learner.most_frequent() else { break };
        learner.join(pair, 256 + merges.len() as u32);
        merges.push(pair);
        on_merge(merges.len())?;
    }
    Ok(merges)
}

impl Learner<'_> {
    fn most_frequent(&mut self) -> Option<Pair> {
        loop {
            while let Some((count, Reverse(pair))) = self.heap.pop() {
                let Some(known) = self.pairs.get(&pair) else { continue };
                if known.count == count {
                    return Some(pair);
                }
                if known.count >= self.floor {
                    self.heap.push((known.count, Reverse(pair)));
                } else {
                    self.pairs.remove(&pair);
                }
            }
            if self.floor <= 1 {
                return None;
            }
            self.count_all();
        }
    }

    /// Count all pairs anew; keep those above a new, lower floor, with their places.
    fn count_all(&mut self) {
        self.pairs.clear();
        self.places.clear();
        let mut counts: AHashMap<Pair, (u64, u32)> = AHashMap::new();
        self.words.for_each_pair(|pair, _, count| {
            let sum = counts.entry(pair).or_default();
            sum.0 += count;
            sum.1 += 1;
        });
        let highest = counts.values().map(|&(count, _)| count).max().unwrap_or(0);
        self.floor = (highest / FLOOR_RATIO).max(1);
        let mut first = 0;
        for (pair, (count, places)) in counts {
            if count >= self.floor {
                self.pairs.insert(pair, Known { count, first, len: 0 });
                self.heap.push((count, Reverse(pair)));
                first += places as usize;
            }
        }
        self.places.resize(first, 0);
        let (pairs, places) = (&mut self.pairs, &mut self.places);
        self.words.for_each_pair(|pair, place, _| {
            if let Some(known) = pairs.get_mut(&pair) {
                places[known.first + known.len] = place as u32;
                known.len += 1;
            }
        });
    }

    /// Join `pair` into `new` wherever it occurs, from left to right.
    ///
    /// "xabab" with (a, b) -> N: x N N. The pairs (x,a) and (b,a) lose, (x,N) and (N,N) gain.
    fn join(&mut self, pair: Pair, new: u32) {
        let (left, right) = pair;
        let (left_len, right_len) = (self.words.len_of(left), self.words.len_of(right));
        self.words.token_len.push((left_len + right_len) as u32);
        for side in &mut self.sides {
            side.sums.resize(new as usize + 1, Sum::default());
        }
        let Known { first, len, .. } = self.pairs.remove(&pair).expect("a pair from the heap");

        let slots = &mut self.words.slots;
        let [before, behind] = &mut self.sides;
        let places = &self.places[first..first + len];
        for (i, &place) in places.iter().enumerate() {
            if let Some(&later) = places.get(i + AHEAD) {
                prefetch(&slots[later as usize]); // the array is too large for the caches
            }
            let place = place as usize;
            let (middle, end) = (place + left_len, place + left_len + right_len);
            if slots[place].id != left || slots[middle].id != right {
                continue; // one of the two has been joined with another token since
            }
            let count = self.words.weights[slots[place].weight as usize];
            let (neighbour, next) = (slots[place - 1].id, slots[end].id);
            slots[middle].id = NONE;
            slots[place].id = new;
            slots[end - 1].id = new;
            if neighbour != NONE {
                before.note(neighbour, place - self.words.token_len[neighbour as usize] as usize, count);
            }
            if next != NONE {
                behind.note(next, place, count);
            }
        }

        // What the old pairs (neighbour, left) and (right, neighbour) lose is what the new ones gain, except that in
        // "abab" the new token itself is a neighbour: the second join turns (N, a), noted by the first, into (N, N).
        let twice = self.sides[0].sums[new as usize].count;
        for i in 0..self.sides[0].neighbours.len() {
            let neighbour = self.sides[0].neighbours[i];
            let gain = self.sides[0].sums[neighbour as usize].count;
            if neighbour != new {
                self.lose((neighbour, left), gain);
            }
            self.enter(0, (neighbour, new), neighbour, gain);
        }
        for i in 0..self.sides[1].neighbours.len() {
            let neighbour = self.sides[1].neighbours[i];
            let gain = self.sides[1].sums[neighbour as usize].count;
            self.lose((right, neighbour), gain);
            self.enter(1, (new, neighbour), neighbour, if neighbour == left { gain - twice } else { gain });
        }
        for side in &mut self.sides {
            side.neighbours.clear();
            for (neighbour, place) in side.places.drain(..) {
                let sum = &mut side.sums[neighbour as usize];
                if sum.next != usize::MAX {
                    self.places[sum.next] = place;
                    sum.next += 1;
                }
            }
        }
    }

    fn lose(&mut self, pair: Pair, count: u64) {
        if let Some(known) = self.pairs.get_mut(&pair) {
            known.count -= count;
        }
    }

    /// Enter a new pair with room for its places, unless it is below the floor. Clears the neighbour's sum.
    fn enter(&mut self, side: usize, pair: Pair, neighbour: u32, count: u64) {
        let sum = &mut self.sides[side].sums[neighbour as usize];
        let len = sum.places as usize;
        *sum = Sum { next: usize::MAX, ..Sum::default() };
        if count >= self.floor {
            let first = self.places.len();
            sum.next = first;
            self.places.resize(first + len, 0);
            self.pairs.insert(pair, Known { count, first, len });
            self.heap.push((count, Reverse(pair)));
        }
    }
}
