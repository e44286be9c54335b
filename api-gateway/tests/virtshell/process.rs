//! The program itself, as a process: what it logs, and how it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Reply, Request, World, file_store, kubeconfig, row};

/// A gateway of its own, which logs JSON; killed when dropped.
struct Gateway {
    child: Child,
    address: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl Gateway {
    fn start(w: &World) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let log = tempfile::NamedTempFile::new().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_virtshell-gateway"))
            .args(["--listen", &address.to_string(), "--namespace", &w.namespace])
            .args(["--kubeconfig", kubeconfig().to_str().unwrap()])
            .args(["--file-store", file_store().to_str().unwrap()])
            .env("VIRTSHELL_LOG", "json")
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(File::create(log.path()).unwrap())
            .spawn()
            .unwrap();
        Self { child, address, log }
    }

    fn send(&self, request: &Request<'_>) -> Reply {
        World::send_to(self.address, request.path, request)
    }

    async fn until_ready(&self, w: &World) {
        let ready = || {
            TcpStream::connect(self.address).is_ok()
                && self.send(&Request::new("GET", "/readyz").unsigned()).status == 200
        };
        w.until("the process is ready", ready).await;
    }

    /// The lines of its log that tell of requests.
    fn requests(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect(line));
        lines
            .filter(|line| line["fields"]["message"] == "request")
            .collect()
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
    }

    /// Waits until it has ended, and says how.
    fn ended(&mut self, patience: Duration) -> Option<i32> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it runs on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_request_is_one_line_of_the_log() {
    row(async |w| {
        let gateway = Gateway::start(w);
        gateway.until_ready(w).await;
        let request =
            Request::new("GET", "/virtshell/api/v1/hosts/fx-gp?x=secret").header("X-Request-Id", "abc-1");
        assert_eq!(gateway.send(&request).status, 200);
        let missing = Request::new("GET", "/virtshell/api/v1/hosts/none").header("X-Request-Id", "abc-2");
        assert_eq!(gateway.send(&missing).status, 404);
        w.until("the requests are in the log", || gateway.requests().len() >= 2)
            .await;
        let lines = gateway.requests();
        for (line, id, path, status) in [
            (&lines[0], "abc-1", "/virtshell/api/v1/hosts/fx-gp", 200),
            (&lines[1], "abc-2", "/virtshell/api/v1/hosts/none", 404),
        ] {
            let fields = &line["fields"];
            assert_eq!(line["level"], "INFO");
            assert!(fields["elapsed_ms"].as_f64().unwrap() > 0.0, "{line}");
            for (field, expected) in [
                ("request.id", json!(id)),
                ("dialect", json!("virtshell")),
                ("method", json!("GET")),
                ("path", json!(path)),
                ("route", json!("/hosts/:name")),
                ("user", json!("tester")),
                ("status", json!(status)),
            ] {
                assert_eq!(fields[field], expected, "{field}: {line}");
            }
            let client: SocketAddr = fields["client"].as_str().unwrap().parse().unwrap();
            assert!(client.ip().is_loopback() && client.port() > 0, "{line}");
            assert!(
                !line.to_string().contains("secret"),
                "queries and signatures are not logged"
            );
        }
    });
}

#[test]
fn what_was_asked_before_the_end_is_answered() {
    row(async |w| {
        let mut gateway = Gateway::start(w);
        gateway.until_ready(w).await;
        // The head is there, and half of the body.
        let mut slow = TcpStream::connect(gateway.address).unwrap();
        let path = "/virtshell/api/v1/hosts/fx-gp";
        let body = json!({"os": "late"}).to_string();
        let head = World::head(gateway.address, path, &Request::new("PUT", path).text(&body));
        slow.write_all(head.as_bytes()).unwrap();
        slow.write_all(&body.as_bytes()[..5]).unwrap();
        // One that was served and stays keeps nobody waiting.
        let mut idle = TcpStream::connect(gateway.address).unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        assert!(idle.read(&mut [0; 64]).unwrap() > 0);
        std::thread::sleep(Duration::from_millis(300));
        gateway.terminate();
        w.until("nobody else is let in", || {
            TcpStream::connect(gateway.address).is_err()
        })
        .await;
        slow.write_all(&body.as_bytes()[5..]).unwrap();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"update":"success"}"#),
            "{answer}"
        );
        assert_eq!(gateway.ended(Duration::from_secs(5)), Some(0));
    });
}

#[test]
fn a_request_that_never_comes_to_its_end_is_cut_off() {
    row(async |w| {
        let gateway = Gateway::start(w);
        gateway.until_ready(w).await;
        let began = Instant::now();
        let mut slow = TcpStream::connect(gateway.address).unwrap();
        slow.write_all(b"GET /virtshell/api/v1/hosts HTTP/1.1\r\nHost: x\r\n")
            .unwrap();
        slow.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let mut answer = Vec::new();
        let _ = slow.read_to_end(&mut answer);
        let took = began.elapsed();
        assert!(
            (Duration::from_secs(25)..Duration::from_secs(45)).contains(&took),
            "{took:?}"
        );
    });
}
