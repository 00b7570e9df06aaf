//! What a command says.
//!
//! Whatever a command does, it does to its end, also when nobody listens any more; what became of its words is asked
//! then.

use anyhow::Context;
use std::{
    io::{self, ErrorKind, Write},
    sync::Mutex,
};

/// Why the first words were lost that were.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints to standard output.
pub(super) fn say(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && let Ok(mut lost) = LOST.lock()
    {
        lost.get_or_insert(error);
    }
}

/// Tells the caller what does not belong to the answer.
pub(crate) fn tell(note: &str) {
    // Where should it be told that this is lost?
    let _ = writeln!(io::stderr(), "{note}");
}

/// Whether all that was said is written. A closed pipe is the reader's way to say "enough".
///
/// # Errors
/// Why the answer is not whole.
pub(crate) fn heard() -> anyhow::Result<()> {
    match LOST.lock().ok().and_then(|mut lost| lost.take()) {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("the answer is not whole: cannot write to the standard output")
        }
        _ => Ok(()),
    }
}
