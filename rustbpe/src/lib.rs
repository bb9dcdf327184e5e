//! `rustbpe`: trains byte-pair-encoding tokenizers, called from Python (nanochat/tokenizer.py).
//!
//! Why Rust: counting and merging over gigabytes is the one part of the tokenizer where Python is too slow; encoding
//! is left to tiktoken, which reads the ranks that this gives. Build: `maturin develop --release -m rustbpe/Cargo.toml`
//!
//! ```python
//! t = rustbpe.Tokenizer()
//! t.train_from_iterator(["ab ab ab"], vocab_size=258)
//! t.get_mergeable_ranks()[256:]  # [(b"ab", 256), (b" ab", 257)]
//! ```

mod bpe;

use std::time::{Duration, Instant};

use fancy_regex::Regex;
use pyo3::exceptions::{PyTypeError, PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyString};

use bpe::{Bpe, WordCounts};

/// Texts are taken from the iterator until they hold so many bytes, then split and counted without the GIL.
const BUFFER_BYTES: usize = 8 << 20;
/// While merging, Ctrl-C is looked for this often.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

fn value_error(message: impl ToString) -> PyErr {
    PyValueError::new_err(message.to_string())
}

fn compile(pattern: &str) -> PyResult<Regex> {
    Regex::new(pattern).map_err(|e| value_error(format!("the split pattern is not a valid regular expression: {e}")))
}

/// A byte-pair-encoding tokenizer; knows the 256 bytes until it is trained.
#[pyclass(module = "rustbpe")]
struct Tokenizer {
    bpe: Bpe,
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Tokenizer { bpe: Bpe::new(compile(bpe::DEFAULT_PATTERN)?, &[]) })
    }

    /// Learn `vocab_size - 256` merges from an iterable of str, which is read once, a few megabytes at a time.
    ///
    /// Highest count first; among equal counts the smallest (left id, right id). A corpus with too few pairs gives a
    /// smaller tokenizer and a UserWarning. Ctrl-C or an error leaves the tokenizer as it was.
    #[pyo3(signature = (texts, vocab_size, pattern=None))]
    fn train_from_iterator(
        &mut self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        vocab_size: i64,
        pattern: Option<&str>,
    ) -> PyResult<()> {
        if !(256..=u32::MAX as i64).contains(&vocab_size) {
            return Err(value_error(format!("vocab_size={vocab_size}: it must hold at least the 256 bytes")));
        }
        if texts.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("texts must be an iterable of str, not one str: wrap it in a list"));
        }
        let regex = compile(pattern.unwrap_or(bpe::DEFAULT_PATTERN))?;
        let words = read_and_count(py, texts, &regex)?;
        let wanted = vocab_size as usize - 256;
        let merges = py.detach(|| {
            let mut last = Instant::now();
            bpe::learn_merges(words, wanted, || {
                if last.elapsed() < SIGNAL_INTERVAL {
                    return Ok(());
                }
                last = Instant::now();
                Python::attach(|py| py.check_signals())
            })
        })?;
        self.bpe = Bpe::new(regex, &merges);
        if merges.len() < wanted {
            let message = format!(
                "the corpus holds too few distinct pairs: {} merges learned instead of {wanted}, the vocabulary is \
                 smaller than asked\0",
                merges.len(),
            );
            let message = std::ffi::CStr::from_bytes_with_nul(message.as_bytes()).map_err(value_error)?;
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), message, 1)?;
        }
        Ok(())
    }

    /// All `(bytes, rank)`, by rank: the bytes 0..=255 first, then one entry a merge. tiktoken's `mergeable_ranks`.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u32)> {
        self.bpe.tokens.iter().zip(0..).map(|(bytes, rank)| (PyBytes::new(py, bytes), rank)).collect()
    }

    /// The split pattern.
    fn get_pattern(&self) -> &str {
        self.bpe.regex.as_str()
    }

    /// 256 + the number of merges.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.bpe.tokens.len()
    }

    /// The ids of one text.
    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        py.detach(|| self.bpe.encode(text)).map_err(value_error)
    }
}

/// Distinct words and their counts; holds the GIL only while it takes texts from the iterator.
fn read_and_count(py: Python<'_>, texts: &Bound<'_, PyAny>, regex: &Regex) -> PyResult<WordCounts> {
    let mut iterator = texts.try_iter()?;
    let mut counts = WordCounts::new();
    let mut exhausted = false;
    while !exhausted {
        let (mut buffer, mut bytes) = (Vec::<PyBackedStr>::new(), 0);
        while bytes < BUFFER_BYTES {
            let Some(text) = iterator.next() else {
                exhausted = true;
                break;
            };
            let text: PyBackedStr = text?.extract()?;
            bytes += text.len();
            buffer.push(text);
        }
        py.detach(|| bpe::count_words(regex, &buffer, &mut counts)).map_err(value_error)?;
        py.check_signals()?;
    }
    Ok(counts)
}

#[pymodule]
fn rustbpe(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Tokenizer>()
}
