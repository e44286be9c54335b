//! The Node API of a real agent, with real guests behind it: who may ask, what is answered, consoles and screens.
//!
//! All tests share one system and use guests of their own, or only look at those that `hack/up.sh` made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt, StreamExt};
use reqwest::StatusCode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use virtshell_tests::system::System;
use virtshell_tests::{level, wait_for};

/// Emulated guests on two busy cores boot in 4 to 15 s; what takes longer than this is broken, not slow.
const LIMIT: Duration = Duration::from_mins(2);

/// Applies an Instance and waits until it is ready.
fn make(system: &System, name: &str, spec: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"name": name, "namespace": "virtshell"}, "spec": spec,
    });
    system
        .kubectl()?
        .ok_with(["apply", "-f", "-"], &object.to_string())?;
    let wait = format!("kubectl -n virtshell wait vsi {name} --for=condition=Ready --timeout=120s");
    system.sh(&wait).map(drop)
}

fn remove(system: &System, name: &str) -> Result<()> {
    system
        .sh(&format!("kubectl -n virtshell delete vsi {name} --timeout=60s"))
        .map(drop)
}

/// A caller that knows the node as the Host publishes it, and trusts nothing else.
struct Caller {
    system: &'static System,
    url: String,
    certificate: String,
    http: reqwest::Client,
    token: String,
}

impl Caller {
    /// With the rights of the gateway, and a token that it asked for itself. None where this level may be left out.
    fn gateway() -> Result<Option<Self>> {
        if !level::end_to_end() {
            return Ok(None);
        }
        let system = System::shared()?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubectl = format!(
            "kubectl --kubeconfig {}",
            system.state().join("gateway.kubeconfig").display()
        );
        let host: Value =
            serde_json::from_str(&system.sh(&format!("{kubectl} get host {} -o json", system.host()))?)?;
        let endpoint = &host["status"]["endpoint"];
        let word = |field: &str| {
            endpoint[field]
                .as_str()
                .with_context(|| format!("no {field}: {host}"))
        };
        let certificate = word("certificate")?.to_owned();
        let http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(certificate.as_bytes())?])
            .timeout(Duration::from_secs(20))
            .build()?;
        let token = system.sh(&format!(
            "{kubectl} -n virtshell-system create token virtshell-gateway --audience virtshell-node:{}",
            system.host()
        ))?;
        Ok(Some(Self {
            system,
            url: word("url")?.to_owned(),
            certificate,
            http,
            token,
        }))
    }

    /// A token for this audience, of an account that an administrator made.
    fn token_of(&self, account: &str, audience: Option<&str>) -> Result<String> {
        let audience = audience.map_or_else(String::new, |audience| format!("--audience {audience}"));
        self.system
            .sh(&format!("kubectl -n virtshell create token {account} {audience}"))
    }

    fn instance(&self, name: &str, what: &str) -> String {
        format!("{}/v1/namespaces/virtshell/instances/{name}/{what}", self.url)
    }

    async fn get_with(&self, token: Option<&str>, url: &str) -> Result<reqwest::Response> {
        let request = self.http.get(url);
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        Ok(request.send().await?)
    }

    /// What of an Instance, as its caller gets it: 200, or the test fails.
    async fn get(&self, name: &str, what: &str) -> Result<reqwest::Response> {
        let answer = self
            .get_with(Some(&self.token), &self.instance(name, what))
            .await?;
        if answer.status() != StatusCode::OK {
            bail!("{name}/{what}: {} {}", answer.status(), answer.text().await?);
        }
        Ok(answer)
    }

    async fn json(&self, name: &str, what: &str) -> Result<Value> {
        Ok(serde_json::from_slice(
            &self.get(name, what).await?.bytes().await?,
        )?)
    }

    /// A refusal: its code and its message, from a Kubernetes Status that agrees with both.
    async fn refused(&self, token: Option<&str>, url: &str) -> Result<(u16, String)> {
        let answer = self.get_with(token, url).await?;
        let code = answer.status().as_u16();
        if code == 401 {
            ensure!(answer.headers().contains_key("www-authenticate"));
        }
        let status: Value = serde_json::from_slice(&answer.bytes().await?)?;
        ensure!(
            status["kind"] == "Status" && status["apiVersion"] == "v1" && status["code"] == code,
            "{url}: {code} {status}"
        );
        ensure!(status["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
        let message = status["message"].as_str().context("a message")?;
        Ok((code, message.to_owned()))
    }

    async fn refused_instance(&self, name: &str, what: &str) -> Result<(u16, String)> {
        self.refused(Some(&self.token), &self.instance(name, what)).await
    }

    /// Opens a WebSocket; `Err` has the HTTP status of the refusal.
    async fn socket(&self, name: &str, what: &str) -> Result<Result<Socket, u16>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let url = self.instance(name, what).replacen("https://", "wss://", 1);
        let mut request = url.into_client_request()?;
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {}", self.token).parse()?);
        let address = request.uri().authority().context("an address")?.to_string();
        let host = request.uri().host().context("a host")?.to_owned();
        let stream = TcpStream::connect(address).await?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
            .connect(ServerName::try_from(host)?, stream)
            .await?;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Ok(Socket(socket))),
            Err(tungstenite::Error::Http(answer)) => Ok(Err(answer.status().as_u16())),
            Err(error) => Err(error.into()),
        }
    }

    async fn console(&self, name: &str, what: &str) -> Result<Socket> {
        match self.socket(name, what).await? {
            Ok(socket) => Ok(socket),
            Err(code) => bail!("no console of {name}: {code}"),
        }
    }
}

