//! Watches a directory of YAML files.
//!
//! Editors save in many ways: a new file moved over the old one, a truncation and a slow write, a delete and a
//! create. So nothing is read before it has been quiet for as long as [`Saving`] says, a file that was emptied or is
//! gone is given [`GRACE`] before that is believed, and the whole directory is compared by content at each event.
//! What cannot be read is told, and keeps what it said before.

use super::{
    declared::Declared,
    manifests::{Manifests, is_draft, is_manifest},
    saving::Saving,
};
use airlane_api::{FILE_BYTES_MAX, FileError, Location, read_bytes};
use airlane_core::id::Namespace;
use notify::{RecursiveMode, Watcher};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a file may be empty or gone before that is believed: truncate-and-write is one save, and so is
/// delete-and-create.
const GRACE: Duration = Duration::from_secs(1);

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
    /// `None`: it cannot be read.
    content: Option<Vec<u8>>,
    /// Since when it is empty or gone, and may be about to be written again.
    vacant_since: Option<Instant>,
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
    pub(crate) fn declared(&self) -> &Declared {
        self.manifests.declared()
    }

    /// Publishes what is in force after each change, until shutdown.
    pub(crate) async fn watch(
        mut self,
        sender: watch::Sender<Arc<Declared>>,
        shutdown: CancellationToken,
    ) -> Result<(), ObserveError> {
        let (events, mut saving) = watch::channel(Saving::default());
        let saves = events.clone();
        let failed = |source| ObserveError::Watch { path: self.path.clone(), source };
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // What went wrong is found by looking.
            events.send_if_modified(|saving| event.map_or(true, |event| saving.note(&event)));
        })
        .map_err(failed)?;
        watcher.watch(&self.path, RecursiveMode::Recursive).map_err(failed)?;
        let mut watched = true;
        loop {
            match self.sweep(Instant::now()) {
                Ok(()) if watched => {}
                // The kernel watched the directory that was here before; until it watches, the sweep finds what changes.
                Ok(()) => {
                    let _ = watcher.unwatch(&self.path);
                    watched = watcher.watch(&self.path, RecursiveMode::Recursive).is_ok();
                }
                Err(_) => watched = false,
            }
            sender.send_if_modified(|current| {
                let changed = **current != *self.declared();
                if changed {
                    tell_changes(current, self.declared());
                    *current = Arc::new(self.declared().clone());
                }
                changed
            });
            let pause =
                if self.seen.values().any(|seen| seen.vacant_since.is_some()) { GRACE } else { SWEEP };
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = sleep(pause) => {}
                _ = saving.changed() => {
                    // One who never stops saving does not keep the others' files from being read.
                    let _ = shutdown.run_until_cancelled(timeout(SWEEP, quiet(&mut saving))).await;
                    saves.send_if_modified(|saving| {
                        saving.over();
                        false
                    });
                }
            }
        }
    }

    /// Compares the directory with what was seen of it. One that cannot be listed is an error of its own among those
    /// declared, and what was in it stays in force.
    fn sweep(&mut self, now: Instant) -> Result<(), ObserveError> {
        let mut listing = Listing::default();
        if let Err(source) = listing.list(&self.path) {
            let path = self.path.clone();
            let mend =
                "bring it back, and let the operator read it: the last version of its files is in force";
            self.refuse_directory(&path, &source, mend);
            self.manifests.settle();
            return Err(ObserveError::List { path, source });
        }
        let Listing { files, unreadable, .. } = listing;
        let mut present: BTreeSet<PathBuf> = unreadable.keys().cloned().collect();
        for (directory, error) in unreadable {
            present.extend(self.seen.keys().filter(|file| file.starts_with(&directory)).cloned());
            self.refuse_directory(&directory, &error, "let the operator read this directory");
        }
        for file in files {
            match read_bounded(&file) {
                Ok(content) => self.absorb(&file, content, now),
                // It went since it was listed; a link that leads nowhere is still there.
                Err(Unreadable::Failed(error))
                    if error.kind() == ErrorKind::NotFound && file.symlink_metadata().is_err() =>
                {
                    continue;
                }
                Err(unreadable) => self.refuse(&file, unreadable.told(&self.shown(&file))),
            }
            present.insert(file);
        }
        let gone: Vec<PathBuf> =
            self.manifests.files().filter(|file| !present.contains(*file)).cloned().collect();
        for file in gone {
            let since = self.seen.get_mut(&file).map(|seen| *seen.vacant_since.get_or_insert(now));
            if since.is_some_and(|since| now.duration_since(since) < GRACE) {
                self.manifests.leave(&file);
            } else {
                self.seen.remove(&file);
                self.manifests.delete(&file);
            }
        }
        self.manifests.settle();
        Ok(())
    }

    fn absorb(&mut self, file: &Path, content: Vec<u8>, now: Instant) {
        let blank = content.iter().all(u8::is_ascii_whitespace);
        if let Some(seen) = self.seen.get_mut(file) {
            if seen.content.as_ref() == Some(&content) && seen.vacant_since.is_none() {
                return;
            }
            if blank && now.duration_since(*seen.vacant_since.get_or_insert(now)) < GRACE {
                return;
            }
        }
        let parsed = read_bytes(&self.shown(file), &content, &self.system_namespace);
        for error in &parsed.errors {
            tracing::warn!("{error}");
        }
        if parsed.passed_over > 0 {
            tracing::info!(
                file = self.shown(file),
                objects = parsed.passed_over,
                "objects of other kinds are passed over"
            );
        }
        self.manifests.read(file, parsed);
        self.seen.insert(file.to_owned(), Seen { content: Some(content), vacant_since: None });
    }

    fn refuse_directory(&mut self, directory: &Path, error: &std::io::Error, mend: &str) {
        let message = format!("cannot read the directory: {error}");
        let error = FileError::of_file(&self.shown(directory), Location::START, message, mend.to_owned());
        self.refuse(directory, error);
    }

    /// What was in a file or directory stays in force, and what keeps it from being read is told.
    fn refuse(&mut self, place: &Path, error: FileError) {
        let told = self.declared().errors.get(place).is_some_and(|errors| errors.contains(&error));
        if !told {
            tracing::warn!("{error}");
        }
        self.manifests.unreadable(place, error);
        if let Some(seen) = self.seen.get_mut(place) {
            *seen = Seen { content: None, vacant_since: None };
        }
    }

    /// A file as people know it: by its path below the directory.
    fn shown(&self, file: &Path) -> String {
        let below = file.strip_prefix(&self.path).ok().filter(|below| !below.as_os_str().is_empty());
        below.unwrap_or(file).display().to_string()
    }
}

