//! What runs out: room, open files, threads, watches. And time.

use std::path::PathBuf;

use jiff::Timestamp;

use super::{Check, Daemon, Finding, Manifests, Needs, Refused, StateLook, Trouble};
use crate::host::checkup::{Checkup, Clock, Folder, Inotify, Threads};

/// Less room than this, and records cannot be written.
const BYTES_MIN: u64 = 16 << 20;
/// Less room than this is told, if it is little of the whole too.
const BYTES_LOW: u64 = 1 << 30;
/// Fewer inodes than this, and a VM cannot have its files.
const INODES_MIN: u64 = 64;
/// What is little of a whole: one in this many.
const LITTLE: u64 = 20;
/// Open files that stead has beside those of VMs.
const FILES_OF_ITS_OWN: u64 = 64;
/// Open files a VM that lives.
const FILES_A_VM: u64 = 2;
/// No clock that goes was ever set to an earlier time than this, the beginning of 2024.
const CLOCK_MIN: i64 = 1_704_067_200;
/// How far ahead a moment that was written down may be: clocks are set by steps of less.
const AHEAD_MAX: i64 = 5;
/// The most that either limit of threads can be (`PID_MAX_LIMIT` of linux/threads.h).
const PID_MAX_LIMIT: u64 = 4 << 20;

pub(super) fn space(state: &Result<StateLook, Refused>) -> Finding {
    let check = Check::Space;
    let Some((folder, room)) = state.as_ref().ok().and_then(|state| Some((&state.folder, state.room.as_ref()?))) else {
        return Finding::skipped(check, "the state folder cannot be used");
    };
    let shown = folder.display();
    let room = match room {
        Ok(room) => room,
        Err(why) => {
            return Finding::warning(check, format!("cannot tell the room in {shown}: {why}"), format!("df {shown}"));
        }
    };
    let found = format!("{} of {} are free in {shown}", bytes(room.bytes_free), bytes(room.bytes));
    let mend = format!(
        "free some, or let it lie on a larger filesystem; `du -xh {shown} | sort -h | tail` shows where it went"
    );
    let mut troubles = Vec::new();
    if room.bytes_free < BYTES_MIN {
        troubles.push(Trouble::failure(found.clone(), mend));
    } else if room.bytes_free < BYTES_LOW && room.bytes_free < room.bytes / LITTLE {
        troubles.push(Trouble::warning(found.clone(), mend));
    }
    let inodes = format!("{} of {} inodes are free in {shown}", room.inodes_free, room.inodes);
    let mend = format!("remove small files; `du --inodes -x {shown} | sort -n | tail` shows where they are");
    if room.inodes > 0 && room.inodes_free < INODES_MIN {
        troubles.push(Trouble::failure(inodes, mend));
    } else if room.inodes_free < room.inodes / LITTLE {
        troubles.push(Trouble::warning(inodes, mend));
    }
    Finding::of_troubles(check, troubles, found)
}

