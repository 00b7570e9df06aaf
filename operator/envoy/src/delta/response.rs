//! What a session wants said: pointers to shared resources, encoded piece by piece while it is sent.

use crate::catalog::{Kind, Resource};
use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as WireResource},
    google::protobuf::Duration,
};
use prost::Message;
use std::sync::Arc;

/// A piece holds at least this many bytes, but for the last.
const PIECE_BYTES: usize = 32 << 10;

/// The key of `DeltaDiscoveryResponse.resources` and, by chance, of `Resource.resource`: field 2, length-delimited.
const FIELD_2: u8 = 2 << 3 | 2;

/// One message to one proxy. It holds pointers: a slow proxy's queue costs no copy of what waits in it.
#[derive(Debug)]
pub struct Response {
    /// The kind of everything in it.
    pub kind: Kind,
    /// Names the response in the proxy's answer; counts up over the whole stream.
    pub nonce: u64,
    /// What is sent, sorted by name.
    pub resources: Vec<Arc<Resource>>,
    /// What is gone, or was asked for and does not exist, sorted by name.
    pub removed: Vec<Arc<str>>,
    /// Whether `resources` are only kept alive: names, versions and TTLs travel, bodies do not.
    pub heartbeat: bool,
}

impl Response {
    /// The length of the encoded `DeltaDiscoveryResponse`, in bytes.
    pub fn encoded_len(&self) -> usize {
        let resources = self.resources.iter().map(|resource| {
            let head = resource_head(resource);
            field_len(self.resource_len(resource, &head))
        });
        self.head().encoded_len() + resources.sum::<usize>()
    }

    /// The encoded `DeltaDiscoveryResponse` in pieces: the first message to a proxy may be megabytes, and a thousand
    /// proxies may want theirs at once.
    pub fn pieces(self: &Arc<Self>) -> impl Iterator<Item = Vec<u8>> + Send + use<> {
        let response = self.clone();
        let mut head = Some(response.head().encode_to_vec());
        let mut next = 0;
        std::iter::from_fn(move || {
            let mut piece = head.take().unwrap_or_default();
            while let Some(resource) = response.resources.get(next)
                && piece.len() < PIECE_BYTES
            {
                response.encode_resource(resource, &mut piece);
                next += 1;
            }
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// Everything but the resources; the order of fields is free in protobuf.
    fn head(&self) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: self.kind.type_url().to_owned(),
            nonce: self.nonce.to_string(),
            removed_resources: self.removed.iter().map(|name| name.to_string()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    fn encode_resource(&self, resource: &Resource, piece: &mut Vec<u8>) {
        let head = resource_head(resource);
        let len = self.resource_len(resource, &head);
        piece.reserve(field_len(len));
        piece.push(FIELD_2);
        encode_len(len, piece);
        // A vector has room for everything, so that nothing here fails.
        let _ = head.encode(piece);
        if !self.heartbeat {
            piece.push(FIELD_2);
            let _ = resource.body.encode_length_delimited(piece);
        }
    }

    fn resource_len(&self, resource: &Resource, head: &WireResource) -> usize {
        let body = if self.heartbeat { 0 } else { field_len(resource.body.encoded_len()) };
        head.encoded_len() + body
    }

    pub(super) fn resource(&self, name: &str) -> Option<&Arc<Resource>> {
        let at = self.resources.binary_search_by(|resource| (*resource.key.name).cmp(name)).ok()?;
        self.resources.get(at)
    }

    pub(super) fn removes(&self, name: &str) -> bool {
        self.removed.binary_search_by(|removed| (**removed).cmp(name)).is_ok()
    }
}

/// Everything of a resource but its body.
fn resource_head(resource: &Resource) -> WireResource {
    WireResource {
        name: resource.key.name.to_string(),
        version: resource.version.to_string(),
        ttl: resource.ttl.map(|ttl| Duration {
            seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(ttl.subsec_nanos()).unwrap_or(0),
        }),
        ..WireResource::default()
    }
}

/// The length of field 2 with a content of `len` bytes.
fn field_len(len: usize) -> usize {
    1 + prost::length_delimiter_len(len) + len
}

fn encode_len(mut len: usize, out: &mut Vec<u8>) {
    // A base-128 varint, as in https://protobuf.dev/programming-guides/encoding/#varints
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Key, Scope, Version};
    use envoy_types::pb::google::protobuf::Any;

    fn check(sizes: &[usize], removed: &[&str], heartbeat: bool) {
        let kind = Kind::Runtime;
        let body = |size| Any { type_url: kind.type_url().into(), value: vec![7; size] };
        let ttl = std::time::Duration::from_millis(1500);
        let resource = |(at, size): (usize, &usize)| Resource {
            key: Key { kind, name: format!("r{at:04}").into() },
            scope: Scope::Everyone,
            version: Version(at as u64),
            body: Arc::new(body(*size)),
            ttl: (at % 2 == 0).then_some(ttl),
            clusters: Arc::default(),
            domains: Arc::default(),
            shaped_by: Arc::default(),
        };
        let resources = sizes.iter().enumerate().map(resource).map(Arc::new).collect();
        let removed = removed.iter().map(|name| Arc::from(*name)).collect();
        let response = Arc::new(Response { kind, nonce: 300, resources, removed, heartbeat });

        let pieces: Vec<_> = response.pieces().collect();
        let whole = pieces.concat();
        assert_eq!(whole.len(), response.encoded_len());
        let largest = sizes.iter().max().copied().unwrap_or_default();
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES + largest + 200));
        let wire_resource = |(at, size): (usize, &usize)| WireResource {
            name: format!("r{at:04}"),
            version: format!("{at:016x}"),
            resource: (!heartbeat).then(|| body(*size)),
            ttl: (at % 2 == 0).then_some(Duration { seconds: 1, nanos: 500_000_000 }),
            ..WireResource::default()
        };
        let expected = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: "300".into(),
            resources: sizes.iter().enumerate().map(wire_resource).collect(),
            removed_resources: response.removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        assert_eq!(DeltaDiscoveryResponse::decode(whole.as_slice()), Ok(expected));
    }

    #[test]
    fn pieces_are_one_message() {
        check(&[], &[], false);
        check(&[], &["a", "b"], false);
        check(&[0, 1, 127, 128, 300], &["a"], false);
        check(&[PIECE_BYTES * 3, 1, PIECE_BYTES], &[], false);
        check(&[100; 2000], &[], false);
        check(&[100, 100], &[], true);
    }
}
