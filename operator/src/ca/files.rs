//! A root and an intermediate kept in a folder of this host.

use super::{
    authority::{Intermediate, Pair, Place, Root, cert_pem, fits, read_cert, read_key},
    error::CaError,
};
use crate::private_file::{private_dir, read_private, rename, write_private};
use airlane_core::id::TrustDomain;
use jiff::Timestamp;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use zeroize::{Zeroize as _, Zeroizing};

/// The authority's folder.
#[derive(Debug)]
pub(super) struct Folder {
    root: Files,
    intermediate: Files,
}

impl Folder {
    /// Opens the folder, or makes it.
    pub(super) fn open(dir: &Path) -> Result<Folder, CaError> {
        private_dir(dir)?;
        Ok(Folder {
            root: Files::new(
                dir,
                "root",
                ", or remove the folder for a new root and join every workload again",
            ),
            intermediate: Files::new(
                dir,
                "intermediate",
                ", or remove intermediate.pem and intermediate.key for a new one",
            ),
        })
    }

    /// Where its root is.
    pub(super) fn place(&self) -> &Place {
        &self.root.place
    }

    /// Its root; a new one if there is none, which is told.
    pub(super) fn root(&self, trust_domain: &TrustDomain, now: Timestamp) -> Result<(Pair, bool), CaError> {
        match self.root.load()? {
            Some(pair) => Ok((pair, false)),
            None => Ok((self.root.store(Pair::make_root(trust_domain, now)?)?, true)),
        }
    }

    /// The root's key again.
    pub(super) fn root_again(&self) -> Result<Pair, CaError> {
        let Place { cert, mend, .. } = self.place();
        self.root.load()?.ok_or_else(|| CaError::Missing { place: cert.clone(), mend })
    }

    /// Its intermediate, if there is one.
    pub(super) fn intermediate(&self, root: &Root) -> Result<Option<Intermediate>, CaError> {
        let Some(pair) = self.intermediate.load()? else { return Ok(None) };
        let foreign = || CaError::ForeignIntermediate { path: self.intermediate.cert.clone() };
        Intermediate::of(pair, root)?.ok_or_else(foreign).map(Some)
    }

    /// Keeps a new intermediate.
    pub(super) fn keep(&self, intermediate: Pair) -> Result<Pair, CaError> {
        self.intermediate.store(intermediate)
    }
}

/// A pair of files.
#[derive(Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    /// The new key while the pair is replaced.
    next_key: PathBuf,
    /// The same, for people.
    place: Place,
}

impl Files {
    fn new(dir: &Path, name: &str, mend: &'static str) -> Files {
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        let place = Place {
            cert: cert.display().to_string(),
            key: key.display().to_string(),
            mend,
            other_domain: "use the state folder of that one, or an empty one",
        };
        Files { cert, key, next_key: dir.join(format!("{name}.next.key")), place }
    }

    /// Reads the pair, and brings to its end a replacement that a crash cut short.
    fn load(&self) -> Result<Option<Pair>, CaError> {
        let missing = |place: &str| CaError::Missing { place: place.to_owned(), mend: self.place.mend };
        let cert = match fs::read(&self.cert) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let orphan = read_private(&self.key)?.is_some();
                return if orphan { Err(missing(&self.place.cert)) } else { Ok(None) };
            }
            Err(source) => return Err(CaError::Read { path: self.cert.clone(), source }),
        };
        if let Some(next) = read_private(&self.next_key)?
            && fits(&read_cert(&cert, &self.place)?, &read_key(&next, &self.place)?)
        {
            rename(&self.next_key, &self.key)?;
        }
        let Some(key) = read_private(&self.key)? else { return Err(missing(&self.place.key)) };
        Pair::read(&cert, &key, &self.place).map(Some)
    }

    /// Puts a pair in place. Two files cannot be replaced at once: the new key waits under another name until its
    /// certificate is there, so that [`Files::load`] finds a whole pair after a crash at any moment.
    fn store(&self, mut pair: Pair) -> Result<Pair, CaError> {
        write_private(&self.next_key, &Zeroizing::new(pair.key.serialize_pem()))?;
        write_private(&self.cert, &cert_pem(&pair.cert))?;
        rename(&self.next_key, &self.key)?;
        pair.key.zeroize();
        Ok(pair)
    }
}
