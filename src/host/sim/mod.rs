//! A host in memory, on which anything may fail, and stead may die, at any effect.
//!
//! A [`Machine`] is the hardware and its kernel: what is on its disk and what runs on it. A [`SimHost`] is one life of stead
//! on it: every effect of that life is numbered, so that a test can say what happens at which. What the machine sees stead
//! do that it must never do, it writes down ([`Machine::violations`]).
//!
//! Time is tokio's, which a test may pause: waiting then takes no time at all.

mod files;
mod ops;
mod random;
mod rules;
mod view;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use random::Random;
pub use world::Violation;

use crate::desired::FileId;
use crate::state::ExitStatus;
use files::Content;
use world::World;

/// A simulated machine. Clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    world: Arc<Mutex<World>>,
    lives: Arc<AtomicU64>,
}

impl Machine {
    /// A machine on which stead's state and run folders are, with random choices by this seed.
    pub fn new(state_dir: &Path, run_dir: &Path, seed: u64) -> Self {
        let world = World::new(state_dir.to_owned(), run_dir.to_owned(), seed);
        Self { world: Arc::new(Mutex::new(world)), lives: Arc::default() }
    }

    /// A new life of stead. The one before it must have ended.
    pub fn life(&self, faults: Faults) -> Arc<SimHost> {
        self.begin(faults, true)
    }

    /// The same, on one thread: each turn of a VM ends before anything else happens. No call of it may hang.
    pub fn life_on_one_thread(&self, faults: Faults) -> Arc<SimHost> {
        debug_assert!(!faults.effects.values().any(|fault| *fault == Fault::Hang), "who would end what hangs?");
        self.begin(faults, false)
    }

    fn begin(&self, faults: Faults, has_threads: bool) -> Arc<SimHost> {
        let number = self.lives.fetch_add(1, Ordering::SeqCst);
        let life = Life { faults, ..Life::default() };
        let (machine, death, moved) = (self.clone(), tokio::sync::Notify::new(), Condvar::new());
        Arc::new(SimHost { machine, number, has_threads, life: Mutex::new(life), death, moved })
    }

    /// Has the machine's clock run with tokio's, within a runtime.
    pub fn start_clock(&self) {
        let mut world = self.world();
        world.running_since = Some(tokio::time::Instant::now());
        world.loop_thread = Some(std::thread::current().id());
    }

    /// Has the machine's clock stand still: the runtime is about to end.
    pub fn stop_clock(&self) {
        let mut world = self.world();
        world.clock = world.now();
        world.running_since = None;
    }

    /// Fills the filesystem that STATE is on, or makes room on it: while it is full, nothing that takes space succeeds.
    pub fn fill_disk(&self, is_full: bool) {
        self.world().is_disk_full = is_full;
    }

    /// Lets time pass while no stead runs.
    pub fn wait(&self, time: Duration) {
        let mut world = self.world();
        world.clock += u64::try_from(time.as_millis()).unwrap_or(0);
        world.settle();
    }

    /// Sets the wall clock, by seconds ahead of the boot clock.
    pub fn set_wall_clock(&self, ahead: i64) {
        self.world().wall_ahead = ahead;
    }

    /// A real file as an image of the machine's, with this content: it keeps its device and inode.
    pub fn add_image(&self, path: &Path, content: &[u8], bytes: u64) -> io::Result<()> {
        let metadata = path.metadata()?;
        let id = FileId { device: metadata.dev(), inode: metadata.ino() };
        let mut world = self.world();
        let modified = world.now();
        world.files.settle(path, id, Content { bytes: content.into(), length: bytes, modified });
        Ok(())
    }

    /// Makes a bridge.
    pub fn add_bridge(&self, name: &str) {
        self.world().bridges.insert(name.to_owned());
    }

    /// Starts a process that is none of stead's; its pid.
    pub fn start_stranger(&self, argv: &[&str]) -> i32 {
        self.world().fork(argv.iter().map(|&word| word.to_owned()).collect(), None).pid
    }

    /// Has somebody other than stead bind a file to a loop device.
    pub fn bind_loop(&self, path: &Path) {
        let mut world = self.world();
        let Some(backing) = world.files.file(path) else { return };
        let number = (0..=u32::MAX).find(|number| !world.loops.contains_key(number)).unwrap_or(0);
        let tag = path.display().to_string();
        let found = world::Loop { tag, backing, path: path.to_owned(), read_only: false, autoclear: false };
        world.loops.insert(number, found);
    }

