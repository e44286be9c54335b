//! 7.11: stored files.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::api::ListParams;
use md5::{Digest, Md5};
use serde_json::{Value, json};
use sha2::Sha256;
use virtshell_crds::names::object_name;
use virtshell_gateway::blobs::{Blobs, GRACE, Place};
use virtshell_gateway::nodes::{Account, Nodes};
use virtshell_gateway::service::Service;

use crate::protocol::names;
use crate::support::{Reply, Request, World, blob_store, row};

type Part<'a> = (&'a str, Option<&'a str>, &'a str);

const SEED: &str = "seed_file_ubuntu-14_04.txt";
const DOCKERFILE: &str = "dockerfile_ubuntu_server_14.04";

fn send(w: &World, method: &str, path: &str, parts: &[Part<'_>]) -> Reply {
    w.send(&Request::new(method, path).form(parts))
}

/// The bytes of a file, as a client gets them that takes anything.
fn raw(w: &World, path: &str) -> Vec<u8> {
    let reply = w.send(&Request::new("GET", &format!("B1/static/files/{path}")).header("Accept", "*/*"));
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.headers["content-type"], "application/octet-stream");
    reply.body
}

fn content(name: &str) -> Vec<u8> {
    format!("content of {name}\n").into_bytes()
}

/// Blobs in the file store, finished ones and others.
fn blobs() -> (usize, usize) {
    let below = |folder: &std::path::Path| std::fs::read_dir(folder).map_or(0, Iterator::count);
    let shelves = std::fs::read_dir(blob_store()).into_iter().flatten().flatten();
    let shelves = shelves.filter(|shelf| shelf.file_name().len() == 2);
    (
        shelves.map(|shelf| below(&shelf.path())).sum(),
        below(&blob_store().join("uploads")),
    )
}

#[test]
fn v_138_create() {
    row(async |w| {
        for (permissions, folder) in [
            (Some("xwrxwrxwr"), "folder_name"),
            (Some("rwxrwx---"), "folder_name"),
            (None, "folder_name"),
            (None, "directory_path"),
        ] {
            w.delete(&format!("B2/files/ubuntu_seeds/{SEED}")).ok("delete");
            let mut parts = vec![
                ("file_data", Some(SEED), "d-i debian-installer\n"),
                (folder, None, "ubuntu_seeds"),
            ];
            parts.extend(permissions.map(|permissions| ("permissions", None, permissions)));
            let made = send(w, "POST", "B2/files/", &parts)
                .is(201, &json!({"create": "success", "uuid": "<U>"}))
                .json();
            let uri = made["uri"].as_str().unwrap();
            let expected = format!(
                "http://{}/api/virtshell/v1/files/ubuntu_seeds/{SEED}",
                w.address()
            );
            assert_eq!((uri, &made["location"]), (expected.as_str(), &made["uri"]));
            let shown = w.get(&format!("B2/files/ubuntu_seeds/{SEED}")).is(
                200,
                &json!({"uuid": made["uuid"], "name": SEED, "folder_name": "ubuntu_seeds", "directory_path": "ubuntu_seeds",
                    "uri": uri, "download_url": uri, "size": 21, "permissions": permissions.unwrap_or("xwrxwrxwr"),
                    "owner": "tester"}),
            );
            assert!(shown.json()["created"]["at"].is_string());
            assert_eq!(raw(w, &format!("ubuntu_seeds/{SEED}")), b"d-i debian-installer\n");
        }
    });
}

#[test]
fn v_139_metadata_or_bytes() {
    row(async |w| {
        let path = format!("B2/static/files/{DOCKERFILE}");
        let metadata = w
            .get(&path)
            .is(200, &json!({"uuid": "<U>", "name": DOCKERFILE}))
            .json();
        assert!(
            metadata["uri"].is_string() && metadata["created"].is_object(),
            "{metadata}"
        );
        for accept in [
            Some("*/*"),
            Some("application/*"),
            Some(""),
            Some("text/html, */*;q=0.1"),
            None,
        ] {
            let request = Request::new("GET", &path);
            let request = match accept {
                Some(accept) => request.header("Accept", accept),
                None => request.without("Accept"),
            };
            let reply = w.send(&request);
            assert_eq!(
                reply.headers["content-type"], "application/octet-stream",
                "{accept:?}"
            );
            assert_eq!(
                (reply.status, reply.body),
                (200, content(DOCKERFILE)),
                "{accept:?}"
            );
        }
        let both = Request::new("GET", &path).header("Accept", "*/*, application/json");
        w.send(&both).is(200, &json!({"name": DOCKERFILE}));
        let html = Request::new("GET", &path).header("Accept", "text/html");
        assert_eq!(w.send(&html).status, 406);
        w.get(&format!("B0/static/{DOCKERFILE}"))
            .is(200, &json!({"name": DOCKERFILE}));
    });
}

