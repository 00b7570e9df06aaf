//! The framing of one gRPC call, read and written by hand.
//!
//! tonic keeps, for each open stream, a buffer as large as the largest message that ever went through it. A proxy's
//! first messages are megabytes and all later ones are small, so a thousand idle proxies would keep gigabytes. Here
//! a message is encoded piece by piece as fast as the proxy reads, and nothing is kept.

use airlane_envoy::delta::Response;
use bytes::{Buf as _, Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use futures::stream;
use http::HeaderMap;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use prost::Message as _;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Status, body::Body};

/// Before each message: whether it is compressed (1 byte), and its length (4 bytes, big-endian).
const PREFIX_BYTES: usize = 5;

/// The largest message a proxy may send, in bytes: its node description is about 60 KB, and a request names at most
/// all its resources.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// What a proxy says.
pub(super) struct Requests {
    body: Body,
    buffer: BytesMut,
}

impl Requests {
    pub(super) fn of(body: Body) -> Requests {
        Requests { body, buffer: BytesMut::new() }
    }

    /// The next request, or `None` at the end. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        loop {
            if let Some(request) = self.take()? {
                return Ok(Some(request));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            match frame?.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(_trailers) => return Ok(None),
            }
        }
    }

    fn take(&mut self) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Status::unimplemented("compressed requests are not read"));
        }
        if length > REQUEST_BYTES_MAX {
            let text = format!("a request of {length} bytes: at most {REQUEST_BYTES_MAX} are read");
            return Err(Status::resource_exhausted(text));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        let message = self.buffer.split_to(length);
        if self.buffer.is_empty() {
            // What was split off goes with the message; a buffer that stays would be as large.
            self.buffer = BytesMut::new();
        }
        let request = DeltaDiscoveryRequest::decode(message);
        request.map(Some).map_err(|_| Status::invalid_argument("not a DeltaDiscoveryRequest"))
    }
}

/// What is said to a proxy: responses, and the status at the end.
pub(super) fn responses(queue: mpsc::Receiver<Result<Arc<Response>, Status>>) -> Body {
    let saying = Saying { queue, pieces: Box::new(std::iter::empty()), over: false };
    let frames = stream::unfold(saying, |mut saying| async {
        let frame = saying.next().await?;
        Some((Ok::<_, Status>(frame), saying))
    });
    Body::new(StreamBody::new(frames))
}

struct Saying {
    queue: mpsc::Receiver<Result<Arc<Response>, Status>>,
    /// What is left of the response that is being sent.
    pieces: Box<dyn Iterator<Item = Vec<u8>> + Send>,
    over: bool,
}

impl Saying {
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        if let Some(piece) = self.pieces.next() {
            return Some(Frame::data(piece.into()));
        }
        if self.over {
            return None;
        }
        let ended = || Err(Status::unavailable("the stream ended"));
        let message = self.queue.recv().await.unwrap_or_else(ended).and_then(|response| {
            let length = u32::try_from(response.encoded_len());
            let length = length.map_err(|_| Status::internal("a response of more than 4 GiB"))?;
            let mut pieces = response.pieces();
            // Most responses are one piece, and so one frame.
            let piece = pieces.next().unwrap_or_default();
            let first = [&[0][..], &length.to_be_bytes(), &piece].concat();
            self.pieces = Box::new(pieces);
            Ok(first)
        });
        Some(match message {
            Ok(first) => Frame::data(first.into()),
            Err(status) => {
                self.over = true;
                Frame::trailers(trailers(&status))
            }
        })
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // A text that is no header is left out; the code always fits.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, i32::from(status.code()).into());
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn message(type_url: &str) -> Vec<u8> {
        let request = DeltaDiscoveryRequest { type_url: type_url.into(), ..DeltaDiscoveryRequest::default() };
        let encoded = request.encode_to_vec();
        let length = u32::try_from(encoded.len()).expect("small");
        [&[0][..], &length.to_be_bytes(), &encoded].concat()
    }

    async fn read(bytes: &[u8], frame: usize) -> (Vec<String>, Option<Code>) {
        let frames: Vec<_> =
            bytes.chunks(frame).map(Bytes::copy_from_slice).map(Frame::data).map(Ok).collect();
        let body = StreamBody::new(stream::iter(frames.into_iter().map(|frame: Result<_, Status>| frame)));
        let mut requests = Requests::of(Body::new(body));
        let mut heard = Vec::new();
        loop {
            match requests.next().await {
                Ok(Some(request)) => heard.push(request.type_url),
                Ok(None) => return (heard, None),
                Err(status) => return (heard, Some(status.code())),
            }
        }
    }

    #[tokio::test]
    async fn requests_are_found_however_they_are_cut() {
        let long = "x".repeat(1000);
        let bytes = [message("a"), message(""), message(&long)].concat();
        for frame in [1, 3, 5, 100, bytes.len()] {
            assert_eq!(read(&bytes, frame).await, (vec!["a".into(), String::new(), long.clone()], None));
        }
    }

    #[tokio::test]
    async fn what_is_no_request_ends_the_call() {
        let with_prefix =
            |prefix: [u8; PREFIX_BYTES]| [message("a"), prefix.to_vec(), vec![0xff; 9]].concat();
        for (prefix, code) in [
            ([1, 0, 0, 0, 9], Code::Unimplemented),
            ([0, 0xff, 0xff, 0xff, 0xff], Code::ResourceExhausted),
            ([0, 0, 0, 0, 9], Code::InvalidArgument),
        ] {
            assert_eq!(read(&with_prefix(prefix), 7).await, (vec!["a".into()], Some(code)));
        }
        let cut = with_prefix([0, 0, 0, 0, 99]);
        assert_eq!(read(&cut, 7).await, (vec!["a".into()], None), "the proxy left in the middle of a word");
    }
}
