//! The JSON Schema that editors use and the loader say the same of every manifest. A schema cannot say all: the few rules
//! that only the loader knows are listed here, and nothing else may tell the two apart.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use stead::desired::manifest::json_schema;
use stead::desired::validate::{Judged, judge};
use stead::desired::yaml::{Node, documents};
use stead::host::sim::Random;

/// What only the loader can tell, by a part of what it says.
const ONLY_THE_LOADER: &[&str] = &[
    // Of numbers.
    "a guest needs at least 1Mi",
    "which is no whole number of MiB",
    "which is no whole number of sectors of 512 bytes",
    "is more bytes than there are numbers for",
    // Of texts.
    "a path with `..` may lead elsewhere than it says",
    "the address of all zeros is no interface's",
    "is no network interface's name",
    // Of one field beside another.
    "is the image itself, which is never resized",
    "has this image too, and one of the two may write to it",
    "another disk of this VM has the name",
    "another interface of this VM has the name",
    "another interface of this VM has this address",
    // Of annotations that are stead's.
    "stead knows no annotation",
    "stead.dev/prune is",
    "stead.dev/suspend is",
    // Of labels that are stead's, and of how they are asked for.
    "stead knows no label",
    "a label has a name",
    "needs values to go by",
    "takes no values",
];

/// How often the two were of each opinion, and which rules were met.
#[derive(Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    met: BTreeSet<&'static str>,
}

/// Asks both; what they say of this document, if they differ without reason.
fn compare(validator: &Validator, tree: &Node, tally: &mut Tally) -> Result<(), String> {
    let document = tree.to_json();
    let errors: Vec<String> =
        validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    let findings = match judge(tree) {
        Judged::Vm(..) if errors.is_empty() => {
            tally.accepted += 1;
            return Ok(());
        }
        Judged::Vm(..) => return Err(format!("the loader accepts what the schema refuses, {errors:#?}: {document:#}")),
        Judged::Broken(_, findings) | Judged::Nameless(findings) => findings,
        Judged::Host(_) | Judged::BrokenHost(_) => return Ok(()),
    };
    assert!(!findings.is_empty(), "refused for no reason: {document}");
    if !errors.is_empty() {
        tally.refused += 1;
        return Ok(());
    }
    for finding in findings {
        match ONLY_THE_LOADER.iter().find(|rule| finding.message.contains(**rule)) {
            Some(&"is no network interface's name") if is_told_by_its_pattern(&finding.message) => {
                return Err(format!("the schema accepts, and the loader says {:?}: {document:#}", finding.message));
            }
            Some(rule) => drop(tally.met.insert(rule)),
            None => return Err(format!("the schema accepts, and the loader says {:?}: {document:#}", finding.message)),
        }
    }
    Ok(())
}

/// Whether the pattern of a bridge should have told: its name, in quotes in front, is ASCII and not made of dots.
fn is_told_by_its_pattern(message: &str) -> bool {
    message.is_ascii() && !message.contains(r"\u{") && !message.starts_with("\".")
}

fn validator() -> Validator {
    jsonschema::validator_for(&json_schema()).expect("the schema is one")
}

/// A sound manifest with each of its optional fields or without it.
fn sound(random: &mut Random) -> Value {
    let mut manifest = json!({
        "apiVersion": "stead.dev/v1alpha1", "kind": "VirtualMachine",
        "metadata": {
            "name": "web", "labels": {"app": "web"},
            "annotations": {
                "stead.dev/prune": "disabled", "stead.dev/suspend": "true", "stead.dev/restartedAt": "1", "mine": "x",
            },
        },
        "spec": {
            "powerState": "Paused", "restartPolicy": "OnFailure", "vmm": "qemu", "cpus": 2, "memory": "128Mi",
            "boot": {"kernel": "/k", "initrd": "/i", "args": "quiet"},
            "disks": [
                {"name": "root", "image": "/r", "mode": "snapshot", "readOnly": false, "size": "4Gi"},
                {"name": "data", "image": "/d", "mode": "direct"},
            ],
            "networkInterfaces": [
                {"name": "eth0", "bridge": "br0", "macAddress": "06:00:00:00:00:01"},
                {"name": "eth1", "bridge": null, "macAddress": "06:00:00:00:00:02"},
            ],
            "terminationGracePeriodSeconds": 3, "updatePolicy": "OnRestart", "deletionPolicy": "Delete",
            "hostSelector": {
                "matchLabels": {"zone": "north", "stead.dev/hostname": "a1"}, "allowMultiple": false,
                "matchExpressions": [
                    {"key": "rack", "operator": "In", "values": ["1", "2"]}, {"key": "spare", "operator": "DoesNotExist"},
                ],
            },
        },
    });
    let optional = [
        ("/metadata", "labels"),
        ("/metadata", "annotations"),
        ("/spec", "powerState"),
        ("/spec", "vmm"),
        ("/spec", "cpus"),
        ("/spec", "disks"),
        ("/spec", "networkInterfaces"),
        ("/spec/boot", "initrd"),
        ("/spec/boot", "args"),
        ("/spec", "hostSelector"),
        ("/spec/hostSelector", "matchLabels"),
    ];
    for (parent, field) in optional {
        if random.is(1, 6)
            && let Some(parent) = manifest.pointer_mut(parent).and_then(Value::as_object_mut)
        {
            parent.shift_remove(field);
        }
    }
    manifest
}

