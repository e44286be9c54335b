//! 7.4: images.

use serde_json::{Value, json};

use crate::protocol::names;
use crate::support::{Request, World, row};

const UBUNTU: &str = "ubuntu_server_14.04.2_amd64";

fn b_img() -> Value {
    json!({"name": UBUNTU, "type": "iso", "timezone": "America/Bogota", "key": "/path/to/id_rsa.pub",
        "preseed_url": "https://<host>:<port>/api/virtshell/v1/files/seeds/seed_ubuntu14-04.txt",
        "download_url": "http://releases.ubuntu.com/raring/ubuntu-14.04-server-amd64.iso"})
}

fn with(mut body: Value, members: &Value) -> Value {
    body.as_object_mut()
        .unwrap()
        .extend(members.as_object().unwrap().clone());
    body
}

fn send_text(w: &World, method: &str, path: &str, body: &Value) -> crate::support::Reply {
    w.send(
        &Request::new(method, path)
            .body(body)
            .header("Content-Type", "text/plain"),
    )
}

#[test]
fn v_044_create() {
    row(async |w| {
        w.delete(&format!("B2/images/{UBUNTU}")).ok("delete");
        let resource =
            json!({"container_resource": format!("https://<host>:<port>/api/virtshell/v1/files/{UBUNTU}")});
        let body = with(b_img(), &resource);
        send_text(w, "POST", "B2/images", &body).ok("create");
        let mut shown = body;
        let key = shown.as_object_mut().unwrap().remove("key").unwrap();
        shown["ssh_key"] = key;
        w.get(&format!("B2/images/{UBUNTU}")).is(200, &shown);
    });
}

#[test]
fn v_045_get() {
    row(async |w| {
        let expected = json!({"type": "iso", "permissions": "xwrxwrxwr", "timezone": "UTC"});
        let image = w.get(&format!("B2/images/{UBUNTU}")).is(200, &expected).json();
        assert_eq!(image["id"], image["uuid"]);
        assert!(image.get("os").is_none(), "derived values are not shown");
    });
}

#[test]
fn v_046_list() {
    row(async |w| {
        for path in ["B2/images", "B0/images/"] {
            let list = w.get(path).json();
            for name in [UBUNTU, "ubuntu_server_14.04_amd64", "centos_server_7_amd64"] {
                assert!(names(&list["images"]).contains(&name.to_owned()));
            }
        }
    });
}

#[test]
fn v_047_v_050_v_054_get_and_delete() {
    row(async |w| {
        w.delete(&format!("B2/images/{UBUNTU}")).ok("delete");
        w.get(&format!("B2/images/{UBUNTU}")).error(404);
        let uuid = w.get("B2/images/centos_server_7_amd64").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        w.get(&format!("B2/images?id={uuid}"))
            .is(200, &json!({"name": "centos_server_7_amd64"}));
        w.delete(&format!("B2/images?id={uuid}")).ok("delete");
        w.get(&format!("B2/images?id={uuid}")).error(404);
        w.get("B0/images/ubuntu_server_14.04_amd64").is(200, &json!({}));
        w.delete("B0/images/ubuntu_server_14.04_amd64").ok("delete");
    });
}

#[test]
fn v_048_name_in_the_path_and_a_fragment() {
    row(async |w| {
        let body = json!({"type": "lxc-container",
            "download_url": "https://<host>:<port>/api/virtshell/v1/files/images/3514296#file-lxc-ubuntu"});
        w.post("B2/images/ubuntu_lxc", &body).ok("create");
        w.get("B2/images/ubuntu_lxc").is(200, &body);
    });
}

#[test]
fn v_049_v_051_v_052_put_creates() {
    row(async |w| {
        w.delete(&format!("B2/images/{UBUNTU}")).ok("delete");
        let members = json!({"os": "ubuntu", "release": "trusty", "version": "14.04.2", "variant": "server", "arch": "amd64"});
        send_text(w, "PUT", "B2/image", &with(b_img(), &members)).ok("create");
        w.get(&format!("B2/images/{UBUNTU}")).is(200, &members);
        w.delete(&format!("B2/images/{UBUNTU}")).ok("delete");
        let members = json!({"os": "ubuntu", "permissions": "rwxrwxr--"});
        send_text(w, "PUT", "B2/image", &with(b_img(), &members)).ok("create");
        w.get(&format!("B2/images/{UBUNTU}")).is(200, &members);
        // The same again finds it.
        send_text(w, "PUT", "B2/images", &with(b_img(), &members)).ok("update");
        let oracle = json!({"name": "Oracle", "type": "lxc-container", "os": "oracle", "permissions": "rwxrwxr--",
            "download_url": "https://<host>:<port>/api/virtshell/v1/files/images/3514296#file-lxc-oracle"});
        send_text(w, "PUT", "B2/image", &oracle).ok("create");
        let literal = oracle.to_string().replace("lxc-oracle\"", "lxc-oracle");
        w.send(&Request::new("PUT", "B2/image").text(&literal))
            .exactly(400, &json!({"error": "No JSON object could be decoded."}));
    });
}

#[test]
fn v_053_a_colon_in_the_name() {
    row(async |w| {
        let body = json!({"name": "centos:centos6", "type": "docker-container", "os": "centos", "permissions": "rwxrwxr--"});
        send_text(w, "PUT", "B2/image", &body).ok("create");
        w.get("B2/images/centos:centos6").is(200, &body);
        w.get("B2/images/centos%3Acentos6").is(200, &body);
    });
}

