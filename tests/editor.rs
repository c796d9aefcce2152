//! What editors are told of stead's YAML: the schemas that come with it, and that a validator which is not stead's own comes to
//! the same verdict by them as `stead validate`.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The folder of schemas below the project, by the name that `stead schema` knows each by.
const SCHEMAS: [(&str, &str); 3] = [
    ("virtual-machine", "virtualmachine.schema.json"),
    ("host", "host.schema.json"),
    ("configuration", "configuration.schema.json"),
];
/// How a file tells an editor of its schema (the README of redhat-developer/yaml-language-server, "Using inlined schema").
const MODELINE: &str = "# yaml-language-server: $schema=";

fn project(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

fn stead(args: &[&str], paths: &[PathBuf]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_stead"));
    command.args(args).args(paths).env("HOME", folder.path()).env_remove("STEAD_CONFIG");
    command.env("STEAD_STATE_DIR", folder.path()).env("STEAD_RUN_DIR", folder.path());
    command.output().unwrap()
}

/// Files that are wrong, each with whether a schema can tell.
const BROKEN: &[(&str, &str, bool)] = &[
    ("  memory: 128Mi\n", "  memroy: 128Mi\n", true),
    ("  memory: 128Mi\n", "", true),
    ("  memory: 128Mi\n", "  memory: lots\n", true),
    ("  memory: 128Mi\n", "  memory: -5\n", true),
    ("  memory: 128Mi\n", "  memory: [128Mi]\n", true),
    ("kind: VirtualMachine", "kind: Virtualmachine", true),
    ("apiVersion: stead.dev/v1alpha1", "apiVersion: stead.dev/v1", true),
    ("  name: hello\n", "  name: Hello\n", true),
    ("  name: hello\n", "  name: hello\n  names: x\n", true),
    ("  cpus: 1\n", "  cpus: 0\n", true),
    ("  cpus: 1\n", "  cpus: 33\n", true),
    ("  cpus: 1\n", "  cpus: one\n", true),
    ("  vmm: qemu\n", "  vmm: xen\n", true),
    ("    kernel: /var", "    kernel: var", true),
    ("  terminationGracePeriodSeconds: 5\n", "  terminationGracePeriodSeconds: -1\n", true),
    ("  cpus: 1\n", "  cpus: 1\n  powerState: On\n", true),
    ("  cpus: 1\n", "  cpus: 1\n  disks: [{name: root, mode: snapshot}]\n", true),
    ("  cpus: 1\n", "  cpus: 1\n  networkInterfaces: [{name: eth0, macAddress: '01:00:00:00:00:01'}]\n", true),
    ("  cpus: 1\n", "  cpus: 1\n  networkInterfaces: [{name: eth0, bridge: a-name-that-is-too-long}]\n", true),
    // Of one value beside another, or of what a text means, a schema says nothing.
    ("  memory: 128Mi\n", "  memory: 100k\n", false),
    ("    kernel: /var", "    kernel: /var/..", false),
    ("  cpus: 1\n", "  cpus: 1\n  networkInterfaces: [{name: eth0}, {name: eth0}]\n", false),
    ("  cpus: 1\n", "  cpus: 1\n  disks: [{name: a, image: /i, mode: direct, size: 4Gi}]\n", false),
];

fn samples() -> Vec<(PathBuf, String)> {
    let all = fs::read_dir(project("manifests")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = all.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    all.sort();
    assert!(all.len() >= 5);
    all
}

/// The schema that a file names.
fn schema_of(path: &Path, text: &str) -> PathBuf {
    let named = text.lines().next().and_then(|line| line.strip_prefix(MODELINE));
    let named = named.unwrap_or_else(|| panic!("{} names no schema in its first line", path.display()));
    path.parent()
        .unwrap()
        .join(named)
        .canonicalize()
        .unwrap_or_else(|error| panic!("{}: {named}: {error}", path.display()))
}

#[test]
fn the_schemas_that_come_with_stead_are_those_that_it_prints() {
    for (kind, file) in SCHEMAS {
        let (printed, file) = (stead(&["schema", kind], &[]), project("contrib/schema").join(file));
        assert!(printed.status.success());
        let printed = String::from_utf8(printed.stdout).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &printed).unwrap();
        }
        let kept = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            kept == printed,
            "{} is not what `stead schema {kind}` prints: UPDATE_GOLDEN=1 writes it",
            file.display()
        );
    }
}

#[test]
fn every_field_says_what_it_is_and_what_holds_without_it() {
    for (kind, _) in SCHEMAS {
        let root: Value = serde_json::from_slice(&stead(&["schema", kind], &[]).stdout).unwrap();
        let mut fields = 0;
        let types = root["$defs"].as_object().into_iter().flatten().map(|(name, schema)| (name.as_str(), schema));
        for (name, schema) in std::iter::once((kind, &root)).chain(types) {
            assert!(schema["description"].is_string(), "{kind}: {name} says nothing");
            let required: BTreeSet<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                fields += 1;
                assert!(property["description"].is_string(), "{kind}: {name}.{field} says nothing");
                let has_default = property.get("default").is_some();
                assert!(has_default != required.contains(field.as_str()), "{kind}: what holds without {name}.{field}?");
            }
            let choices = schema["oneOf"].as_array().into_iter().flatten();
            for choice in choices {
                assert!(choice["description"].is_string(), "{kind}: {name}: {choice} says nothing");
            }
        }
        assert!(fields > 3, "{kind}");
    }
}