/// Tells what came into force and what is mended.
fn tell_changes(before: &Declared, now: &Declared) {
    for (id, object) in &now.objects {
        let (generation, file) = (object.generation, object.place.as_ref().map(|place| place.file.as_str()));
        match before.objects.get(id) {
            Some(known) if known.generation == generation => {}
            _ => tracing::info!(file, generation, "{id} is in force"),
        }
    }
    for id in before.objects.keys().filter(|id| !now.objects.contains_key(id)) {
        tracing::info!("{id} is not in force any more");
    }
    let mended = before.errors.iter().filter(|(file, _)| !now.errors.contains_key(*file));
    for error in mended.filter_map(|(_, errors)| errors.first()) {
        tracing::info!(file = error.file, "nothing is wrong with it any more");
    }
}

/// Waits until nothing is being saved any more.
async fn quiet(saving: &mut watch::Receiver<Saving>) {
    loop {
        let quiet_for = saving.borrow_and_update().quiet_for();
        if timeout(quiet_for, saving.changed()).await.is_err() {
            return;
        }
    }
}

/// The YAML and JSON files below a directory, editors' drafts left out, in order.
#[derive(Default)]
struct Listing {
    files: BTreeSet<PathBuf>,
    /// Directories that cannot be listed, and why.
    unreadable: BTreeMap<PathBuf, std::io::Error>,
    /// Directories as the system knows them: links may lead to the same one twice, or round in circles.
    visited: BTreeSet<PathBuf>,
}

impl Listing {
    fn list(&mut self, directory: &Path) -> std::io::Result<()> {
        if !self.visited.insert(directory.canonicalize()?) {
            return Ok(());
        }
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if is_draft(&path) {
                continue;
            }
            if path.is_dir() {
                if let Err(error) = self.list(&path) {
                    self.unreadable.insert(path, error);
                }
            } else if is_manifest(&path) {
                self.files.insert(path);
            }
        }
        Ok(())
    }
}

/// The files of a directory that are read, in order.
///
/// # Errors
/// If it or a directory below it cannot be listed.
pub(crate) fn files_below(directory: &Path) -> Result<BTreeSet<PathBuf>, ObserveError> {
    let failed = |path: &Path, source| ObserveError::List { path: path.to_owned(), source };
    let mut listing = Listing::default();
    listing.list(directory).map_err(|source| failed(directory, source))?;
    match listing.unreadable.pop_first() {
        Some((path, source)) => Err(failed(&path, source)),
        None => Ok(listing.files),
    }
}

/// Why a file has no content that could be looked at.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// It has so many bytes.
    TooLong(u64),
    /// It could not be opened or read.
    Failed(std::io::Error),
}

impl From<std::io::Error> for Unreadable {
    fn from(error: std::io::Error) -> Self {
        Unreadable::Failed(error)
    }
}

