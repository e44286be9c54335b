//! 2.1, 2.2: what the gateway's own settings change.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use md5::{Digest, Md5};
use serde_json::json;
use virtshell_gateway::server::{Args, Listeners};

use crate::support::{Request, row};

#[test]
fn without_authentication_everybody_is_believed() {
    row(async |w| {
        let open = &w.second_with(&w.client, &["--auth", "disabled"]).await;
        let made = Request::new("POST", "B1/images").body(&json!({"name": "open", "type": "iso"}));
        open.send(&made.unsigned()).ok("create");
        let shown = open.send(&Request::new("GET", "B1/images/open").unsigned());
        let nobody = "00000000-0000-0000-0000-000000000000";
        shown.is(200, &json!({"created": {"by": nobody}}));
        // Who is named acts with no more than that user's rights, whatever the signature says.
        let as_user = |user: &str, method| {
            let request = Request::new(method, "B1/hosts/fx-so").unsigned();
            open.send(&request.header("X-VirtShell-Authorization", &format!("{user}:nonsense")))
        };
        as_user("demouser", "GET").is(200, &json!({"name": "fx-so"}));
        let message = as_user("demouser", "DELETE").error(403);
        assert!(
            message.starts_with("User demouser is not allowed to "),
            "{message}"
        );
        assert_eq!(
            as_user("nobody_knows", "GET").error(403),
            "User not authenticated"
        );
        // The gateway beside it still asks for signatures.
        let unsigned = Request::new("GET", "B1/images/open").unsigned();
        assert_eq!(w.send(&unsigned).error(403), "User not authenticated");
    });
}

#[test]
fn without_authentication_only_this_machine_is_served() {
    row(async |_| {
        for (listen, root, works) in [
            ("127.0.0.1:0", "127.0.0.1:0", true),
            ("[::1]:0", "127.0.0.1:0", true),
            ("0.0.0.0:0", "127.0.0.1:0", false),
            ("127.0.0.1:0", "0.0.0.0:0", false),
        ] {
            let args = ["gateway", "--auth", "disabled", "--listen", listen];
            let args = args.into_iter().chain(["--virtshell-root-listen", root]);
            let bound = Listeners::bind(&Args::parse_from(args)).await;
            assert_eq!(bound.is_ok(), works, "{listen} {root}");
        }
    });
}

#[test]
fn a_sum_of_every_body_can_be_asked_for() {
    row(async |w| {
        let strict = &w.second_with(&w.client, &["--require-content-md5"]).await;
        let body = json!({"name": "summed", "type": "iso"});
        let request = Request::new("POST", "B1/images").body(&body);
        strict.send(&request).error(400);
        let wrong = STANDARD.encode(Md5::digest("other"));
        strict
            .send(&request.clone().header("Content-MD5", &wrong))
            .error(400);
        strict.get("B1/images/summed").error(404);
        let right = STANDARD.encode(Md5::digest(body.to_string()));
        strict.send(&request.header("Content-MD5", &right)).ok("create");
        strict.get("B1/images/summed").is(200, &json!({}));
        strict.delete("B1/images/summed").ok("delete");
    });
}