#[test]
fn v_055_docker_images_can_be_registered() {
    row(async |w| {
        for (name, file) in [
            ("ubuntu_server_14.04_amd64", "dockerfile_ubuntu_server_14.04"),
            ("centos_server_7_amd64", "dockerfile_centos_server_7"),
        ] {
            w.delete(&format!("B0/images/{name}")).ok("delete");
            let body = json!({"name": name, "type": "docker-container", "container_resource": format!("http://192.168.56.103/file/{file}")});
            w.post("B0/images/", &body).ok("create");
        }
    });
}

#[test]
fn what_is_refused() {
    row(async |w| {
        for (body, message) in [
            (json!({"name": "i"}), "type field was not provided"),
            (json!({"type": "iso"}), "name field was not provided"),
            (json!({"name": "i", "type": "floppy"}), "Field type: "),
            (
                json!({"name": UBUNTU, "type": "iso"}),
                "image ubuntu_server_14.04.2_amd64 already exists",
            ),
            (
                json!({"name": "i", "type": "iso", "permissions": "rwx"}),
                "Field permissions: ",
            ),
            (
                json!({"name": "i", "type": "iso", "permissions": "rrxrwxrwx"}),
                "Field permissions: ",
            ),
            (
                json!({"name": "i", "type": "iso", "owner": "nobody"}),
                "user nobody not found",
            ),
            (
                json!({"name": "i", "type": "iso", "group": "production"}),
                "Field group: ",
            ),
            (
                json!({"name": "i", "type": "iso", "download_url": "image.iso"}),
                "Field download_url: must be a URL",
            ),
            (
                json!({"name": "i", "type": "iso", "preseed_file": "/etc/answers"}),
                "Field preseed_url: must be a URL",
            ),
            (
                json!({"name": "i", "type": "iso", "container_resource": "gw/files/a"}),
                "Field container_resource: must be a URL",
            ),
            (
                json!({"name": "i", "type": "iso", "download_url": format!("http://h/{}", "x".repeat(3000))}),
                "Field download_url: ",
            ),
            (
                json!({"name": "i", "type": "iso", "download_url": ""}),
                "Field download_url: ",
            ),
        ] {
            let error = w.post("B1/images", &body).error(400);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        w.put(&format!("B1/images/{UBUNTU}"), &json!({"name": "other"}))
            .error(400);
        w.delete("B1/images")
            .exactly(400, &json!({"error": "missing name parameter"}));
        let unknown = json!({"nonsense": true});
        w.put(&format!("B1/images/{UBUNTU}"), &unknown).ok("update");
    });
}

#[test]
fn owner_and_group() {
    row(async |w| {
        w.put("B1/users/demouser", &json!({"groups": ["production"]}))
            .ok("update");
        w.put("B1/users/virtshell", &json!({"groups": ["production"]}))
            .ok("update");
        let body = json!({"name": "i", "type": "iso", "permissions": "rwxr-----"});
        w.send(&Request::new("POST", "B1/images").by("demouser").body(&body))
            .ok("create");
        w.get("B1/images/i")
            .is(200, &json!({"owner": "demouser", "group": "production"}));
        w.send(&Request::new("GET", "B1/images/i").by("virtshell"))
            .is(200, &json!({}));
        let change = json!({"details": "x"});
        w.send(&Request::new("PUT", "B1/images/i").by("virtshell").body(&change))
            .error(403);
        w.send(&Request::new("PUT", "B1/images/i").by("demouser").body(&change))
            .ok("update");
        // Nobody makes what is another's: rights go by the owner.
        let foreign = json!({"name": "j", "type": "iso", "owner": "virtshell"});
        let create = Request::new("POST", "B1/images").by("demouser").body(&foreign);
        assert_eq!(
            w.send(&create).error(400),
            "Field owner: only a system user may name another owner"
        );
        // Giving it away: only the owner and system users.
        let gift = json!({"owner": "virtshell"});
        w.send(&Request::new("PUT", "B1/images/i").by("demouser").body(&gift))
            .ok("update");
        w.send(&Request::new("PUT", "B1/images/i").by("demouser").body(&gift))
            .error(403);
        let modified = w.get("B1/images/i").json()["modified"]["by"].clone();
        assert_eq!(modified, w.get("B1/users/demouser").json()["uuid"]);
    });
}

#[test]
fn fields_without_a_word_here_are_kept() {
    row(async |w| {
        use kube::Api;
        use kube::api::{Patch, PatchParams};
        let api: Api<virtshell_crds::Image> = w.api();
        let name = virtshell_crds::names::object_name("centos_server_7_amd64");
        let sum = "a".repeat(64);
        let patch = json!({"spec": {"sha256": sum, "boot": {"kernelUrl": "file:///k"}}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        w.put(
            "B1/images/centos_server_7_amd64",
            &json!({"details": "d", "timezone": "Europe/Berlin"}),
        )
        .ok("update");
        let image = api.get(&name).await.unwrap();
        assert_eq!(image.spec.sha256, Some(sum));
        assert_eq!(
            image.spec.boot.map(|boot| boot.kernel_url).as_deref(),
            Some("file:///k")
        );
        assert_eq!(image.spec.timezone.as_deref(), Some("Europe/Berlin"));
    });
}