    /// Kills a process, whoever it is, as somebody other than stead would.
    pub fn kill(&self, pid: i32) {
        self.change(|world| world.end(pid, ExitStatus::Signal(9)));
    }

    /// The pids of all VMMs.
    pub fn vmms(&self) -> Vec<i32> {
        let world = self.world();
        world.processes.iter().filter(|(_, process)| process.vmm.is_some()).map(|(pid, _)| *pid).collect()
    }

    /// The pids of those whose end somebody watches.
    pub fn watched(&self) -> Vec<i32> {
        self.world().watched()
    }

    /// The id argument of a VMM.
    pub fn process_id(&self, pid: i32) -> Option<String> {
        self.world()
            .processes
            .get(&pid)
            .filter(|process| process.vmm.is_some())
            .and_then(rules::id_of)
            .map(str::to_owned)
    }

    /// The id argument of every VMM, which names its VM and which life of it this is.
    pub fn lives_of_vms(&self) -> BTreeSet<String> {
        let world = self.world();
        let vmms = world.processes.values().filter(|process| process.vmm.is_some());
        vmms.filter_map(|process| rules::id_of(process).map(str::to_owned)).collect()
    }

    /// The block devices that there are, by what the kernel calls them.
    pub fn devices(&self) -> Vec<String> {
        let world = self.world();
        let loops = world.loops.keys().map(|number| format!("loop{number}"));
        loops.chain(world.dm.values().map(|dm| format!("dm-{}", dm.minor))).collect()
    }

    /// Has a VMM hang: it answers nobody and hears nothing.
    pub fn hang(&self, pid: i32, hung: bool) {
        let mut world = self.world();
        if let Some(vmm) = world.processes.get_mut(&pid).and_then(|process| process.vmm.as_mut()) {
            vmm.hung = hung;
        }
    }

    /// Has every VMM take so long to be gone after it was killed, as one does whose guest's memory is large.
    pub fn die_slowly(&self, time: Duration) {
        self.world().dies_after = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    }

    /// Has somebody other than stead open a block device, or close it.
    pub fn open_device(&self, device: &str, is_open: bool) {
        let mut world = self.world();
        if is_open {
            world.strangers_open.insert(device.to_owned());
        } else {
            world.strangers_open.remove(device);
            world.let_go_of_loops();
        }
    }

    /// Has somebody other than stead make a device-mapper device and leave it half made: without a table.
    pub fn make_half_dm(&self, name: &str, uuid: &str) {
        let mut world = self.world();
        let minor = world.new_minor();
        world.dm.insert(name.to_owned(), world::Dm { uuid: uuid.to_owned(), minor, table: Vec::new() });
    }

    /// Has somebody other than stead take every tap off its bridge.
    pub fn unplug_taps(&self) {
        for tap in self.world().taps.values_mut() {
            tap.bridge = None;
        }
    }

    /// Has somebody other than stead remove every tap.
    pub fn lose_taps(&self) {
        self.world().taps.clear();
    }

    /// Says that a program is not installed.
    pub fn uninstall(&self, program: &Path) {
        self.world().missing_programs.insert(program.to_owned());
    }

    /// Has a process that is none of stead's listen on a socket, in the place of whatever was there; its pid.
    pub fn listen_as_stranger(&self, socket: &Path) -> i32 {
        let identity = self.world().fork(vec!["stranger".to_owned()], None);
        self.change(|world| {
            world.files.rename(vec![(socket.to_owned(), None)]);
            let bound = world.files.bind(socket, identity.start_time);
            debug_assert!(bound.is_ok(), "the folder of a socket is there");
        });
        identity.pid
    }

    /// Writes over a file of stead's, as a bad disk or a careless user would; durable at once.
    pub fn overwrite(&self, path: &Path, bytes: &[u8]) {
        let mut world = self.world();
        let content = world.content(bytes);
        if let Some(id) = world.files.file(path) {
            world.files.write(id, content);
            world.files.sync_file(id);
        }
    }

