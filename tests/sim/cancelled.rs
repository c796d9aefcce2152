//! Whoever waits gives up, at every point: a pass is dropped (Ctrl-C), a daemon is told to stop, a client goes away. No lock
//! stays taken for somebody who has gone, no other waits on for it, and the next life finds a state that is whole.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use stead::host::sim::{Faults, SimHost};
use stead::plan::AllowPrune;
use stead::reconcile::{OnceOptions, once, run};

use crate::bed::{Bed, runtime, vm};
use crate::crash_points::{Scenario, begin, scenarios, undisturbed};
use crate::hangs::{Life, live, not_as, of_vms, recovers};

/// A pass or a daemon has no more points than this; a test that comes here never ends by itself.
const MOST_POINTS: usize = 2000;
/// Of a daemon, which always has another point.
const DAEMON_POINTS: usize = 40;
/// How long a worker waits for an image when nobody tells it to stop; giving up is much shorter.
const IMAGE_BOUND: Duration = Duration::from_secs(30);

/// Two VMs of one image, a copy of it, and one that has none.
fn declare(bed: &Bed) {
    let base = bed.file("base.img").display().to_string();
    for (name, mode) in [("a", "snapshot"), ("b", "snapshot"), ("c", "copy")] {
        let spec = format!("  disks: [{{name: root, image: {base}, mode: {mode}}}]\n");
        bed.apply(&format!("{name}.yaml"), &vm(bed, name, &spec));
    }
    bed.apply("d.yaml", &vm(bed, "d", "  networkInterfaces: [{name: eth0}]\n"));
}

fn named(name: &str) -> Scenario {
    scenarios(declare).into_iter().find(|scenario| scenario.name == name).unwrap()
}

/// Polls it so many times and then drops it: right away, or when it is woken for what it waits for. `None` if it had not
/// ended by then.
async fn given_up<F: Future>(future: F, polls: usize, when_woken: bool) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        let polled = future.as_mut().poll(context).map(Some);
        if polled.is_pending() && left == 0 && !when_woken {
            return Poll::Ready(None);
        }
        polled
    })
    .await
}

/// Has time pass until it is so; the threads that work get more of the real time than in the tests of calls that hang.
async fn until(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    const STEP: Duration = Duration::from_millis(5);
    for _ in 0..time.as_millis() / STEP.as_millis() {
        if is_so() {
            return true;
        }
        tokio::time::advance(STEP).await;
        std::thread::sleep(Duration::from_millis(1));
    }
    is_so()
}

fn options() -> OnceOptions {
    OnceOptions { timeout: Duration::from_secs(300), allow_prune: AllowPrune(0), only: None, sync: false }
}

#[test]
fn a_pass_that_is_given_up_at_any_point_holds_nothing_and_the_next_one_goes_on() {
    for name in ["start", "replace", "teardown", "gc"] {
        let scenario = named(name);
        let (_, end) = undisturbed(&scenario);
        for when_woken in [false, true] {
            let mut points = 0;
            for polls in 1..=MOST_POINTS {
                let bed = begin(&scenario, polls as u64);
                let life = Life(bed.machine.life(Faults::default()));
                let mut stead = bed.stead(&life.0);
                stead.settings.parallel = 4;
                let runtime = runtime(8);
                let ended = runtime.block_on(async {
                    bed.machine.start_clock();
                    let mut nobody_looks_on = |_| {};
                    let options = options();
                    let ended = given_up(once(&stead, &options, &mut nobody_looks_on), polls, when_woken).await;
                    bed.machine.stop_clock();
                    ended.is_some()
                });
                // Its workers come to the end of their turns.
                let began = Instant::now();
                drop(runtime);
                assert!(began.elapsed() < IMAGE_BOUND / 3, "{name}, point {polls}: a worker waits for nobody");
                drop(life);
                let when = format!("{name}: given up at point {polls}, woken: {when_woken}");
                recovers(&bed, &end, &when);
                if ended {
                    break;
                }
                points = polls;
            }
            // Several events may be taken in at one point.
            assert!((1..MOST_POINTS).contains(&points), "{name}: {points}");
            println!("{name}: given up at {points} points, woken: {when_woken}");
        }
    }
}

