//! Texts from a Python iterator to worker threads: the one place where the GIL and threads meet.
//!
//! The calling thread takes texts from the iterator and copies them into batches of about a megabyte; workers take the
//! batches. The GIL is let go whenever there is something to wait for, and Ctrl-C is looked for ten times a second. A
//! few batches exist at a time, however long the iterator is.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyString};

use crate::value_error;

/// A batch holds texts of about so many bytes in all (or one longer text).
const BATCH_BYTES: usize = 1 << 18;
/// Ctrl-C is looked for, and progress told, this often.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// Some texts, one behind the other in one buffer.
#[derive(Default)]
pub struct Batch {
    /// 0, 1, 2, ... in the order of the iterator.
    pub number: usize,
    buffer: String,
    ends: Vec<usize>,
}

impl Batch {
    /// The next texts of the iterator, in the memory of a batch that is done with, and whether there may be more.
    fn take(iterator: &mut Bound<'_, PyIterator>, number: usize, old: Option<Batch>) -> PyResult<(Self, bool)> {
        let mut batch = old.unwrap_or_default();
        batch.number = number;
        batch.buffer.clear();
        batch.ends.clear();
        while batch.buffer.len() < BATCH_BYTES {
            let Some(text) = iterator.next() else { return Ok((batch, false)) };
            let text = text?;
            let Ok(text) = text.cast::<PyString>() else {
                return Err(PyTypeError::new_err(format!("a text must be a str, not {}", text.get_type().name()?)));
            };
            append(&mut batch.buffer, text)?;
            batch.ends.push(batch.buffer.len());
        }
        Ok((batch, true))
    }

    pub fn texts(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.ends.len()).map(|i| {
            let start = if i == 0 { 0 } else { self.ends[i - 1] };
            &self.buffer[start..self.ends[i]]
        })
    }
}

/// `text` as UTF-8. Lone surrogates become U+FFFD, as with tiktoken.
pub fn append(buffer: &mut String, text: &Bound<'_, PyString>) -> PyResult<()> {
    if text.call_method0("isascii")?.extract()? {
        buffer.push_str(text.to_str()?); // the bytes of the str object itself
        return Ok(());
    }
    // Not `to_str`: it would leave a copy in the object, and so double the memory of whoever holds the texts.
    match text.encode_utf8() {
        Ok(bytes) => buffer.push_str(std::str::from_utf8(bytes.as_bytes()).map_err(value_error)?),
        Err(e) if e.is_instance_of::<PyUnicodeEncodeError>(text.py()) => {
            let utf16 = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
            let mended = utf16.call_method1("decode", ("utf-16", "replace"))?;
            buffer.push_str(mended.cast::<PyString>()?.to_str()?);
        }
        Err(e) => return Err(e),
    }
    Ok(())
}

/// The number of threads that `num_threads` stands for; 0: as many as there are cores for this process.
pub fn threads(num_threads: usize) -> usize {
    match num_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// Deal out all texts to `num_threads` workers, each with a state of its own, and return the states.
///
/// `tick` is called ten times a second with the GIL held; an error of it, of the iterator or of a worker ends all.
pub fn feed<S: Send>(
    texts: &Bound<'_, PyAny>,
    num_threads: usize,
    new_state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &Batch) -> Result<(), String> + Sync,
    mut tick: impl FnMut() -> PyResult<()>,
) -> PyResult<Vec<S>> {
    let py = texts.py();
    if texts.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("texts must be an iterable of str, not one str: wrap it in a list"));
    }
    let mut iterator = texts.try_iter()?;
    let (first, more) = Batch::take(&mut iterator, 0, None)?;
    if !more {
        return py.detach(|| {
            let mut state = new_state();
            work(&mut state, &first).map_err(value_error)?;
            Ok(vec![state])
        });
    }
    let (sender, receiver) = sync_channel::<Batch>(num_threads);
    let receiver = Mutex::new(receiver);
    let (give_back, done) = channel::<Batch>(); // memory that is fresh from the system costs more than the copying
    let stop = AtomicBool::new(false); // set: batches are still taken, so that nobody waits for ever, but not worked on
    let worker = || {
        let (mut state, mut result) = (new_state(), Ok(()));
        loop {
            let batch = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = batch else { return result.map(|()| state) };
            if !stop.load(Ordering::Relaxed) {
                // A worker that panicked would leave this thread waiting for somebody to take the next batch.
                let worked = catch_unwind(AssertUnwindSafe(|| work(&mut state, &batch)));
                result = worked.unwrap_or_else(|_| Err("a worker thread panicked: please report this".to_owned()));
                stop.fetch_or(result.is_err(), Ordering::Relaxed);
            }
            let _ = give_back.send(batch);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..num_threads).map(|_| scope.spawn(worker)).collect();
        let send_all = || -> PyResult<()> {
            let (mut next, mut more, mut last) = (first, more, Instant::now());
            loop {
                let number = next.number + 1;
                py.detach(|| sender.send(next)).map_err(|_| PyRuntimeError::new_err("no worker is left"))?;
                if last.elapsed() > INTERVAL {
                    last = Instant::now();
                    tick()?;
                }
                if !more || stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                (next, more) = Batch::take(&mut iterator, number, done.try_recv().ok())?;
            }
        };
        let sent = send_all();
        stop.fetch_or(sent.is_err(), Ordering::Relaxed);
        drop(sender);
        let states: Vec<_> = py.detach(|| workers.into_iter().map(|worker| worker.join()).collect());
        sent?;
        states.into_iter().map(|state| state.expect("a worker catches its panics").map_err(value_error)).collect()
    })
}
