//! The contract, field by field: values that are admitted, values that are refused and why.

use serde_json::{Value, json};
use virtshell_tests::schema::{Demand, What};

use crate::kinds::{least_of, merge};

/// A field and what is tried on it.
pub struct Field {
    pub kind: &'static str,
    /// Below spec, as in `disks[].name`.
    pub path: &'static str,
    /// What the object around the field must say besides, below spec.
    beside: Value,
    pub admitted: Vec<Value>,
    pub refused: Vec<(Value, What)>,
}

fn field(kind: &'static str, path: &'static str) -> Field {
    Field {
        kind,
        path,
        beside: json!({}),
        admitted: Vec::new(),
        refused: Vec::new(),
    }
}

impl Field {
    fn beside(mut self, beside: Value) -> Self {
        self.beside = beside;
        self
    }

    /// Text of `min` to `max` characters.
    fn text(self, min: usize, max: usize) -> Self {
        self.text_after("", min, max)
    }

    /// As `text`, of values that begin with `prefix`.
    fn text_after(mut self, prefix: &str, min: usize, max: usize) -> Self {
        let long = |length: usize| json!(format!("{prefix}{}", "a".repeat(length - prefix.len())));
        self.admitted.extend([long(min.max(prefix.len() + 1)), long(max)]);
        if min > 0 {
            self.refused
                .push((json!("a".repeat(min - 1)), What::MinLength(number(min))));
        } else {
            self.admitted.push(json!(""));
        }
        self.refused.push((long(max + 1), What::MaxLength(number(max))));
        self
    }

    /// Text of at most `max` characters in the form `pattern`.
    fn form(mut self, pattern: &str, admitted: &[&str], refused: &[&str]) -> Self {
        self.admitted.extend(admitted.iter().map(|text| json!(text)));
        self.refused.extend(
            refused
                .iter()
                .map(|text| (json!(text), What::Pattern(pattern.to_owned()))),
        );
        self
    }

    fn range(mut self, min: i64, max: i64) -> Self {
        self.admitted.extend([json!(min), json!(max)]);
        self.refused.push((json!(min - 1), What::Minimum(min)));
        self.refused.push((json!(max + 1), What::Maximum(max)));
        self
    }

    fn from(mut self, min: i64) -> Self {
        self.admitted.extend([json!(min), json!(i32::MAX)]);
        self.refused.push((json!(min - 1), What::Minimum(min)));
        self
    }

    fn words(mut self, words: &[&str]) -> Self {
        self.admitted.extend(words.iter().map(|word| json!(word)));
        let what = What::Enum(words.iter().map(|&word| word.to_owned()).collect());
        let other_case: String = words[0].chars().map(swap_case).collect();
        for word in ["nonsense", "", &other_case] {
            self.refused.push((json!(word), what.clone()));
        }
        self
    }

    /// At most `max` entries, the n-th being `entry(n)`.
    fn entries(mut self, max: usize, entry: impl Fn(usize) -> Value) -> Self {
        let list = |length: usize| Value::Array((0..length).map(&entry).collect());
        self.admitted.extend([json!([]), list(max)]);
        self.refused.push((list(max + 1), What::MaxItems(number(max))));
        self
    }

    /// No two equal entries, or entries of equal key.
    fn unique(mut self, one: Value, other: Value) -> Self {
        self.refused.push((json!([one, other]), What::Unique));
        self
    }

    fn keys(mut self, max: usize) -> Self {
        let map = |length: usize| Value::Object((0..length).map(|n| (format!("k{n}"), json!("v"))).collect());
        self.admitted.push(map(max));
        self.refused
            .push((map(max + 1), What::MaxProperties(number(max))));
        self
    }

    /// The object must have these fields.
    fn required(mut self, whole: Value, fields: &[&str]) -> Self {
        for field in fields {
            let mut less = whole.clone();
            less.as_object_mut().unwrap().remove(*field);
            self.refused.push((less, What::Required((*field).to_owned())));
        }
        self.admitted.push(whole);
        self
    }

    fn empty_list(mut self) -> Self {
        self.admitted.retain(|value| *value != json!([]));
        self.refused.push((json!([]), What::MinItems(1)));
        self
    }

