//! A simulated machine with a folder of manifests, and the lives of stead on it.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stead::config::{QemuAccel, Settings, Source};
use stead::control::{Reply, Request};
use stead::host::HostOps;
use stead::host::sim::{Effect, Faults, Machine, SimHost};
use stead::names::{Layout, StateId};
use stead::plan::{AllowPrune, Policy};
use stead::reconcile::{OnceOptions, Outcome, Stead, once, request};

const STATE: &str = "/var/lib/stead";

/// A host, and what its user has declared.
pub struct Bed {
    pub machine: Machine,
    pub settings: Settings,
    pub layout: Layout,
    folder: PathBuf,
}

thread_local! {
    /// One folder for all beds of a thread, one after the other. The manifests in it are links to files that stay, so that
    /// they are as old as a one-shot pass wants them to be: it waits for the end of whoever writes a young one.
    static FOLDER: tempfile::TempDir = {
        // In memory where that can be had: nothing here needs to outlive anything.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        fs::create_dir_all(folder.path().join("manifests/.all")).unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        folder
    };
}

/// A runtime for what a daemon needs too, in which time passes when nobody has anything to do, and so many calls may block
/// at once.
pub fn runtime(blocking_threads: usize) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).max_blocking_threads(blocking_threads).build().unwrap()
}

/// How one pass of stead ended.
pub struct Pass {
    /// None when stead died in it, or could not make it at all.
    pub outcome: Option<Outcome>,
    pub effects: Vec<Effect>,
    /// How many looks there were that can fail.
    pub looks: usize,
    /// The pids of those whose end it watched when it ended.
    pub watched: Vec<i32>,
}

impl Bed {
    pub fn new(seed: u64) -> Self {
        let folder = FOLDER.with(|folder| folder.path().to_owned());
        let state_id = StateId::derive("simulated", Path::new(STATE));
        let run = folder.join("run");
        let layout = Layout::new(state_id, STATE.into(), &run).unwrap();
        // The control socket of `stead run` is a real one.
        fs::create_dir_all(&layout.run_dir).unwrap();
        let machine = Machine::new(&layout.state_dir, &layout.run_dir, seed);
        let settings = Settings {
            host: Arc::default(),
            sources: vec![Source::manifests(folder.join("manifests"))],
            push: None,
            metrics: None,
            state_dir: STATE.into(),
            run_dir: run,
            firecracker: "firecracker".into(),
            qemu: "qemu-system-x86_64".into(),
            qemu_accel: QemuAccel::Auto,
            // One at a time: the order of effects is the same each time.
            parallel: 1,
            starting: 2,
            api_timeout: Duration::from_secs(2),
            resync: Duration::from_secs(600),
            log_limit: 1 << 20,
            policy: Policy { prune_free: 100, ..Policy::default() },
        };
        let bed = Self { machine, settings, layout, folder };
        for name in bed.declared() {
            bed.remove(&name);
        }
        for file in ["kernel", "base.img", "other.img", "data.img"] {
            bed.add_image(file);
        }
        bed.machine.add_bridge("br0");
        bed
    }

    /// An image beside the manifests.
    pub fn add_image(&self, name: &str) {
        let file = self.file(name);
        if !file.exists() {
            fs::write(&file, name).unwrap();
        }
        self.machine.add_image(&file, name.as_bytes(), 8 << 20).unwrap();
    }