    /// Removes a file of stead's, or everything in a folder of it.
    pub fn lose(&self, path: &Path) {
        let mut world = self.world();
        let mut gone: Vec<PathBuf> = world.files.below(path).map(|(path, _)| path.to_owned()).collect();
        gone.push(path.to_owned());
        for path in gone {
            world.files.rename(vec![(path.clone(), None)]);
            world.files.sync_folder(path.parent().unwrap_or(Path::new("/")));
        }
    }

    /// What is in a file.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        Some(self.world().files.read(path)?.to_vec())
    }

    /// The files and folders below a folder, sorted.
    pub fn paths(&self, folder: &Path) -> Vec<PathBuf> {
        self.world().files.below(folder).map(|(path, _)| path.to_owned()).collect()
    }

    /// Cuts the power, or boots in good order, which syncs everything first.
    pub fn reboot(&self, clean: bool) {
        self.world().reboot(clean);
    }

    /// Everything there is beside files: a line each, sorted.
    pub fn objects(&self) -> BTreeSet<String> {
        self.world().objects()
    }

    /// What stead did that it must never do, each with the number of its rule.
    pub fn violations(&self) -> Vec<Violation> {
        self.world().violations.clone()
    }

    /// How often anything on the machine changed.
    pub fn changes(&self) -> u64 {
        self.world().changes
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // A panic of a test while it was locked says enough by itself.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the world, and tells who waited for it.
    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world();
        world.settle();
        let result = change(&mut world);
        let due = world.take_due();
        drop(world);
        for tell in due {
            tell();
        }
        result
    }
}

/// When, at an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Before it.
    Before,
    /// In the middle of it, where it has one.
    Half,
    /// Right after it, before anybody is told.
    After,
}

/// What happens at an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It fails with this error and does nothing.
    Fail(i32),
    /// It is done, and fails with this error all the same.
    FailDone(i32),
    /// It takes so long, half of it before it is done. The machine's clock goes on meanwhile; tokio's timers come late, as
    /// those of a loop that has other things to do.
    Slow(Duration),
    /// It hangs: the call does not return, and does nothing, until this life ends or somebody has it go on
    /// ([`SimHost::let_go`]). What the loop does on its own thread never hangs: it is the next effect that does.
    Hang,
    /// stead is killed.
    Die(Moment),
    /// stead is killed, and the test is to cut the power ([`SimHost::is_cut`]).
    Cut(Moment),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fail(errno) => write!(f, "{} instead of it", io::Error::from_raw_os_error(*errno)),
            Self::FailDone(errno) => write!(f, "{} after it", io::Error::from_raw_os_error(*errno)),
            Self::Slow(time) => write!(f, "it takes {time:?}"),
            Self::Hang => f.write_str("it hangs"),
            Self::Die(moment) => write!(f, "killed {moment:?} it"),
            Self::Cut(moment) => write!(f, "power cut {moment:?} it"),
        }
    }
}

/// What happens in one life of stead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// At effects, by their numbers, which begin with 1.
    pub effects: BTreeMap<usize, Fault>,
    /// Looks that fail with this error, by their numbers, which begin with 1.
    pub looks: BTreeMap<usize, i32>,
    /// Looks that take so long.
    pub slow_looks: BTreeMap<usize, Duration>,
}

impl Faults {
    /// One fault, at this effect.
    pub fn at(effect: usize, fault: Fault) -> Self {
        Self { effects: BTreeMap::from([(effect, fault)]), ..Self::default() }
    }
}

/// An effect that stead had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// The call.
    pub call: &'static str,
    /// On what.
    pub on: String,
    /// The errors that it can give.
    pub errors: &'static [i32],
    /// The errors that it can give although it is done.
    pub errors_done: &'static [i32],
    /// Whether there is something in its middle.
    pub has_half: bool,
}

#[derive(Default)]
struct Life {
    faults: Faults,
    effects: Vec<Effect>,
    looks: usize,
    is_dead: bool,
    is_cut: bool,
    /// The effect that hangs, once one does.
    hung: Option<Effect>,
    is_let_go: bool,
}

/// One life of stead on a machine: what it sees and does.
pub struct SimHost {
    machine: Machine,
    number: u64,
    has_threads: bool,
    life: Mutex<Life>,
    death: tokio::sync::Notify,
    /// Told when a call that hangs may go on.
    moved: Condvar,
}

