//! `airlane socket`: carries bytes between the standard streams and the operator's socket on this host, for a command
//! line that is elsewhere and reaches this host's programs only.

use anyhow::Context as _;
use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    thread,
};

/// Carries until the operator ends the conversation, or nobody reads what it says.
///
/// # Errors
/// If no operator answers, or the conversation breaks.
pub(crate) fn carry(state: &Path) -> anyhow::Result<()> {
    let socket = state.join("airlane.sock");
    let mut operator = UnixStream::connect(&socket)
        .with_context(|| format!("no operator answers at {}", socket.display()))?;
    let mut asking = operator.try_clone()?;
    // It ends with the process: nothing else wakes whoever reads the standard input.
    thread::spawn(move || {
        // Why it broke, the other direction says.
        let _ = copy(&mut io::stdin().lock(), &mut asking);
        let _ = asking.shutdown(Shutdown::Write);
    });
    copy(&mut operator, &mut io::stdout().lock()).context("the conversation broke")
}

/// As [`io::copy`], but nothing waits for more.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
