//! What lets a sidecar in, and where it comes from: a join string, or the token of its pod.

use airlane_wire::join::{BadJoinString, JoinInfo, PREFIX};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Where the operator is, how to recognise it, and what to show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Invitation {
    /// The operator, `host:port`.
    pub(crate) address: String,
    /// SHA-256 of the DER of the roots that may stand behind the operator.
    pub(crate) roots: Vec<[u8; 32]>,
    /// The trust domain.
    pub(crate) trust_domain: String,
    /// What lets the sidecar in; a secret.
    pub(crate) token: String,
}

impl From<JoinInfo> for Invitation {
    fn from(info: JoinInfo) -> Self {
        Self {
            address: info.address,
            roots: vec![info.root_fingerprint],
            trust_domain: info.trust_domain,
            token: info.secret,
        }
    }
}

/// Where to look for it. It is read again at every join: the operator may have been set up anew meanwhile, and a
/// pod's token is replaced before it expires.
pub(crate) enum Source {
    /// A join string was given.
    Given(JoinInfo),
    /// A file holds a join string.
    File(PathBuf),
    /// The injector said everything but the token, which the kubelet keeps in a file.
    Pod {
        /// All but the token.
        invitation: Invitation,
        /// The file.
        token: PathBuf,
        /// Where the mesh's roots are kept for an agent that is started again in the same pod: the root that its
        /// injector knew may be replaced by then.
        roots: PathBuf,
    },
}

/// There is no join string.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoJoin {
    /// Nothing was given, and there is no home to look in.
    #[error("no join string: pass --join, or set AIRLANE_JOIN; `airlane token create` makes one")]
    Unset,
    /// What was given is none.
    #[error("--join: {0}")]
    Given(BadJoinString),
    /// The file cannot be read.
    #[error(
        "no join string in {path}: start `airlane up` as this user, or pass --join with the output of `airlane token create`"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What the file holds is none.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: BadJoinString,
    },
    /// The pod's token cannot be read.
    #[error("cannot read the pod's token {path}; the injector mounts it there")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Source {
    /// What was given by flag or variable, else the file of `airlane up`.
    pub(crate) fn of(given: Option<OsString>) -> Result<Self, NoJoin> {
        match given.filter(|given| !given.is_empty()) {
            Some(given) => match given.to_str().filter(|text| text.trim_start().starts_with(PREFIX)) {
                Some(text) => text.parse().map(Self::Given).map_err(NoJoin::Given),
                None => Ok(Self::File(given.into())),
            },
            None => left_by_operator(env::var_os("XDG_STATE_HOME"), env::var_os("HOME")).map(Self::File),
        }
    }

    /// What it says now.
    pub(crate) fn read(&self) -> Result<Invitation, NoJoin> {
        match self {
            Self::Given(info) => Ok(info.clone().into()),
            Self::File(path) => read_file(path).map(Invitation::from),
            Self::Pod { invitation, token, .. } => {
                let read = fs::read_to_string(token);
                let text = read.map_err(|source| NoJoin::Token { path: token.clone(), source })?;
                Ok(Invitation { token: text.trim().into(), ..invitation.clone() })
            }
        }
    }

    /// The roots that were kept; none if there are none, or they cannot be used.
    pub(crate) fn kept_roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        if let Self::Pod { roots: file, .. } = self
            && let Ok(pem) = fs::read(file)
        {
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        }
        roots
    }

    /// Keeps the mesh's roots, PEM.
    pub(crate) fn keep_roots(&self, pem: &str) {
        let Self::Pod { roots: file, .. } = self else { return };
        let fresh = file.with_extension("new");
        // The folder is the agent's alone.
        if let Err(error) = fs::write(&fresh, pem).and_then(|()| fs::rename(&fresh, file)) {
            tracing::warn!(%error, file = %file.display(), "cannot keep the mesh's roots");
        }
    }

    /// Whether a refusal may be another answer later. A join string is good or not; the operator may hear of a pod,
    /// or of a new root, after the pod itself.
    pub(crate) fn refusals_pass(&self) -> bool {
        matches!(self, Self::Pod { .. })
    }
}

/// `$XDG_STATE_HOME/airlane/join`, by default `~/.local/state/airlane/join` (XDG Base Directory Specification).
fn left_by_operator(state: Option<OsString>, home: Option<OsString>) -> Result<PathBuf, NoJoin> {
    let set = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set(state).or_else(|| Some(set(home)?.join(".local/state"))).ok_or(NoJoin::Unset)?;
    Ok(state.join("airlane/join"))
}

fn read_file(path: &Path) -> Result<JoinInfo, NoJoin> {
    let read = || Ok((fs::read_to_string(path)?, fs::metadata(path)?.permissions().mode()));
    let (text, mode) = read().map_err(|source| NoJoin::Read { path: path.into(), source })?;
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others can read the join string: chmod 600 it");
    }
    text.parse().map_err(|problem| NoJoin::Content { path: path.into(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> JoinInfo {
        JoinInfo {
            address: "127.0.0.1:1".into(),
            root_fingerprint: [1; 32],
            trust_domain: "airlane.local".into(),
            secret: "x".into(),
        }
    }

    fn check(given: &str, expected: Result<(), &str>) {
        let read = Source::of(Some(given.into())).and_then(|source| source.read());
        match (read, expected) {
            (Ok(read), Ok(())) => assert!(read == info().into()),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (read, _) => panic!("{given}: {:?}", read.map(drop)),
        }
    }

    #[test]
    fn is_given_or_in_a_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("join");
        let name = path.to_str().expect("UTF-8");
        check(name, Err("start `airlane up`"));
        fs::write(&path, format!("{}\n", info())).expect("written");
        check(name, Ok(()));
        fs::write(&path, "airlane1.x").expect("written");
        check(name, Err("join: the join string is damaged"));
        check(&info().to_string(), Ok(()));
        check("airlane1.x", Err("--join: the join string is damaged"));
    }

    #[test]
    fn is_looked_for_where_the_operator_leaves_it() {
        let at = |state: Option<&str>, home: Option<&str>| {
            left_by_operator(state.map(Into::into), home.map(Into::into)).ok()
        };
        assert_eq!(at(Some("/s"), Some("/h")), Some("/s/airlane/join".into()));
        assert_eq!(at(Some(""), Some("/h")), Some("/h/.local/state/airlane/join".into()));
        assert_eq!(at(None, None), None);
    }

    #[test]
    fn a_pods_roots_are_kept_for_an_agent_that_is_started_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let invitation = Invitation {
            address: String::new(),
            roots: Vec::new(),
            trust_domain: String::new(),
            token: String::new(),
        };
        let file = dir.path().join("roots.pem");
        let source = Source::Pod { invitation, token: PathBuf::new(), roots: file.clone() };
        assert!(source.kept_roots().is_empty(), "there are none at first");
        let root = rcgen::KeyPair::generate().expect("a key");
        let root = rcgen::CertificateParams::default().self_signed(&root).expect("a certificate").pem();
        source.keep_roots(&root.repeat(2));
        assert_eq!(source.kept_roots().len(), 2);
        source.keep_roots(&root);
        assert_eq!(source.kept_roots().len(), 1, "the last ones count");
        fs::write(&file, "nothing").expect("written");
        assert!(source.kept_roots().is_empty());
    }
}