    /// The spec that gives the field this value.
    pub fn spec(&self, value: &Value) -> Value {
        let mut spec = least_of(self.kind);
        merge(&mut spec, &self.beside);
        if self.path.is_empty() {
            return value.clone();
        }
        let mut place = &mut spec;
        for step in self.path.split('.') {
            place = if let Some(list) = step.strip_suffix("[]") {
                let list = &mut place[list];
                if !list.is_array() {
                    *list = json!([null]);
                }
                &mut list[0]
            } else if let Some(map) = step.strip_suffix("{}") {
                &mut place[map]["key"]
            } else {
                &mut place[step]
            };
        }
        *place = value.clone();
        spec
    }

    /// What the schema would say of this field.
    pub fn demands(&self) -> impl Iterator<Item = Demand> + '_ {
        self.refused.iter().map(|(_, what)| Demand {
            kind: self.kind.to_owned(),
            path: ["spec", self.path].join(".").trim_end_matches('.').to_owned(),
            what: what.clone(),
        })
    }
}

fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap()
}

fn swap_case(c: char) -> char {
    if c.is_ascii_lowercase() {
        c.to_ascii_uppercase()
    } else {
        c.to_ascii_lowercase()
    }
}

const NAME: &str = r"^[^\x00-\x1f\x7f]+$";
const WORD: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const HEX: &str = "^[0-9a-f]{64}$";
const PERMISSIONS: &str = "^-?[rwx_-]{9}$";
const HOST_TYPES: [&str; 5] = [
    "GeneralPurpose",
    "ComputeOptimized",
    "HighPerformance",
    "MemoryOptimized",
    "StorageOptimized",
];

/// The contract, field by field.
pub fn fields() -> Vec<Field> {
    [common(), instance(), others(), tasks()]
        .into_iter()
        .flatten()
        .collect()
}

/// Fields that several kinds have.
fn common() -> Vec<Field> {
    let mut fields = Vec::new();
    for kind in [
        "Environment",
        "Group",
        "Host",
        "Image",
        "Instance",
        "Provisioner",
        "Section",
    ] {
        fields.push(field(kind, "displayName").text(1, 255).form(
            NAME,
            &["web server_1 äöü", "~"],
            &["a\u{1}", "a\nb", "\u{7f}"],
        ));
    }
    for kind in ["Environment", "Instance", "Provisioner", "Section"] {
        fields.push(field(kind, "description").text(0, 4096));
    }
    for kind in ["File", "Image", "Instance", "Provisioner"] {
        fields.push(field(kind, "owner").text(0, 255));
        fields.push(field(kind, "group").text(0, 255));
        let mut permissions = field(kind, "permissions").form(
            PERMISSIONS,
            &["xwrxwrxwr", "rwxr-x---", "-rwxr-x---", "_________"],
            &["", "rwx", "rwxrwxrwz", "rwxrwxrwxr"],
        );
        permissions
            .refused
            .push((json!("-rwxrwxrwx-"), What::MaxLength(10)));
        fields.push(permissions);
    }
    for (kind, path, max) in [
        ("Environment", "users", 1000),
        ("Environment", "hosts", 1000),
        ("Group", "users", 1000),
        ("User", "groups", 256),
    ] {
        fields.push(names(kind, path, max));
    }
    for (kind, path) in [
        ("Environment", "users[]"),
        ("Environment", "hosts[]"),
        ("Group", "users[]"),
        ("User", "groups[]"),
        ("Environment", "section"),
        ("Host", "section"),
        ("Instance", "environment"),
        ("Instance", "provisioner"),
        ("Instance", "image"),
        ("Provisioner", "image"),
    ] {
        fields.push(field(kind, path).text(1, 255));
    }
    fields.push(names("Section", "namespaces", 1000));
    fields.push(field("Section", "namespaces[]").text(1, 63));
    for kind in ["Instance", "Provisioner"] {
        fields.push(names(kind, "tags", 64));
        fields.push(field(kind, "tags[]").text(1, 128));
        fields.push(field(kind, "cpus").range(1, 256));
        fields.push(field(kind, "diskMiB").range(1, 67_108_864));
        fields.push(field(kind, "launch").required(json!({"min": 1, "max": 1}), &["min", "max"]));
        for path in ["launch.min", "launch.max"] {
            let beside = json!({"launch": {"min": 1, "max": 100}});
            fields.push(field(kind, path).beside(beside).range(1, 100));
        }
    }
    fields.push(field("Instance", "memoryMiB").range(32, 16_777_216));
    fields.push(field("Provisioner", "memoryMiB").range(1, 16_777_216));
    fields
}

