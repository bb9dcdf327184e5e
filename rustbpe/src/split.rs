//! Cutting text into words, the units inside which tokens are merged.
//!
//! The patterns of the GPT-4 family are known by their text and split by hand, many times faster than by a regex
//! engine; any other pattern goes through `fancy-regex`, the engine of tiktoken. Both give the same words (but for
//! texts that the engine cannot split, see `regex_words`).
//!
//! `"I'll pay 1234 €!\n\n  Bye"` -> `I` `'ll` ` pay` ` ` `12` `34` ` €!\n\n` ` ` ` Bye`

#![forbid(unsafe_code)]

use fancy_regex::Regex;

use crate::unicode::{Classes, ASCII, CLASSES, LETTER, NEWLINE, NUMBER, OTHER, SPACE};

/// The pattern of a tokenizer that was given none: digits in groups of one or two (see nanochat/tokenizer.py).
pub const DEFAULT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// A split pattern, ready for use.
pub struct Splitter {
    pattern: String,
    engine: Engine,
}

/// Who wants the words. (A trait and not a closure, because a closure cannot be told to be inlined.)
pub trait Visitor {
    /// The word lies in the text at `start..end`.
    fn word(&mut self, start: usize, end: usize);
}

enum Engine {
    Gpt4(Gpt4),
    Regex(Box<Regex>),
}

impl Splitter {
    /// Refuses what is no regular expression, with the engine's own message.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let engine = match Gpt4::from_pattern(pattern) {
            Some(gpt4) => Engine::Gpt4(gpt4),
            None => Engine::Regex(Box::new(
                Regex::new(pattern).map_err(|e| format!("the split pattern is not a valid regular expression: {e}"))?,
            )),
        };
        Ok(Splitter { pattern: pattern.to_owned(), engine })
    }

    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// One for another thread. (Threads that share a regex wait for each other's scratch space.)
    pub fn another(&self) -> Self {
        let engine = match &self.engine {
            Engine::Gpt4(gpt4) => Engine::Gpt4(Gpt4 { ..*gpt4 }),
            Engine::Regex(regex) => Engine::Regex(regex.clone()),
        };
        Splitter { pattern: self.pattern.clone(), engine }
    }

    /// Tell `visitor` of every word of `text`, in order.
    #[inline]
    pub fn split(&self, text: &str, visitor: &mut impl Visitor) -> Result<(), String> {
        if u32::try_from(text.len()).is_err() {
            return Err("a text of more than 4 GB: cut it".to_owned()); // places in a text have 32 bits
        }
        match &self.engine {
            Engine::Gpt4(gpt4) => {
                let (mut letters, mut start) = (Letters::of(text.as_bytes(), 0), 0);
                while start < text.len() {
                    let end = gpt4.word_end(text.as_bytes(), start, &mut letters);
                    visitor.word(start, end);
                    start = end;
                }
                Ok(())
            }
            Engine::Regex(regex) => regex_words(regex, text, visitor),
        }
    }
}

// ------------------------------------------------------------------------------------------------- the GPT-4 family

/// The splitter of `'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,K}| ?[^\s\p{L}\p{N}]++[\r\n]*|...`
struct Gpt4 {
    classes: &'static Classes,
    max_digits: usize,
    /// tiktoken's present form of GPT-4's pattern has `\s++$` before `\s*[\r\n]`: white space that ends the text is
    /// one word, line breaks or not.
    whole_tail: bool,
}

/// The family, K for the longest group of digits, and whether white space that ends a text is one word.
const FORMS: [(&str, bool); 3] = [
    // ours, and that of rustbpe 0.1.0 (K = 3)
    (
        concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,K}|",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        false,
    ),
    // tiktoken's cl100k_base as it is now
    (
        concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,K}+|",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
        ),
        true,
    ),
    // cl100k_base as it was first
    (
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,K}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        false,
    ),
];

impl Gpt4 {
    fn from_pattern(pattern: &str) -> Option<Self> {
        for (form, whole_tail) in FORMS {
            for max_digits in 1..=9 {
                if form.replace('K', &max_digits.to_string()) == pattern {
                    return Some(Gpt4 { classes: &CLASSES, max_digits, whole_tail });
                }
            }
        }
        None
    }

    /// Where the word that starts at `start` ends. The branches stand in the order of the pattern's alternatives.
    #[inline(always)]
    fn word_end(&self, text: &[u8], start: usize, letters: &mut Letters) -> usize {
        let (class, len) = self.class_at(text, start);
        let after = start + len;
        if class == LETTER {
            return self.letters_end(text, after, letters);
        }
        if class == NUMBER {
            return self.numbers_end(text, after);
        }
        if class != NEWLINE {
            if text[start] == b'\'' {
                if let Some(end) = contraction_end(text, after) {
                    return end;
                }
            }
            let end = self.letters_end(text, after, letters); // [^\r\n\p{L}\p{N}]?+\p{L}+
            if end > after {
                return end;
            }
            if class == OTHER {
                return self.others_end(text, after);
            }
            if text[start] == b' ' && after < text.len() {
                let (next, len) = self.class_at(text, after);
                if next == OTHER {
                    return self.others_end(text, after + len);
                }
            }
        }
        self.spaces_end(text, start)
    }

    /// Class and length of the character at `i`, which is inside `text`.
    #[inline(always)]
    fn class_at(&self, text: &[u8], i: usize) -> (u8, usize) {
        let b = text[i];
        if b < 0x80 {
            (ASCII[usize::from(b)], 1)
        } else {
            self.classes.wide(text, i)
        }
    }

