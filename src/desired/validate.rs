//! A document to a VM in normal form, or everything that is wrong with it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::hosts::{self, ARCH_LABEL, HostSelector, Labels, MACHINE_ID_LABEL, OWN_LABELS, Requirement};
use super::manifest::{self, API_VERSION, HOST_KIND, KIND, Operator, VirtualMachine};
use super::structure::{self, Finding};
use super::yaml::{Node, Value, quoted, shown};
use crate::names::{INTERFACE_NAME_MAX, VmName};
use crate::spec::{self, DiskMode, MacAddress, Vm, VmSpec};

const MIB: u64 = 1 << 20;
/// Bytes in which disks are counted, whatever they are made of.
const SECTOR: u64 = 512;

/// What a document turned out to be.
#[derive(Debug)]
pub enum Judged {
    /// A sound VM, and which hosts it is for, if it says so.
    Vm(Box<Vm>, Option<HostSelector>),
    /// A host, listed soundly.
    Host(hosts::Host),
    /// A host that is listed, and everything that is wrong with that.
    BrokenHost(Vec<Finding>),
    /// A VM whose name can be read, and everything that is wrong with it.
    Broken(VmName, Vec<Finding>),
    /// Something that may be any VM, or none.
    Nameless(Vec<Finding>),
}

/// Judges one document.
pub fn judge(tree: &Node) -> Judged {
    if is_host(tree) {
        return host(tree).map_or_else(Judged::BrokenHost, Judged::Host);
    }
    match check(tree) {
        Ok((vm, selector)) => Judged::Vm(Box::new(vm), selector),
        Err(findings) => match tree.nearest(&["metadata", "name"]).value {
            Value::Text(ref name) if tree.get("metadata").and_then(|metadata| metadata.get("name")).is_some() => {
                match VmName::new(name.clone()) {
                    Ok(name) => Judged::Broken(name, findings),
                    Err(_) => Judged::Nameless(findings),
                }
            }
            _ => Judged::Nameless(findings),
        },
    }
}

fn schema() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(manifest::json_schema)
}

fn host_schema() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(manifest::host_schema)
}

fn is_host(tree: &Node) -> bool {
    // Whatever its apiVersion: a list that is short of a host would mean another thing.
    matches!(tree.get("kind").map(|node| &node.value), Some(Value::Text(kind)) if kind == HOST_KIND)
}

/// A document that lists a host.
fn host(tree: &Node) -> Result<hosts::Host, Vec<Finding>> {
    let mut semantic = Semantic { tree, findings: structure::check(tree, host_schema()) };
    let metadata = semantic.part::<manifest::HostMetadata>(&["metadata"]);
    if let Some(metadata) = &metadata {
        if let Some(why) = hosts::flaw_of_name(&metadata.name) {
            semantic.say(&["metadata", "name"], why, None);
        }
        for key in metadata.labels.keys() {
            semantic.key(&["metadata", "labels", key], key, &[MACHINE_ID_LABEL, ARCH_LABEL]);
        }
    }
    match metadata {
        Some(metadata) if semantic.findings.is_empty() => Ok(hosts::Host::new(metadata.name, metadata.labels)),
        _ => Err(semantic.findings),
    }
}

fn check(tree: &Node) -> Result<(Vm, Option<HostSelector>), Vec<Finding>> {
    if let Some(finding) = other_kind(tree) {
        return Err(vec![finding]);
    }
    let mut findings = structure::check(tree, schema());
    let mut semantic = Semantic { tree, findings: Vec::new() };
    let vm = semantic.vm();
    let selector = semantic.host_selector();
    findings.append(&mut semantic.findings);
    findings.sort_by_key(|finding| finding.place);
    match vm {
        Some(vm) if findings.is_empty() => Ok((vm, selector)),
        None if findings.is_empty() => Err(vec![Finding::at(tree, format!("this is no {KIND}"))]),
        _ => Err(findings),
    }
}