fn names(kind: &'static str, path: &'static str, max: usize) -> Field {
    field(kind, path)
        .entries(max, |n| json!(format!("n{n}")))
        .unique(json!("a"), json!("a"))
}

fn instance() -> Vec<Field> {
    let kind = "Instance";
    let disk = |n: usize| json!({"name": format!("d{n}"), "sizeMiB": 1});
    let nic = |n: usize| json!({"name": format!("e{n}"), "network": "default"});
    let in_disk = |path| field(kind, path).beside(json!({"disks": [disk(0)]}));
    let in_nic = |path| field(kind, path).beside(json!({"interfaces": [nic(0)]}));
    let secret = json!({"secret": "s", "key": "k"});
    let in_secret = |path| field(kind, path).beside(json!({"cloudInit": {"userDataFrom": secret.clone()}}));
    vec![
        field(kind, "hostname").text(1, 63).form(
            "^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$",
            &["a", "Web-1"],
            &["-a", "a-", "a.b", "a_b"],
        ),
        field(kind, "hostType").words(&HOST_TYPES),
        field(kind, "driver").words(&["kvm", "qemu", "lxc"]),
        field(kind, "host").text(1, 63),
        field(kind, "maxCpus").range(1, 1024),
        field(kind, "maxMemoryMiB").range(32, 16_777_216),
        field(kind, "powerState").words(&["Running", "Stopped", "Paused"]),
        field(kind, "stopMode").words(&["Graceful", "Force", "AskOnly"]),
        field(kind, "restartMode").words(&["Graceful", "Force"]),
        field(kind, "restartToken").text(0, 253),
        field(kind, "shutdownGraceSeconds").range(0, 3600),
        field(kind, "deletionPolicy").words(&["Delete", "RetainDisks"]),
        field(kind, "cloneFrom").required(json!({"name": "a"}), &["name"]),
        field(kind, "cloneFrom.name").text(1, 63),
        field(kind, "cloneFrom.uid")
            .beside(json!({"cloneFrom": {"name": "a"}}))
            .text(0, 64),
        field(kind, "disks").entries(16, disk).unique(disk(0), disk(0)),
        field(kind, "disks[]").required(disk(0), &["name"]),
        in_disk("disks[].name")
            .text(1, 32)
            .form(WORD, &["a-1"], &["A", "-a", "a-", "a.b"]),
        in_disk("disks[].sizeMiB").range(1, 67_108_864),
        in_disk("disks[].image").text(1, 255),
        in_disk("disks[].bus").words(&["virtio", "scsi", "sata"]),
        field(kind, "interfaces").entries(16, nic).unique(nic(0), nic(0)),
        field(kind, "interfaces[]").required(nic(0), &["name"]),
        in_nic("interfaces[].name")
            .text(1, 15)
            .form(WORD, &["eth-0"], &["Eth0", "-a", "a-", "a.0"]),
        in_nic("interfaces[].network").text(1, 63),
        field(kind, "interfaces[].bridge")
            .beside(json!({"interfaces": [{"name": "a"}]}))
            .text(1, 15),
        in_nic("interfaces[].model").words(&["virtio", "e1000e", "e1000", "rtl8139"]),
        in_nic("interfaces[].mac").form(
            "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$",
            &["52:54:00:aa:BB:01"],
            &[
                "",
                "53:54:00:aa:bb:01",
                "52:54:00:aa:bb",
                "52-54-00-aa-bb-01",
                "52:54:00:aa:bb:01:02",
            ],
        ),
        field(kind, "cloudInit.userData").text(0, 16_384),
        field(kind, "cloudInit.networkData").text(0, 16_384),
        field(kind, "cloudInit.userDataFrom").required(secret.clone(), &["secret", "key"]),
        in_secret("cloudInit.userDataFrom.secret").text(1, 253),
        in_secret("cloudInit.userDataFrom.key").text(1, 253),
        field(kind, "consoles.vnc.listen").text(2, 45),
        field(kind, "varsFrom").text(0, 2048),
        field(kind, "vars").keys(256),
        field(kind, "vars{}").text(0, 4096),
        field(kind, "addresses.ipv4").text(0, 15),
        field(kind, "addresses.ipv6").text(0, 64),
    ]
}

