//! Applications: HTTP/1.1 servers on loopback that answer as a closure says.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// A request as an application sees it.
pub struct Request {
    pub line: String,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    /// How many requests came before it.
    pub nth: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Serves on loopback until the process ends; gives the port.
pub fn serve(answer: impl Fn(&Request) -> (u16, String) + Send + Sync + 'static) -> u16 {
    serve_on(Ipv4Addr::LOCALHOST.into(), answer)
}

/// Serves on an address until the process ends; gives the port.
pub fn serve_on(address: IpAddr, answer: impl Fn(&Request) -> (u16, String) + Send + Sync + 'static) -> u16 {
    serve_from(TcpListener::bind((address, 0)).unwrap(), answer)
}

/// Serves whoever calls until the process ends; gives the port.
pub fn serve_from(
    listener: TcpListener,
    answer: impl Fn(&Request) -> (u16, String) + Send + Sync + 'static,
) -> u16 {
    let port = listener.local_addr().unwrap().port();
    let (answer, count) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
            thread::spawn(move || requests(connection, &*answer, &count));
        }
    });
    port
}

fn requests(connection: TcpStream, answer: &dyn Fn(&Request) -> (u16, String), count: &AtomicUsize) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let mut connection = connection;
    while let Some((line, headers)) = head(&mut reader) {
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let request = Request { line, headers, nth: count.fetch_add(1, Ordering::SeqCst) };
        let (status, body) = answer(&request);
        let length = body.len();
        if write!(connection, "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}").is_err() {
            return;
        }
    }
}

/// A first line and headers with lower-case names; `None` when the peer closed.
pub fn head(reader: &mut impl BufRead) -> Option<(String, Vec<(String, String)>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" if lines.is_empty() => {}
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let first = lines.remove(0);
    let header = |line: &String| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    Some((first, lines.iter().filter_map(header).collect()))
}

/// A server that speaks first: greets each connection, then returns what it gets.
pub fn greet() -> u16 {
    greet_from(TcpListener::bind("127.0.0.1:0").unwrap())
}

/// The same on a socket that listens.
pub fn greet_from(listener: TcpListener) -> u16 {
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            thread::spawn(move || {
                connection.write_all(b"hello\n").unwrap();
                let mut reader = connection.try_clone().unwrap();
                std::io::copy(&mut reader, &mut connection)
            });
        }
    });
    port
}

/// A server that switches to another protocol when asked, and then returns what it gets.
pub fn switch() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = BufReader::new(connection.try_clone().unwrap());
                if head(&mut reader).is_some() {
                    let answer = "HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                    connection.write_all(answer.as_bytes()).unwrap();
                    std::io::copy(&mut reader, &mut connection).ok();
                }
            });
        }
    });
    port
}

/// Answers everything with the request as it came.
pub fn ok() -> u16 {
    serve(|request| (200, format!("{}\n{:?}", request.line, request.headers)))
}