#[test]
fn v_140_every_address() {
    row(async |w| {
        let first = w
            .get(&format!("B2/files/{SEED}"))
            .is(200, &json!({"name": SEED}))
            .json();
        let uuid = first["uuid"].as_str().unwrap();
        for path in [
            format!("B2/files/ubuntu_seeds/{SEED}"),
            format!("B2/files/ubuntu_seeds%2F{SEED}"),
            format!("B2/files/{uuid}"),
            format!("B2/files/?id={uuid}"),
            format!("B2/files?id={SEED}"),
            format!(
                "B2/files/http://{}/api/virtshell/v1/files/ubuntu_seeds/{SEED}",
                w.address()
            ),
            format!("B2/files/http:/h/file/{SEED}/"),
        ] {
            assert_eq!(w.get(&path).is(200, &json!({})).json(), first, "{path}");
        }
        w.get("B2/files/nope").error(404);
        w.get("B2/files/ubuntu_seeds/nope").error(404);
        w.get("B2/files/72c05559-0590-4da6-be56-28ab36cb669c").error(404);
        w.get("B2/files/%ff").error(400);
    });
}

#[test]
fn v_141_replace_by_uri() {
    row(async |w| {
        let path = format!(
            "B2/files/http://{}/api/virtshell/v1/files/ubuntu_seeds/{SEED}",
            w.address()
        );
        let parts = [
            ("permissions", None, "xwrxwrxwr"),
            ("file_data", Some("seed_file_ubuntu-14_04_v2.txt"), "second\n"),
        ];
        send(w, "PUT", &path, &parts).ok("update");
        let shown = w.get(&path).is(200, &json!({"name": SEED, "size": 7})).json();
        assert_eq!(raw(w, SEED), b"second\n");
        assert_ne!(shown["modified"], shown["created"]);
    });
}

#[test]
fn v_142_v_144_v_149_delete() {
    row(async |w| {
        let my = w.get("B2/files/my.cnf").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        let docker = w.get(&format!("B2/files/{DOCKERFILE}")).json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        let by_uri = format!("B2/files/http://{}/api/virtshell/v1/files/{SEED}", w.address());
        w.delete(&by_uri).ok("delete");
        w.delete(&by_uri).error(404);
        let again = [
            ("file_data", Some(SEED), "again"),
            ("folder_name", None, "ubuntu_seeds"),
        ];
        send(w, "POST", "B2/files", &again).is(201, &json!({}));
        let in_folder = format!(
            "B2/files/http://{}/api/virtshell/v1/files/ubuntu_seeds/{SEED}",
            w.address()
        );
        w.delete(&in_folder).ok("delete");
        w.delete(&in_folder).error(404);
        w.delete(&format!("B2/files?id={my}")).ok("delete");
        w.delete(&format!("B2/files/{docker}")).ok("delete");
        assert!(w.get("B2/files").json()["files"].as_array().unwrap().is_empty());
        send(w, "POST", "B0/files/", &[("file", Some(DOCKERFILE), "FROM x\n")]).is(201, &json!({}));
        w.delete(&format!("B0/files/{DOCKERFILE}")).ok("delete");
    });
}

#[test]
fn v_143_update_by_every_path() {
    row(async |w| {
        let uuid = w.get("B2/files/my.cnf").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        for (n, path) in ["file/", "files/", "files?id=", "file?id="].iter().enumerate() {
            let text = format!("[mysqld] # {n}\n");
            let parts = [
                ("file_data", Some("x"), text.as_str()),
                ("permissions", None, "rwxrwxrwx"),
            ];
            send(w, "PUT", &format!("B2/{path}{uuid}"), &parts).ok("update");
            assert_eq!(raw(w, "mysql_configuration/my.cnf"), text.as_bytes());
        }
        w.get("B2/files/my.cnf")
            .is(200, &json!({"permissions": "rwxrwxrwx"}));
    });
}

