//! When proxies acknowledged, as the operator logs it.

use super::{LONGEST, LOOK};
use airlane_tests::until::until_often;
use jiff::Timestamp;
use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    time::Duration,
};

/// What has the operator log them.
pub(super) const LOGGED: &str = "info,airlane::xds=debug";

/// The end of an operator's log.
pub(super) struct Acknowledgements {
    log: File,
    /// The beginning of a line that is not written to its end.
    unfinished: String,
}

impl Acknowledgements {
    /// Those that come from now on.
    pub(super) fn of(log: &Path) -> Acknowledgements {
        let mut log = File::open(log).unwrap();
        log.seek(SeekFrom::End(0)).unwrap();
        Acknowledgements { log, unfinished: String::new() }
    }

    /// Waits for the first one since `cause`, and gives how long after that it was.
    pub(super) async fn after(&mut self, cause: Timestamp) -> Duration {
        until_often("the change is acknowledged", LONGEST, LOOK, async || {
            self.log.read_to_string(&mut self.unfinished).unwrap();
            let mut found = None;
            while let Some((line, rest)) = self.unfinished.split_once('\n') {
                let acknowledged = line.contains("a proxy acknowledged");
                let at: Option<Timestamp> = line.split(' ').next().and_then(|at| at.parse().ok());
                if let Some(at) = at.filter(|at| acknowledged && *at >= cause) {
                    found = found.or(Some(at));
                }
                self.unfinished = rest.to_owned();
            }
            let at = found.ok_or("not yet")?;
            Ok(at.duration_since(cause).unsigned_abs())
        })
        .await
    }
}