#[test]
fn a_daemon_that_is_told_to_stop_at_any_point_stops_and_the_next_one_goes_on() {
    for name in ["start", "replace", "teardown"] {
        let scenario = named(name);
        let (_, end) = undisturbed(&scenario);
        for polls in 0..DAEMON_POINTS {
            let bed = begin(&scenario, polls as u64);
            live(&bed, usize::MAX, 4, async |stead, _| {
                let mut left = polls;
                let shutdown = poll_fn(move |_| {
                    let is_over = left == 0;
                    left = left.saturating_sub(1);
                    if is_over { Poll::Ready(()) } else { Poll::Pending }
                });
                run(stead, shutdown).await.unwrap();
            });
            recovers(&bed, &end, &format!("{name}: told to stop at point {polls}"));
        }
    }
}

/// Has one VM hang in a call, and somebody ask for its restart; how the asker fares until the story is over.
fn asks_for_a_restart(story: impl AsyncFnOnce(&Bed, UnixStream, &SimHost, tokio::sync::oneshot::Sender<()>)) {
    let scenario = of_vms().find(|scenario| scenario.name == "start").unwrap();
    let (_, end) = undisturbed(&scenario);
    let bed = begin(&scenario, 0);
    live(&bed, 12, 4, async |stead, host| {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let asks = async {
            let one_is_not = || host.hung().is_some() && not_as(&bed, &end).len() == 1;
            assert!(until(Duration::from_secs(15), one_is_not).await);
            let name = not_as(&bed, &end).pop_first().unwrap();
            let mut client = UnixStream::connect(bed.layout.control_socket()).unwrap();
            client.write_all(format!("{{\"request\":\"restart\",\"name\":\"{name}\"}}\n").as_bytes()).unwrap();
            client.set_nonblocking(true).unwrap();
            until(Duration::from_secs(1), || false).await;
            story(&bed, client, host, stop).await;
        };
        tokio::select! {
            biased;
            ended = run(stead, async { stopped.await.unwrap() }) => ended.unwrap(),
            () = asks => panic!("it does not end"),
        }
    });
    recovers(&bed, &end, "a restart was asked for");
}

#[test]
fn who_waits_for_an_answer_is_told_that_stead_stops_before_what_hangs_is_given_up() {
    asks_for_a_restart(async |_, mut client, host, stop| {
        let (mut answer, mut bytes) = (Vec::new(), [0; 512]);
        let mut hear = || {
            answer.extend_from_slice(client.read(&mut bytes).map_or(&[][..], |count| &bytes[..count]));
            String::from_utf8_lossy(&answer).into_owned()
        };
        assert_eq!(hear(), "", "it waits for the VM's turn");
        stop.send(()).unwrap();
        // Those at work are waited for much longer.
        assert!(until(Duration::from_secs(5), || hear().contains("stead is stopping")).await, "{:?}", hear());
        host.let_go();
        until(Duration::from_secs(60), || false).await;
    });
}

#[test]
fn a_restart_whose_asker_gave_up_before_it_began_is_not_done_later() {
    asks_for_a_restart(async |bed, client, host, stop| {
        drop(client);
        until(Duration::from_secs(1), || false).await;
        host.let_go();
        let runs = || bed.machine.lives_of_vms().len() == 5;
        assert!(until(Duration::from_secs(60), runs).await);
        let lives = bed.machine.lives_of_vms();
        until(Duration::from_secs(5), || false).await;
        assert_eq!(bed.machine.lives_of_vms(), lives, "one was restarted for nobody");
        assert!(lives.iter().all(|life| life.ends_with("-1")), "{lives:?}");
        stop.send(()).unwrap();
        until(Duration::from_secs(60), || false).await;
    });
}