impl SimHost {
    /// The effects so far, in order; the first one has number 1.
    pub fn effects(&self) -> Vec<Effect> {
        self.life().effects.clone()
    }

    /// How many looks there were that can fail.
    pub fn looks(&self) -> usize {
        self.life().looks
    }

    /// Whether it was killed.
    pub fn is_dead(&self) -> bool {
        self.life().is_dead
    }

    /// Whether the power is to be cut now.
    pub fn is_cut(&self) -> bool {
        self.life().is_cut
    }

    /// The effect that hangs, or hung, in this life.
    pub fn hung(&self) -> Option<Effect> {
        self.life().hung.clone()
    }

    /// Has the call that hangs go on: the kernel came back after all.
    pub fn let_go(&self) {
        self.life().is_let_go = true;
        self.moved.notify_all();
    }

    /// Kills it, from outside.
    pub fn die(&self) {
        self.life().is_dead = true;
        self.moved.notify_all();
        self.machine.world().drop_watchers();
        self.death.notify_one();
    }

    /// Comes when it is killed.
    pub async fn dead(&self) {
        while !self.is_dead() {
            self.death.notified().await;
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the world as it is now.
    fn look<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        self.machine.change(look)
    }

    /// A look that can fail.
    fn see<T>(&self, look: impl FnOnce(&mut World) -> T) -> io::Result<T> {
        let mut life = self.life();
        life.looks += 1;
        let fault = life.faults.looks.get(&life.looks).copied();
        let slow = life.faults.slow_looks.get(&life.looks).copied();
        drop(life);
        self.take_time(slow.unwrap_or_default());
        match fault {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(self.look(look)),
        }
    }

    /// One effect, which has the next number.
    fn effect<T>(
        &self,
        effect: Effect,
        half: impl FnOnce(&mut World),
        whole: impl FnOnce(&mut World) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut life = self.life();
        if life.is_dead {
            return Err(dead());
        }
        life.effects.push(effect);
        let fault = life.faults.effects.get(&life.effects.len()).copied();
        let (moment, is_cut) = match fault {
            None => {
                drop(life);
                return self.done(whole);
            }
            Some(Fault::Fail(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::FailDone(errno)) => {
                drop(life);
                self.done(whole)?;
                return Err(io::Error::from_raw_os_error(errno));
            }
            Some(Fault::Slow(time)) => {
                drop(life);
                self.take_time(time / 2);
                let result = self.done(whole);
                self.take_time(time / 2);
                return result;
            }
            Some(Fault::Hang) if self.is_loop() => {
                let next = life.effects.len() + 1;
                life.faults.effects.insert(next, Fault::Hang);
                drop(life);
                return self.done(whole);
            }
            Some(Fault::Hang) => {
                life.hung = life.effects.last().cloned();
                while !life.is_dead && !life.is_let_go {
                    life = self.moved.wait(life).unwrap_or_else(PoisonError::into_inner);
                }
                let is_dead = life.is_dead;
                drop(life);
                return if is_dead { Err(dead()) } else { self.done(whole) };
            }
            Some(Fault::Die(moment)) => (moment, false),
            Some(Fault::Cut(moment)) => (moment, true),
        };
        life.is_cut = is_cut;
        // Nobody of this life hears of what it did last.
        self.machine.world().drop_watchers();
        drop(life);
        match moment {
            Moment::Before => {}
            Moment::Half => self.look(half),
            // It may fail by itself.
            Moment::After => drop(self.look(whole)),
        }
        self.die();
        Err(dead())
    }

    /// Lets time pass within a call.
    fn take_time(&self, time: Duration) {
        if !time.is_zero() {
            self.look(|world| world.clock += u64::try_from(time.as_millis()).unwrap_or(0));
        }
    }

    /// Whether this is the thread on which stead's loop runs.
    fn is_loop(&self) -> bool {
        self.machine.world().loop_thread == Some(std::thread::current().id())
    }

    fn done<T>(&self, whole: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        self.look(|world| {
            let result = whole(world);
            world.changes += u64::from(result.is_ok());
            result
        })
    }
}

fn dead() -> io::Error {
    io::Error::other("stead is dead")
}
