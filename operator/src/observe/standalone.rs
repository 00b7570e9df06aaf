//! Watches a directory of YAML files.
//!
//! Editors save in many ways: a new file moved over the old one, a truncation and a slow write, a delete and a
//! create. So nothing is read before it has been quiet for [`SETTLE`], an emptied file is given [`EMPTY_GRACE`]
//! before it counts as empty, and the whole directory is compared by content at each event.

use super::manifests::Manifests;
use airlane_api::{FILE_BYTES_MAX, read_file};
use airlane_core::id::Namespace;
use notify::{RecursiveMode, Watcher};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Quiet time after the last event before files are read.
const SETTLE: Duration = Duration::from_millis(20);

/// How long a file that was not empty may be empty before that is believed: truncate-and-write is one save.
const EMPTY_GRACE: Duration = Duration::from_secs(1);

/// How often the directory is compared without an event: the net under a lost one.
const SWEEP: Duration = Duration::from_secs(5);

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObserveError {
    /// The directory cannot be listed.
    #[error("cannot read the directory {}", path.display())]
    List {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refuses to watch.
    #[error("cannot watch the directory {}", path.display())]
    Watch {
        /// Which.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
}

struct Seen {
    content: Vec<u8>,
    emptied_at: Option<Instant>,
}

/// A watched directory.
pub(crate) struct Directory {
    path: PathBuf,
    system_namespace: Namespace,
    seen: BTreeMap<PathBuf, Seen>,
    manifests: Manifests,
}

impl Directory {
    /// Reads the directory for the first time.
    pub(crate) fn open(path: &Path, system_namespace: Namespace) -> Result<Self, ObserveError> {
        let mut directory = Directory {
            path: path.to_owned(),
            system_namespace,
            seen: BTreeMap::new(),
            manifests: Manifests::default(),
        };
        directory.sweep(Instant::now())?;
        Ok(directory)
    }

    /// What is in force now.
    pub(crate) fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Publishes what is in force after each change, until shutdown.
    pub(crate) async fn watch(
        mut self,
        sender: watch::Sender<Arc<Manifests>>,
        shutdown: CancellationToken,
    ) -> Result<(), ObserveError> {
        let (events, mut event) = mpsc::channel(1);
        let failed = |source| ObserveError::Watch { path: self.path.clone(), source };
        let mut watcher = notify::recommended_watcher(move |_: notify::Result<notify::Event>| {
            // A full channel already holds the news that there is something to look at.
            let _ = events.try_send(());
        })
        .map_err(failed)?;
        watcher.watch(&self.path, RecursiveMode::Recursive).map_err(failed)?;
        loop {
            if let Err(error) = self.sweep(Instant::now()) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the last version of every file stays in force"
                );
            }
            sender.send_if_modified(|current| {
                let changed = **current != self.manifests;
                if changed {
                    *current = Arc::new(self.manifests.clone());
                }
                changed
            });
            let pause =
                if self.seen.values().any(|seen| seen.emptied_at.is_some()) { EMPTY_GRACE } else { SWEEP };
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
                _ = event.recv() => {
                    while tokio::time::timeout(SETTLE, event.recv()).await.is_ok_and(|event| event.is_some()) {}
                }
            }
        }
    }

    fn sweep(&mut self, now: Instant) -> Result<(), ObserveError> {
        let files =
            list(&self.path).map_err(|source| ObserveError::List { path: self.path.clone(), source })?;
        let gone: Vec<PathBuf> = self.seen.keys().filter(|file| !files.contains(file)).cloned().collect();
        for file in gone {
            self.seen.remove(&file);
            self.manifests.delete(&file);
        }
        for file in files {
            let Ok(content) = read_bounded(&file) else { continue };
            self.absorb(&file, content, now);
        }
        Ok(())
    }

    fn absorb(&mut self, file: &Path, content: Vec<u8>, now: Instant) {
        let blank = content.iter().all(u8::is_ascii_whitespace);
        if let Some(seen) = self.seen.get_mut(file) {
            if seen.content == content {
                seen.emptied_at = None;
                return;
            }
            if blank && now.duration_since(*seen.emptied_at.get_or_insert(now)) < EMPTY_GRACE {
                return;
            }
        }
        let shown = file.strip_prefix(&self.path).unwrap_or(file).display().to_string();
        let parsed = read_file(&shown, &String::from_utf8_lossy(&content), &self.system_namespace);
        for error in &parsed.errors {
            tracing::warn!("{error}");
        }
        self.manifests.read(file, parsed);
        self.seen.insert(file.to_owned(), Seen { content, emptied_at: None });
    }
}

/// The YAML and JSON files below a directory, editors' drafts left out, in order.
fn list(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden =
            path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with(['.', '#']));
        let ours = path
            .extension()
            .and_then(|ext| ext.to_str())
            .is_some_and(|ext| matches!(ext, "yaml" | "yml" | "json"));
        if hidden {
            continue;
        }
        if path.is_dir() {
            files.extend(list(&path)?);
        } else if ours {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A file's content; one byte more than the limit when it is too long, which the reader then refuses by its size.
fn read_bounded(file: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    std::fs::File::open(file)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: pay, namespace: shop }\nspec: { targetRef: { kind: Service, name: pay }, timeouts: { request: 10s } }\n";

    struct Edited {
        dir: tempfile::TempDir,
        directory: Directory,
        now: Instant,
    }

    impl Edited {
        fn with(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            for (name, text) in files {
                std::fs::write(dir.path().join(name), text).expect("written");
            }
            let directory = Directory::open(dir.path(), Namespace::parse("airlane-system").expect("a name"))
                .expect("readable");
            Edited { dir, directory, now: Instant::now() }
        }
        fn write(&mut self, name: &str, text: &str) -> (usize, usize) {
            std::fs::write(self.dir.path().join(name), text).expect("written");
            self.look()
        }
        fn look(&mut self) -> (usize, usize) {
            self.directory.sweep(self.now).expect("readable");
            let manifests = self.directory.manifests();
            (manifests.objects.len(), manifests.errors.values().map(Vec::len).sum())
        }
    }

    #[test]
    fn a_broken_edit_keeps_the_version_before() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY)]);
        assert_eq!(edited.look(), (1, 0));
        assert_eq!(edited.write("pay.yaml", &POLICY.replace("10s", "ten")), (1, 1));
        let accepted = edited.directory.manifests().objects.values().next().expect("still there");
        assert!(accepted.outdated);
        assert_eq!(edited.write("pay.yaml", POLICY), (1, 0));
    }

    #[test]
    fn half_written_files_withdraw_nothing() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY)]);
        assert_eq!(edited.write("pay.yaml", ""), (1, 0), "truncated, about to be written");
        let half = POLICY.get(..POLICY.len() - 20).expect("ASCII");
        assert_eq!(edited.write("pay.yaml", half).0, 1);
        assert_eq!(edited.write("pay.yaml", ""), (1, 1));
        edited.now += EMPTY_GRACE;
        assert_eq!(edited.look(), (0, 0), "empty for good");
    }

    #[test]
    fn deleted_files_take_their_objects_along() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY), (".draft.yaml", POLICY)]);
        assert_eq!(edited.look(), (1, 0));
        std::fs::remove_file(edited.dir.path().join("pay.yaml")).expect("removed");
        assert_eq!(edited.look(), (0, 0));
    }

    #[test]
    fn an_object_in_two_files_is_refused_in_the_second() {
        let mut edited = Edited::with(&[("a.yaml", POLICY)]);
        assert_eq!(edited.write("b.yaml", POLICY), (1, 1));
    }
}
