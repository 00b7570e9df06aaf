//! Whose token a pod's is.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

/// How Kubernetes names a service account in a token.
const SUBJECT: &str = "system:serviceaccount:";

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
}

/// The token is none of a service account. It is not repeated: it is a secret.
#[derive(Debug, thiserror::Error)]
#[error("the pod's token is no service account's; the injector projects one for the audience `airlane`")]
pub(super) struct NoAccount;

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

/// The account that a token (RFC 7519) was issued for. The signature is the operator's business: this only says what
/// to ask for in our own name.
pub(super) fn of_token(token: &str) -> Result<Account, NoAccount> {
    let claims = token.split('.').nth(1).ok_or(NoAccount)?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).map_err(|_| NoAccount)?;
    let Claims { sub } = serde_json::from_slice(&claims).map_err(|_| NoAccount)?;
    let (namespace, name) =
        sub.strip_prefix(SUBJECT).and_then(|rest| rest.split_once(':')).ok_or(NoAccount)?;
    if namespace.is_empty() || name.is_empty() || name.contains(':') {
        return Err(NoAccount);
    }
    Ok(Account { namespace: namespace.into(), name: name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(claims: &str, expected: Option<(&str, &str)>) {
        let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        let read = of_token(&token).ok().map(|account| (account.namespace, account.name));
        assert_eq!(read, expected.map(|(namespace, name)| (namespace.into(), name.into())), "{claims}");
    }

    #[test]
    fn a_token_names_its_account() {
        check(r#"{"sub":"system:serviceaccount:shop:pay","aud":["airlane"]}"#, Some(("shop", "pay")));
        for claims in [
            "",
            "{}",
            r#"{"sub":"alice"}"#,
            r#"{"sub":"system:serviceaccount:shop"}"#,
            r#"{"sub":"system:serviceaccount::pay"}"#,
            r#"{"sub":"system:serviceaccount:a:b:c"}"#,
        ] {
            check(claims, None);
        }
        assert!(of_token("").is_err() && of_token("a.%.c").is_err());
    }
}
