//! Which characters are letters (`\p{L}`), numbers (`\p{N}`) and white space (`\s`): one table look-up a character.
//!
//! The table is made once, in about a millisecond, from the tables of `regex-syntax`, on which tiktoken's regex engine
//! is built: so both mean the same characters by `\p{L}`, without a generated file that could fall behind.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// The Unicode version of the tables of `regex-syntax` 0.8.12. Code points that it leaves unassigned are `OTHER`.
pub const UNICODE_VERSION: &str = "16.0.0";

/// What the split patterns tell apart. Line breaks are CR and LF alone, as in `[\r\n]`; `SPACE` is the rest of `\s`.
pub const OTHER: u8 = 0;
pub const LETTER: u8 = 1;
pub const NUMBER: u8 = 2;
pub const SPACE: u8 = 3;
pub const NEWLINE: u8 = 4;

/// The class of every byte below 0x80.
pub const ASCII: [u8; 128] = {
    let mut table = [OTHER; 128];
    let mut b = 0;
    while b < 128 {
        table[b] = match b as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b'\r' | b'\n' => NEWLINE,
            b' ' | b'\t' | 0x0b | 0x0c => SPACE,
            _ => OTHER,
        };
        b += 1;
    }
    table
};

/// Classes of all code points, in blocks of 256 of which equal ones are kept once (about 40 kB instead of 1.1 MB).
pub struct Classes {
    block: Vec<u8>, // code point / 256 -> number of its block
    blocks: Vec<[u8; 256]>,
}

pub static CLASSES: LazyLock<Classes> = LazyLock::new(|| {
    let mut flat = vec![OTHER; 0x11_0000];
    for (class, name) in [(LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s"), (NEWLINE, r"[\r\n]")] {
        for (first, last) in ranges(name) {
            flat[first as usize..=last as usize].fill(class);
        }
    }
    let mut classes = Classes { block: Vec::new(), blocks: Vec::new() };
    let mut seen: HashMap<[u8; 256], u8> = HashMap::new();
    for block in flat.chunks_exact(256) {
        let block: [u8; 256] = block.try_into().expect("256 bytes");
        let number = *seen.entry(block).or_insert_with(|| {
            classes.blocks.push(block);
            u8::try_from(classes.blocks.len() - 1).expect("under 256 different blocks")
        });
        classes.block.push(number);
    }
    classes
});

/// The ranges of code points of a character class of the regex syntax.
fn ranges(class: &str) -> Vec<(u32, u32)> {
    let hir = regex_syntax::parse(class).expect("a class that regex-syntax knows");
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.ranges().iter().map(|range| (range.start() as u32, range.end() as u32)).collect()
        }
        _ => unreachable!("{class} is a class of several code points"),
    }
}

impl Classes {
    /// Class and length in bytes of the character that starts at `text[i]`; `text` is valid UTF-8, `text[i]` >= 0x80.
    #[inline]
    pub fn wide(&self, text: &[u8], i: usize) -> (u8, usize) {
        let tail = |k: usize| u32::from(text[i + k] & 0x3f);
        let lead = u32::from(text[i]);
        let (point, len) = match lead {
            0..0xe0 => ((lead & 0x1f) << 6 | tail(1), 2),
            0xe0..0xf0 => ((lead & 0x0f) << 12 | tail(1) << 6 | tail(2), 3),
            _ => ((lead & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
        };
        (self.blocks[usize::from(self.block[(point >> 8) as usize])][(point & 0xff) as usize], len)
    }
}