fn others() -> Vec<Field> {
    let folder = "^$|^[A-Za-z0-9._:@+ -]+(/[A-Za-z0-9._:@+ -]+)*$";
    let hash = "0123456789abcdef".repeat(4);
    let no_hash = ["", "0123", &hash.to_uppercase(), &format!("{hash}0")].map(str::to_owned);
    let no_hash = no_hash.each_ref().map(String::as_str);
    let in_boot = |path| field("Image", path).beside(json!({"boot": {"kernelUrl": "k"}}));
    let mut fields = vec![
        field("File", "").required(json!({"content": {"inline": ""}}), &["content"]),
        field("File", "displayName").text(1, 255).form(
            "^[A-Za-z0-9._:@+ -]+$",
            &["my file.cnf"],
            &["a/b", "a\u{e4}"],
        ),
        field("File", "folder")
            .text(0, 1024)
            .form(folder, &["a/b c/d"], &["/a", "a/", "a//b"]),
        field("File", "size").from(0),
        field("File", "sha256").form(HEX, &[&hash], &no_hash),
        field("File", "content.blob")
            .beside(json!({"content": {"inline": null}}))
            .form(HEX, &[&hash], &no_hash),
        field("File", "content.inline").text(0, 87_384).form(
            "^[A-Za-z0-9+/]*={0,2}$",
            &["YQ=="],
            &["a-b", "YQ===", "a b"],
        ),
        field("Host", "os").text(0, 255),
        field("Host", "type").words(&HOST_TYPES),
        names("Host", "drivers", 16),
        field("Host", "drivers[]").text(1, 32),
        field("Host", "nodeName").text(1, 253),
        field("Host", "memoryMiB").from(0),
        field("Host", "diskMiB").from(0),
        field("Host", "localIPv4").text(0, 15),
        field("Host", "publicIPv4").text(0, 15),
        field("Host", "localIPv6").text(0, 64),
        field("Host", "publicIPv6").text(0, 64),
        field("Image", "").required(json!({"type": "disk"}), &["type"]),
        field("Image", "type").words(&["disk", "iso", "lxc-container", "docker-container"]),
        field("Image", "sha256").form(HEX, &[&hash], &no_hash),
        field("Image", "boot").required(json!({"kernelUrl": "k"}), &["kernelUrl"]),
        field("Image", "boot.kernelUrl").text(1, 2048),
        in_boot("boot.initrdUrl").text(0, 2048),
        in_boot("boot.cmdline").text(0, 2048),
        field("Image", "timezone").text(1, 64),
        field("Image", "sshKey").text(0, 16_384),
        field("Image", "details").text(0, 4096),
        field("Provisioner", "version").text(0, 255),
        field("Provisioner", "driver").words(&[
            "kvm",
            "qemu",
            "lxc",
            "docker",
            "virtualbox",
            "vmware",
            "ec2",
        ]),
        field("Provisioner", "builder")
            .beside(json!({"executor": "sh run.sh"}))
            .text_after("https://", 1, 2048)
            .form(
                "^((https?|git|ssh|file)://|[A-Za-z0-9_.-]+@).+$",
                &[
                    "http://a",
                    "git://a",
                    "ssh://a",
                    "file:///a",
                    "git@example.org:r.git",
                ],
                &["https://", "ftp://a", "/a", "a"],
            ),
        field("Provisioner", "executor").text(1, 4096),
        field("Provisioner", "depends").entries(64, |_| json!({"provisioner": "p"})),
        field("Provisioner", "depends[]").required(json!({"provisioner": "p"}), &["provisioner"]),
        field("Provisioner", "depends[].provisioner").text(1, 255),
        field("Provisioner", "depends[].version")
            .beside(json!({"depends": [{"provisioner": "p"}]}))
            .text(0, 255),
        field("User", "displayName").text(1, 255).form(
            r"^[^\x00-\x1f\x7f:]+$",
            &["Tester 1"],
            &["a:b", "a\tb"],
        ),
        field("User", "type").words(&["regular", "system"]),
        field("User", "login").text(1, 255),
        field("User", "credentialsSecret").text(1, 253),
    ];
    for path in ["downloadUrl", "containerResource", "preseedUrl"] {
        fields.push(field("Image", path).text(1, 2048));
    }
    for path in ["os", "release", "version", "variant", "arch"] {
        fields.push(field("Image", path).text(0, 255));
    }
    fields
}

