//! Join tokens: a public part by which they are found, and a secret of which only the hash is kept.

use crate::{
    ca::Ca,
    private_file::{PrivateFileError, read_private, write_private},
    store::{Store, StoreError, StoredToken},
};
use airlane_core::id::{Name, Namespace};
use airlane_wire::join::JoinInfo;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use std::path::{Path, PathBuf};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Characters of the public part: 6 random bytes.
const ID_LENGTH: usize = 8;
/// Characters of the secret part: 32 random bytes.
const SECRET_LENGTH: usize = 43;

/// A token could not be made or looked up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The state failed.
    #[error("cannot use the join tokens")]
    Store(#[from] StoreError),
    /// The file with the local token failed.
    #[error("cannot use the local join token")]
    File(#[from] PrivateFileError),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The lifetime is not one.
    #[error("a token that lives for {given:#} lets nobody in; use a longer time")]
    Lifetime {
        /// What was asked for.
        given: SignedDuration,
    },
}

/// Why a token does not let its bearer in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotLetIn {
    /// There is no such token, or none any more. One text for all of them: a stranger learns nothing from it.
    #[error("the join token is unknown, expired or revoked; make one with `airlane token create`")]
    Invalid,
    /// It lets in somebody else.
    #[error("the join token is for another service; make one for this one with `airlane token create`")]
    OtherService,
}

/// A new token: the only moment at which its secret is known.
pub(crate) struct Minted {
    /// What the state keeps.
    pub stored: StoredToken,
    /// What its bearer shows: both parts.
    pub secret: Zeroizing<String>,
}

/// Makes a token for one service, or for any, that lets in for this long or until it is revoked.
///
/// # Errors
/// If it cannot be remembered.
pub(crate) async fn create(
    store: &Store,
    service: Option<(Namespace, Name)>,
    lifetime: Option<SignedDuration>,
    now: Timestamp,
) -> Result<Minted, TokenError> {
    if let Some(given) = lifetime.filter(|lifetime| !lifetime.is_positive()) {
        return Err(TokenError::Lifetime { given });
    }
    let mut bytes = Zeroizing::new([0; 38]);
    SystemRandom::new().fill(&mut bytes[..]).map_err(|_| TokenError::Random)?;
    let (id, secret) = bytes.split_at(6);
    let (id, secret) =
        (BASE64_URL_SAFE_NO_PAD.encode(id), Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(secret)));
    let stored = StoredToken {
        secret_sha256: sha256(&secret),
        service,
        created_at: now,
        expires_at: lifetime.map(|lifetime| now.saturating_add(lifetime).unwrap_or(Timestamp::MAX)),
        revoked_at: None,
        id,
    };
    store.add_token(&stored).await?;
    let secret = Zeroizing::new(format!("{}{}", stored.id, *secret));
    Ok(Minted { stored, secret })
}

/// Whether the bearer of this token may join as this service now.
///
/// # Errors
/// The outer one if the state failed; the inner one if it may not.
pub(crate) async fn check(
    store: &Store,
    shown: &str,
    namespace: &Namespace,
    service: &Name,
    now: Timestamp,
) -> Result<Result<(), NotLetIn>, StoreError> {
    let token = match valid(store, shown, now).await? {
        Some(token) => token,
        None => return Ok(Err(NotLetIn::Invalid)),
    };
    Ok(match &token.service {
        Some(of) if (&of.0, &of.1) != (namespace, service) => Err(NotLetIn::OtherService),
        _ => Ok(()),
    })
}

async fn valid(store: &Store, shown: &str, now: Timestamp) -> Result<Option<StoredToken>, StoreError> {
    if shown.len() != ID_LENGTH + SECRET_LENGTH || !shown.is_ascii() {
        return Ok(None);
    }
    let (id, secret) = shown.split_at(ID_LENGTH);
    let Some(token) = store.token(id).await? else { return Ok(None) };
    let right = bool::from(sha256(secret).ct_eq(&token.secret_sha256));
    let in_time = token.expires_at.is_none_or(|end| now < end) && token.revoked_at.is_none();
    Ok(Some(token).filter(|_| right && in_time))
}

fn sha256(secret: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
    hash
}

/// Where the join string of this machine lies.
pub(crate) fn local_join_path(state_dir: &Path) -> PathBuf {
    state_dir.join("join")
}

/// Puts the join string for this machine's own workloads into `state_dir/join`, 0600: whoever can read it may join as
/// any service. Its token is kept from one start to the next while it is valid; `at` replaces the rest.
///
/// # Errors
/// If the token or the file cannot be written.
pub(crate) async fn leave_local_join(
    state_dir: &Path,
    store: &Store,
    at: OperatorAt,
    now: Timestamp,
) -> Result<JoinInfo, TokenError> {
    let path = local_join_path(state_dir);
    let there = read_private(&path)?.and_then(|text| text.trim().parse::<JoinInfo>().ok());
    let kept = match &there {
        Some(info) => valid(store, &info.secret, now).await?.filter(|token| token.service.is_none()),
        None => None,
    };
    let secret = match (&there, kept) {
        (Some(info), Some(_)) => info.secret.clone(),
        _ => create(store, None, None, now).await?.secret.to_string(),
    };
    let info = at.join_info(secret);
    if there.as_ref() != Some(&info) {
        write_private(&path, &Zeroizing::new(format!("{info}\n")))?;
    }
    Ok(info)
}