struct Socket(WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>);

impl Socket {
    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.send(Message::Binary(bytes.to_vec().into())).await?)
    }

    /// The next binary frame, or the code of the end.
    async fn next(&mut self) -> Result<Result<Vec<u8>, Option<u16>>> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Ok(bytes.to_vec())),
                Some(Ok(Message::Close(frame))) => return Ok(Err(frame.map(|frame| frame.code.into()))),
                Some(Ok(Message::Text(text))) => bail!("only binary frames are sent: {text}"),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(Err(None)),
            }
        }
    }

    /// Reads until `words` were printed.
    async fn until(&mut self, words: &str, limit: Duration) -> Result<String> {
        let mut seen = String::new();
        let reading = async {
            while !seen.contains(words) {
                match self.next().await? {
                    Ok(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                    Err(code) => bail!("the console ended with {code:?}"),
                }
            }
            Ok(())
        };
        let read = tokio::time::timeout(limit, reading).await;
        read.with_context(|| format!("{words:?} was not printed within {limit:?}"))
            .and_then(|read| read)
            .with_context(|| format!("printed so far: {seen:?}"))?;
        Ok(seen)
    }

    /// Reads until the other side closes, and returns with which code.
    async fn end(&mut self) -> Result<Option<u16>> {
        let ending = async {
            loop {
                if let Err(code) = self.next().await? {
                    return Ok(code);
                }
            }
        };
        tokio::time::timeout(LIMIT, ending).await?
    }
}

/// Types a command whose output differs from its echo, and reads its output.
async fn converse(console: &mut Socket) -> Result<()> {
    // A shell that has just come up may lose what was typed before.
    let started = Instant::now();
    loop {
        console.send(b"echo is$((40+2))it\n").await?;
        match console.until("is42it", Duration::from_secs(5)).await {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > LIMIT => return Err(error),
            Err(_) => {}
        }
    }
}