#[test]
fn v_145_a_slip_of_the_documents() {
    row(async |w| {
        w.delete("B2/fles/72c05559-0590-4da6-be56-28ab36cb669c")
            .error(501);
    });
}

#[test]
fn v_146_list() {
    row(async |w| {
        for path in ["B0/files/", "B1/files", "B2/file", "B3/static/files"] {
            let mut listed = names(&w.get(path).json()["files"]);
            listed.sort();
            assert_eq!(listed, [DOCKERFILE, "my.cnf", SEED], "{path}");
        }
    });
}

#[test]
fn v_147_the_same_twice() {
    row(async |w| {
        w.delete(&format!("B0/files/{DOCKERFILE}")).ok("delete");
        for name in [DOCKERFILE, "dockerfile_centos_server_7"] {
            let parts = [
                ("permissions", None, "xwrxwrxwr"),
                ("file", Some(name), "FROM scratch\n"),
            ];
            let made = send(w, "POST", "B0/files/", &parts)
                .is(201, &json!({"create": "success"}))
                .json();
            assert!(
                made["uri"]
                    .as_str()
                    .unwrap()
                    .ends_with(&format!("/api/virtshell/v1/files/{name}")),
                "{made}"
            );
            send(w, "POST", "B0/files/", &parts).exactly(400, &json!({"error": "file already exists"}));
        }
    });
}

#[test]
fn v_148_content_as_a_string() {
    row(async |w| {
        let expected = json!(STANDARD.encode(content(DOCKERFILE)));
        w.get(&format!("B0/file/{DOCKERFILE}")).exactly(200, &expected);
        w.get(&format!("B2/file?id={DOCKERFILE}")).exactly(200, &expected);
    });
}

#[test]
fn v_150_permissions_alone() {
    row(async |w| {
        let parts = [("permissions", None, "xwrxwrx__")];
        let missing = json!({"error": "missing name parameter"});
        send(w, "PUT", "B0/files/", &parts).exactly(400, &missing);
        // Whatever is sent: it is not read.
        let large = "x".repeat(1200 * 1024);
        send(w, "PUT", "B0/files/", &[("file_data", Some("n"), &large)]).exactly(400, &missing);
        let path = format!("B0/files/{DOCKERFILE}");
        send(w, "PUT", &path, &parts).ok("update");
        w.get(&path).is(
            200,
            &json!({"permissions": "xwrxwrx__", "size": content(DOCKERFILE).len()}),
        );
        w.put(&path, &json!({"permissions": "rwxr-xr--"})).ok("update");
        w.get(&path).is(200, &json!({"permissions": "rwxr-xr--"}));
        assert_eq!(raw(w, DOCKERFILE), content(DOCKERFILE));
    });
}

#[test]
fn a_name_in_several_folders_is_that_of_the_readable_one() {
    row(async |w| {
        let by = |user, method, path: &str| w.send(&Request::new(method, path).by(user));
        for (folder, permissions) in [("open", "rwxr--r--"), ("hidden", "rwx------")] {
            let parts = [
                ("file_data", Some("twice"), folder),
                ("folder_name", None, folder),
                ("permissions", None, permissions),
            ];
            send(w, "POST", "B1/files", &parts).is(201, &json!({}));
        }
        let all = by("tester", "GET", "B1/files/twice").error(400);
        assert!(all.ends_with("say one of hidden/twice, open/twice"), "{all}");
        by("demouser", "GET", "B1/files/twice").is(200, &json!({"folder_name": "open"}));
        by("demouser", "DELETE", "B1/files/twice").error(403);
        w.put("B1/files/open/twice", &json!({"permissions": "rwx------"}))
            .ok("update");
        assert_eq!(
            by("demouser", "GET", "B1/files/twice").error(403),
            "User demouser is not allowed to read file twice",
            "not where it is"
        );
    });
}

#[test]
fn static_files_by_query() {
    row(async |w| {
        let one = w.get(&format!("B1/static/files/{DOCKERFILE}")).json();
        assert_eq!(w.get(&format!("B1/static/files?id={DOCKERFILE}")).json(), one);
    });
}

