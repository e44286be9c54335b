//! An HTTP server that misbehaves as told: what a well-behaved library would never send.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What a client asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
}

impl Request {
    /// First byte that is wanted.
    pub fn from(&self) -> Option<usize> {
        self.range
            .as_ref()?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// What it gets.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Bytes that are really sent before the connection is closed; all by default.
    pub cut_at: usize,
    /// Whether to announce the length.
    pub announce: bool,
    /// A wait in the middle of the body.
    pub pause: Duration,
}

impl Reply {
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_vec(),
            cut_at: usize::MAX,
            announce: true,
            pause: Duration::ZERO,
        }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn cut_at(mut self, bytes: usize) -> Self {
        self.cut_at = bytes;
        self
    }

    /// `content` as a server with ranges gives it.
    pub fn ranged(request: &Request, content: &[u8], etag: &str) -> Self {
        let same = request.if_range.as_deref().is_none_or(|wanted| wanted == etag);
        let reply = match request.from().filter(|_| same) {
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
                Self::new(206, &content[from..]).header("Content-Range", range)
            }
            None => Self::new(200, content),
        };
        reply.header("ETag", etag)
    }
}

/// The server; it ends when dropped.
pub struct Server {
    address: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Answers each request by `reply`, which also gets the number of requests before.
    pub async fn start(reply: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (log, reply) = (Arc::clone(&seen), Arc::new(reply));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, reply) = (Arc::clone(&log), Arc::clone(&reply));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let Some(request) = read(&mut stream).await else {
                        return;
                    };
                    let answer = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        reply(&request, log.len() - 1)
                    };
                    // A client that had enough closes; that is its right.
                    let _ = write(stream.get_mut(), &answer).await;
                });
            }
        });
        Self { address, seen, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut request = Request::default();
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    request.path = line.split_whitespace().nth(1)?.to_owned();
    loop {
        line.clear();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(request);
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "if-range" => request.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
}

async fn write(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
    let length = reply
        .announce
        .then(|| ("Content-Length", reply.body.len().to_string()));
    let headers = reply.headers.iter().cloned().chain(length);
    let lines: Vec<String> = headers
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let lines = lines.concat();
    let head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n{lines}\r\n", reply.status);
    stream.write_all(head.as_bytes()).await?;
    let body = &reply.body[..reply.body.len().min(reply.cut_at)];
    let (first, second) = body.split_at(body.len() / 2);
    stream.write_all(first).await?;
    stream.flush().await?;
    tokio::time::sleep(reply.pause).await;
    stream.write_all(second).await?;
    stream.shutdown().await
}