#[tokio::test]
async fn a_caller_needs_a_token_for_this_host_and_the_right() -> Result<()> {
    let Some(caller) = Caller::gateway()? else {
        return Ok(());
    };
    let system = caller.system;
    let stats = caller.instance("hello-kubectl", "stats");
    let audience = format!("virtshell-node:{}", system.host());
    system.sh("kubectl -n virtshell create serviceaccount curious")?;

    let whole = caller.token_of("curious", None)?;
    let other = caller.token_of("curious", Some("virtshell-node:another-host"))?;
    for token in [None, Some("nonsense"), Some(&*whole), Some(&*other)] {
        let (code, said) = caller.refused(token, &stats).await?;
        ensure!(code == 401, "{code} {said}");
    }
    let token = caller.token_of("curious", Some(&audience))?;
    let paths = ["stats", "xml", "agent", "console", "vnc", "screenshot"]
        .map(|what| caller.instance("hello-kubectl", what));
    for url in paths.iter().chain([&format!("{}/metrics", caller.url)]) {
        let (code, said) = caller.refused(Some(&token), url).await?;
        ensure!(code == 403 && said.contains("curious"), "{url}: {code} {said}");
        let (code, said) = caller.refused(None, url).await?;
        ensure!(code == 401, "{url}: {code} {said}");
    }
    // Who may not, does not learn what is there.
    let (code, _) = caller
        .refused(Some(&token), &caller.instance("no-such", "stats"))
        .await?;
    ensure!(code == 403, "{code}");

    // The token is as good as before, and a no is remembered no longer than a yes: another right is another question.
    system.sh("kubectl -n virtshell create rolebinding curious --clusterrole=virtshell-live --serviceaccount=virtshell:curious && \
         kubectl create clusterrolebinding curious-$VIRTSHELL_HOST_NAME --clusterrole=virtshell-metrics --serviceaccount=virtshell:curious",
    )?;
    let other = caller.instance("hello-rest", "stats");
    wait_for(
        "the right to be known",
        LIMIT,
        async || {
            caller
                .get_with(Some(&token), &other)
                .await
                .map(|answer| answer.status())
        },
        |status| *status == StatusCode::OK,
    )
    .await?;
    let (code, _) = caller.refused(Some(&token), &stats).await?;
    ensure!(code == 403, "a no is remembered for a while: {code}");

    let text = async |token: Option<&str>, path: &str| -> Result<(u16, String)> {
        let answer = caller.get_with(token, &format!("{}{path}", caller.url)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    };
    for path in ["/healthz", "/readyz"] {
        ensure!(text(None, path).await? == (200, "ok\n".to_owned()), "{path}");
    }
    // Its no is remembered; a new token is a new caller.
    let fresh = caller.token_of("curious", Some(&audience))?;
    let (code, metrics) = text(Some(&fresh), "/metrics").await?;
    ensure!(code == 200, "{code} {metrics}");
    for stream in ["instances", "host", "qemu:///system", "lxc:///system"] {
        let name = format!("virtshell_node_stream_age_seconds{{stream=\"{stream}\"}} ");
        let age = metrics.lines().find_map(|line| line.strip_prefix(&name));
        let age: f64 = age.with_context(|| format!("no {name} in {metrics}"))?.parse()?;
        // Each is heard or verified more often than this.
        ensure!(age < 330.0, "{name}{age}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_is_said() -> Result<()> {
    let Some(caller) = Caller::gateway()? else {
        return Ok(());
    };
    let (code, said) = caller.refused_instance("no-such", "stats").await?;
    ensure!(code == 404 && said.contains("no-such"), "{code} {said}");
    for path in [
        "/",
        "/v1/namespaces/virtshell/instances/hello-rest",
        "/v1/namespaces/virtshell/instances/hello-rest/none",
    ] {
        let (code, _) = caller
            .refused(Some(&caller.token), &format!("{}{path}", caller.url))
            .await?;
        ensure!(code == 404, "{path}: {code}");
    }
    let posted = caller
        .http
        .post(caller.instance("hello-rest", "stats"))
        .send()
        .await?;
    ensure!(posted.status() == StatusCode::METHOD_NOT_ALLOWED);
    let (code, said) = caller.refused_instance("hello-rest", "console").await?;
    ensure!(code == 400 && said.contains("WebSocket"), "{code} {said}");
    let (code, said) = caller.refused_instance("hello-rest", "screenshot").await?;
    ensure!(code == 409 && said.contains("spec.consoles.vnc"), "{code} {said}");
    Ok(())
}

#[tokio::test]
async fn a_running_guest_is_seen_live() -> Result<()> {
    let Some(caller) = Caller::gateway()? else {
        return Ok(());
    };
    let name = "hello-kubectl";
    let first = caller.json(name, "stats").await?;
    ensure!(
        first["state"] == "running" && first["vcpus"] == 1 && first["memory"]["currentKiB"] == 256 * 1024,
        "{first}"
    );
    ensure!(first["memory"]["rssKiB"].as_u64() > Some(10_000), "{first}");
    ensure!(
        first["disks"][0]["name"] == "root" && first["disks"][0]["readBytes"].as_i64() > Some(0),
        "{first}"
    );
    let interface = &first["interfaces"][0];
    ensure!(
        interface["name"] == "eth0" && interface["rxBytes"].as_i64() > Some(0),
        "{first}"
    );
    let time = |stats: &Value| stats["cpuTimeNs"].as_u64();
    wait_for(
        "the CPU time to grow",
        LIMIT,
        async || caller.json(name, "stats").await,
        |later| time(later) > time(&first),
    )
    .await?;

    let uuid = caller
        .system
        .sh("kubectl -n virtshell get vsi hello-kubectl -o 'jsonpath={.status.domain.uuid}'")?;
    let answer = caller.get(name, "xml").await?;
    ensure!(answer.headers()["content-type"] == "application/xml");
    let xml = answer.text().await?;
    ensure!(
        xml.contains(&format!("<uuid>{uuid}</uuid>")) && xml.contains("id='"),
        "{xml}"
    );

    let guest = caller.json(name, "agent").await?;
    ensure!(
        guest["hostname"] == name && guest["os"]["kernelRelease"].is_string(),
        "{guest}"
    );
    let interfaces = guest["interfaces"].as_array().context("interfaces")?;
    ensure!(interfaces.iter().any(|i| i["mac"] == interface["mac"]), "{guest}");
    Ok(())
}

#[tokio::test]
async fn a_console_shows_and_takes_and_has_one_reader() -> Result<()> {
    let Some(caller) = Caller::gateway()? else {
        return Ok(());
    };
    let mut first = caller.console("hello-rest", "console").await?;
    converse(&mut first).await?;

    let second = caller.socket("hello-rest", "console").await?;
    ensure!(second.err() == Some(409), "one reader at a time");
    let mut second = caller.console("hello-rest", "console?force=true").await?;
    ensure!(
        first.end().await? == Some(4000),
        "the first is told that it was taken over"
    );
    converse(&mut second).await?;

    // More than fits anywhere on the way, while nobody reads; then all is well again.
    second
        .send(b"i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; echo is$((50+7))it\n")
        .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    second.until("is57it", LIMIT).await?;

    // Closed by the reader, it is free at once.
    second.0.close(None).await?;
    let again = wait_for(
        "the console to be free",
        LIMIT,
        async || caller.socket("hello-rest", "console").await.map(Result::err),
        Option::is_none,
    );
    again.await?;
    Ok(())
}

/// Does something while the QEMU of an Instance stands still.
async fn hang(caller: &Caller, name: &str, during: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let domain = caller.system.sh(&format!(
        "kubectl -n virtshell get vsi {name} -o 'jsonpath={{.status.domain.name}}'"
    ))?;
    let signal = |signal: &str| {
        let line = format!("kill -{signal} $(cat /run/libvirt/qemu/{domain}.pid)");
        caller.system.sh(&line)
    };
    signal("STOP")?;
    let done = during().await;
    signal("CONT")?;
    done
}

#[tokio::test]
async fn a_display_is_shown_and_a_stopped_guest_is_said_to_be() -> Result<()> {
    let Some(caller) = Caller::gateway()? else {
        return Ok(());
    };
    let spec = json!({
        "image": "debian-guest", "memoryMiB": 192, "diskMiB": 1024, "stopMode": "Force",
        "consoles": {"serial": false, "vnc": {"listen": "127.0.0.1"}},
    });
    make(caller.system, "seen", &spec)?;
    let answer = caller.get("seen", "screenshot").await?;
    ensure!(answer.headers()["content-type"] == "image/png");
    let bytes = answer.bytes().await?;
    let mut picture = png::Decoder::new(std::io::Cursor::new(&bytes[..])).read_info()?;
    let mut pixels = vec![0; picture.output_buffer_size().context("a size")?];
    let info = picture.next_frame(&mut pixels)?;
    ensure!(info.width >= 320 && info.height >= 200, "{info:?}");

    let mut screen = caller.console("seen", "vnc").await?;
    screen.until("RFB 003.", LIMIT).await?;
    screen.send(b"RFB 003.008\n").await?;
    // One security type follows: none.
    ensure!(
        screen.next().await? == Ok(vec![1, 1]),
        "the server answers what was sent"
    );

    ensure!(
        caller.socket("seen", "console").await?.err() == Some(409),
        "it has no serial console"
    );
    hang(&caller, "seen", async || {
        let timed = async |asked: &str| -> Result<(u16, Duration)> {
            let began = Instant::now();
            let url = caller.instance(asked, "stats");
            let answer = caller.get_with(Some(&caller.token), &url).await?;
            Ok((answer.status().as_u16(), began.elapsed()))
        };
        // The first learns it at the deadline, the next at once; nobody else notices.
        let (hung, other) = tokio::join!(timed("seen"), timed("hello-kubectl"));
        let ((code, deadline), (other, unhurt)) = (hung?, other?);
        ensure!(code == 504 && other == 200, "{code} {other}");
        ensure!(
            unhurt < deadline,
            "{unhurt:?} for another guest, {deadline:?} for the hung one"
        );
        let (code, again) = timed("seen").await?;
        ensure!(
            code == 504 && again < deadline / 2,
            "{code} after {again:?}, at first {deadline:?}"
        );
        let (_, said) = caller.refused_instance("seen", "stats").await?;
        ensure!(said.contains("seen"), "{said}");
        Ok(())
    })
    .await?;
    wait_for(
        "the guest to answer again",
        LIMIT,
        async || caller.json("seen", "stats").await,
        |stats| stats["state"] == "running",
    )
    .await?;

    caller.system.sh(
        "kubectl -n virtshell patch vsi seen --type=merge -p '{\"spec\":{\"powerState\":\"Stopped\"}}' && \
         kubectl -n virtshell wait vsi seen --for=jsonpath='{.status.powerState}'=Stopped --timeout=60s",
    )?;
    ensure!(
        screen.end().await? == Some(1000),
        "the display ended with the guest"
    );
    for what in ["stats", "xml", "agent", "screenshot"] {
        let (code, said) = caller.refused_instance("seen", what).await?;
        ensure!(code == 409 && said.contains("stopped"), "{what}: {code} {said}");
    }
    remove(caller.system, "seen")
}

#[tokio::test]
async fn a_container_is_seen_as_far_as_it_can_be() -> Result<()> {
    let Some(caller) = Caller::gateway()? else {
        return Ok(());
    };
    let spec = json!({"image": "debian-root", "driver": "lxc", "cpus": 1, "memoryMiB": 128});
    make(caller.system, "seen-container", &spec)?;
    let stats = caller.json("seen-container", "stats").await?;
    ensure!(
        stats["state"] == "running" && stats["cpuTimeNs"].as_u64() > Some(0) && stats["disks"] == json!([]),
        "{stats}"
    );
    ensure!(
        stats["interfaces"][0]["name"] == "eth0" && stats["interfaces"][0]["rxBytes"].is_i64(),
        "{stats}"
    );
    ensure!(
        caller
            .get("seen-container", "xml")
            .await?
            .text()
            .await?
            .contains("<domain type='lxc'")
    );
    for what in ["agent", "screenshot"] {
        let (code, said) = caller.refused_instance("seen-container", what).await?;
        ensure!(code == 501 && said.contains("container"), "{what}: {code} {said}");
    }
    ensure!(caller.socket("seen-container", "vnc").await?.err() == Some(501));

    let mut console = caller.console("seen-container", "console").await?;
    converse(&mut console).await?;
    ensure!(
        caller.socket("seen-container", "console").await?.err() == Some(409),
        "one reader at a time"
    );
    let mut taken = caller.console("seen-container", "console?force=true").await?;
    ensure!(console.end().await? == Some(4000));
    converse(&mut taken).await?;
    remove(caller.system, "seen-container")?;
    ensure!(
        taken.end().await? == Some(1000),
        "the console ended with the container"
    );
    Ok(())
}
