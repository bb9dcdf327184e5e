//! `rustbpe`: byte-pair-encoding tokenizers, trained and applied at speed, for Python (nanochat/tokenizer.py).
//!
//! Why Rust: counting, merging and encoding gigabytes is the one part of the tokenizer where Python is too slow.
//! Build: `maturin develop --release -m rustbpe/Cargo.toml`. The way of a text:
//!
//! ```text
//! feed.rs     Python iterator -> batches -> threads
//! split.rs    text -> words (unicode.rs: which characters are letters)
//! count.rs    words -> counts (words.rs: the hash table)       learn.rs   counts -> merges
//! encode.rs   words -> ids
//! ```
//!
//! ```python
//! t = rustbpe.Tokenizer()
//! t.train_from_iterator(["ab ab ab"], vocab_size=258)
//! t.get_mergeable_ranks()[256:]  # [(b"ab", 256), (b" ab", 257)]
//! t.encode("ab ab")              # [256, 257]
//! ```

mod count;
mod encode;
mod feed;
mod learn;
mod split;
mod unicode;
mod words;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use pyo3::exceptions::{PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyString};

use count::WordCounts;
use encode::Encoder;
use split::{Splitter, Visitor, DEFAULT_PATTERN};

fn value_error(message: impl ToString) -> PyErr {
    PyValueError::new_err(message.to_string())
}

/// A byte-pair-encoding tokenizer; knows the 256 bytes until it is trained.
///
/// Any number of threads may encode at a time, also while it is trained: they have the old vocabulary until the end.
#[pyclass(module = "rustbpe", frozen)]
struct Tokenizer {
    encoder: RwLock<Arc<Encoder>>,
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> PyResult<Self> {
        Self::with_tokens(single_bytes(), Splitter::new(DEFAULT_PATTERN).map_err(value_error)?)
    }

    /// A trained tokenizer from its `(bytes, rank)` and split pattern. Ranks are 0, 1, 2, ...; every byte has one.
    #[staticmethod]
    fn from_ranks(ranks: Vec<(Vec<u8>, u32)>, pattern: &str) -> PyResult<Self> {
        let mut tokens = vec![None; ranks.len()];
        for (bytes, rank) in ranks {
            match tokens.get_mut(rank as usize) {
                Some(token @ None) => *token = Some(bytes),
                _ => return Err(value_error(format!("rank {rank} occurs twice, or a rank below it is missing"))),
            }
        }
        Self::with_tokens(tokens.into_iter().flatten().collect(), Splitter::new(pattern).map_err(value_error)?)
    }

    /// Learn `vocab_size - 256` merges from an iterable of str, which is read once, a small part at a time.
    ///
    /// Highest count first; among equal counts the smallest (left id, right id). A corpus with too few pairs gives a
    /// smaller tokenizer and a UserWarning. Ctrl-C or an error leaves the tokenizer as it was; Ctrl-C is looked for ten
    /// times a second, but not inside of one text nor while all pairs are counted. Lone surrogates count as
    /// U+FFFD. `progress(stage, done, total)` is called about ten times a second: ("counting", words, None), then
    /// ("merging", merges, merges wanted).
    #[pyo3(signature = (texts, vocab_size, pattern=None, progress=None))]
    fn train_from_iterator(
        &self,
        texts: &Bound<'_, PyAny>,
        vocab_size: i64,
        pattern: Option<&str>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = texts.py();
        if !(256..=u32::MAX as i64).contains(&vocab_size) {
            return Err(value_error(format!("vocab_size={vocab_size}: from 256, the bytes, to {}", u32::MAX)));
        }
        let wanted = vocab_size as usize - 256;
        let splitter = Splitter::new(pattern.unwrap_or(DEFAULT_PATTERN)).map_err(value_error)?;
        let progress = progress.map(|progress| progress.clone().unbind());
        let tell = |py: Python<'_>, stage: &str, done: u64, total: Option<usize>| match &progress {
            Some(progress) => progress.call1(py, (stage, done, total)).map(drop),
            None => Ok(()),
        };