fn bytes(count: u64) -> String {
    match count {
        0..0x40_0000 => format!("{} KiB", count >> 10),
        0x40_0000..0x1_0000_0000 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

pub(super) fn clock(clock: &Clock, latest: Option<Timestamp>) -> Finding {
    const SYNCHRONISE: &str = "let something set it: timedatectl set-ntp true, or install chrony";
    let wall = clock.wall.strftime("%Y-%m-%d %H:%M:%S UTC");
    let mut troubles = Vec::new();
    if clock.wall.as_second() < CLOCK_MIN {
        troubles.push(Trouble::failure(format!("it is {wall}, says the clock, which is long past"), SYNCHRONISE));
    }
    if let Some(latest) = latest.filter(|latest| latest.as_second() - clock.wall.as_second() > AHEAD_MAX) {
        let found = format!("it is {wall}, says the clock, and the state has something of {latest}: it was set back");
        troubles.push(Trouble::warning(found, "set it right, or wait until that is past; until then ages are wrong"));
    }
    if clock.monotonic_ms > clock.boot_ms {
        let found = "the time since boot is less than the time awake: a namespace of time has moved one of them";
        troubles.push(Trouble::failure(found, "run stead outside of it (time_namespaces(7))"));
    }
    match &clock.synchronised {
        Ok(true) => {}
        Ok(false) => {
            troubles.push(Trouble::warning("nothing keeps the clock right (adjtimex: unsynchronised)", SYNCHRONISE));
        }
        Err(why) => {
            let found = format!("whether anything keeps the clock right cannot be told: {why}");
            troubles.push(Trouble::warning(found, "ask it by hand: timedatectl, or chronyc tracking"));
        }
    }
    let slept = clock.boot_ms.saturating_sub(clock.monotonic_ms) / 1000;
    Finding::of_troubles(Check::Clock, troubles, format!("{wall}, kept right; {slept} s asleep since boot"))
}

pub(super) fn inotify(inotify: &Inotify, folders: &[(PathBuf, Folder)], daemon: &Daemon) -> Finding {
    const RAISE: &str = "sysctl -w fs.inotify.max_user_";
    let is_at_work = matches!(daemon, Daemon::Answers { .. });
    let watches: u64 = folders.iter().map(|(_, folder)| folder.folders).sum();
    let mut troubles = Vec::new();
    // One that is at work has its own already.
    let wanted = if is_at_work { 0 } else { folders.len() as u64 };
    if let Err(why) = &inotify.one_more {
        let found = format!(
            "not one more instance can be had: {why} ({} of {} are in use)",
            inotify.instances, inotify.instances_max
        );
        let mend = format!("{RAISE}instances={}", inotify.instances_max.saturating_mul(4).max(512));
        troubles.push(Trouble::warning(found, mend));
    } else if inotify.instances.saturating_add(wanted) > inotify.instances_max {
        let found =
            format!("{wanted} instances are needed, and {} of {} are in use", inotify.instances, inotify.instances_max);
        let mend = format!("{RAISE}instances={}", inotify.instances_max.saturating_mul(4).max(512));
        troubles.push(Trouble::warning(found, mend));
    }
    let wanted = if is_at_work { 0 } else { watches };
    if inotify.watches.saturating_add(wanted) > inotify.watches_max {
        let found = format!(
            "{watches} folders of manifests are to be watched, and {} of {} watches are in use",
            inotify.watches, inotify.watches_max
        );
        troubles
            .push(Trouble::warning(found, format!("{RAISE}watches={}", (inotify.watches + watches).saturating_mul(4))));
    }
    let fine = format!(
        "{} of {} instances and {} of {} watches are in use; manifests take {} and {watches}",
        inotify.instances,
        inotify.instances_max,
        inotify.watches,
        inotify.watches_max,
        folders.len()
    );
    Finding::of_troubles(Check::Inotify, troubles, fine)
}

pub(super) fn open_files(host: &Checkup, daemon: &Daemon, vms: u64) -> Finding {
    let check = Check::OpenFiles;
    let (limit, whose) = match daemon {
        Daemon::Answers { open_files: Some(limit), .. } => (*limit, "the running stead"),
        _ => (host.open_files.unwrap_or(u64::MAX), "stead, started from here,"),
    };
    let needed = vms * FILES_A_VM + FILES_OF_ITS_OWN;
    let shown = if limit == u64::MAX { "any number of files".to_owned() } else { format!("{limit} files") };
    let found = format!("{whose} may have {shown} open, and {vms} VMs need some {needed}");
    let raise = format!(
        "raise the hard limit: LimitNOFILE={} in its unit, or nofile in limits.conf(5)",
        (needed * 4).max(65_536)
    );
    if limit < needed {
        return Finding::failure(check, found, raise);
    }
    if limit / 2 < needed {
        return Finding::warning(check, found, raise);
    }
    Finding::ok(check, found)
}

pub(super) fn threads(threads: Threads, needs: &Manifests, held: Needs) -> Finding {
    let check = Check::Threads;
    let Threads { used, pid_max, threads_max } = threads;
    let (limit, name) =
        if pid_max <= threads_max { (pid_max, "kernel.pid_max") } else { (threads_max, "kernel.threads-max") };
    let free = limit.saturating_sub(used);
    let found = format!(
        "{used} threads of at most {limit} ({name}); the VMMs of {} VMs have some {}",
        needs.vms, needs.needs.threads
    );
    let mend = format!("sysctl -w {name}={}", limit.max(needs.needs.threads).saturating_mul(4).min(PID_MAX_LIMIT));
    if limit < needs.needs.threads {
        return Finding::failure(check, found, mend);
    }
    // Those of VMs that run are among the used ones.
    let more = needs.needs.threads.saturating_sub(held.threads);
    if free < more || free < limit / LITTLE {
        return Finding::warning(check, found, mend);
    }
    Finding::ok(check, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{State, samples};
    use crate::host::checkup::Room;

    fn state_with(room: Room) -> StateLook {
        StateLook { room: Some(Ok(room)), ..samples::state() }
    }

    #[test]
    fn room_is_judged_by_bytes_and_by_inodes() {
        let plenty = Room { bytes: 100 << 30, bytes_free: 50 << 30, inodes: 1 << 20, inodes_free: 1 << 19 };
        for (room, state, word) in [
            (plenty, State::Ok, ""),
            (Room { bytes_free: 10 << 20, ..plenty }, State::Failure, "du -xh"),
            (Room { bytes_free: 900 << 20, ..plenty }, State::Warning, "du -xh"),
            (Room { bytes: 2 << 30, bytes_free: 900 << 20, ..plenty }, State::Ok, ""),
            (Room { inodes_free: 3, ..plenty }, State::Failure, "--inodes"),
            (Room { inodes_free: 1000, ..plenty }, State::Warning, "--inodes"),
            (Room { inodes: 0, inodes_free: 0, ..plenty }, State::Ok, ""),
        ] {
            let finding = space(&Ok(state_with(room)));
            assert_eq!(finding.state, state, "{finding:?}");
            assert!(finding.mend.unwrap_or_default().contains(word), "{room:?}");
        }
        let unknown = StateLook { room: Some(Err("I/O error".to_owned())), ..samples::state() };
        assert_eq!(space(&Ok(unknown)).state, State::Warning);
        assert_eq!(space(&Err(Refused { why: String::new(), mend: None })).state, State::Skipped);
    }

    #[test]
    fn sizes_are_told_in_units_that_people_read() {
        assert_eq!([bytes(0), bytes(10 << 20), bytes(5 << 30)], ["0 KiB", "10 MiB", "5 GiB"]);
    }

    #[test]
    fn a_clock_that_is_wrong_or_left_alone_is_told() {
        let good = samples::host().clock;
        let judge =
            |clock: &Clock, ahead: i64| super::clock(clock, Timestamp::from_second(good.wall.as_second() + ahead).ok());
        assert_eq!(judge(&good, 0).state, State::Ok);
        assert!(judge(&good, 3600).found.contains("it was set back"));
        let unsynchronised = Clock { synchronised: Ok(false), ..good.clone() };
        let finding = judge(&unsynchronised, 0);
        assert!(finding.state == State::Warning && finding.mend.unwrap().contains("set-ntp"));
        let epoch = Clock { wall: Timestamp::UNIX_EPOCH, ..good.clone() };
        assert_eq!(super::clock(&epoch, None).state, State::Failure);
        let moved = Clock { boot_ms: 5, monotonic_ms: 10, ..good.clone() };
        assert_eq!(judge(&moved, 0).state, State::Failure);
        let unknown = Clock { synchronised: Err("EPERM".to_owned()), ..good.clone() };
        assert_eq!(judge(&unknown, 0).state, State::Warning);
    }

    #[test]
    fn watches_are_held_against_their_limits() {
        let good = samples::host().inotify;
        let folder = Folder { owner: None, unreadable: None, folders: 10, below: vec![] };
        let folders = [(PathBuf::from("/m"), folder)];
        let judge = |found: &Inotify, daemon: &Daemon| inotify(found, &folders, daemon);
        let none = Daemon::None { locked: false };
        assert_eq!(judge(&good, &none).state, State::Ok);
        let refused = Inotify { one_more: Err("Too many open files".to_owned()), ..good.clone() };
        assert!(judge(&refused, &none).mend.unwrap().contains("max_user_instances="));
        let full = Inotify { watches: good.watches_max - 5, ..good.clone() };
        assert!(judge(&full, &none).mend.unwrap().contains("max_user_watches="));
        let at_work = Daemon::Answers { version: "1".to_owned(), pid: 1, open_files: None };
        assert_eq!(judge(&full, &at_work).state, State::Ok, "it has its watches already");
        let last = Inotify { instances: good.instances_max, ..good };
        assert_eq!(judge(&last, &none).state, State::Warning);
    }

    #[test]
    fn open_files_are_those_of_the_stead_that_runs() {
        let mut host = samples::host();
        host.open_files = Some(1024);
        let none = Daemon::None { locked: false };
        for (vms, state) in [(10, State::Ok), (300, State::Warning), (1000, State::Failure)] {
            assert_eq!(open_files(&host, &none, vms).state, state, "{vms}");
        }
        let other = Daemon::Answers { version: "1".to_owned(), pid: 1, open_files: Some(u64::MAX) };
        assert_eq!(open_files(&host, &other, 1000).state, State::Ok);
    }

    #[test]
    fn threads_are_held_against_the_limit_that_is_met_first() {
        let found = Threads { used: 500, pid_max: 4_194_304, threads_max: 1000 };
        let needs =
            |threads| Manifests { vms: 1, needs: Needs { threads, ..Needs::default() }, ..Manifests::default() };
        let threads = |found: Threads, needs: &Manifests| threads(found, needs, Needs::default());
        assert_eq!(threads(found, &needs(10)).state, State::Ok);
        let held = Needs { threads: 400, ..Needs::default() };
        assert_eq!(super::threads(found, &needs(600), held).state, State::Ok, "those that run have theirs already");
        let finding = threads(found, &needs(600));
        assert!(finding.state == State::Warning && finding.mend.unwrap().contains("kernel.threads-max"));
        assert_eq!(threads(found, &needs(1001)).state, State::Failure);
        assert_eq!(threads(Threads { used: 990, ..found }, &needs(10)).state, State::Warning);
    }
}
