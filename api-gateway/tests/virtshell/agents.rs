//! What node agents fetch, with identities that the API server knows.

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use virtshell_crds::GATEWAY_AUDIENCE;
use virtshell_crds::names::object_name;

use crate::support::{Reply, Request, World, row};

/// Makes an account of the world's namespace; `reads` says whether it may get files.
async fn account(w: &World, name: &str, reads: bool) {
    let manager = PatchParams::apply("virtshell-gateway-tests").force();
    let apply = |object: Value| Patch::Apply(object);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    let api = w.api::<ServiceAccount>();
    api.patch(name, &manager, &apply(account)).await.unwrap();
    if !reads {
        return;
    }
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
        "rules": [{"apiGroups": ["virtshell.io"], "resources": ["files"], "verbs": ["get"]}]});
    w.api::<Role>().patch(name, &manager, &apply(role)).await.unwrap();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": w.namespace}]});
    let api = w.api::<RoleBinding>();
    api.patch(name, &manager, &apply(binding)).await.unwrap();
}

async fn token(w: &World, name: &str, audience: Option<&str>) -> String {
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: audience.map(|audience| vec![audience.to_owned()]),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let made = w
        .api::<ServiceAccount>()
        .create_token_request(name, &PostParams::default(), &request)
        .await
        .unwrap();
    made.status.unwrap().token.unwrap()
}

fn fetch(w: &World, path: &str, token: Option<&str>) -> Reply {
    let request = Request::new("GET", "").unsigned();
    let request = match token {
        Some(token) => request.header("Authorization", &format!("Bearer {token}")),
        None => request,
    };
    w.send_raw(path, &request)
}

#[test]
fn an_agent_gets_what_its_account_may_get() {
    row(async |w| {
        account(w, "agent", true).await;
        account(w, "stranger", false).await;
        let large = "0123456789abcdef".repeat(32 * 1024);
        let form = Request::new("POST", "B1/files").form(&[("file", Some("large"), &large)]);
        w.send(&form).is(201, &json!({}));
        let path = |name: &str| {
            format!(
                "/agents/v1/namespaces/{}/files/{}/content",
                w.namespace,
                object_name(name)
            )
        };
        let agent = token(w, "agent", Some(GATEWAY_AUDIENCE)).await;
        w.until("the role is seen", || {
            fetch(w, &path("large"), Some(&agent)).status == 200
        })
        .await;
        let reply = fetch(w, &path("large"), Some(&agent));
        assert_eq!(reply.headers["content-type"], "application/octet-stream");
        assert!(reply.body == large.as_bytes());
        let small = fetch(w, &path("mysql_configuration/my.cnf"), Some(&agent));
        assert_eq!(small.body, b"content of my.cnf\n");

        let elsewhere = path("large").replace(&w.namespace, "default");
        let stranger = token(w, "stranger", Some(GATEWAY_AUDIENCE)).await;
        let for_the_api_server = token(w, "agent", None).await;
        for (rule, path, token, status) in [
            ("no token", path("large"), None, 401),
            ("nonsense", path("large"), Some("nonsense"), 401),
            (
                "another audience",
                path("large"),
                Some(for_the_api_server.as_str()),
                401,
            ),
            ("no right", path("large"), Some(stranger.as_str()), 403),
            (
                "no right, and no such file",
                path("nope"),
                Some(stranger.as_str()),
                403,
            ),
            ("no such file", path("nope"), Some(agent.as_str()), 404),
            ("another namespace", elsewhere, Some(agent.as_str()), 404),
            (
                "no such route",
                "/agents/v1/namespaces".into(),
                Some(agent.as_str()),
                404,
            ),
        ] {
            assert_eq!(fetch(w, &path, token).status, status, "{rule}");
        }
    });
}

#[test]
fn a_download_goes_on_where_it_ended() {
    row(async |w| {
        account(w, "agent", true).await;
        let agent = token(w, "agent", Some(GATEWAY_AUDIENCE)).await;
        let large: String = (0..500_000_u32)
            .map(|n| char::from(b'a' + (n % 23) as u8))
            .collect();
        let form = Request::new("POST", "B1/files").form(&[("file", Some("large"), &large)]);
        w.send(&form).is(201, &json!({}));
        let ask = |name: &str, headers: &[(&'static str, &str)]| {
            let path = format!(
                "/agents/v1/namespaces/{}/files/{}/content",
                w.namespace,
                object_name(name)
            );
            let bearer = format!("Bearer {agent}");
            let request = Request::new("GET", "")
                .unsigned()
                .header("Authorization", &bearer);
            let request = headers
                .iter()
                .fold(request, |request, (name, value)| request.header(name, value));
            w.send_raw(&path, &request)
        };
        w.until("the role is seen", || ask("large", &[]).status == 200)
            .await;

        let small = "content of my.cnf\n";
        for (name, content) in [("large", large.as_str()), ("mysql_configuration/my.cnf", small)] {
            let size = content.len();
            let whole = ask(name, &[]);
            assert!(whole.status == 200 && whole.body == content.as_bytes());
            let tag = whole.headers["etag"].clone();
            assert_eq!(whole.headers["content-length"], size.to_string());
            assert_eq!(whole.headers["accept-ranges"], "bytes");
            for (rule, headers, status, part) in [
                (
                    "the rest",
                    vec![("Range", "bytes=10-"), ("If-Range", &tag)],
                    206,
                    10..size,
                ),
                ("a part", vec![("Range", "bytes=3-7")], 206, 3..8),
                ("the end", vec![("Range", "bytes=-4")], 206, size - 4..size),
                (
                    "of other content",
                    vec![("Range", "bytes=10-"), ("If-Range", "\"0\"")],
                    200,
                    0..size,
                ),
                ("several parts", vec![("Range", "bytes=0-1,4-5")], 200, 0..size),
                ("beyond", vec![("Range", "bytes=500000-")], 416, 0..0),
            ] {
                let reply = ask(name, &headers);
                let range = match status {
                    206 => Some(format!("bytes {}-{}/{size}", part.start, part.end - 1)),
                    416 => Some(format!("bytes */{size}")),
                    _ => None,
                };
                assert_eq!(reply.status, status, "{name}: {rule}");
                assert!(reply.body == content.as_bytes()[part.clone()], "{name}: {rule}");
                assert_eq!(
                    reply.headers["content-length"],
                    part.len().to_string(),
                    "{name}: {rule}"
                );
                assert_eq!(reply.headers["etag"], tag, "{name}: {rule}");
                assert_eq!(
                    reply.headers.get("content-range"),
                    range.as_ref(),
                    "{name}: {rule}"
                );
            }
        }
        assert_ne!(
            ask("large", &[]).headers["etag"],
            ask("mysql_configuration/my.cnf", &[]).headers["etag"]
        );
    });
}