#[test]
fn v_151_no_file() {
    row(async |w| {
        let missing = json!({"error": "missing file"});
        send(w, "POST", "B0/files/", &[("permissions", None, "xwrxwrxwr")]).exactly(400, &missing);
        send(w, "POST", "B0/files/", &[]).exactly(400, &missing);
        // Without a boundary it is JSON.
        w.post("B0/files/", &json!({"permissions": "xwrxwrxwr"}))
            .exactly(400, &missing);
        let empty = Request::new("POST", "B0/files").header("Content-Type", "multipart/form-data");
        assert_eq!(w.send(&empty).error(400), "Missing input for create file");
        let empty = Request::new("PUT", "B0/files/my.cnf");
        assert_eq!(w.send(&empty).error(400), "Missing input for update file");
    });
}

#[test]
fn large_content_is_a_blob() {
    row(async |w| {
        let before = blobs();
        let large = "0123456789abcdef".repeat(64 * 1024);
        let path = "B1/files/folder/large.bin";
        let made = send(w, "POST", path, &[("file_data", None, &large)])
            .is(201, &json!({}))
            .json();
        let shown = w.get(path).is(
            200,
            &json!({"size": large.len(), "folder_name": "folder", "name": "large.bin"}),
        );
        let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&large));
        shown.is(200, &json!({"sha256": sum, "location": format!("blob:{sum}")}));
        assert_eq!(blobs(), (before.0 + 1, 0));
        assert!(raw(w, "folder/large.bin") == large.as_bytes());
        let text = w
            .get("B1/file/folder/large.bin")
            .is(200, &json!(STANDARD.encode(&large)));
        assert_eq!(text.headers["content-type"], "application/json");
        // Small content takes its place, and large content that of small.
        send(w, "PUT", path, &[("file", Some("x"), "small")]).ok("update");
        let inline = format!("inline:{}", made["uuid"].as_str().unwrap());
        w.get(path).is(200, &json!({"size": 5, "location": inline}));
        assert_eq!(raw(w, "folder/large.bin"), b"small");
        send(w, "PUT", path, &[("file", Some("x"), &large)]).ok("update");
        w.get(path).is(200, &json!({"location": format!("blob:{sum}")}));
        assert!(raw(w, "folder/large.bin") == large.as_bytes());
        // A blob that is lost is our fault, and told.
        std::fs::remove_file(blob_store().join(&sum[..2]).join(&sum)).unwrap();
        let request = Request::new("GET", "B1/static/folder/large.bin").header("Accept", "*/*");
        let error = w.send(&request).error(500);
        assert_eq!(
            error,
            "internal error: the content of the file is missing in the file store"
        );
    });
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    row(async |w| {
        let before = blobs();
        let large = "x".repeat(100_000);
        let file = |name| ("file_data", Some(name), large.as_str());
        let long = "n".repeat(256);
        let twice = [file("n"), file("m")];
        for (parts, message) in [
            (&[file("..")][..], "Field name: "),
            (&[file("a/b")], "Field name: "),
            (&[file("é")], "Field name: "),
            (&[file(&long)], "Field name: "),
            (&[file("72c05559-0590-4da6-be56-28ab36cb669c")], "Field name: "),
            (
                &[("file_data", None, "x")],
                "Field file_data: the part has no filename",
            ),
            (
                &[file("n"), ("folder_name", None, "../etc")],
                "Field folder_name: ",
            ),
            (&[file("n"), ("folder_name", None, "a//b")], "Field folder_name: "),
            (
                &[file("n"), ("permissions", None, "rwxrwxrwz")],
                "Field permissions: ",
            ),
            (
                &[file("n"), ("permissions", None, "rrxrwxrwx")],
                "Field permissions: ",
            ),
            (&[file("n"), ("permissions", None, "rwx")], "Field permissions: "),
            (&[file("n"), ("owner", None, "nope")], "user nope not found"),
            (
                &[file("n"), ("details", None, &large)],
                "Field body: a part that is no file has more than 8 KiB",
            ),
            (&twice, "Field body: it has more than one file"),
            (
                &[file("my.cnf"), ("folder_name", None, "mysql_configuration")],
                "file already exists",
            ),
        ] {
            let error = send(w, "POST", "B1/files", parts).error(400);
            assert!(error.starts_with(message), "{error}, not {message}");
        }
        let error = send(w, "POST", "B1/files/other", &[file("n")]).error(400);
        assert!(error.starts_with("Field file_data: "), "{error}");
        let folder = [file("n"), ("folder_name", None, "b")];
        let error = send(w, "POST", "B1/files/a/n", &folder).error(400);
        assert!(error.starts_with("Field folder_name: "), "{error}");
        // Too large, broken off, no form at all.
        let huge = "x".repeat(3 << 20);
        let error = send(w, "POST", "B1/files", &[("file", Some("n"), &huge)]).error(400);
        assert_eq!(error, "Field body: it is too large");
        let whole = Request::new("POST", "B1/files").form(&[file("n")]);
        for end in [whole.body.len() - 20, whole.body.len() / 2, 10] {
            let mut broken = whole.clone();
            broken.body.truncate(end);
            let error = w.send(&broken).error(400);
            assert_eq!(error, "Field body: it is no multipart form", "{end}");
        }
        assert_eq!(w.get("B1/files").json()["files"].as_array().unwrap().len(), 3);
        assert_eq!(blobs(), before, "no blob, and no upload, stays");
    });
}

