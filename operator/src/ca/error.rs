//! What can go wrong with the authority, and the mend.

use crate::private_file::PrivateFileError;
use airlane_core::id::TrustDomain;
use jiff::{SignedDuration, Timestamp};
use std::{io, path::PathBuf};

/// The authority could not be opened or renewed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    /// A file could not be kept private, read or written.
    #[error("the certificate authority's files are unusable")]
    File(#[from] PrivateFileError),
    /// A certificate could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Its file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The API server did not do what it was asked for.
    #[error("cannot {verb} {place}: may this account {verb} it?")]
    Api {
        /// What it was asked for.
        verb: &'static str,
        /// The object.
        place: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// A file, or a key of a Secret, holds something else than it should.
    #[error("{place} does not hold {expected}: restore it from a backup{mend}")]
    Content {
        /// What it is.
        place: String,
        /// What it should hold.
        expected: &'static str,
        /// What else can be done, or nothing.
        mend: &'static str,
    },
    /// One of a pair is gone.
    #[error("{place} is missing although its partner is there: restore it from a backup{mend}")]
    Missing {
        /// What is gone.
        place: String,
        /// What else can be done, or nothing.
        mend: &'static str,
    },
    /// A certificate is for another key than the one beside it.
    #[error("{cert} is not the certificate of {key}: restore the pair from a backup{mend}")]
    Mismatch {
        /// Where the certificate is.
        cert: String,
        /// Where the key is.
        key: String,
        /// What else can be done, or nothing.
        mend: &'static str,
    },
    /// The intermediate was signed by somebody else.
    #[error("{} is not signed by the root beside it: restore it from a backup, or remove intermediate.pem and intermediate.key for a new one", path.display())]
    ForeignIntermediate {
        /// The intermediate's file.
        path: PathBuf,
    },
    /// The root was made for another trust domain.
    #[error("{place} is the root of another trust domain than {expected}: {mend}")]
    TrustDomain {
        /// Where the root is.
        place: String,
        /// What was asked for.
        expected: TrustDomain,
        /// What can be done.
        mend: &'static str,
    },
    /// The root was replaced since it was opened.
    #[error(
        "{place} is another root than the one this operator started with: put the old one back, or start the operator anew and then every workload"
    )]
    Replaced {
        /// Where the root is.
        place: String,
    },
    /// The root's validity is over, or lies in the future.
    #[error(
        "the root in {place} is valid from {not_before} to {not_after} and it is {now}: set the clock{mend}"
    )]
    RootNotValid {
        /// Where the root is.
        place: String,
        /// From when it is valid.
        not_before: Timestamp,
        /// Until when.
        not_after: Timestamp,
        /// The time now.
        now: Timestamp,
        /// What else can be done.
        mend: &'static str,
    },
    /// A replacement of the root has begun already.
    #[error("the root is being replaced since {since}; `airlane certs list` says how far that is")]
    UnderWay {
        /// Since when its present step lasts.
        since: Timestamp,
    },
    /// The replacement of the root is not as far as it was when its next step was decided.
    #[error("the root's replacement was changed meanwhile")]
    Meanwhile,
    /// The root is kept by somebody else.
    #[error("the root is not the operator's own: whoever keeps it replaces it")]
    NotOurs,
    /// Somebody else's intermediate cannot sign.
    #[error("{place} cannot sign for the mesh: {why}")]
    External {
        /// The Secret.
        place: String,
        /// What is wrong with it, and the mend.
        why: Unusable,
    },
    /// The setting for the leaves' lifetime is outside its range.
    #[error("a leaf lifetime of {given:#} is outside 10s to 24h")]
    LeafLifetime {
        /// The setting.
        given: SignedDuration,
    },
    /// The root does not verify what it has just signed.
    #[error("the root does not verify the intermediate that it has signed: its certificate is damaged")]
    Unsigned,
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// Why somebody else's intermediate cannot sign.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// The Secret is not there.
    #[error("it is not there; have it made, or name another one")]
    Absent,
    /// A key of the Secret is missing, or holds something else.
    #[error("{key} does not hold {expected}")]
    Content {
        /// The key.
        key: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// The certificate is for another key.
    #[error("tls.crt is not the certificate of tls.key")]
    Mismatch,
    /// A certificate that cannot sign others.
    #[error("tls.crt is no authority; for cert-manager, `isCA: true`")]
    NoAuthority,
    /// The chain ends nowhere.
    #[error("tls.crt does not lead to a root in ca.crt")]
    NoRoot,
    /// It leads to a root that nobody trusts yet.
    #[error(
        "tls.crt leads to a root that the mesh does not trust yet; put the new root beside the old one into ca.crt, and          let it sign when every leaf from before has ended"
    )]
    NewRoot,
    /// What it signs would not be believed.
    #[error("what it signs would not be believed: {0}")]
    Unbelieved(String),
}

/// A leaf was not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// The intermediate is not valid now; it is renewed as soon as the clock allows.
    #[error(
        "no certificate can be signed now: the operator's intermediate is not valid at {now}; check its clock"
    )]
    IntermediateNotValid {
        /// The time now.
        now: Timestamp,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}