        let words = AtomicU64::new(0);
        let counts = feed::feed(
            texts,
            feed::threads(0),
            || (splitter.another(), WordCounts::new()),
            |(splitter, counts), batch| {
                for text in batch.texts() {
                    words.fetch_add(counts.add(splitter, text)?, Ordering::Relaxed);
                }
                Ok(())
            },
            || {
                py.check_signals()?;
                tell(py, "counting", words.load(Ordering::Relaxed), None)
            },
        )?;
        tell(py, "counting", words.load(Ordering::Relaxed), None)?;
        let merges = py.detach(|| {
            let mut counts = counts.into_iter().map(|(_, counts)| counts);
            let mut all = counts.next().unwrap_or_else(WordCounts::new);
            counts.for_each(|counts| all.merge(counts));
            let mut words = learn::Words::new(&all).map_err(value_error)?;
            drop(all);
            let mut last = Instant::now();
            learn::learn_merges(&mut words, wanted, |done| {
                if last.elapsed() < feed::INTERVAL {
                    return Ok(());
                }
                last = Instant::now();
                Python::attach(|py| {
                    py.check_signals()?;
                    tell(py, "merging", done as u64, Some(wanted))
                })
            })
        })?;
        tell(py, "merging", merges.len() as u64, Some(wanted))?;

        let mut tokens = single_bytes();
        for &(left, right) in &merges {
            tokens.push([tokens[left as usize].as_slice(), tokens[right as usize].as_slice()].concat());
        }
        let encoder = Encoder::trained(tokens, splitter);
        if merges.len() < wanted {
            let message = format!(
                "the corpus holds too few distinct pairs: {} merges learned instead of {wanted}, the vocabulary is \
                 smaller than asked\0",
                merges.len(),
            );
            let message = std::ffi::CStr::from_bytes_with_nul(message.as_bytes()).map_err(value_error)?;
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), message, 1)?;
        }
        *self.encoder.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(encoder);
        Ok(())
    }

    /// All `(bytes, rank)`, by rank; after training the bytes 0..=255 first, then one entry a merge.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u32)> {
        self.encoder().tokens().iter().zip(0..).map(|(bytes, rank)| (PyBytes::new(py, bytes), rank)).collect()
    }

    /// The split pattern.
    fn get_pattern(&self) -> String {
        self.encoder().splitter().pattern().to_owned()
    }

    /// 256 + the number of merges.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.encoder().tokens().len()
    }

    /// The words of a text, inside which tokens are merged.
    ///
    /// Patterns of the GPT-4 family are split by hand; to see the regex engine do it, write the pattern as `(?:...)`.
    fn split(&self, text: &Bound<'_, PyString>) -> PyResult<Vec<String>> {
        let mut buffer = String::new();
        feed::append(&mut buffer, text)?;
        let mut words = Words { text: &buffer, words: Vec::new() };
        self.encoder().splitter().split(&buffer, &mut words).map_err(value_error)?;
        Ok(words.words)
    }

    /// The ids of one text.
    fn encode(&self, text: &Bound<'_, PyString>) -> PyResult<Vec<u32>> {
        Ok(self.encode_and_measure(text)?.0)
    }

    /// `(ids, steps)`: also how many places in words were looked at that no cache knew. What a test of linear time
    /// needs: at most 48 a byte.
    fn encode_and_measure(&self, text: &Bound<'_, PyString>) -> PyResult<(Vec<u32>, u64)> {
        let mut buffer = String::new();
        feed::append(&mut buffer, text)?;
        let encoder = self.encoder();
        text.py().detach(|| {
            encoder.with_cache(|cache| {
                let (mut ids, before) = (Vec::new(), cache.steps);
                let splitter = encoder.splitter();
                encoder.encode(splitter, &buffer, cache, &mut ids).map_err(value_error)?;
                Ok((ids, cache.steps - before))
            })
        })
    }

    /// The ids of many texts in two flat arrays, on `num_threads` threads (0: all cores), without the GIL.
    ///
    /// Returns `(ids, offsets)` as bytearrays for `numpy.frombuffer`: ids are uint16 while they all fit, else uint32;
    /// offsets are int64. Text i is `ids[offsets[i]:offsets[i + 1]]`.
    #[pyo3(signature = (texts, num_threads=0))]
    fn encode_batch<'py>(
        &self,
        texts: &Bound<'py, PyAny>,
        num_threads: usize,
    ) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        let py = texts.py();
        let encoder = self.encoder();
        let width = if encoder.tokens().len() <= 1 << 16 { 2 } else { 4 };
        let done = feed::feed(
            texts,
            feed::threads(num_threads),
            || (encoder.splitter().another(), Vec::new(), Vec::new()),
            |(splitter, ids, done), batch| {
                ids.clear();
                let mut encoded = Encoded { batch: batch.number, ids: Vec::new(), ends: Vec::new() };
                encoder.with_cache(|cache| {
                    for text in batch.texts() {
                        encoder.encode(splitter, text, cache, ids)?;
                        encoded.ends.push(ids.len());
                    }
                    encoded.ids = narrow(ids, width);
                    Ok::<(), String>(())
                })?;
                done.push(encoded);
                Ok(())
            },
            || py.check_signals(),
        )?;
        let mut done: Vec<Encoded> = done.into_iter().flat_map(|(.., done)| done).collect();
        done.sort_by_key(|encoded| encoded.batch);
        let mut offsets = vec![0u64];
        for encoded in &done {
            let first = offsets[offsets.len() - 1];
            offsets.extend(encoded.ends.iter().map(|&end| first + end as u64));
        }
        let ids = PyByteArray::new_with(py, done.iter().map(|encoded| encoded.ids.len()).sum(), |mut rest| {
            for encoded in &done {
                let (here, behind) = rest.split_at_mut(encoded.ids.len());
                here.copy_from_slice(&encoded.ids);
                rest = behind;
            }
            Ok(())
        })?;
        let offsets: Vec<u8> = offsets.into_iter().flat_map(u64::to_ne_bytes).collect();
        Ok((ids, PyByteArray::new(py, &offsets)))
    }
}

