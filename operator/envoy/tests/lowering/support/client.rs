//! HTTP/1.1 as an application with `HTTP_PROXY` speaks it.

use super::app::head;
use std::{
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// One request for an absolute URL, by way of the proxy's port.
pub fn call(port: u16, method: &str, url: &str, headers: &[(&str, &str)]) -> Response {
    let host = url.trim_start_matches("http://").split('/').next().unwrap();
    let mut connection = dial(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    ask(&mut connection, method, url, host, headers).unwrap()
}

pub fn get(port: u16, url: &str) -> Response {
    call(port, "GET", url, &[])
}

/// A tunnel to `authority`, by way of the proxy's port.
pub fn connect(port: u16, authority: &str) -> Result<TcpStream, Response> {
    let mut connection = dial(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    write!(connection, "CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n").unwrap();
    let mut byte = [0];
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let (line, headers) = head(&mut &answer[..]).unwrap();
    let status = status(&line);
    if status == 200 {
        return Ok(connection);
    }
    let body = body(&headers, &mut BufReader::new(connection));
    Err(Response { status, headers, body })
}

pub fn dial(to: SocketAddr) -> std::io::Result<TcpStream> {
    let connection = TcpStream::connect(to)?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(connection)
}

/// One request on a connection that stays open; `None` if the peer closed instead of answering.
pub fn ask(
    connection: &mut TcpStream,
    method: &str,
    target: &str,
    host: &str,
    headers: &[(&str, &str)],
) -> Option<Response> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    // In one piece, as clients do: a few bytes at a time are sometimes too few for Envoy to know HTTP by.
    let request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).ok()?;
    let mut reader = BufReader::new(connection);
    let (line, headers) = head(&mut reader)?;
    let body = if method == "HEAD" { String::new() } else { body(&headers, &mut reader) };
    Some(Response { status: status(&line), headers, body })
}

fn status(line: &str) -> u16 {
    line.split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status in {line:?}"))
}

fn body(headers: &[(String, String)], reader: &mut impl Read) -> String {
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}
