//! The folder of one run: sockets, Envoy's bootstrap, the outlier event log. Nobody but its owner enters it.

use ring::rand::{SecureRandom, SystemRandom};
use std::{
    env,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// `sizeof(sockaddr_un.sun_path)`, less the final NUL (unix(7)), in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// How the folders' names start.
const PREFIX: &str = "airlane-";

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunDirError {
    /// The folder could not be made.
    #[error("cannot make the run folder {path}; set XDG_RUNTIME_DIR to a folder you can write to")]
    Make {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The paths of its sockets would be longer than the kernel takes.
    #[error(
        "the run folder's path {path} is too long for unix sockets; set XDG_RUNTIME_DIR to a shorter one, /tmp for instance"
    )]
    TooLong {
        /// The folder.
        path: PathBuf,
    },
    /// A file in it could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The folder; it goes with this value.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes a new folder under `$XDG_RUNTIME_DIR`, or under the folder for temporary files.
    pub(crate) fn make() -> Result<Self, RunDirError> {
        let parent = env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty()).map(PathBuf::from);
        Self::make_under(&parent.unwrap_or_else(env::temp_dir))
    }

    /// Makes a new folder under `parent`, which is ours alone: what a run that was killed left there is removed.
    pub(crate) fn make_alone_in(parent: &Path) -> Result<Self, RunDirError> {
        let failed = |source| RunDirError::Make { path: parent.into(), source };
        for entry in fs::read_dir(parent).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Self::make_under(parent)
    }

    fn make_under(parent: &Path) -> Result<Self, RunDirError> {
        let mut random = [0_u8; 6];
        let named = SystemRandom::new().fill(&mut random).map_err(|_| io::Error::other("no randomness"));
        let suffix: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = parent.join(format!("{PREFIX}{suffix}"));
        // A folder that exists is refused by `create`, so nobody can have prepared it.
        let made = named.and_then(|()| DirBuilder::new().mode(0o700).create(&path));
        made.map_err(|source| RunDirError::Make { path: path.clone(), source })?;
        let dir = Self { path };
        if dir.admin_socket().as_os_str().len() > SOCKET_PATH_MAX {
            return Err(RunDirError::TooLong { path: dir.path.clone() });
        }
        Ok(dir)
    }

    /// The user the folder belongs to, who is the user of this process.
    pub(crate) fn owner(&self) -> io::Result<u32> {
        Ok(fs::metadata(&self.path)?.uid())
    }

    /// Where the agent serves secrets.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    /// Where Envoy serves its admin interface.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.path.join("admin.sock")
    }

    /// Where Envoy writes outlier events.
    pub(crate) fn event_log(&self) -> PathBuf {
        self.path.join("outliers.jsonl")
    }

    /// Writes Envoy's bootstrap, readable for the owner alone, and says where.
    pub(crate) fn write_bootstrap(&self, json: &str) -> Result<PathBuf, RunDirError> {
        let path = self.path.join("bootstrap.json");
        let fresh = self.path.join("bootstrap.json.new");
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&fresh)?.write_all(json.as_bytes())?;
            fs::rename(&fresh, &path)
        };
        match write() {
            Ok(()) => Ok(path),
            Err(source) => Err(RunDirError::Write { path, source }),
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the run folder");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o777
    }

    #[test]
    fn is_its_owners_alone_and_goes_in_the_end() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = RunDir::make_under(parent.path()).expect("made");
        let bootstrap = dir.write_bootstrap("{}").expect("written");
        let again = dir.write_bootstrap("{\"a\":1}").expect("written again");
        assert_eq!(bootstrap, again);
        assert_eq!(fs::read_to_string(&again).expect("read"), "{\"a\":1}");
        assert_eq!((mode(&dir.path), mode(&bootstrap)), (0o700, 0o600));
        drop(dir);
        assert_eq!(fs::read_dir(parent.path()).expect("read").count(), 0);
    }

    #[test]
    fn removes_what_an_earlier_run_left() {
        let parent = tempfile::tempdir().expect("a folder");
        std::mem::forget(RunDir::make_under(parent.path()).expect("made"));
        fs::write(parent.path().join("else"), "").expect("written");
        let dir = RunDir::make_alone_in(parent.path()).expect("made");
        let left: Vec<_> = fs::read_dir(parent.path()).expect("read").flatten().map(|e| e.path()).collect();
        assert!(left.contains(&dir.path) && left.len() == 2, "{left:?}");
    }

    #[test]
    fn refuses_a_path_too_long_for_sockets() {
        let parent = tempfile::tempdir().expect("a folder");
        let long = parent.path().join("x".repeat(80));
        fs::create_dir(&long).expect("made");
        let error = RunDir::make_under(&long).expect_err("too long");
        assert!(error.to_string().contains("XDG_RUNTIME_DIR"), "{error}");
        assert_eq!(fs::read_dir(&long).expect("read").count(), 0);
    }
}