/// Where sidecars find the operator, and how they recognise it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OperatorAt {
    /// `host:port`, as sidecars reach it.
    pub address: String,
    /// SHA-256 of the root's DER.
    pub root_fingerprint: [u8; 32],
    /// The mesh's trust domain.
    pub trust_domain: String,
}

impl OperatorAt {
    /// The operator with this authority, at `host:port`.
    pub(crate) fn new(address: String, ca: &Ca) -> OperatorAt {
        let (root_fingerprint, trust_domain) = (ca.root_fingerprint(), ca.trust_domain().to_string());
        OperatorAt { address, root_fingerprint, trust_domain }
    }

    /// The join string's content with this token.
    pub(crate) fn join_info(self, secret: String) -> JoinInfo {
        let OperatorAt { address, root_fingerprint, trust_domain } = self;
        JoinInfo { address, root_fingerprint, trust_domain, secret }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use tempfile::TempDir;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).expect("in range")
    }

    fn service(namespace: &str, name: &str) -> (Namespace, Name) {
        (Namespace::parse(namespace).expect("a namespace"), Name::parse(name).expect("a name"))
    }

    async fn new_store() -> (TempDir, Store) {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Store::open(dir.path()).await.expect("opened");
        (dir, store)
    }

    async fn check_for(store: &Store, shown: &str, now: i64, expected: Result<(), NotLetIn>) {
        let (namespace, name) = service("shop", "pay");
        let answer = check(store, shown, &namespace, &name, at(now)).await.expect("the state works");
        assert_eq!(answer, expected, "{shown:?} at {now} s");
    }

    #[tokio::test]
    async fn a_token_lets_in_its_own_service_while_it_lasts() {
        let (_dir, store) = new_store().await;
        let any = create(&store, None, None, at(0)).await.expect("made");
        check_for(&store, &any.secret, i64::from(u32::MAX), Ok(())).await;
        let hour = Some(SignedDuration::from_hours(1));
        let own = create(&store, Some(service("shop", "pay")), hour, at(0)).await.expect("made");
        check_for(&store, &own.secret, 3599, Ok(())).await;
        check_for(&store, &own.secret, 3600, Err(NotLetIn::Invalid)).await;
        for other in [service("shop", "orders"), service("other", "pay")] {
            let token = create(&store, Some(other), None, at(0)).await.expect("made");
            check_for(&store, &token.secret, 1, Err(NotLetIn::OtherService)).await;
        }
        store.revoke_token(&any.stored.id, at(1)).await.expect("written");
        check_for(&store, &any.secret, 2, Err(NotLetIn::Invalid)).await;
    }

    #[tokio::test]
    async fn nothing_that_resembles_a_token_lets_in() {
        let (_dir, store) = new_store().await;
        let (one, two) = (
            create(&store, None, None, at(0)).await.expect("made"),
            create(&store, None, None, at(0)).await.expect("made"),
        );
        let mixed = format!("{}{}", one.stored.id, &two.secret[ID_LENGTH..]);
        let mut changed = one.secret.to_string();
        changed.replace_range(50..51, if changed.ends_with('A') { "B" } else { "A" });
        let hash: String = one.stored.secret_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let padded = format!("{} ", *one.secret);
        let accented = "é".repeat(25) + "x";
        for bad in [
            "",
            &one.stored.id,
            &one.secret[..50],
            &padded,
            &mixed,
            &changed,
            &hash,
            &accented,
            &"x".repeat(51),
        ] {
            check_for(&store, bad, 1, Err(NotLetIn::Invalid)).await;
        }
    }

    #[tokio::test]
    async fn a_token_that_never_lets_in_is_not_made() {
        let (_dir, store) = new_store().await;
        for lifetime in [SignedDuration::ZERO, SignedDuration::from_secs(-1)] {
            assert!(create(&store, None, Some(lifetime), at(0)).await.is_err());
        }
    }

    #[tokio::test]
    async fn the_local_join_string_is_private_and_keeps_its_token() {
        let (dir, store) = new_store().await;
        let place = |port: u16| OperatorAt {
            address: format!("127.0.0.1:{port}"),
            root_fingerprint: [7; 32],
            trust_domain: "airlane.local".into(),
        };
        let path = local_join_path(dir.path());
        let first = leave_local_join(dir.path(), &store, place(1), at(0)).await.expect("written");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        check_for(&store, &first.secret, 1, Ok(())).await;
        let moved = leave_local_join(dir.path(), &store, place(2), at(1)).await.expect("written");
        assert_eq!((&moved.secret, &*moved.address), (&first.secret, "127.0.0.1:2"));
        let read: JoinInfo = std::fs::read_to_string(&path).expect("read").parse().expect("a join string");
        assert_eq!(read, moved);
        // A state that was lost, or a token that was revoked: a new one.
        store.revoke_token(&first.secret[..ID_LENGTH], at(2)).await.expect("written");
        let anew = leave_local_join(dir.path(), &store, place(2), at(3)).await.expect("written");
        assert_ne!(anew.secret, first.secret);
        check_for(&store, &anew.secret, 4, Ok(())).await;
        // The secret is in that file alone.
        store.close().await;
        for entry in std::fs::read_dir(dir.path()).expect("listed") {
            let path = entry.expect("an entry").path();
            let bytes = std::fs::read(&path).expect("read");
            let secret = &anew.secret.as_bytes()[ID_LENGTH..];
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", path.display());
        }
    }
}
