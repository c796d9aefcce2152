//! A daemon and passes of cron that contend for one state, with the real lock on a real disk, while both are killed and
//! VMMs die. One at a time acts; whoever comes next finds what the one before left, and in the end the host is as declared.
//!
//! `STEAD_RACES=n` has so many passes begin while a daemon may act. The daemon hears of changes of its folder from the real
//! kernel, so that a seed repeats a race nearly, not to the last step.

use std::cell::Cell;
use std::time::Duration;

use stead::config::{LockError, StateLock};
use stead::host::sim::{Fault, Faults, Moment, Random};
use stead::plan::AllowPrune;
use stead::reconcile::{OnceOptions, once, run};

use crate::bed::{Bed, runtime, vm};
use crate::parallel::for_each;

/// Passes that race when nothing says how many.
const RACES: u64 = 1000;
const PASSES_PER_ROUND: u64 = 2;
const ROUNDS: u64 = 5;
const VMS: &[&str] = &["a", "b"];

/// What became of the passes that raced with a daemon, and of the daemons.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    passes: u64,
    refused: u64,
    daemons_killed: u64,
    passes_killed: u64,
}

struct Race {
    bed: Bed,
    tally: Cell<Tally>,
    /// Who acts now.
    actor: Cell<Option<&'static str>>,
}

impl Race {
    fn count(&self, change: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.get();
        change(&mut tally);
        self.tally.set(tally);
    }

    /// The lock, waited for as a command does; in the time of the simulated host.
    async fn lock(&self, who: &'static str) -> Option<StateLock> {
        let layout = self.bed.lock();
        for _ in 0..20 {
            match StateLock::take_within(&layout, who, Duration::ZERO) {
                Ok(lock) => {
                    assert_eq!(self.actor.replace(Some(who)), None, "13: two steads hold one lock");
                    return Some(lock);
                }
                Err(LockError::Held { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => panic!("{error}"),
            }
        }
        None
    }

    fn unlock(&self, lock: StateLock) {
        self.actor.set(None);
        drop(lock);
    }

    /// `stead run`, which is asked to stop, or killed, after some time or at some effect.
    async fn daemon(&self, random: &mut Random) {
        pause(random, 1500).await;
        let Some(lock) = self.lock("run").await else { return };
        let host = self.bed.machine.life(some_death(random));
        let stead = self.bed.stead(&host);
        let lives = Duration::from_millis(random.below(8000));
        let is_killed = random.is(1, 2);
        let shutdown = tokio::time::sleep(lives);
        tokio::select! {
            biased;
            () = host.dead() => {}
            () = tokio::time::sleep(lives), if is_killed => host.die(),
            ended = run(stead, shutdown) => ended.unwrap_or_else(|error| assert!(host.is_dead(), "{error}")),
        }
        self.count(|tally| tally.daemons_killed += u64::from(host.is_dead()));
        self.unlock(lock);
    }

    /// `stead reconcile --once`, now and then, which may be killed too.
    async fn cron(&self, random: &mut Random) {
        for _ in 0..PASSES_PER_ROUND {
            pause(random, 3000).await;
            self.count(|tally| tally.passes += 1);
            let Some(lock) = self.lock("reconcile").await else {
                self.count(|tally| tally.refused += 1);
                continue;
            };
            let host = self.bed.machine.life(some_death(random));
            let stead = self.bed.stead(&host);
            let options =
                OnceOptions { timeout: Duration::from_secs(60), allow_prune: AllowPrune(0), only: None, sync: false };
            let mut nobody_looks_on = |_| {};
            tokio::select! {
                biased;
                () = host.dead() => {}
                _ = once(&stead, &options, &mut nobody_looks_on) => {}
            }
            self.count(|tally| tally.passes_killed += u64::from(host.is_dead()));
            self.unlock(lock);
        }
    }

    /// A user who edits, and a VMM that dies.
    async fn others(&self, random: &mut Random) {
        pause(random, 4000).await;
        if random.is(1, 2) {
            self.declare(random);
            // The kernel tells of it in real time.
            std::thread::sleep(Duration::from_millis(1));
        }
        pause(random, 4000).await;
        if let Some(pid) = random.choose(&self.bed.machine.vmms()) {
            self.bed.machine.kill(*pid);
        }
    }

    fn declare(&self, random: &mut Random) {
        let base = self.bed.file("base.img").display().to_string();
        let specs = [
            format!(
                "  disks: [{{name: root, image: {base}, mode: snapshot}}]\n  networkInterfaces: [{{name: eth0}}]\n"
            ),
            "  networkInterfaces: [{name: eth0, bridge: br0}]\n".to_owned(),
            "  vmm: qemu\n".to_owned(),
        ];
        for name in VMS {
            let file = format!("{name}.yaml");
            match random.choose(&specs) {
                _ if random.is(1, 4) && self.bed.declared().contains(&file) => self.bed.remove(&file),
                Some(spec) => self.bed.apply(&file, &vm(&self.bed, name, spec)),
                None => {}
            }
        }
    }

    fn round(&self, random: &mut Random) {
        let [mut daemon, mut cron, mut others] = std::array::from_fn(|_| Random::new(random.number()));
        runtime(1).block_on(async {
            self.bed.machine.start_clock();
            tokio::join!(self.daemon(&mut daemon), self.cron(&mut cron), self.others(&mut others));
            self.bed.machine.stop_clock();
        });
    }
}

async fn pause(random: &mut Random, milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(random.below(milliseconds))).await;
}

/// A third of them dies of itself.
fn some_death(random: &mut Random) -> Faults {
    let at = usize::try_from(1 + random.below(40)).unwrap();
    let moment = *random.choose(&[Moment::Before, Moment::Half, Moment::After]).unwrap();
    if random.is(1, 3) { Faults::at(at, Fault::Die(moment)) } else { Faults::default() }
}

fn race(seed: u64) -> Tally {
    let mut random = Random::new(seed);
    let race = Race { bed: Bed::new(seed), tally: Cell::default(), actor: Cell::default() };
    // A folder that declares nothing at all is held: it may not be mounted.
    race.bed.apply("stays.yaml", &vm(&race.bed, "stays", "  powerState: Stopped\n"));
    race.declare(&mut random);
    for _ in 0..ROUNDS {
        race.round(&mut random);
    }
    let when = format!("seed {seed}");
    race.bed.converge(&when);
    race.bed.no_rule_is_broken(&when);
    let declared = race.bed.declared();
    let running = race.bed.machine.lives_of_vms().len();
    assert_eq!(running, declared.len() - 1, "{when}: {declared:?}\n{:#?}", race.bed.machine.objects());
    race.tally.get()
}

#[test]
fn a_daemon_and_passes_of_cron_act_one_at_a_time() {
    let races: u64 = std::env::var("STEAD_RACES").map_or(RACES, |text| text.parse().unwrap());
    let tallies = for_each(0..races.div_ceil(PASSES_PER_ROUND * ROUNDS), race);
    let sum = tallies.iter().fold(Tally::default(), |sum, one| Tally {
        passes: sum.passes + one.passes,
        refused: sum.refused + one.refused,
        daemons_killed: sum.daemons_killed + one.daemons_killed,
        passes_killed: sum.passes_killed + one.passes_killed,
    });
    println!("{sum:?}");
    assert!(sum.refused > 0 && sum.refused < sum.passes, "they did not race: {sum:?}");
}