impl Unreadable {
    /// The mistake in the file, as people know it.
    pub(crate) fn told(&self, shown: &str) -> FileError {
        match self {
            Unreadable::TooLong(bytes) => FileError::too_long(shown, *bytes),
            Unreadable::Failed(error) => {
                let mend = "make it a file that the operator may read";
                let message = format!("it cannot be read: {error}");
                FileError::of_file(shown, Location::START, message, mend.to_owned())
            }
        }
    }
}

/// A file's content.
pub(crate) fn read_bounded(file: &Path) -> Result<Vec<u8>, Unreadable> {
    use std::io::Read;
    let metadata = std::fs::metadata(file)?;
    // A pipe would be waited for.
    if !metadata.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file").into());
    }
    let mut content = Vec::new();
    std::fs::File::open(file)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut content)?;
    match content.len() {
        // It may have grown since.
        bytes if bytes > FILE_BYTES_MAX => Err(Unreadable::TooLong(metadata.len().max(bytes as u64))),
        _ => Ok(content),
    }
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
        fn remove(&self, name: &str) {
            std::fs::remove_file(self.dir.path().join(name)).expect("removed");
        }
        fn file_in_force(&self) -> String {
            let object = self.directory.declared().objects.values().next().expect("in force");
            object.file.as_ref().expect("a file").file_name().expect("a name").to_string_lossy().into_owned()
        }
        fn look(&mut self) -> (usize, usize) {
            self.directory.sweep(self.now).expect("readable");
            let declared = self.directory.declared();
            (declared.objects.len(), declared.errors.values().map(Vec::len).sum())
        }
    }

    #[test]
    fn a_broken_edit_keeps_the_version_before() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY)]);
        assert_eq!(edited.look(), (1, 0));
        assert_eq!(edited.write("pay.yaml", &POLICY.replace("10s", "ten")), (1, 1));
        let accepted = edited.directory.declared().objects.values().next().expect("still there");
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
        edited.now += GRACE;
        assert_eq!(edited.look(), (0, 0), "empty for good");
    }

    #[test]
    fn deleted_files_take_their_objects_along() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY), (".draft.yaml", POLICY)]);
        assert_eq!(edited.look(), (1, 0));
        edited.remove("pay.yaml");
        assert_eq!(edited.look(), (1, 0), "it may be about to be written again");
        edited.now += GRACE;
        assert_eq!(edited.look(), (0, 0));
    }

    #[test]
    fn a_file_that_is_deleted_and_written_again_was_never_gone() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY)]);
        edited.remove("pay.yaml");
        edited.look();
        assert_eq!(edited.write("pay.yaml", POLICY), (1, 0));
        edited.now += GRACE;
        assert_eq!(edited.look(), (1, 0));
    }

    #[test]
    fn an_object_in_two_files_outlives_either() {
        for (first, second) in [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")] {
            let mut edited = Edited::with(&[(first, POLICY)]);
            assert_eq!(edited.write(second, &POLICY.replace("10s", "5s")), (1, 1));
            assert_eq!(edited.file_in_force(), first);
            edited.remove(first);
            assert_eq!(edited.look(), (1, 0));
            assert_eq!(edited.file_in_force(), second);
        }
    }

    #[test]
    fn a_file_that_is_too_long_is_told_with_its_size() {
        // Were it cut first, that would be in the middle of a character.
        let long = "€".repeat(1_000_000);
        let edited = Edited::with(&[("pay.yaml", &long)]);
        let errors = edited.directory.declared().errors.values().flatten();
        let told: Vec<String> = errors.map(ToString::to_string).collect();
        assert_eq!(told, ["pay.yaml:1: the file has 3000000 bytes; split it into files of at most 1048576"]);
    }

    #[test]
    fn of_an_object_that_stands_twice_in_a_file_the_first_holds() {
        let twice = format!("{POLICY}---\n{}", POLICY.replace("10s", "5s"));
        let mut edited = Edited::with(&[("pay.yaml", &twice)]);
        assert_eq!(edited.look(), (1, 1));
        let declared = edited.directory.declared();
        let Some(airlane_api::Value::Policy(policy)) =
            declared.objects.values().next().and_then(|object| object.value.clone())
        else {
            panic!("a policy")
        };
        assert_eq!(policy.calls.timeouts.request, Some(airlane_core::policy::Millis(10_000)));
        let error = declared.errors.values().flatten().next().expect("an error").to_string();
        assert!(error.starts_with("pay.yaml:6: MeshPolicy shop/pay: "), "{error}");
    }

    #[test]
    fn an_object_moves_between_files_without_being_withdrawn() {
        for (from, to) in [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")] {
            let mut edited = Edited::with(&[(from, POLICY)]);
            std::fs::rename(edited.dir.path().join(from), edited.dir.path().join(to)).expect("renamed");
            assert_eq!(edited.look(), (1, 0));
            assert_eq!(edited.file_in_force(), to);
            let object = edited.directory.declared().objects.values().next().expect("in force");
            assert_eq!(object.generation, 1, "it says what it said");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_and_stays_in_force() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY)]);
        std::fs::write(edited.dir.path().join("pay.yaml"), b"kind: \xff").expect("written");
        assert_eq!(edited.look(), (1, 1), "not UTF-8");
        assert_eq!(edited.write("pay.yaml", POLICY), (1, 0));
        edited.remove("pay.yaml");
        std::os::unix::fs::symlink("nowhere", edited.dir.path().join("pay.yaml")).expect("linked");
        assert_eq!(edited.look(), (1, 1), "a link that leads nowhere");
        edited.now += 2 * GRACE;
        assert_eq!(edited.look(), (1, 1));
        edited.remove("pay.yaml");
        assert_eq!(edited.write("pay.yaml", POLICY), (1, 0));
    }

    #[test]
    fn a_directory_that_is_gone_is_told_and_its_files_stay_in_force() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY)]);
        let path = edited.dir.path().to_owned();
        std::fs::remove_dir_all(&path).expect("removed");
        edited.directory.sweep(edited.now).expect_err("gone");
        edited.directory.sweep(edited.now + 2 * GRACE).expect_err("still gone");
        let declared = edited.directory.declared();
        assert_eq!(declared.objects.len(), 1);
        let told: Vec<String> = declared.errors.values().flatten().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].starts_with(&format!("{}:1: cannot read the directory: ", path.display())),
            "{told:?}"
        );
        std::fs::create_dir(&path).expect("made again");
        assert_eq!(edited.write("pay.yaml", POLICY), (1, 0));
    }

    #[tokio::test]
    async fn what_is_saved_while_somebody_watches_is_published() {
        let dir = tempfile::tempdir().expect("a directory");
        let system = Namespace::parse("airlane-system").expect("a name");
        let directory = Directory::open(dir.path(), system).expect("readable");
        let (sender, mut published) = watch::channel(Arc::default());
        let shutdown = CancellationToken::new();
        let watching = tokio::spawn(directory.watch(sender, shutdown.clone()));
        for (at, name) in ["a.yaml", "b.yaml", "new/c.yaml", "new/d.yaml"].iter().enumerate() {
            let file = dir.path().join(name);
            std::fs::create_dir_all(file.parent().expect("a directory")).expect("created");
            let policy = POLICY.replace("name: pay,", &format!("name: pay-{at},"));
            std::fs::write(&file, policy).expect("written");
            if at % 2 == 1 {
                let saved = published.wait_for(|declared: &Arc<Declared>| declared.objects.len() == at + 1);
                timeout(Duration::from_secs(20), saved).await.expect(name).expect("watched");
            }
        }
        shutdown.cancel();
        watching.await.expect("no panic").expect("watched");
    }

    #[test]
    fn nobody_is_let_in_by_rules_that_were_never_understood() {
        let policy =
            POLICY.replace("timeouts: { request: 10s }", "access: { rules: [{ name: all, form: [] }] }");
        let mut edited = Edited::with(&[("pay.yaml", &policy)]);
        assert_eq!(edited.look(), (1, 1));
        let value = edited.directory.declared().objects.values().next().and_then(|it| it.value.clone());
        let Some(airlane_api::Value::Policy(policy)) = value else { panic!("a policy in its place") };
        let access = policy.access.expect("an answer");
        assert!(!access.admits_others && access.rules.is_empty());
        assert_eq!(policy.mtls, None, "it said nothing about that");
    }

    #[test]
    fn links_in_circles_are_followed_once() {
        let mut edited = Edited::with(&[("pay.yaml", POLICY)]);
        std::os::unix::fs::symlink(".", edited.dir.path().join("again")).expect("linked");
        assert_eq!(edited.look(), (1, 0));
    }

    #[test]
    fn a_door_never_understood_is_shut_until_somebody_says_how() {
        let policy = POLICY.replace("timeouts: { request: 10s }", "mtls: { mode: Stric }");
        let mut edited = Edited::with(&[("pay.yaml", &policy)]);
        assert_eq!(edited.look(), (1, 1));
        let strict = |edited: &Edited| match &edited.directory.declared().objects.values().next()?.value {
            Some(airlane_api::Value::Policy(policy)) => policy.mtls.as_ref()?.mode,
            _ => None,
        };
        assert_eq!(strict(&edited), Some(airlane_core::policy::MtlsMode::Strict));
        let understood = policy.replace("Stric ", "Permissive ");
        assert_eq!(edited.write("pay.yaml", &understood), (1, 0));
        assert_eq!(edited.write("pay.yaml", &policy), (1, 1));
        assert_eq!(strict(&edited), Some(airlane_core::policy::MtlsMode::Permissive), "the version before");
    }
}
