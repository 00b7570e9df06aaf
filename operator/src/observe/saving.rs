//! When a save is over, as far as the kernel's events tell.
//!
//! A file that was closed by its writer, moved into place or removed is complete: it can be read as soon as what is
//! saved together with it is there too. A file that was begun is given time to become complete.

use super::manifests::is_manifest;
use notify::{
    Event, EventKind,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use std::{collections::BTreeSet, path::PathBuf, time::Duration};

/// Quiet time before files are read that are all complete. Programs that save several files close them within a
/// fraction of it.
const COMPLETE: Duration = Duration::from_millis(2);

/// Quiet time before files are read of which one was begun and not completed. Links and new directories are never
/// completed, and a slow writer may pause for longer.
const BEGUN: Duration = Duration::from_millis(20);

/// The files that somebody is saving.
#[derive(Debug, Default)]
pub(super) struct Saving {
    begun: BTreeSet<PathBuf>,
}

impl Saving {
    /// Notes an event, and says whether there may be something to read since.
    pub(super) fn note(&mut self, event: &Event) -> bool {
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_) => {
                for path in &event.paths {
                    self.begun.remove(path);
                }
            }
            // Reading is an access too, and the one who reads most is this operator.
            EventKind::Access(_) => return false,
            EventKind::Create(CreateKind::Folder) => self.begun.extend(event.paths.iter().cloned()),
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => {
                self.begun.extend(event.paths.iter().filter(|path| is_manifest(path)).cloned());
            }
            _ => {}
        }
        true
    }

    /// How long no event must come before what is there is read.
    pub(super) fn quiet_for(&self) -> Duration {
        if self.begun.is_empty() { COMPLETE } else { BEGUN }
    }

    /// What was begun had its time.
    pub(super) fn over(&mut self) {
        self.begun.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::{RecursiveMode, Watcher as _, event::DataChange};
    use std::{
        fs::{self, File},
        io::Write as _,
        path::Path,
    };
    use tokio::{sync::watch, time::timeout};

    /// What a directory's events say, as the kernel sends them.
    struct Watched {
        dir: tempfile::TempDir,
        saving: watch::Receiver<(Saving, bool)>,
        _watcher: notify::RecommendedWatcher,
    }

    impl Watched {
        fn new() -> Watched {
            let dir = tempfile::tempdir().expect("a directory");
            let (note, saving) = watch::channel(Default::default());
            let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
                note.send_modify(|(saving, any): &mut (Saving, bool)| {
                    *any |= saving.note(&event.expect("an event"));
                });
            })
            .expect("a watcher");
            watcher.watch(dir.path(), RecursiveMode::Recursive).expect("watched");
            Watched { dir, saving, _watcher: watcher }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Waits until there is something to read after a quiet time.
        async fn check(&mut self, quiet_for: Duration) {
            let said = self.saving.wait_for(|(saving, any)| *any && saving.quiet_for() == quiet_for);
            timeout(Duration::from_secs(20), said).await.expect("in time").expect("a watcher");
        }
    }

    #[tokio::test]
    async fn a_file_is_given_time_until_it_is_closed() {
        let mut watched = Watched::new();
        let mut file = File::create(watched.path("pay.yaml")).expect("created");
        watched.check(BEGUN).await;
        file.write_all(b"kind").expect("written");
        watched.check(BEGUN).await;
        drop(file);
        watched.check(COMPLETE).await;
    }

    #[tokio::test]
    async fn a_file_that_is_moved_or_removed_is_complete() {
        let mut watched = Watched::new();
        let file = File::create(watched.path("new.yaml")).expect("created");
        watched.check(BEGUN).await;
        fs::rename(watched.path("new.yaml"), watched.path("pay.yaml")).expect("moved");
        watched.check(COMPLETE).await;
        drop(file);
        let _file = File::create(watched.path("pay.yaml")).expect("truncated");
        watched.check(BEGUN).await;
        fs::remove_file(watched.path("pay.yaml")).expect("removed");
        watched.check(COMPLETE).await;
    }

    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));

    fn event(kind: EventKind, name: &str) -> Event {
        Event::new(kind).add_path(Path::new("policies").join(name))
    }

    fn check(kind: EventKind, name: &str, expected: (bool, Duration)) {
        let mut saving = Saving::default();
        let any = saving.note(&event(kind, name));
        assert_eq!((any, saving.quiet_for()), expected, "{kind:?} {name}");
    }

    #[test]
    fn of_several_files_each_is_given_time() {
        let mut saving = Saving::default();
        for (kind, name, quiet_for) in [
            (CREATED, "a.yaml", BEGUN),
            (WRITTEN, "b.yaml", BEGUN),
            (CLOSED, "b.yaml", BEGUN),
            (WRITTEN, "a.yaml", BEGUN),
            (CLOSED, "a.yaml", COMPLETE),
            (EventKind::Create(CreateKind::Folder), "new", BEGUN),
        ] {
            assert!(saving.note(&event(kind, name)));
            assert_eq!(saving.quiet_for(), quiet_for, "{kind:?} {name}");
        }
        saving.over();
        assert_eq!(saving.quiet_for(), COMPLETE);
    }

    #[test]
    fn drafts_hold_nothing_up() {
        for name in [".pay.yaml.swp", "pay.yaml~", "4913"] {
            check(CREATED, name, (true, COMPLETE));
            check(WRITTEN, name, (true, COMPLETE));
        }
    }

    #[test]
    fn reading_is_no_news() {
        for kind in [AccessKind::Open(AccessMode::Any), AccessKind::Close(AccessMode::Read), AccessKind::Read]
        {
            check(EventKind::Access(kind), "pay.yaml", (false, COMPLETE));
        }
        check(CLOSED, "pay.yaml", (true, COMPLETE));
    }

    #[test]
    fn lost_events_are_news() {
        check(EventKind::Other, "", (true, COMPLETE));
    }
}
