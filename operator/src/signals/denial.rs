//! Requests that a policy did not let pass, as the proxies before the applications tell them.
//!
//! The operator writes them to its log, where whoever wrote the policy looks for them. Anybody who may connect can
//! cause entries, so each batch tells a request once with its number; and no proxy has more than [`TOLD_MAX`] lines a
//! second, whatever its batches and streams, and one with the number of what was left out.

use crate::sparing::Sparing;
use airlane_core::id::InstanceId;
use airlane_envoy::lower::{ACCESS_FILTER, ACCESS_SECTION, DENIED_BY};
use envoy_types::pb::{
    envoy::data::accesslog::v3::{
        HttpAccessLogEntry, tls_properties::certificate_properties::subject_alt_name::San,
    },
    google::protobuf::value::Kind,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// Lines that one proxy may cause in a second.
const TOLD_MAX: u32 = 10;

/// Proxies that are remembered although they were not heard for a second.
const REMEMBERED_MAX: usize = 256;

/// The longest part of a path that is told, in characters.
const PATH_MAX: usize = 200;

/// A request that a policy did not let pass.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Denial {
    /// The policy, and which of its rules came nearest.
    by: String,
    /// Whether it was let in all the same.
    audited: bool,
    /// Who asked, if they proved it.
    caller: Option<String>,
    method: String,
    path: String,
}

impl Denial {
    /// What an entry tells; `None` if it tells of something else.
    fn of(entry: &HttpAccessLogEntry) -> Option<Denial> {
        let common = entry.common_properties.as_ref()?;
        let found = &common.metadata.as_ref()?.filter_metadata.get(ACCESS_FILTER)?.fields;
        let policy = |key: &str| match found.get(key)?.kind.as_ref()? {
            Kind::StringValue(policy) => Some(policy.clone()),
            _ => None,
        };
        let [enforced, audited] = DENIED_BY.map(policy);
        let request = entry.request.as_ref();
        let sans = common.tls_properties.as_ref().and_then(|tls| tls.peer_certificate_properties.as_ref());
        let caller =
            sans.into_iter().flat_map(|properties| &properties.subject_alt_name).find_map(|name| match name
                .san
                .as_ref()?
            {
                San::Uri(identity) => Some(identity.clone()),
                _ => None,
            });
        Some(Denial {
            audited: enforced.is_none(),
            by: enforced.or(audited)?,
            caller,
            method: request
                .and_then(|request| request.request_method().as_str_name().split('_').next())
                .unwrap_or_default()
                .to_owned(),
            path: request.map_or("", |request| &request.path).chars().take(PATH_MAX).collect(),
        })
    }
}

/// What each proxy had told in this second.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<HashMap<InstanceId, Sparing>>);

impl Told {
    /// Tells what a batch of a proxy has of denials; when [`Told::rest`] has something to tell, if it has.
    pub(super) fn tell(&self, proxy: &InstanceId, entries: &[HttpAccessLogEntry]) -> Option<Instant> {
        let mut denials: BTreeMap<Denial, u64> = BTreeMap::new();
        for denial in entries.iter().filter_map(Denial::of) {
            *denials.entry(denial).or_default() += 1;
        }
        if denials.is_empty() {
            return None;
        }
        let now = Instant::now();
        let mut proxies = self.proxies();
        if proxies.len() >= REMEMBERED_MAX {
            proxies.retain(|proxy, told| {
                tell_rest(proxy, told, now);
                told.is_of(now)
            });
        }
        let told = proxies.entry(proxy.clone()).or_insert_with(|| Sparing::new(TOLD_MAX));
        tell_rest(proxy, told, now);
        for (denial, times) in denials {
            if !told.may_tell(times, now) {
                continue;
            }
            let Denial { by, audited, caller, method, path } = denial;
            let (policy, because) = by.split_once(ACCESS_SECTION).unwrap_or((&by, ""));
            let because = because.trim_start_matches([':', ' ']);
            let caller = caller.as_deref().unwrap_or("nobody known");
            let what = if audited { "a request would be denied" } else { "a request was denied" };
            tracing::warn!(%proxy, policy, because, caller, method, ?path, times, "{what}");
        }
        told.due()
    }

    /// Tells how much was left out, once its second is over.
    pub(super) fn rest(&self, proxy: &InstanceId) {
        if let Some(told) = self.proxies().get_mut(proxy) {
            tell_rest(proxy, told, Instant::now());
        }
    }

    fn proxies(&self) -> MutexGuard<'_, HashMap<InstanceId, Sparing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_rest(proxy: &InstanceId, told: &mut Sparing, now: Instant) {
    if let Some(times) = told.left_out(now) {
        tracing::warn!(%proxy, times, "more requests were denied");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::{
        envoy::{
            config::core::v3::Metadata,
            data::accesslog::v3::{AccessLogCommon, HttpRequestProperties},
        },
        google::protobuf::{Struct, Value},
    };
    use std::{
        io::{self, Write},
        sync::Arc,
        time::Duration,
    };

    /// A batch of requests to different paths, which a policy did not let pass.
    fn batch(of: usize) -> Vec<HttpAccessLogEntry> {
        let by = Value { kind: Some(Kind::StringValue("MeshPolicy shop/pay access: no rule".to_owned())) };
        let found = Struct { fields: [(DENIED_BY[0].to_owned(), by)].into() };
        let metadata =
            Metadata { filter_metadata: [(ACCESS_FILTER.to_owned(), found)].into(), ..Metadata::default() };
        let common = AccessLogCommon { metadata: Some(metadata), ..AccessLogCommon::default() };
        let entry = |n: usize| HttpAccessLogEntry {
            common_properties: Some(common.clone()),
            request: Some(HttpRequestProperties {
                path: format!("/{n}"),
                ..HttpRequestProperties::default()
            }),
            ..HttpAccessLogEntry::default()
        };
        (0..of).map(entry).collect()
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn lines(&self, with: &str) -> usize {
            let bytes = self.0.lock().expect("not poisoned");
            String::from_utf8_lossy(&bytes).lines().filter(|line| line.contains(with)).count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_has_few_lines_a_second_whatever_it_sends() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _here = tracing::subscriber::set_default(subscriber);
        let [pay, cart] = ["pay-1", "cart-1"].map(|name| InstanceId::parse(name).expect("a name"));
        let told = Told::default();
        assert_eq!(told.tell(&pay, &batch(3)), None);
        let mut due = None;
        for _ in 0..800 {
            due = told.tell(&pay, &batch(20));
        }
        assert_eq!(log.lines("a request was denied"), 10);
        assert_eq!(log.lines("more requests were denied"), 0);
        told.tell(&cart, &batch(1));
        assert_eq!(log.lines("cart-1"), 1, "another proxy has lines of its own");

        tokio::time::sleep_until(due.expect("something was left out")).await;
        told.rest(&pay);
        told.rest(&pay);
        assert_eq!(log.lines("more requests were denied proxy=pay-1 times=15993"), 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        told.tell(&pay, &batch(1));
        assert_eq!(log.lines("a request was denied proxy=pay-1"), 11);
    }
}
