//! Texts from a Python iterator to worker threads: the one place where the GIL and threads meet.
//!
//! The calling thread takes texts from the iterator and copies them into batches; workers take the batches and give
//! their memory back. The GIL is let go whenever there is something to wait for. A few batches exist at a time, however
//! long the iterator is. Ten times a second Ctrl-C is looked for and progress told; a text that a worker has begun is
//! finished first.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyString};

use crate::value_error;

/// A batch ends when it holds so many bytes or texts (or one longer text), or has been waited for so long.
const BATCH_BYTES: usize = 1 << 18;
const BATCH_TEXTS: usize = 1 << 13;
pub const INTERVAL: Duration = Duration::from_millis(100);

const MOST_THREADS: usize = 256;

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
    fn take(iterator: &mut Bound<'_, PyIterator>, number: usize, old: Batch) -> PyResult<(Self, bool)> {
        let mut batch = old;
        batch.number = number;
        batch.buffer.clear();
        batch.ends.clear();
        let begin = Instant::now();
        while batch.buffer.len() < BATCH_BYTES && batch.ends.len() < BATCH_TEXTS && begin.elapsed() < INTERVAL {
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
    let str_type = text.py().get_type::<PyString>(); // its own methods: those of a subclass may do anything
    if str_type.call_method1("isascii", (text,))?.extract()? {
        buffer.push_str(text.to_str()?); // the bytes of the str object itself
        return Ok(());
    }
    // Not `to_str`: it would leave a copy in the object, and so double the memory of whoever holds the texts.
    match text.encode_utf8() {
        Ok(bytes) => buffer.push_str(std::str::from_utf8(bytes.as_bytes()).map_err(value_error)?),
        Err(e) if e.is_instance_of::<PyUnicodeEncodeError>(text.py()) => {
            let utf16 = str_type.call_method1("encode", (text, "utf-16", "surrogatepass"))?;
            let mended = utf16.cast::<PyBytes>()?.call_method1("decode", ("utf-16", "replace"))?;
            buffer.push_str(mended.cast::<PyString>()?.to_str()?);
        }
        Err(e) => return Err(e),
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of threads that `num_threads` stands for; 0: as many as there are cores for this process.
pub fn threads(num_threads: usize) -> usize {
    match num_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n.min(MOST_THREADS),
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
    // A worker that panicked would leave this thread waiting for its batch, so a panic becomes an error.
    let work = |state: &mut S, batch: &Batch| match catch_unwind(AssertUnwindSafe(|| work(state, batch))) {
        Ok(worked) => worked.map_err(value_error),
        Err(_) => Err(PyRuntimeError::new_err("rustbpe panicked: please report this")),
    };
    let mut iterator = texts.try_iter()?;
    let (first, more) = Batch::take(&mut iterator, 0, Batch::default())?;
    if !more && first.buffer.len() < BATCH_BYTES {
        return py.detach(|| {
            let mut state = new_state(); // too little for a thread
            work(&mut state, &first).map(|()| vec![state])
        });
    }

    let (sender, receiver) = channel::<Batch>();
    let receiver = Mutex::new(receiver);
    let (give_back, done) = channel::<Batch>();
    let done = Mutex::new(done); // for `detach`, which wants what it uses to be shareable
    let stop = AtomicBool::new(false); // set: batches are given back as they are
    let worker = || {
        let (mut state, mut failed) = (new_state(), None);
        loop {
            let batch = lock(&receiver).recv();
            let Ok(batch) = batch else { return (state, failed) };
            if !stop.load(Ordering::Relaxed) {
                if let Err(e) = work(&mut state, &batch) {
                    failed = Some((batch.number, e));
                    stop.store(true, Ordering::Relaxed);
                }
            }
            let _ = give_back.send(batch);
        }
    };
    std::thread::scope(|scope| {
        let spawn = |_| Builder::new().spawn_scoped(scope, worker).ok();
        let workers: Vec<_> = (0..num_threads).map_while(spawn).collect(); // as many as the system gives
        if workers.is_empty() {
            return Err(PyRuntimeError::new_err("the system gives no thread"));
        }
        let deal = || -> PyResult<()> {
            let (mut next, mut more) = (Some(first), more);
            let (mut out, mut last, mut idle) = (0, Instant::now(), Batch::default()); // out: batches not yet back
            while next.is_some() || out > 0 {
                if let Some(batch) = next.take_if(|_| out < 2 * workers.len()) {
                    let number = batch.number + 1;
                    sender.send(batch).expect("the receiver outlives the sender");
                    out += 1;
                    if more && !stop.load(Ordering::Relaxed) {
                        let (batch, there_is_more) = Batch::take(&mut iterator, number, std::mem::take(&mut idle))?;
                        (next, more) = (Some(batch), there_is_more);
                    }
                } else if let Ok(batch) = py.detach(|| lock(&done).recv_timeout(INTERVAL)) {
                    out -= 1;
                    if batch.buffer.capacity() <= 4 * BATCH_BYTES {
                        idle = batch; // what one long text has stretched is not kept
                    }
                }
                if last.elapsed() > INTERVAL {
                    last = Instant::now();
                    tick()?;
                }
            }
            Ok(())
        };
        let dealt = deal();
        stop.fetch_or(dealt.is_err(), Ordering::Relaxed);
        drop(sender);
        let ended: Vec<_> = py.detach(|| workers.into_iter().map(|worker| worker.join()).collect());
        dealt?;
        let (states, failed): (Vec<_>, Vec<_>) =
            ended.into_iter().map(|one| one.expect("its panics are caught")).unzip();
        match failed.into_iter().flatten().min_by_key(|(number, _)| *number) {
            Some((_, error)) => Err(error),
            None => Ok(states),
        }
    })
}
