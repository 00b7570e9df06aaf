//! What Envoy's outlier detection did: its event log, followed and kept until the operator has it.

use airlane_wire::{message::OutlierEvent, operator::OUTLIERS_PER_HEARTBEAT};
use serde::Deserialize;
use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

/// Events kept while the operator is away; older ones go first.
const EVENTS_MAX: usize = 256;

/// The log is emptied when it has grown to this, in bytes.
const LOG_BYTES_MAX: u64 = 1024 * 1024;

/// At most this much is read at once, in bytes; a longer line is no event.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Events that the operator does not have yet.
#[derive(Debug)]
pub(crate) struct Outliers {
    log: PathBuf,
    offset: u64,
    /// The start of a line whose end is not written yet.
    partial: Vec<u8>,
    waiting: VecDeque<OutlierEvent>,
}

impl Outliers {
    /// Follows `log`, which need not exist yet.
    pub(crate) fn following(log: PathBuf) -> Self {
        Self { log, offset: 0, partial: Vec::new(), waiting: VecDeque::new() }
    }

    /// Takes in what was written since the last time; true if there was an event.
    ///
    /// Reads at most [`READ_BYTES_MAX`] from a file of this run's own folder, so it is not worth another thread.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        let mut file = match File::open(&self.log) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() < self.offset {
            self.offset = 0;
            self.partial.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.take(READ_BYTES_MAX as u64).read_to_end(&mut self.partial)?;
        self.offset += read as u64;
        let news = self.take_lines();
        if self.offset > LOG_BYTES_MAX && read < READ_BYTES_MAX {
            // Envoy appends, so it goes on at the new end. An event written since the read is lost; keeping a
            // log that grows for ever would cost more.
            OpenOptions::new().write(true).open(&self.log)?.set_len(0)?;
            self.offset = 0;
        }
        Ok(news)
    }

    /// The oldest events, as many as one heartbeat may carry.
    pub(crate) fn waiting(&self) -> Vec<OutlierEvent> {
        self.waiting.iter().take(OUTLIERS_PER_HEARTBEAT).cloned().collect()
    }

    /// The operator has the `count` oldest.
    pub(crate) fn acknowledged(&mut self, count: usize) {
        self.waiting.drain(..count.min(self.waiting.len()));
    }

    fn take_lines(&mut self) -> bool {
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            if self.partial.len() >= READ_BYTES_MAX {
                self.partial.clear();
            }
            return false;
        };
        let rest = self.partial.split_off(end + 1);
        let lines = std::mem::replace(&mut self.partial, rest);
        let mut news = false;
        for event in lines.split(|byte| *byte == b'\n').filter_map(event) {
            news = true;
            if self.waiting.len() == EVENTS_MAX {
                self.waiting.pop_front();
            }
            self.waiting.push_back(event);
        }
        news
    }
}

/// `envoy.data.cluster.v3.OutlierDetectionEvent` in JSON, where a field at its default may be absent.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    r#type: Option<String>,
    cluster_name: String,
    upstream_url: String,
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    num_ejections: u32,
    #[serde(default)]
    enforced: bool,
    timestamp: jiff::Timestamp,
}

/// The event of a line; `None` if the line is none, or tells of an ejection that Envoy only considered.
fn event(line: &[u8]) -> Option<OutlierEvent> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let ejected = line.action.as_deref() != Some("UNEJECT");
    (line.enforced || !ejected).then(|| OutlierEvent {
        cluster: line.cluster_name,
        upstream: line.upstream_url,
        ejected,
        reason: line.r#type.unwrap_or_else(|| "CONSECUTIVE_5XX".into()),
        ejections: line.num_ejections,
        at_ms: line.timestamp.as_millisecond(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const EJECT: &str = r#"{"type":"CONSECUTIVE_GATEWAY_FAILURE","cluster_name":"8080|pay|shop","upstream_url":"127.0.0.1:9001","action":"EJECT","num_ejections":2,"enforced":true,"eject_consecutive_event":{},"timestamp":"2025-11-20T10:00:00.250Z"}"#;

    fn check(line: &str, expected: Option<(bool, &str, u32)>) {
        let found = event(line.as_bytes());
        let told = found.as_ref().map(|e| (e.ejected, e.reason.as_str(), e.ejections));
        assert_eq!(told, expected, "{line}");
    }

    #[test]
    fn reads_what_envoy_writes() {
        check(EJECT, Some((true, "CONSECUTIVE_GATEWAY_FAILURE", 2)));
        check(
            r#"{"cluster_name":"c","upstream_url":"u","action":"UNEJECT","num_ejections":1,"timestamp":"2025-11-20T10:00:00Z","secs_since_last_action":"30"}"#,
            Some((false, "CONSECUTIVE_5XX", 1)),
        );
        check(&EJECT.replace("\"enforced\":true", "\"enforced\":false"), None);
        check("", None);
        check("not json", None);
        assert_eq!(event(EJECT.as_bytes()).map(|e| e.at_ms), Some(1_763_632_800_250));
    }

    struct Log {
        file: File,
        outliers: Outliers,
        _dir: tempfile::TempDir,
    }

    fn log() -> Log {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let file = OpenOptions::new().create(true).append(true).open(&path).expect("a file");
        Log { file, outliers: Outliers::following(path), _dir: dir }
    }

    #[test]
    fn follows_a_log_line_by_line() {
        let mut log = log();
        assert!(!log.outliers.read().expect("read"));
        let (head, tail) = EJECT.split_at(40);
        write!(log.file, "{head}").expect("written");
        assert!(!log.outliers.read().expect("read"));
        write!(log.file, "{tail}\n{EJECT}\n").expect("written");
        assert!(log.outliers.read().expect("read"));
        assert_eq!(log.outliers.waiting().len(), 2);
        log.outliers.acknowledged(1);
        assert!(!log.outliers.read().expect("read"));
        assert_eq!(log.outliers.waiting().len(), 1);
    }

    #[test]
    fn keeps_the_newest_and_empties_a_long_log() {
        let mut log = log();
        let lines = EVENTS_MAX + LOG_BYTES_MAX as usize / EJECT.len();
        for n in 0..lines {
            let line = EJECT.replace("\"num_ejections\":2", &format!("\"num_ejections\":{n}"));
            writeln!(log.file, "{line}").expect("written");
        }
        while log.outliers.read().expect("read") {}
        assert_eq!(log.outliers.waiting().len(), OUTLIERS_PER_HEARTBEAT);
        assert_eq!(log.outliers.waiting.len(), EVENTS_MAX);
        assert_eq!(log.outliers.waiting.back().map(|e| e.ejections as usize), Some(lines - 1));
        assert_eq!(log.file.metadata().expect("metadata").len(), 0);
        writeln!(log.file, "{EJECT}").expect("written");
        assert!(log.outliers.read().expect("read"));
    }
}
