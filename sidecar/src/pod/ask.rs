//! Asking the application what the kubelet would have asked it: from inside the pod, past the mesh, which does not
//! redirect what this user sends.

mod grpc;

use crate::{http, link};
use airlane_wire::pod::{Grpc, How, HttpGet, Scheme, TcpSocket};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT},
    http::response::Parts,
};
use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};
use tokio::net::TcpStream;

/// As many redirections are followed as the kubelet follows.
const REDIRECTIONS_MAX: usize = 10;

/// How the application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It answers as it should.
    Well,
    /// It answers otherwise; for other protocols than HTTP with the status that says the same.
    Unwell(StatusCode),
    /// It does not answer; why.
    Silent(String),
}

/// Asks the application on `pod`, in the name of `user_agent`.
pub(super) async fn ask(how: &How, pod: IpAddr, user_agent: Option<&HeaderValue>) -> Outcome {
    let asked = match how {
        How::HttpGet(get) => http_get(get, pod, user_agent).await,
        How::TcpSocket(TcpSocket { port }) => connect(pod, *port).await.map(|_| Outcome::Well),
        How::Grpc(Grpc { port, service }) => grpc::check(SocketAddr::new(pod, *port), service).await,
    };
    asked.unwrap_or_else(Outcome::Silent)
}

async fn connect(pod: IpAddr, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((pod, port)).await.map_err(|error| format!("port {port}: {error}"))
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    scheme: Scheme,
    port: u16,
    path: String,
}

async fn http_get(get: &HttpGet, pod: IpAddr, user_agent: Option<&HeaderValue>) -> Result<Outcome, String> {
    let mut target = Target { scheme: get.scheme, port: get.port, path: path(&get.path) };
    for _ in 0..=REDIRECTIONS_MAX {
        let answer = send(request(&target, get, pod, user_agent)?, &target, pod).await?;
        if answer.status.is_success() {
            return Ok(Outcome::Well);
        }
        if !answer.status.is_redirection() {
            return Ok(Outcome::Unwell(answer.status));
        }
        match answer.headers.get(LOCATION).and_then(|location| redirected(&target, location, pod)) {
            Some(next) => target = next,
            // As the kubelet has it: who sends somebody elsewhere is well.
            None => return Ok(Outcome::Well),
        }
    }
    Err(format!("port {}: more than {REDIRECTIONS_MAX} redirections", get.port))
}

/// A path as it may stand in a request: what a URL may not hold is escaped, as the kubelet does.
fn path(text: &str) -> String {
    let mut path = String::from(if text.starts_with('/') { "" } else { "/" });
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte) {
            path.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            write!(path, "%{byte:02X}").ok();
        }
    }
    path
}

/// Where an answer leads, if that is in the pod.
fn redirected(from: &Target, location: &HeaderValue, pod: IpAddr) -> Option<Target> {
    let location: Uri = location.to_str().ok()?.parse().ok()?;
    let path = location.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let Some(host) = location.host() else {
        return Some(Target { path, ..from.clone() });
    };
    let scheme = match location.scheme_str()? {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let usual = if scheme == Scheme::Http { 80 } else { 443 };
    let host: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
    (host == pod).then(|| Target { scheme, port: location.port_u16().unwrap_or(usual), path })
}

/// What the kubelet would send: the pod's headers, and its own where the pod has none.
fn request(
    target: &Target,
    get: &HttpGet,
    pod: IpAddr,
    user_agent: Option<&HeaderValue>,
) -> Result<Request<Empty<Bytes>>, String> {
    let not_sent = |what: &str| format!("port {}: {what} cannot be sent", get.port);
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = target.path.parse().map_err(|_| not_sent("the path"))?;
    let headers = request.headers_mut();
    for header in &get.http_headers {
        let name: HeaderName = header.name.parse().map_err(|_| not_sent("a header's name"))?;
        let value: HeaderValue = header.value.parse().map_err(|_| not_sent("a header's value"))?;
        headers.append(name, value);
    }
    let address = SocketAddr::new(pod, target.port).to_string();
    let address = address.parse().map_err(|_| not_sent("the address"))?;
    headers.entry(HOST).or_insert(address);
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    if let Some(user_agent) = user_agent {
        headers.entry(USER_AGENT).or_insert_with(|| user_agent.clone());
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

async fn send(request: Request<Empty<Bytes>>, target: &Target, pod: IpAddr) -> Result<Parts, String> {
    let stream = connect(pod, target.port).await?;
    let failed = |error: &dyn std::error::Error| format!("port {}: {error}", target.port);
    match target.scheme {
        Scheme::Http => http::head(stream, request).await.map_err(|error| failed(&error)),
        Scheme::Https => {
            let tls = link::unverified(pod, stream).await.map_err(|error| failed(&error))?;
            http::head(tls, request).await.map_err(|error| failed(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "10.1.2.3";

    fn check_redirection(location: &str, expected: Option<(Scheme, u16, &str)>) {
        let from = Target { scheme: Scheme::Http, port: 8080, path: "/health".into() };
        let location = HeaderValue::from_str(location).expect("a value");
        let found = redirected(&from, &location, POD.parse().expect("an address"));
        let expected = expected.map(|(scheme, port, path)| Target { scheme, port, path: path.into() });
        assert_eq!(found, expected, "{location:?}");
    }

    #[test]
    fn redirections_are_followed_within_the_pod() {
        check_redirection("/login?next=1", Some((Scheme::Http, 8080, "/login?next=1")));
        check_redirection("http://10.1.2.3:8080/", Some((Scheme::Http, 8080, "/")));
        check_redirection("https://10.1.2.3/a", Some((Scheme::Https, 443, "/a")));
        check_redirection("https://example.com/a", None);
        check_redirection("http://10.1.2.4/a", None);
        check_redirection("ftp://10.1.2.3/a", None);
        check_redirection("not a place", None);
    }

    #[test]
    fn a_path_is_made_fit_to_send() {
        for (text, expected) in [
            ("", "/"),
            ("health", "/health"),
            ("/a?b=c&d=%20", "/a?b=c&d=%20"),
            ("/a b\r\nHost: x", "/a%20b%0D%0AHost:%20x"),
            ("/ä", "/%C3%A4"),
        ] {
            assert_eq!(path(text), expected);
            assert!(path(text).parse::<Uri>().is_ok(), "{text}");
        }
    }
}