impl Tokenizer {
    fn encoder(&self) -> Arc<Encoder> {
        self.encoder.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with_tokens(tokens: Vec<Vec<u8>>, splitter: Splitter) -> PyResult<Self> {
        Ok(Tokenizer { encoder: RwLock::new(Arc::new(Encoder::new(tokens, splitter).map_err(value_error)?)) })
    }
}

/// Collects words as strings.
struct Words<'a> {
    text: &'a str,
    words: Vec<String>,
}

impl Visitor for Words<'_> {
    fn word(&mut self, start: usize, end: usize) {
        self.words.push(self.text[start..end].to_owned());
    }
}

fn single_bytes() -> Vec<Vec<u8>> {
    (0..=255).map(|byte| vec![byte]).collect()
}

/// The ids of one batch as bytes, and where each of its texts ends (in ids).
struct Encoded {
    batch: usize,
    ids: Vec<u8>,
    ends: Vec<usize>,
}

/// `ids` as bytes in the machine's order, `width` (2 or 4) a number.
fn narrow(ids: &[u32], width: usize) -> Vec<u8> {
    let mut bytes = vec![0; width * ids.len()];
    if width == 2 {
        bytes.chunks_exact_mut(2).zip(ids).for_each(|(two, &id)| two.copy_from_slice(&(id as u16).to_ne_bytes()));
    } else {
        bytes.chunks_exact_mut(4).zip(ids).for_each(|(four, &id)| four.copy_from_slice(&id.to_ne_bytes()));
    }
    bytes
}

#[pymodule]
fn rustbpe(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("UNICODE_VERSION", unicode::UNICODE_VERSION)?;
    m.add_class::<Tokenizer>()
}