    /// The folder of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.file("manifests")
    }

    /// A file beside the manifests.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn apply(&self, name: &str, text: &str) {
        let mut hasher = std::hash::DefaultHasher::new();
        text.hash(&mut hasher);
        let content = PathBuf::from(format!(".all/{:016x}.yaml", hasher.finish()));
        let file = self.manifests().join(&content);
        if !file.exists() {
            fs::write(file, text).unwrap();
        }
        // All or nothing, as good tools write.
        let hidden = self.manifests().join(".new");
        std::os::unix::fs::symlink(content, &hidden).unwrap();
        fs::rename(hidden, self.manifests().join(name)).unwrap();
    }

    /// The manifests that are there, by name.
    pub fn declared(&self) -> Vec<String> {
        let entries = fs::read_dir(self.manifests()).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.manifests().join(name)).unwrap();
    }

    pub fn stead(&self, host: &Arc<SimHost>) -> Stead {
        let host: Arc<dyn HostOps> = Arc::clone(host) as Arc<dyn HostOps>;
        Stead { settings: self.settings.clone(), layout: self.layout.clone(), host }
    }

    /// STATE/lock on a real disk, for steads that contend for it.
    pub fn lock(&self) -> Layout {
        Layout::new(self.layout.state_id, self.folder.join("state"), &self.settings.run_dir).unwrap()
    }

    /// One life of stead: a one-shot pass, in which these faults happen.
    pub fn pass(&self, faults: &Faults) -> Pass {
        let host = self.machine.life_on_one_thread(faults.clone());
        let stead = self.stead(&host);
        let options =
            OnceOptions { timeout: Duration::from_secs(300), allow_prune: AllowPrune(0), only: None, sync: false };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let outcome = runtime.block_on(async {
            self.machine.start_clock();
            let mut nobody_looks_on = |_| {};
            let outcome = tokio::select! {
                biased;
                () = host.dead() => None,
                outcome = once(&stead, &options, &mut nobody_looks_on) => outcome.ok(),
            };
            self.machine.stop_clock();
            outcome
        });
        let watched = self.machine.watched();
        // What had begun comes to its end, and does nothing any more.
        drop(runtime);
        if host.is_cut() {
            self.machine.reboot(false);
        }
        // It may have been killed by the very last thing it did.
        let outcome = outcome.filter(|_| !host.is_dead());
        // The process ends, and what it watched is watched no more.
        host.die();
        Pass { outcome, effects: host.effects(), looks: host.looks(), watched }
    }

    /// A command that acts, with nobody disturbing it.
    pub fn ask(&self, asked: &Request) -> Reply {
        request(&self.stead(&self.machine.life(Faults::default())), asked).unwrap()
    }

    /// Passes until there is nothing to do, and nothing to wait for either; what the last one came to.
    #[track_caller]
    pub fn converge(&self, when: &str) -> Outcome {
        let mut last = String::new();
        let mut is_quiet = false;
        for _ in 0..40 {
            let pass = self.pass(&Faults::default());
            let outcome = pass.outcome.expect("nobody kills it");
            let was_quiet = is_quiet;
            is_quiet = outcome.changes == 0 && outcome.plan.is_empty() && outcome.failures.is_empty();
            if is_quiet && was_quiet {
                return outcome;
            }
            last = format!("{:?}\n{:?}", outcome.plan, outcome.failures);
            // Longer than any back-off, and than an orphan has to be seen for.
            self.machine.wait(Duration::from_secs(400));
        }
        panic!("{when}: it does not come to rest: {last}\n{:#?}", self.machine.objects());
    }

    /// Everything that a user would call the state of the host: what runs, what is held, which files there are. Without the
    /// numbers of lives, which differ with how often something failed on the way.
    pub fn end_state(&self) -> BTreeSet<String> {
        // The cgroups above those of VMs come with the first VM and stay.
        let is_of_vm = |object: &&String| !object.starts_with("cgroup ") || object.matches('/').count() == 2;
        let objects = self.machine.objects();
        let objects = objects.iter().filter(is_of_vm);
        let mut all: BTreeSet<String> = objects
            .map(|object| without_life_numbers(object).replace(&self.folder.display().to_string(), ""))
            .collect();
        for path in self.machine.paths(&self.layout.state_dir) {
            let name = path.display().to_string();
            let is_told_apart = name.contains(".corrupt") || name.contains("/trash/");
            // Nor what is only told: a line that was lost is not written again.
            let is_told = ["status.json", "orphans.json", "audit.jsonl"].iter().any(|end| name.ends_with(end));
            if !is_told_apart && !is_told {
                all.insert(name);
            }
        }
        all
    }

    #[track_caller]
    pub fn no_rule_is_broken(&self, when: &str) {
        assert_eq!(self.machine.violations(), Vec::<String>::new(), "{when}");
    }
}

/// `UUID-7`, `HEX-7.sock` and `/dev/dm-7` without the 7.
fn without_life_numbers(text: &str) -> String {
    let mut parts = text.split("/dev/dm-");
    let first = parts.next().unwrap_or_default().to_owned();
    let text = parts
        .fold(first, |text, part| format!("{text}/dev/dm-N{}", part.trim_start_matches(|c: char| c.is_ascii_digit())));
    let without = |word: &str| match word.rsplit_once('-') {
        Some((stem, number)) if number.starts_with(|c: char| c.is_ascii_digit()) => {
            let rest = number.trim_start_matches(|c: char| c.is_ascii_digit());
            let is_id = rest.is_empty() || rest.starts_with('.') && rest.contains("sock");
            if is_id { format!("{stem}-N{rest}") } else { word.to_owned() }
        }
        _ => word.to_owned(),
    };
    text.split(' ').map(without).collect::<Vec<_>>().join(" ")
}

/// A VM's manifest.
pub fn vm(bed: &Bed, name: &str, spec: &str) -> String {
    let kernel = bed.file("kernel");
    format!(
        "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\nspec:\n  memory: 128Mi\n  boot: {{kernel: {}}}\n{spec}",
        kernel.display()
    )
}