#[test]
fn the_announced_sum_is_checked() {
    row(async |w| {
        let before = blobs();
        let large = "x".repeat(100_000);
        let parts = [("file", Some("summed"), large.as_str())];
        let request = Request::new("POST", "B1/files").form(&parts);
        let wrong = STANDARD.encode(Md5::digest(b"another"));
        let error = w.send(&request.clone().header("Content-MD5", &wrong)).error(400);
        assert_eq!(
            error,
            "Field body: it does not have the Content-MD5 of the request"
        );
        assert_eq!(blobs(), before);
        let mut followed = request;
        followed.body += "what follows the last boundary counts too";
        let right = STANDARD.encode(Md5::digest(&followed.body));
        w.send(&followed.header("Content-MD5", &right))
            .is(201, &json!({}));
    });
}

#[test]
fn a_bare_name_in_several_folders() {
    row(async |w| {
        send(
            w,
            "POST",
            "B1/files",
            &[
                ("file", Some("my.cnf"), "x"),
                ("folder_name", None, "other/place"),
            ],
        )
        .is(201, &json!({}));
        let error = w.get("B1/files/my.cnf").error(400);
        assert_eq!(
            error,
            "Field name: my.cnf is in several folders: say one of mysql_configuration/my.cnf, other/place/my.cnf"
        );
        w.get("B1/files/other/place/my.cnf")
            .is(200, &json!({"folder_name": "other/place"}));
        w.delete("B1/files/my.cnf").error(400);
        // One without a folder has the name to itself.
        send(w, "POST", "B1/files", &[("file", Some("my.cnf"), "y")]).is(201, &json!({}));
        let shown = w.get("B1/files/my.cnf").is(200, &json!({"size": 1})).json();
        assert!(shown["folder_name"].is_null());
    });
}

#[test]
fn uris_are_those_that_the_client_can_use() {
    row(async |w| {
        send(w, "POST", "B1/files", &[("file", Some("a b"), "x")]).is(201, &json!({}));
        for (base, prefix) in [
            ("B0", "/api/virtshell/v1"),
            ("B1", "/virtshell/api/v1"),
            ("B4", "/api/v1"),
        ] {
            let path = format!("{base}/files/a%20b");
            let request = Request::new("GET", &path).header("X-Forwarded-Proto", "https");
            let uri = w.send(&request).json()["uri"].as_str().unwrap().to_owned();
            assert!(
                uri.starts_with("https://") && uri.ends_with(&format!("{prefix}/files/a%20b")),
                "{uri}"
            );
        }
        let odd = Request::new("GET", "B1/files/my.cnf").header("X-Forwarded-Proto", "javascript");
        assert!(
            w.send(&odd).json()["uri"]
                .as_str()
                .unwrap()
                .starts_with("http://")
        );
    });
}

