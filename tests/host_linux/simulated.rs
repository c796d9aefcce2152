//! The simulated host against the real one: the same random calls get the same answers.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::CloneFlags;
use stead::host::HostOps;
use stead::host::devices::LoopRequest;
use stead::host::sim::{Faults, Machine, Random};

use crate::bed::{host, in_namespaces};

/// Runs when `STEAD_RUNS` does not say, and calls of a run.
const RUNS: u64 = 20;
const CALLS: usize = 60;

/// One call, with everything that it takes.
#[derive(Debug, Clone)]
enum Call {
    MakeFolder(PathBuf),
    Write { path: PathBuf, bytes: usize, durable: bool },
    Read(PathBuf),
    List(PathBuf),
    Exists(PathBuf),
    Remove(PathBuf),
    RemoveFolder(PathBuf),
    Rename(PathBuf, PathBuf),
    Sparse(PathBuf, u64),
    Overwrite(PathBuf, u64),
    CreateTap { name: String, alias: String, bridge: Option<&'static str> },
    SetBridge { name: String, bridge: Option<&'static str> },
    Tag { name: String, alias: String },
    DeleteTap { name: String, alias: String },
    Tap(String),
    Attach { file: PathBuf, tag: String, read_only: bool },
    Detach { of: String, tag: String },
}

fn call(random: &mut Random, root: &Path) -> Call {
    let mut below = |bound: u64| random.below(bound);
    let folder = match below(3) {
        0 => root.join("s"),
        1 => root.join("s/d0"),
        _ => root.join("s/d1/e"),
    };
    let file = folder.join(format!("f{}", below(3)));
    let other = root.join("s/d0").join(format!("f{}", below(3)));
    let tap = format!("sttest{}", below(2));
    let alias = format!("stead:test:{}", below(2));
    let bridge = [None, Some("br0"), Some("br9")][usize::try_from(below(3)).unwrap()];
    let tag = format!("steadtest:{}:{}", std::process::id(), below(2));
    match below(20) {
        0 => Call::MakeFolder(folder),
        1 => Call::MakeFolder(file),
        2 | 3 => Call::Write { path: file, bytes: usize::try_from(below(40)).unwrap(), durable: below(2) == 0 },
        4 => Call::Read(file),
        5 => Call::List(if below(4) == 0 { file } else { folder }),
        6 => Call::Exists(file),
        7 => Call::Remove(if below(4) == 0 { folder } else { file }),
        8 => Call::RemoveFolder(if below(4) == 0 { file } else { folder }),
        9 => {
            let from = if below(4) == 0 { folder } else { file };
            // Nobody moves a folder into itself.
            if other.starts_with(&from) { Call::Exists(from) } else { Call::Rename(from, other) }
        }
        10 => Call::Sparse(file, 1 << 20),
        11 => Call::Overwrite(file, below(64)),
        12 => Call::CreateTap { name: tap, alias, bridge },
        13 => Call::SetBridge { name: tap, bridge },
        14 => Call::Tag { name: tap, alias },
        15 => Call::DeleteTap { name: tap, alias },
        16 => Call::Tap(tap),
        17 | 18 => Call::Attach { file, tag, read_only: below(2) == 0 },
        _ => Call::Detach { of: tag.clone(), tag },
    }
}

/// One of the two hosts, and which loop device carries which tag there.
struct Side<'a> {
    host: &'a dyn HostOps,
    loops: BTreeMap<String, String>,
    /// Each device that was made, by its tag: a tag may have been given twice.
    made: Vec<(String, String)>,
}

impl Side<'_> {
    fn answer(&mut self, call: &Call) -> String {
        let host = self.host;
        match call {
            Call::MakeFolder(path) => told(host.make_folder(path)),
            Call::Write { path, bytes, durable: true } => told(host.write_durable(path, &vec![7; *bytes])),
            Call::Write { path, bytes, durable: false } => told(host.write_file(path, &vec![7; *bytes])),
            Call::Read(path) => match host.read_state_file(path) {
                // A file that takes no space reads as zeros.
                Ok(bytes) => format!("{:?}", bytes.map(|bytes| without_zeros(&bytes))),
                Err(_) => "an error".to_owned(),
            },
            Call::List(path) => told(host.list_folder(path)),
            Call::Exists(path) => told(host.exists(path)),
            Call::Remove(path) => told(host.remove_file(path, true)),
            Call::RemoveFolder(path) => told(host.remove_folder(path)),
            Call::Rename(from, to) => told(host.rename_durable(from, to)),
            Call::Sparse(path, bytes) => told(host.make_sparse_file(path, *bytes)),
            Call::Overwrite(path, offset) => told(host.overwrite(path, *offset, b"over")),
            Call::CreateTap { name, alias, bridge } => told(host.create_tap(name, alias, *bridge)),
            Call::SetBridge { name, bridge } => told(host.set_tap_bridge(name, *bridge)),
            Call::Tag { name, alias } => told(host.tag_tap(name, alias)),
            Call::DeleteTap { name, alias } => told(host.delete_tap(name, alias)),
            Call::Tap(name) => told(host.tap(name)),
            Call::Attach { file, tag, read_only } => self.attach(file, tag, *read_only),
            Call::Detach { of, tag } => match self.loops.get(of) {
                Some(device) => told(host.detach_loop(device, tag)),
                None => "none".to_owned(),
            },
        }
    }