    /// The end of the letters from `i` on.
    #[inline(always)]
    fn letters_end(&self, text: &[u8], mut i: usize, letters: &mut Letters) -> usize {
        while i < text.len() {
            if i >= letters.first + 64 {
                *letters = Letters::of(text, i / 64 * 64);
            }
            i += letters.run(i);
            if i < letters.first + 64 {
                if i == text.len() || text[i] < 0x80 {
                    break;
                }
                let (class, len) = self.classes.wide(text, i);
                if class != LETTER {
                    break;
                }
                i += len;
            }
        }
        i
    }

    /// `\p{N}{1,K}` of which one is behind us.
    fn numbers_end(&self, text: &[u8], mut i: usize) -> usize {
        for _ in 1..self.max_digits {
            if i == text.len() {
                break;
            }
            let (class, len) = self.class_at(text, i);
            if class != NUMBER {
                break;
            }
            i += len;
        }
        i
    }

    /// `[^\s\p{L}\p{N}]*[\r\n]*`
    fn others_end(&self, text: &[u8], mut i: usize) -> usize {
        while i < text.len() {
            let (class, len) = self.class_at(text, i);
            if class != OTHER {
                break;
            }
            i += len;
        }
        while i < text.len() && matches!(text[i], b'\r' | b'\n') {
            i += 1;
        }
        i
    }

    /// `\s*[\r\n]`, else `\s+(?!\S)` (all but the last, unless the text ends), else `\s+`; at `start` stands white space.
    fn spaces_end(&self, text: &[u8], start: usize) -> usize {
        let (mut end, mut last, mut after_newline) = (start, start, None);
        while end < text.len() {
            let (class, len) = self.class_at(text, end);
            if class != SPACE && class != NEWLINE {
                break;
            }
            last = end;
            end += len;
            if class == NEWLINE {
                after_newline = Some(end);
            }
        }
        match after_newline {
            _ if self.whole_tail && end == text.len() => end,
            Some(after_newline) => after_newline,
            None if end < text.len() && last > start => last,
            None => end,
        }
    }
}

/// Which of 64 bytes of a text are ASCII letters, a bit each. A word then ends after counting ones, in a few cycles; to
/// look at its letters one by one would make each word wait for the one before it.
#[derive(Clone, Copy)]
struct Letters {
    first: usize, // where in the text the 64 bytes begin, a multiple of 64
    bits: u64,
}

impl Letters {
    #[inline(always)]
    fn of(text: &[u8], first: usize) -> Self {
        let bits = match text[first..].first_chunk::<64>() {
            Some(block) => ascii_letters(block),
            None => {
                let mut block = [0; 64];
                block[..text.len() - first].copy_from_slice(&text[first..]);
                ascii_letters(&block)
            }
        };
        Letters { first, bits }
    }

    /// Letters from place `i` of the text on, up to the end of the 64 bytes.
    #[inline(always)]
    fn run(self, i: usize) -> usize {
        (!(self.bits >> (i - self.first))).trailing_zeros() as usize
    }
}

/// Bit k is set when byte k is an ASCII letter.
///
/// Eight bytes at a time: of a byte b < 0x80, made lower case, b + 0x1f has its top bit set when b >= 'a', b + 0x05 when
/// b > 'z', and neither sum carries into the next byte. The product moves the eight top bits together.
#[inline(always)]
fn ascii_letters(block: &[u8; 64]) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let mut bits = 0;
    for (k, eight) in block.chunks_exact(8).enumerate() {
        let eight = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        let low = (eight | (0x20 * ONES)) & (0x7f * ONES);
        let letter = (low + 0x1f * ONES) & !(low + 0x05 * ONES) & !eight & (0x80 * ONES);
        bits |= ((letter >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * k);
    }
    bits
}

/// `(?i:[sdmt]|ll|ve|re)` at `i`, behind an apostrophe. Without regard to case, `s` is also ſ (U+017F).
#[inline(never)]
fn contraction_end(text: &[u8], i: usize) -> Option<usize> {
    let lower = |k: usize| text.get(i + k).map(u8::to_ascii_lowercase);
    match (lower(0)?, lower(1)) {
        (b's' | b'd' | b'm' | b't', _) => Some(i + 1),
        (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) => Some(i + 2),
        (0xc5, Some(0xbf)) => Some(i + 2),
        _ => None,
    }
}

// --------------------------------------------------------------------------------------------- any other pattern

/// `\s+(?!\S)` goes back over a whole run of white space, and the stack of the engine holds a million states.
const MAX_SPACE_RUN: usize = 1 << 18;

/// The whole text goes through the engine. Where that gives up (a run of white space over a million characters, see
/// `MAX_SPACE_RUN`), the rest is cut at such runs: there alone the words may be others than without the limit.
fn regex_words(regex: &Regex, text: &str, visitor: &mut dyn Visitor) -> Result<(), String> {
    let mut done = 0;
    if words_of_part(regex, text, 0, &mut done, visitor).is_err() {
        let mut first = done;
        for part in parts(&text[done..]) {
            words_of_part(regex, part, first, &mut done, visitor)
                .map_err(|e| format!("the split pattern failed on a text: {e}"))?;
            first += part.len();
        }
    }
    Ok(())
}

/// The words of `part`, which begins at `first` of the text; `done` is left behind the last of them.
fn words_of_part(
    regex: &Regex,
    part: &str,
    first: usize,
    done: &mut usize,
    visitor: &mut dyn Visitor,
) -> Result<(), fancy_regex::Error> {
    for word in regex.find_iter(part) {
        let word = word?;
        if !word.as_str().is_empty() {
            visitor.word(first + word.start(), first + word.end());
            *done = first + word.end();
        }
    }
    Ok(())
}

/// `text` in parts without a run of white space over the limit; ordinary text comes back as one part.
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
