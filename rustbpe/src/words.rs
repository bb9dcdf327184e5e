//! A hash table whose keys are words. Nearly all words are at most 15 bytes long: such a key lies in the slot itself,
//! as one number, so that finding a word takes one cache line and no comparison of strings. Longer ones go to a map.

#![forbid(unsafe_code)]

use ahash::{AHashMap, RandomState};

/// A word of up to `SHORT` bytes: the bytes, zeros, and in the highest byte the length (so 0 is no word).
///
/// "ab" -> 0x02_000000000000_0000000000000062_61
type Key = u128;
pub const SHORT: usize = 15;

/// A map from words to `V`, by open addressing with linear probing.
pub struct WordMap<V> {
    slots: Vec<Slot<V>>, // a power of two of them, at most 3/4 in use; a key of 0 is a free one
    used: usize,
    long: AHashMap<Box<[u8]>, V>,
    seed: [u64; 2], // drawn anew for each map: nobody can prepare words that collide
}

#[derive(Clone, Copy, Default)]
struct Slot<V> {
    key: [u64; 2],
    value: V,
}

impl<V: Copy + Default> WordMap<V> {
    pub fn with_capacity(words: usize) -> Self {
        let random = RandomState::new();
        WordMap {
            slots: vec![Slot::default(); (words * 4 / 3 + 1).next_power_of_two().max(16)],
            used: 0,
            long: AHashMap::new(),
            seed: [random.hash_one(1), random.hash_one(2)],
        }
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.used + self.long.len()
    }

    /// The value of the word `text[start..end]`, which is not empty; `None` if it is not in the map.
    #[inline(always)]
    pub fn get(&self, text: &[u8], start: usize, end: usize) -> Option<&V> {
        if end - start > SHORT {
            return self.long.get(&text[start..end]);
        }
        let slot = &self.slots[self.find(key_of(text, start, end))];
        (slot.key[1] != 0).then_some(&slot.value)
    }

    /// The value of the word `text[start..end]`, entered as `V::default()` if it is new.
    #[inline(always)]
    pub fn entry(&mut self, text: &[u8], start: usize, end: usize) -> &mut V {
        if end - start > SHORT {
            return self.long_entry(&text[start..end]);
        }
        let key = key_of(text, start, end);
        let mut at = self.find(key);
        if self.slots[at].key[1] == 0 {
            if self.used >= self.slots.len() / 4 * 3 {
                self.grow();
                at = self.find(key);
            }
            self.slots[at].key = [key as u64, (key >> 64) as u64];
            self.used += 1;
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

    /// The slot that holds `key`, or the free one where it belongs.
    #[inline(always)]
    fn find(&self, key: Key) -> usize {
        let (low, high) = (key as u64, (key >> 64) as u64);
        let product = u128::from(low ^ self.seed[0]) * u128::from(high ^ self.seed[1]);
        let mask = self.slots.len() - 1;
        let mut at = (product as u64 ^ (product >> 64) as u64) as usize & mask;
        loop {
            let slot = &self.slots[at];
            if slot.key == [low, high] || slot.key[1] == 0 {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        let twice = vec![Slot::default(); 2 * self.slots.len()];
        for slot in std::mem::replace(&mut self.slots, twice) {
            if slot.key[1] != 0 {
                let at = self.find(Key::from(slot.key[1]) << 64 | Key::from(slot.key[0]));
                self.slots[at] = slot;
            }
        }
    }

    /// Call `each(word, value)` for all words, in no order that means anything.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], V)) {
        for slot in self.slots.iter().filter(|slot| slot.key[1] != 0) {
            let key = Key::from(slot.key[1]) << 64 | Key::from(slot.key[0]);
            each(&key.to_le_bytes()[..(slot.key[1] >> 56) as usize], slot.value);
        }
        for (word, &value) in &self.long {
            each(word, value);
        }
    }
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
    sixteen & ((1 << (8 * len)) - 1) | (len as u128) << 120
}