    fn attach(&mut self, file: &Path, tag: &str, read_only: bool) -> String {
        let Ok(Some(backing)) = self.host.file_id(file) else { return "no file".to_owned() };
        // A loop over a folder is no call that stead makes.
        if !matches!(self.host.image(file), Ok(Some(_))) {
            return "no file".to_owned();
        }
        let request = LoopRequest { file: file.to_owned(), backing, tag: tag.to_owned(), read_only };
        match self.host.attach_loop(&request) {
            Ok(made) => {
                self.made.push((tag.to_owned(), made.device.clone()));
                self.loops.insert(tag.to_owned(), made.device);
                format!("{} {} {}", made.tag, made.read_only, made.backing_path.display())
            }
            Err(error) => format!("{:?}", error.kind()),
        }
    }
}

impl Drop for Side<'_> {
    /// Frees what the calls left on the host.
    fn drop(&mut self) {
        for (tag, device) in &self.made {
            let _ = self.host.detach_loop(device, tag);
        }
        for tap in self.host.taps().unwrap_or_default() {
            let _ = self.host.delete_tap(&tap.name, &tap.alias.unwrap_or_default());
        }
    }
}

/// The bytes up to the last one that is not zero.
fn without_zeros(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)].to_vec()
}

/// An answer as far as the two must agree: the kind of an error, not its words.
fn told<T: Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

#[test]
fn the_simulated_host_answers_as_the_real_one_does() {
    in_namespaces(CloneFlags::CLONE_NEWNET, || {
        assert!(Command::new("ip").args(["link", "add", "br0", "type", "bridge"]).status().unwrap().success());
        let runs = std::env::var("STEAD_RUNS").map_or(RUNS, |runs| runs.parse().unwrap());
        for seed in 0..runs {
            let root = tempfile::Builder::new().prefix("sts").tempdir_in("/tmp").unwrap();
            let (state, run) = (root.path().join("s"), root.path().join("r"));
            let machine = Machine::new(&state, &run, seed);
            machine.add_bridge("br0");
            let simulated = machine.life(Faults::default());
            let real = host();
            for folder in [&state, &run] {
                std::fs::create_dir(folder).unwrap();
            }
            let hosts: [&dyn HostOps; 2] = [&*real, &*simulated];
            let mut sides = hosts.map(|host| Side { host, loops: BTreeMap::new(), made: Vec::new() });
            let mut random = Random::new(seed);
            let mut story = Vec::new();
            let mut differs = None;
            for _ in 0..CALLS {
                let call = call(&mut random, root.path());
                let [theirs, ours] = [0, 1].map(|side: usize| sides[side].answer(&call));
                story.push(format!("{call:?}: {theirs}"));
                if theirs != ours {
                    differs = Some(format!("the real host says {theirs}, the simulated one {ours}"));
                    break;
                }
            }
            drop(sides);
            assert_eq!(differs, None, "seed {seed}\n{}", story.join("\n"));
        }
        println!("{runs} runs of {CALLS} calls");
    });
}
