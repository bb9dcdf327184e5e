//! A hash table whose keys are words. Nearly all words are at most 15 bytes long: such a word is made into two numbers,
//! which are compared and hashed without a loop or a pointer to follow. Longer ones go to an ordinary map.

#![deny(unsafe_code)] // but for `prefetch`

use std::ops::Range;

use ahash::{AHashMap, RandomState};

/// A word of up to `SHORT` bytes as two numbers: the bytes, zeros, and in the last byte the length.
///
/// "ab" -> [0x6261, 0x02_00000000000000]
type Key = [u64; 2];
const SHORT: usize = 15;

/// A map from words to `V`, by open addressing with linear probing.
///
/// It is too large for the caches, and memory takes far longer to answer than a word takes to split. So finding has
/// two steps, for many words at a time: `seek` asks memory for the slot, `get` or `entry` comes back for it later.
pub struct WordMap<V> {
    slots: Vec<Slot<V>>, // a power of two of them, at most 5/8 in use; a free one has the key [0, 0]
    used: usize,
    long: AHashMap<Box<[u8]>, V>,
    seed: [u64; 2], // drawn anew for each map: without it nobody can prepare words that collide
}

#[derive(Clone, Copy, Default)]
#[repr(align(32))] // so that no slot lies in two cache lines
struct Slot<V> {
    key: Key,
    value: V,
}

/// A word that was asked for, and lies in its text at `start..end`.
#[derive(Clone, Copy, Default)]
pub struct Sought {
    start: u32,
    end: u32,
    key: Key, // [0, 0]: a long word
    hash: u64,
}

impl Sought {
    /// Where in its text the word lies.
    #[inline(always)]
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// So many words are asked for before the first of them is looked at.
pub const AHEAD: usize = 32;

impl<V: Copy + Default> WordMap<V> {
    pub fn with_capacity(words: usize) -> Self {
        let random = RandomState::new();
        WordMap {
            slots: vec![Slot::default(); (words * 8 / 5 + 1).next_power_of_two()],
            used: 0,
            long: AHashMap::new(),
            seed: [random.hash_one(1), random.hash_one(2)],
        }
    }

    /// First step to the word `text[start..end]`, which is not empty.
    #[inline(always)]
    pub fn seek(&self, text: &[u8], start: usize, end: usize) -> Sought {
        if end - start > SHORT {
            return Sought { start: start as u32, end: end as u32, key: [0, 0], hash: 0 };
        }
        let key = key_of(text, start, end);
        let hash = self.hash(key);
        prefetch(&self.slots[hash as usize & (self.slots.len() - 1)]);
        Sought { start: start as u32, end: end as u32, key, hash }
    }

    /// Second step: the value of the word, `None` if it is not in the map.
    #[inline(always)]
    pub fn get(&self, text: &[u8], word: &Sought) -> Option<&V> {
        if word.key == [0, 0] {
            return self.long.get(&text[word.range()]);
        }
        let slot = &self.slots[self.find(word.key, word.hash)];
        (slot.key != [0, 0]).then_some(&slot.value)
    }

    /// Second step: the value of the word, entered as `V::default()` if it is new.
    #[inline(always)]
    pub fn entry(&mut self, text: &[u8], word: &Sought) -> &mut V {
        if word.key == [0, 0] {
            return self.long_entry(&text[word.range()]);
        }
        let mut at = self.find(word.key, word.hash);
        if self.slots[at].key == [0, 0] {
            at = self.insert(word.key, word.hash, at);
        }
        &mut self.slots[at].value
    }

    #[inline(never)]
    fn long_entry(&mut self, word: &[u8]) -> &mut V {
        if !self.long.contains_key(word) {
            self.long.insert(word.into(), V::default());
        }
        self.long.get_mut(word).expect("it was just entered")
    }

    #[inline(always)]
    fn hash(&self, [low, high]: Key) -> u64 {
        let product = u128::from(low ^ self.seed[0]) * u128::from(high ^ self.seed[1]);
        product as u64 ^ (product >> 64) as u64
    }

    /// The slot that holds `key`, or the free one where it belongs.
    #[inline(always)]
    fn find(&self, key: Key, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at].key != key && self.slots[at].key != [0, 0] {
            at = (at + 1) & mask;
        }
        at
    }

    #[inline(never)]
    fn insert(&mut self, key: Key, hash: u64, mut at: usize) -> usize {
        if self.used >= self.slots.len() / 8 * 5 {
            let larger = vec![Slot::default(); 2 * self.slots.len()];
            for slot in std::mem::replace(&mut self.slots, larger) {
                if slot.key != [0, 0] {
                    let at = self.find(slot.key, self.hash(slot.key));
                    self.slots[at] = slot;
                }
            }
            at = self.find(key, hash);
        }
        self.slots[at].key = key;
        self.used += 1;
        at
    }

    /// Call `each(word, value)` for all words, in no order that means anything.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], V)) {
        for slot in self.slots.iter().filter(|slot| slot.key != [0, 0]) {
            let [low, high] = slot.key;
            let bytes = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
            each(&bytes[..(high >> 56) as usize], slot.value);
        }
        for (word, &value) in &self.long {
            each(word, value);
        }
    }
}

/// Ask for the memory of `place` without waiting for it.
#[inline(always)]
#[allow(unsafe_code)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing but the caches, whatever the address.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// The key of `text[start..end]`, 1 to `SHORT` bytes: 16 bytes are read at once where the text goes on that far.
#[inline(always)]
fn key_of(text: &[u8], start: usize, end: usize) -> Key {
    let len = end - start;
    let sixteen = match text[start..].first_chunk::<16>() {
        Some(sixteen) => u128::from_le_bytes(*sixteen),
        None => {
            let mut sixteen = [0; 16];
            sixteen[..len].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(sixteen)
        }
    };
    let key = sixteen & ((1 << (8 * len)) - 1) | (len as u128) << 120;
    [key as u64, (key >> 64) as u64]
}