/// What the validator says of files against a schema: those that are wrong, each with why.
fn refused_by_another(schema: &Path, files: &[PathBuf]) -> BTreeMap<PathBuf, String> {
    let validator = prepared::bed("editor/check-jsonschema");
    let output = Command::new(validator)
        .args(["-o", "json", "--schemafile"])
        .arg(schema)
        .args(files)
        .output()
        .unwrap_or_else(|error| panic!("check-jsonschema: {error}; tests/bed/prepare fetches it"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    let list = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    let wrong = list("errors").into_iter().chain(list("parse_errors"));
    wrong.map(|error| (error["filename"].as_str().unwrap().into(), error.to_string())).collect()
}

/// Writes documents to files, one each: the validator reads no more of one.
fn one_each(folder: &Path, stem: &str, text: &str) -> Vec<PathBuf> {
    let write = |(number, document): (usize, &str)| {
        let path = folder.join(format!("{stem}-{number}.yaml"));
        fs::write(&path, document).unwrap();
        path
    };
    text.split("\n---\n").enumerate().map(write).collect()
}

#[test]
fn every_sample_is_sound_to_an_editor_and_to_stead() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (path, text) in samples() {
        assert_eq!(schema_of(&path, &text), project("contrib/schema/virtualmachine.schema.json"));
        files.extend(one_each(folder.path(), path.file_stem().unwrap().to_str().unwrap(), &text));
    }
    assert!(files.len() > samples().len(), "one of them has several documents");
    let refused = refused_by_another(&project("contrib/schema/virtualmachine.schema.json"), &files);
    assert!(refused.is_empty(), "{refused:#?}");
    // One by one: two of them show a disk over the same image.
    for (path, _) in samples() {
        let validated = stead(&["validate"], &[path]);
        assert!(validated.status.success(), "{}", String::from_utf8_lossy(&validated.stderr));
    }
}

#[test]
fn an_editor_and_stead_refuse_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let sound = fs::read_to_string(project("manifests/hello.yaml")).unwrap();
    let mut files = Vec::new();
    for (number, (from, to, _)) in BROKEN.iter().enumerate() {
        assert_eq!(sound.matches(from).count(), 1, "{from:?}");
        files.extend(one_each(folder.path(), &format!("broken{number:02}"), &sound.replace(from, to)));
    }
    files.extend(one_each(folder.path(), "broken-syntax", "apiVersion: [\n"));
    let refused = refused_by_another(&project("contrib/schema/virtualmachine.schema.json"), &files);
    for (file, broken) in files.iter().zip(BROKEN.iter().map(Some).chain([None])) {
        let is_refused = refused.contains_key(file);
        assert_eq!(is_refused, broken.is_none_or(|(.., by_schema)| *by_schema), "{broken:?}: {:?}", refused.get(file));
        let own = stead(&["validate"], std::slice::from_ref(file));
        assert_eq!(own.status.code(), Some(1), "stead accepts {broken:?}");
    }
}

#[test]
fn a_configuration_is_judged_alike() {
    let folder = tempfile::tempdir().unwrap();
    let head = "apiVersion: stead.dev/v1alpha1\nkind: Configuration\n";
    let git =
        |rest: &str| format!("{head}sources: [{{name: fleet, git: {{url: 'https://example.org/fleet.git'{rest}}}}}]\n");
    let cases = [
        (head.to_owned(), true),
        (git(""), true),
        (git(", forcePush: Follow, interval: 5m, maxSize: 1Gi"), true),
        (format!("{head}host: {{name: a1, labels: {{zone: north}}}}\n"), true),
        (git(", forcePush: Perhaps"), false),
        (git(", brnach: main"), false),
        (git(", suspend: maybe"), false),
        (format!("{head}sources: {{}}\n"), false),
        (format!("{head}host: {{labels: [a]}}\n"), false),
        (format!("{head}push: {{listen: '127.0.0.1:9440'}}\n"), false),
        ("kind: Configuration\n".to_owned(), false),
    ];
    let write = |(number, (text, _)): (usize, &(String, bool))| {
        one_each(folder.path(), &format!("config{number:02}"), text).remove(0)
    };
    let files: Vec<PathBuf> = cases.iter().enumerate().map(write).collect();
    let refused = refused_by_another(&project("contrib/schema/configuration.schema.json"), &files);
    for (file, (text, is_sound)) in files.iter().zip(&cases) {
        assert_eq!(refused.contains_key(file), !is_sound, "{text}: {:?}", refused.get(file));
        let own = stead(&["get", "--config", file.to_str().unwrap()], &[]);
        assert_eq!(own.status.success(), *is_sound, "{text}: {}", String::from_utf8_lossy(&own.stderr));
    }
}

mod prepared;