fn tasks() -> Vec<Field> {
    let target = json!({"kind": "Instance", "name": "a"});
    let assigned = json!({"name": "a", "uid": "u"});
    let in_target = |path| field("Task", path).beside(json!({"targets": [target.clone()]}));
    let mut fields = vec![
        field("Task", "").required(json!({"description": "d"}), &["description"]),
        field("Task", "description").text(1, 4096),
        field("Task", "type").text(0, 255),
        field("Task", "targets").entries(1000, |_| target.clone()),
        field("Task", "targets[]").required(target.clone(), &["kind", "name"]),
        in_target("targets[].kind").text(1, 63),
        in_target("targets[].name").text(1, 63),
        in_target("targets[].uid").text(0, 64),
        field("Task", "timeoutSeconds").range(1, 604_800),
        field("Task", "retry").from(0),
        field("TaskAssignment", "").required(
            least_of("TaskAssignment"),
            &["task", "host", "attempt", "type", "timeoutSeconds", "targets"],
        ),
        field("TaskAssignment", "task").required(assigned.clone(), &["name", "uid"]),
        field("TaskAssignment", "task.name").text(1, 63),
        field("TaskAssignment", "task.uid").text(1, 64),
        field("TaskAssignment", "host").text(1, 63),
        field("TaskAssignment", "attempt").from(0),
        field("TaskAssignment", "type").text(1, 255),
        field("TaskAssignment", "timeoutSeconds").range(1, 604_800),
        field("TaskAssignment", "targets")
            .entries(1000, |_| assigned.clone())
            .empty_list(),
        field("TaskAssignment", "targets[]").required(assigned.clone(), &["name", "uid"]),
        field("TaskAssignment", "targets[].name").text(1, 63),
        field("TaskAssignment", "targets[].uid").text(1, 64),
    ];
    for kind in ["Task", "TaskAssignment"] {
        fields.extend([
            field(kind, "params.command").text(1, 65_536),
            field(kind, "params.file").text(1, 63),
            field(kind, "params.folder").text(1, 1024),
            field(kind, "params.files").entries(1024, |n| json!(format!("f{n}"))),
            field(kind, "params.files[]").text(1, 63),
            field(kind, "params.destination").text(1, 4096),
            field(kind, "params.owner").text(1, 64),
            field(kind, "params.group").text(1, 64),
            field(kind, "params.mode").form("^[0-7]{3,4}$", &["644", "0755"], &["", "64", "888", "00755"]),
            field(kind, "params.packages").entries(256, |n| json!(format!("p{n}"))),
            field(kind, "params.packages[]").form(
                "^[A-Za-z0-9][A-Za-z0-9.+:_~@/-]*$",
                &["g++-12", "a"],
                &["", "-y", "a b", "a;b"],
            ),
            field(kind, "params.power").words(&["Running", "Stopped", "Paused"]),
        ]);
        let mut long = field(kind, "params.packages[]");
        long.admitted.push(json!("a".repeat(255)));
        long.refused.push((json!("a".repeat(256)), What::MaxLength(255)));
        fields.push(long);
    }
    fields
}