/// A document of another kind is judged by its kind alone.
fn other_kind(tree: &Node) -> Option<Finding> {
    let text = |key: &str| match tree.get(key).map(|node| &node.value) {
        Some(Value::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    if !matches!(tree.value, Value::Map(_)) {
        let message =
            format!("a manifest is a mapping with apiVersion, kind, metadata and spec; this is {}", tree.describe());
        return Some(Finding::at(tree, message));
    }
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    let foreign = !version.starts_with("stead.dev/") && kind != KIND;
    foreign.then(|| {
        Finding::at(tree.nearest(&["kind"]), format!("stead knows no kind {} of {}", shown(kind), shown(version)))
            .hint(format!("manifests are of apiVersion {API_VERSION} and kind {KIND} or {HOST_KIND}"))
    })
}

/// The checks that a schema cannot make.
struct Semantic<'a> {
    tree: &'a Node,
    findings: Vec<Finding>,
}

impl Semantic<'_> {
    fn say(&mut self, path: &[&str], message: impl Into<String>, hint: Option<&str>) {
        let finding = Finding::at(self.tree.nearest(path), message);
        self.findings.push(Finding { hint: hint.map(str::to_owned), ..finding });
    }

    fn name(&mut self) -> Option<VmName> {
        let node = self.tree.get("metadata")?.get("name")?;
        let Value::Text(name) = &node.value else { return None };
        match VmName::new(name.clone()) {
            Ok(name) => Some(name),
            Err(error) => {
                self.say(&["metadata", "name"], format!("{} is no VM's name: {error}", quoted(name)), None);
                None
            }
        }
    }

    /// A part of the document, if it has the shape that it should have. The others are checked all the same, so that one
    /// error does not hide the next.
    fn part<T: DeserializeOwned>(&self, path: &[&str]) -> Option<T> {
        let node = path.iter().try_fold(self.tree, |node, key| node.get(key))?;
        serde_json::from_value(node.to_json()).ok()
    }

    fn vm(&mut self) -> Option<Vm> {
        let name = self.name();
        let memory = self.part::<manifest::Quantity>(&["spec", "memory"]);
        let memory_mib = memory.and_then(|memory| self.memory(&memory));
        let boot = self.part::<manifest::Boot>(&["spec", "boot"]).map(|boot| self.boot(boot));
        let disks = self.part::<Vec<manifest::Disk>>(&["spec", "disks"]).map(|disks| self.disks(&disks));
        let interfaces = self.part::<Vec<manifest::NetworkInterface>>(&["spec", "networkInterfaces"]);
        let network_interfaces = interfaces.map(|interfaces| self.interfaces(&interfaces));
        if let Some(annotations) = self.part(&["metadata", "annotations"]) {
            self.annotations(&annotations);
        }
        let VirtualMachine { api_version: _, kind: _, metadata, spec } = self.part(&[])?;
        let spec = VmSpec {
            power_state: spec.power_state,
            restart_policy: spec.restart_policy,
            vmm: spec.vmm,
            cpus: spec.cpus,
            memory_mib: memory_mib?,
            boot: boot?,
            disks: disks.unwrap_or_default(),
            network_interfaces: network_interfaces.unwrap_or_default(),
            termination_grace_period_seconds: spec.termination_grace_period_seconds,
            update_policy: spec.update_policy,
            deletion_policy: spec.deletion_policy,
        };
        Some(Vm { name: name?, labels: metadata.labels, annotations: metadata.annotations, spec: Arc::new(spec) })
    }

    fn boot(&mut self, declared: manifest::Boot) -> spec::Boot {
        let manifest::Boot { kernel, initrd, args } = declared;
        if args.contains(['\n', '\0']) {
            self.say(&["spec", "boot", "args"], "boot.args is one line", None);
        }
        spec::Boot {
            kernel: self.path(&["spec", "boot", "kernel"], "boot.kernel", &kernel),
            initrd: initrd.map(|path| self.path(&["spec", "boot", "initrd"], "boot.initrd", &path)),
            args,
        }
    }

    fn memory(&mut self, memory: &manifest::Quantity) -> Option<u64> {
        let path = ["spec", "memory"];
        match memory.bytes() {
            Err(why) => self.say(&path, format!("memory: {why}"), Some("such as 128Mi or 1Gi")),
            Ok(bytes) if bytes < MIB => {
                self.say(&path, format!("memory is {bytes} bytes; a guest needs at least 1Mi"), Some("such as 128Mi"));
            }
            Ok(bytes) if bytes % MIB != 0 => {
                let near = format!("the nearest is {}Mi", bytes / MIB + u64::from(bytes % MIB >= MIB / 2));
                self.say(&path, format!("memory is {bytes} bytes, which is no whole number of MiB"), Some(&near));
            }
            Ok(bytes) => return Some(bytes / MIB),
        }
        None
    }

    fn path(&mut self, at: &[&str], what: &str, text: &str) -> PathBuf {
        let path = Path::new(text);
        if !path.is_absolute() {
            self.say(at, format!("{what} is {}, expected an absolute path", quoted(text)), None);
        } else if path.components().any(|part| part == Component::ParentDir) {
            self.say(at, format!("{what} is {}: a path with `..` may lead elsewhere than it says", quoted(text)), None);
        } else if text.contains(['\0', '\n']) {
            self.say(at, format!("{what} has a character that no path here may have"), None);
        }
        path.to_owned()
    }

    fn disks(&mut self, declared: &[manifest::Disk]) -> Vec<spec::Disk> {
        let mut disks: Vec<spec::Disk> = Vec::new();
        for (index, disk) in declared.iter().enumerate() {
            let index = index.to_string();
            let at = |field: &'static str| ["spec", "disks", index.as_str(), field].map(str::to_owned);
            let borrowed = |path: &[String; 4]| -> Vec<String> { path.to_vec() };
            let say = |this: &mut Self, field: &'static str, message: String, hint: Option<&str>| {
                let path = borrowed(&at(field));
                this.say(&path.iter().map(String::as_str).collect::<Vec<_>>(), message, hint);
            };
            let size_bytes = match disk.size.as_ref().map(|size| (size, size.bytes())) {
                None => None,
                Some((_, Err(why))) => {
                    say(self, "size", format!("size: {why}"), Some("such as 4Gi"));
                    None
                }
                Some(_) if !has_own_file(disk) => {
                    let what = if disk.mode == DiskMode::Direct { "of mode direct" } else { "that is only read" };
                    let hint = "leave it out; the guest sees the image's own size";
                    say(self, "size", format!("a disk {what} is the image itself, which is never resized"), Some(hint));
                    None
                }
                Some((_, Ok(bytes))) if bytes == 0 || bytes % SECTOR != 0 => {
                    let message =
                        format!("size is {bytes} bytes, which is no whole number of sectors of {SECTOR} bytes");
                    say(self, "size", message, Some("such as 4Gi"));
                    None
                }
                Some((_, Ok(bytes))) => Some(bytes),
            };
            let path = borrowed(&at("image"));
            let image = self.path(&path.iter().map(String::as_str).collect::<Vec<_>>(), "image", &disk.image);
            let writes = disk.mode == DiskMode::Direct && !disk.read_only;
            if let Some(other) = disks.iter().find(|other| other.image == image && (writes || other.writes_image())) {
                let message = format!("disk {} has this image too, and one of the two may write to it", other.name);
                let hint = "make both readOnly or of mode snapshot or copy, or give each an image of its own";
                say(self, "image", message, Some(hint));
            }
            let name = match VmName::new(disk.name.clone()) {
                Ok(name) => name,
                Err(error) => {
                    say(self, "name", format!("{} is no disk's name: {error}", quoted(&disk.name)), None);
                    continue;
                }
            };
            if disks.iter().any(|other| other.name == name) {
                say(self, "name", format!("another disk of this VM has the name {name}"), None);
            }
            disks.push(spec::Disk { name, image, mode: disk.mode, read_only: disk.read_only, size_bytes });
        }
        disks
    }

    fn interfaces(&mut self, declared: &[manifest::NetworkInterface]) -> Vec<spec::NetworkInterface> {
        let mut interfaces: Vec<spec::NetworkInterface> = Vec::new();
        for (index, interface) in declared.iter().enumerate() {
            let index = index.to_string();
            let say = |this: &mut Self, field: &str, message: String, hint: Option<&str>| {
                this.say(&["spec", "networkInterfaces", &index, field], message, hint);
            };
            let mac_address = match interface.mac_address.as_deref().map(str::parse::<MacAddress>) {
                Some(Err(error)) => {
                    say(self, "macAddress", format!("macAddress: {error}"), None);
                    None
                }
                other => other.and_then(Result::ok),
            };
            if let Some(bridge) = interface.bridge.as_ref().filter(|bridge| !is_interface_name(bridge)) {
                let hint = "see `ip link show type bridge`";
                say(self, "bridge", format!("{} is no network interface's name", quoted(bridge)), Some(hint));
            }
            let name = match VmName::new(interface.name.clone()) {
                Ok(name) => name,
                Err(error) => {
                    say(self, "name", format!("{} is no interface's name: {error}", quoted(&interface.name)), None);
                    continue;
                }
            };
            if interfaces.iter().any(|other| other.name == name) {
                say(self, "name", format!("another interface of this VM has the name {name}"), None);
            }
            if mac_address.is_some() && interfaces.iter().any(|other| other.mac_address == mac_address) {
                say(self, "macAddress", "another interface of this VM has this address".to_owned(), None);
            }
            interfaces.push(spec::NetworkInterface { name, bridge: interface.bridge.clone(), mac_address });
        }
        interfaces
    }

    /// A label's key.
    fn key(&mut self, at: &[&str], key: &str, allowed: &[&str]) {
        if let Some((message, hint)) = hosts::flaw_of_key(key, allowed) {
            self.say(at, message, hint.as_deref());
        }
    }

    fn host_selector(&mut self) -> Option<HostSelector> {
        let at = ["spec", "hostSelector"];
        let declared = self.part::<Option<manifest::HostSelector>>(&at)??;
        let place = self.tree.nearest(&at).place;
        let mut requirements = Vec::new();
        let labels: Labels = declared.match_labels;
        for (key, value) in labels {
            self.key(&[at[0], at[1], "matchLabels", &key], &key, &OWN_LABELS);
            requirements.push((key, Requirement::In([value].into())));
        }
        for (index, asked) in declared.match_expressions.into_iter().enumerate() {
            let index = index.to_string();
            let at = |field| [at[0], at[1], "matchExpressions", index.as_str(), field];
            self.key(&at("key"), &asked.key, &OWN_LABELS);
            let takes_values = matches!(asked.operator, Operator::In | Operator::NotIn);
            if takes_values == asked.values.is_empty() {
                let needs = if takes_values { "needs values to go by" } else { "takes no values" };
                self.say(&at("values"), format!("operator {:?} {needs}", asked.operator), None);
            }
            let values = asked.values.into_iter().collect();
            requirements.push((
                asked.key,
                match asked.operator {
                    Operator::In => Requirement::In(values),
                    Operator::NotIn => Requirement::NotIn(values),
                    Operator::Exists => Requirement::Exists,
                    Operator::DoesNotExist => Requirement::DoesNotExist,
                },
            ));
        }
        Some(HostSelector { requirements, allow_multiple: declared.allow_multiple, place })
    }

    fn annotations(&mut self, annotations: &BTreeMap<String, String>) {
        let known = [spec::PRUNE_ANNOTATION, spec::SUSPEND_ANNOTATION, spec::RESTARTED_AT_ANNOTATION];
        for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with("stead.dev/")) {
            let path = ["metadata", "annotations", key];
            if !known.contains(&key.as_str()) {
                let hint = structure::nearest(key, known.into_iter()).map(|near| format!("did you mean `{near}`?"));
                self.say(&path, format!("stead knows no annotation {}", shown(key)), hint.as_deref());
            } else if key == spec::PRUNE_ANNOTATION && value != "disabled" {
                let message = format!("{key} is {}, expected disabled", quoted(value));
                self.say(&path, message, Some("leave it out to let the VM be deleted with its manifest"));
            } else if key == spec::SUSPEND_ANNOTATION && !["true", "false"].contains(&value.as_str()) {
                let message = format!("{key} is {}, expected \"true\"", quoted(value));
                self.say(&path, message, Some("leave it out for the VM to be kept as declared"));
            }
        }
    }
}

/// Whether the kernel can call an interface so (`dev_valid_name` of net/core/dev.c).
fn is_interface_name(name: &str) -> bool {
    // Its isspace() goes by bytes, and takes that of Latin-1's no-break space for one (lib/ctype.c).
    let is_bad = |byte: u8| matches!(byte, b'/' | b':' | b' ' | b'\t'..=b'\r' | 0xa0 | 0);
    (1..=INTERFACE_NAME_MAX).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(is_bad)
}

/// [`spec::Disk::has_own_file`] of a disk that is not known to be sound yet.
fn has_own_file(disk: &manifest::Disk) -> bool {
    disk.mode == DiskMode::Copy || (disk.mode == DiskMode::Snapshot && !disk.read_only)
}
