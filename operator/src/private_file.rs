//! Files that nobody but the operator may read: keys and join tokens.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// A file or folder that could not be kept private.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivateFileError {
    /// The operating system refused.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Others may read or write it.
    #[error("{} has mode {mode:04o}, so others may have read it: if nobody did, run `chmod {mend:o} {}`; else remove it and begin with new keys", path.display(), path.display())]
    TooOpen {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        mend: u32,
    },
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateFileError {
    move |source| PrivateFileError::Io { verb, path: path.to_owned(), source }
}

fn check_mode(path: &Path, file: &File, mend: u32) -> Result<(), PrivateFileError> {
    let mode = file.metadata().map_err(failed("examine", path))?.mode() & 0o7777;
    if mode & !mend == 0 {
        Ok(())
    } else {
        Err(PrivateFileError::TooOpen { path: path.to_owned(), mode, mend })
    }
}

/// Makes a folder with mode 0700, or checks that the one there has no wider mode.
///
/// # Errors
/// If it cannot be made, or others may look into it.
pub(crate) fn private_dir(path: &Path) -> Result<(), PrivateFileError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("make the folder", path)(e)),
        _ => check_mode(path, &File::open(path).map_err(failed("open the folder", path))?, 0o700),
    }
}

/// The content of a private file, or `None` if there is none.
///
/// # Errors
/// If it cannot be read, or others may read it too.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, PrivateFileError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", path)(e)),
    };
    check_mode(path, &file, 0o600)?;
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(failed("read", path))?;
    Ok(Some(text))
}

/// Makes an empty private file if there is none, or checks that the one there is private.
///
/// # Errors
/// If it cannot be made, or others may read it.
pub(crate) fn touch_private(path: &Path) -> Result<(), PrivateFileError> {
    let file =
        OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed("open", path))?;
    check_mode(path, &file, 0o600)
}

/// Puts a private file in place, whole or not at all: after a crash at any moment there is the old content or the
/// new one.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), PrivateFileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    // A part of a write that a crash cut short; making the file anew makes its mode ours.
    match fs::remove_file(&part) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &part)(e)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&part)
        .map_err(failed("make", &part))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write", &part))?;
    rename(&part, path)
}

/// Renames a file over another one, for good when it returns.
///
/// # Errors
/// If it cannot be renamed.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), PrivateFileError> {
    fs::rename(from, to).map_err(failed("put in place", to))?;
    let dir = to.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write the folder", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o7777
    }

    fn open_up(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn what_is_written_is_private_and_reads_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (sub, file) = (dir.path().join("ca"), dir.path().join("ca/root.key"));
        private_dir(&sub).expect("made");
        private_dir(&sub).expect("there");
        assert!(read_private(&file).expect("no file").is_none());
        for text in ["one", "two"] {
            write_private(&file, text).expect("written");
            assert_eq!(**read_private(&file).expect("read").as_ref().expect("there"), *text);
        }
        assert_eq!((mode(&sub), mode(&file)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&sub).expect("listed").count(), 1, "no part is left behind");
    }

    #[test]
    fn a_part_left_by_a_crash_is_no_obstacle_and_its_mode_is_not_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("join");
        fs::write(dir.path().join("join.part"), "half").expect("written");
        write_private(&file, "whole").expect("written");
        assert_eq!(mode(&file), 0o600);
    }

    #[test]
    fn wider_modes_are_refused_with_the_mend() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("root.key");
        write_private(&file, "secret").expect("written");
        for wide in [0o640, 0o604, 0o660, 0o700, 0o644] {
            open_up(&file, wide);
            let error = read_private(&file).expect_err("too open").to_string();
            assert!(error.contains("root.key") && error.contains("chmod 600"), "{error}");
            assert!(touch_private(&file).is_err());
        }
        open_up(&file, 0o400);
        assert!(read_private(&file).is_ok(), "narrower is fine");
        open_up(dir.path(), 0o750);
        assert!(private_dir(dir.path()).expect_err("too open").to_string().contains("chmod 700"));
    }
}
