//! A small HTTP/1.1 client that checks what it gets.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A connection that is kept open from request to request.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

/// A response's first lines; its body has yet to be read.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    fn length(&self) -> io::Result<usize> {
        let length = self.header("content-length").and_then(|text| text.parse().ok());
        length.ok_or_else(|| io::Error::other("no content-length"))
    }
}

impl Connection {
    /// Connects. Nothing on it may take longer than 30 seconds.
    pub fn new(server: SocketAddr) -> io::Result<Connection> {
        let limit = Duration::from_secs(30);
        let stream = TcpStream::connect_timeout(&server, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::with_capacity(64 << 10, stream) })
    }

    /// Sends a request, with a body if there is one, and reads the head of the response.
    pub fn request(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> io::Result<Head> {
        let length = body.map_or(String::new(), |body| format!("Content-Length: {}\r\n", body.len()));
        let request = format!("{method} {path} HTTP/1.1\r\nHost: sandbox\r\n{length}\r\n");
        let stream = self.stream.get_mut();
        stream.write_all(request.as_bytes())?;
        stream.write_all(body.unwrap_or_default())?;
        self.head()
    }

    /// Gets a page.
    pub fn get(&mut self, path: &str) -> io::Result<(Head, Vec<u8>)> {
        let head = self.request("GET", path, None)?;
        let mut body = vec![0; head.length()?];
        self.stream.read_exact(&mut body)?;
        Ok((head, body))
    }

    /// Gets a page that must be exactly `expected`, without holding it in memory twice.
    pub fn get_expecting(&mut self, path: &str, expected: &[u8]) -> io::Result<Head> {
        let head = self.request("GET", path, None)?;
        if head.status != 200 || head.length()? != expected.len() {
            return Err(io::Error::other(format!("{path}: {head:?}")));
        }
        let mut offset = 0;
        while offset < expected.len() {
            let bytes = self.stream.fill_buf()?;
            let length = bytes.len().min(expected.len() - offset);
            if length == 0 || bytes[..length] != expected[offset..offset + length] {
                return Err(io::Error::other(format!("{path}: wrong or missing bytes after byte {offset}")));
            }
            self.stream.consume(length);
            offset += length;
        }
        Ok(head)
    }

    /// Reads and drops some of a body.
    pub fn skip(&mut self, length: u64) -> io::Result<()> {
        io::copy(&mut self.stream.by_ref().take(length), &mut io::sink()).map(drop)
    }

    fn head(&mut self) -> io::Result<Head> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| io::Error::other("not a response"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            match line.split_once(": ") {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
                None if line.is_empty() => return Ok(Head { status, headers }),
                None => return Err(io::Error::other(format!("not a header: {line:?}"))),
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}
