//! The pairs of certificate and key in the authority's folder.

use super::{CaError, parse};
use crate::private_file::{read_private, rename, write_private};
use pem::Pem;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use zeroize::{Zeroize as _, Zeroizing};

/// A certificate and its key as they lie in the folder.
pub(super) struct Pair {
    pub cert: CertificateDer<'static>,
    /// Holds no copy of what is in the file.
    pub key: KeyPair,
}

/// The names of a pair of files.
pub(super) struct PairName {
    pub cert: &'static str,
    key: &'static str,
    /// The new key while the pair is replaced.
    next_key: &'static str,
    /// What can be done besides restoring the files.
    mend: &'static str,
}

pub(super) const ROOT: PairName = PairName {
    cert: "root.pem",
    key: "root.key",
    next_key: "root.next.key",
    mend: ", or remove the folder for a new root and join every workload again",
};

pub(super) const INTERMEDIATE: PairName = PairName {
    cert: "intermediate.pem",
    key: "intermediate.key",
    next_key: "intermediate.next.key",
    mend: ", or remove intermediate.pem and intermediate.key for a new one",
};

impl PairName {
    pub(super) fn content(&self, path: PathBuf, expected: &'static str) -> CaError {
        CaError::Content { path, expected, mend: self.mend }
    }
}

impl Pair {
    /// Reads a pair, and brings to its end a replacement that a crash cut short.
    pub(super) fn load(dir: &Path, name: &PairName) -> Result<Option<Pair>, CaError> {
        let (cert_path, key_path) = (dir.join(name.cert), dir.join(name.key));
        let cert = match fs::read(&cert_path) {
            Ok(text) => CertificateDer::from_pem_slice(&text)
                .map_err(|_| name.content(cert_path.clone(), "a certificate in PEM"))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let orphan = read_private(&key_path)?.is_some();
                let missing = CaError::Missing { path: cert_path, mend: name.mend };
                return if orphan { Err(missing) } else { Ok(None) };
            }
            Err(source) => return Err(CaError::Read { path: cert_path, source }),
        };
        let next_path = dir.join(name.next_key);
        if let Some(key) = Pair::key(&next_path, name)?
            && fits(&cert, &key)
        {
            rename(&next_path, &key_path)?;
        }
        let Some(mut key) = Pair::key(&key_path, name)? else {
            return Err(CaError::Missing { path: key_path, mend: name.mend });
        };
        if !fits(&cert, &key) {
            return Err(CaError::Mismatch { cert: cert_path, key: key_path, mend: name.mend });
        }
        // The key is in its file; the copy for writing it there is not needed.
        key.zeroize();
        Ok(Some(Pair { cert, key }))
    }

    fn key(path: &Path, name: &PairName) -> Result<Option<KeyPair>, CaError> {
        let Some(text) = read_private(path)? else { return Ok(None) };
        KeyPair::from_pkcs8_pem_and_sign_algo(&text, &PKCS_ECDSA_P256_SHA256)
            .map(Some)
            .map_err(|_| name.content(path.to_owned(), "an ECDSA P-256 key in PKCS#8 PEM"))
    }

    /// Puts a pair in place. Two files cannot be replaced at once: the new key waits under another name until its
    /// certificate is there, so that [`Pair::load`] finds a whole pair after a crash at any moment.
    pub(super) fn store(
        dir: &Path,
        name: &PairName,
        cert: CertificateDer<'static>,
        mut key: KeyPair,
    ) -> Result<Pair, CaError> {
        let next_path = dir.join(name.next_key);
        write_private(&next_path, &Zeroizing::new(key.serialize_pem()))?;
        write_private(&dir.join(name.cert), &cert_pem(&cert))?;
        rename(&next_path, &dir.join(name.key))?;
        key.zeroize();
        Ok(Pair { cert, key })
    }
}

fn fits(cert: &CertificateDer<'_>, key: &KeyPair) -> bool {
    parse(cert).is_some_and(|cert| cert.public_key().raw == key.subject_public_key_info())
}

/// A certificate in PEM.
pub(super) fn cert_pem(cert: &CertificateDer<'_>) -> String {
    pem::encode(&Pem::new("CERTIFICATE", cert.to_vec()))
}