/// Values that some field takes, or nearly takes.
fn value(random: &mut Random) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(2.0),
        json!(-0.0),
        json!(-1),
        json!(32),
        json!(33),
        json!(1.5),
        json!(86_400),
        json!(86_401),
        json!(4_294_967_296_u64),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(134_217_728),
        json!(134_217_728.0),
        json!(1000),
        json!(512),
        json!(""),
        json!("x"),
        json!("web"),
        json!("root"),
        json!("Web"),
        json!("-a"),
        json!("a-"),
        json!("a.b"),
        json!("a\n"),
        json!("x".repeat(63)),
        json!("x".repeat(64)),
        json!("é".repeat(10)),
        json!("à"),
        json!("."),
        json!(".."),
        json!("br 0"),
        json!("br\t0"),
        json!("br:0"),
        json!("br\u{a0}0"),
        json!("x".repeat(15)),
        json!("x".repeat(16)),
        json!("/"),
        json!("/r"),
        json!("/d"),
        json!("/a/../b"),
        json!("/a..b"),
        json!("k"),
        json!("/a\nb"),
        json!("/a\0b"),
        json!("128Mi"),
        json!("1Ki"),
        json!("100M"),
        json!("0"),
        json!("12Q"),
        json!("Mi"),
        json!("-1Mi"),
        json!("1.5Gi"),
        json!("99999999999999999999Ti"),
        json!("99999999Ti"),
        json!("06:00:00:00:00:01"),
        json!("06:00:00:00:00:0G"),
        json!("01:00:00:00:00:01"),
        json!("00:00:00:00:00:00"),
        json!("0A:bb:CC:dd:EE:ff"),
        json!("06-00-00-00-00-01"),
        json!("auto"),
        json!("firecracker"),
        json!("Running"),
        json!("running"),
        json!("snapshot"),
        json!("copy"),
        json!("direct"),
        json!("Retain"),
        json!("disabled"),
        json!("enabled"),
        json!("VirtualMachine"),
        json!([]),
        json!({}),
        json!([1]),
        json!({"a": "b"}),
        json!({"a": 1}),
        json!({"stead.dev/purge": "x"}),
        json!({"stead.dev/prune": "no"}),
        json!({"stead.dev/suspend": "maybe"}),
        json!({"stead.dev/hostnme": "a1"}),
        json!({"": "x"}),
        json!("Exists"),
        json!("NotIn"),
        json!([{"name": "a", "image": "/a", "mode": "copy"}]),
    ];
    random.choose(&values).cloned().unwrap()
}

/// The pointer of a node, chosen among all.
fn place(random: &mut Random, document: &Value) -> String {
    fn walk(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Object(map) => {
                let below = |key: &str| format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                map.iter().for_each(|(key, value)| walk(value, &below(key), all));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, value)| walk(value, &format!("{at}/{index}"), all));
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    walk(document, "", &mut all);
    random.choose(&all).cloned().unwrap()
}

/// One change: a field removed, renamed, of another value or type, or one more; an element twice, or gone.
fn change(random: &mut Random, document: &mut Value) {
    let at = place(random, document);
    let new = value(random);
    let node = document.pointer_mut(&at).unwrap();
    match (random.below(4), node) {
        (0, Value::Object(map)) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            map.shift_remove(random.choose(&keys).unwrap());
        }
        (1, Value::Object(map)) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let mut renamed = Map::new();
            let chosen = random.choose(&keys).cloned();
            for (key, value) in std::mem::take(map) {
                let key = if Some(&key) == chosen.as_ref() { format!("{key}s") } else { key };
                renamed.insert(key, value);
            }
            *map = renamed;
        }
        (2, Value::Object(map)) => {
            let known = ["extra", "size", "readOnly", "name", "cpus", "memory", "spec", "bridge", "stead.dev/x"];
            map.insert((*random.choose(&known).unwrap()).to_owned(), new);
        }
        (0 | 1, Value::Array(items)) if !items.is_empty() => {
            let twin = random.choose(items).cloned().unwrap();
            items.push(twin);
        }
        (2, Value::Array(items)) => drop(items.pop()),
        // Mostly by one of the same type, of which most are refused all the same.
        (_, node) if random.is(3, 4) => {
            let is_alike = |new: &Value| std::mem::discriminant(new) == std::mem::discriminant(node);
            *node = (0..20).map(|_| value(random)).find(is_alike).unwrap_or(new);
        }
        (_, node) => *node = new,
    }
}

#[test]
fn the_schema_and_the_loader_say_the_same_of_changed_manifests() {
    let validator = validator();
    let mut tally = Tally::default();
    let seeds =
        std::env::var("STEAD_FUZZ_RUNS").map_or(8_000, |runs| runs.parse().expect("STEAD_FUZZ_RUNS is a number"));
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let mut document = sound(&mut random);
        for _ in 0..random.below(4) {
            change(&mut random, &mut document);
        }
        // As the loader gets it: a file in JSON, which is YAML.
        let text = document.to_string();
        for document in documents(&text) {
            let tree = document.tree.unwrap_or_else(|error| panic!("seed {seed}: {error:?} of {text}"));
            compare(&validator, &tree, &mut tally).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
    }
    let unmet: Vec<_> = ONLY_THE_LOADER.iter().filter(|rule| !tally.met.contains(**rule)).collect();
    assert!(unmet.is_empty(), "no document met {unmet:?}");
    assert!(tally.accepted > 1_000 && tally.refused > 1_000, "{} and {}", tally.accepted, tally.refused);
}

#[test]
fn the_schema_and_the_loader_say_the_same_of_every_manifest_of_the_project() {
    let validator = validator();
    let mut tally = Tally::default();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("manifests"), root.join("fuzz/corpus/manifest")];
    folders.extend(fs::read_dir(root.join("tests/plan")).unwrap().map(|case| case.unwrap().path().join("manifests")));
    for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for tree in documents(&text).into_iter().filter_map(|document| document.tree.ok()) {
            compare(&validator, &tree, &mut tally).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        }
    }
    assert!(tally.accepted > 100 && tally.refused > 1, "{} and {}", tally.accepted, tally.refused);
}