#[test]
fn permissions_of_files() {
    row(async |w| {
        let by = |user, method, path| w.send(&Request::new(method, path).by(user));
        let parts = [
            ("file", Some("secret"), "x"),
            ("permissions", None, "rwxr-----"),
            ("owner", None, "virtshell"),
        ];
        send(w, "POST", "B1/files", &parts).is(201, &json!({}));
        for path in ["B1/files/secret", "B1/file/secret", "B1/static/secret"] {
            by("virtshell", "GET", path).is(200, &json!(by("virtshell", "GET", path).json()));
            assert_eq!(
                by("demouser", "GET", path).error(403),
                "User demouser is not allowed to read file secret"
            );
        }
        assert!(!names(&by("demouser", "GET", "B1/files").json()["files"]).contains(&"secret".to_owned()));
        by("demouser", "DELETE", "B1/files/secret").error(403);
        let change =
            Request::new("PUT", "B1/files/secret")
                .by("demouser")
                .form(&[("permissions", None, "rwxrwxrwx")]);
        w.send(&change).error(403);
        // Whoever boots from a file has its content.
        let url = format!("http://{}/api/virtshell/v1/files/secret?x#part", w.address());
        let image = |field: &str| json!({"name": "i", "type": "iso", field: url});
        for field in ["download_url", "container_resource", "preseed_url"] {
            let create = |user| w.send(&Request::new("POST", "B1/images").by(user).body(&image(field)));
            assert_eq!(
                create("demouser").error(403),
                "User demouser is not allowed to read file secret"
            );
            create("virtshell").ok("create");
            let change = json!({field: url});
            let put = Request::new("PUT", "B1/images/i").by("demouser").body(&change);
            w.send(&put).error(403);
            w.delete("B1/images/i").ok("delete");
        }
        let vars =
            json!({"name": "v", "container_resource": "centos_server_7_amd64", "driver": "lxc", "vars": url});
        let create = Request::new("POST", "B1/instances").by("demouser").body(&vars);
        w.send(&create).error(403);
        by("virtshell", "DELETE", "B1/files/secret").ok("delete");
        // Anybody who is known may store files, and then owns them.
        let mine = Request::new("POST", "B1/files")
            .by("demouser")
            .form(&[("file", Some("mine"), "x")]);
        w.send(&mine).is(201, &json!({}));
        w.get("B1/files/mine").is(200, &json!({"owner": "demouser"}));
    });
}

#[test]
fn objects_have_the_names_of_the_contract() {
    row(async |w| {
        send(
            w,
            "POST",
            "B1/files",
            &[("file", Some("x y"), "x"), ("folder_name", None, "a/b")],
        )
        .is(201, &json!({}));
        let files = w
            .api::<virtshell_crds::File>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let made = files.iter().find(|file| file.spec.folder == "a/b").unwrap();
        assert_eq!(made.metadata.name, Some(object_name("a/b/x y")));
        let labels = made.metadata.labels.clone().unwrap();
        assert_eq!(
            labels["virtshell.io/name-hash"],
            virtshell_crds::names::name_hash("a/b/x y")
        );
        let inline: Value = json!(made.spec.content);
        assert_eq!(inline, json!({"inline": "eA=="}));
    });
}

#[test]
fn blobs_that_no_file_names_are_swept() {
    row(async |w| {
        let large = |byte: &str| byte.repeat(100_000);
        for (name, byte) in [("stays", "s"), ("goes", "g")] {
            send(w, "POST", "B1/files", &[("file", Some(name), &large(byte))]).is(201, &json!({}));
        }
        w.delete("B1/files/goes").ok("delete");
        let account = Account {
            namespace: w.namespace.clone(),
            name: "virtshell-gateway".to_owned(),
        };
        let store = Place::Directory(blob_store());
        let service = Service::new(
            w.store.clone(),
            Blobs::open(&store).unwrap(),
            Nodes::new(w.client.clone(), account),
        );
        let there = |byte: &str| {
            let sum = hex::encode(Sha256::digest(large(byte)));
            blob_store().join(&sum[..2]).join(&sum).exists()
        };
        assert_eq!(
            service.sweep_blobs_once(GRACE).await.unwrap(),
            0,
            "they are young"
        );
        assert!(there("g") && there("s"));
        service.sweep_blobs_once(Duration::ZERO).await.unwrap();
        assert!(!there("g") && there("s"));
        assert!(raw(w, "stays") == large("s").as_bytes());
    });
}
