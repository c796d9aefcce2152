//! The same again and again: written the first, second, fourth, eighth time and so on, and at least once an hour, with a count.
//! A VM that fails for days would push everything else out of a log that is bounded.
//!
//! Kubernetes counts up the event that it has already; a log is appended to. So the newest of those that are left out waits
//! here, and is written when it is over: what happened last is always on record in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::{Entry, Outcome};
use crate::names::VmName;

/// So often it is written at least, as long as it goes on.
const AT_LEAST: Duration = Duration::from_secs(60 * 60);
/// What has not happened for so long is over.
const OVER: Duration = Duration::from_secs(10 * 60);
/// So many are known at most; any more are written each time.
const MOST: usize = 4096;

/// What has happened more than once lately.
#[derive(Debug, Default)]
pub struct Repeats(BTreeMap<Key, Streak>);

/// What makes two entries the same.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    vm: Option<VmName>,
    action: Option<String>,
    reason: String,
    outcome: Option<Outcome>,
    /// The message without numbers that are others each time, such as pids.
    text: String,
}

#[derive(Debug)]
struct Streak {
    count: u32,
    since: Timestamp,
    last: Timestamp,
    written_at: Timestamp,
    waiting: Option<Entry>,
}

impl Repeats {
    /// Takes in what has happened; gives what is to be written now.
    pub fn take(&mut self, entry: &Entry) -> Option<Entry> {
        let key = Key::of(entry);
        let time = entry.time;
        let Some(streak) = self.0.get_mut(&key) else {
            if self.0.len() < MOST {
                let streak = Streak { count: 1, since: time, last: time, written_at: time, waiting: None };
                self.0.insert(key, streak);
            }
            return Some(entry.clone());
        };
        streak.count = streak.count.saturating_add(1);
        streak.last = time;
        let entry = Entry { count: Some(streak.count), since: Some(streak.since), ..entry.clone() };
        if streak.count.is_power_of_two() || is_past(streak.written_at, AT_LEAST, time) {
            streak.written_at = time;
            streak.waiting = None;
            Some(entry)
        } else {
            streak.waiting = Some(entry);
            None
        }
    }

    /// What has not happened for a while is over by `now`: gives the last of each that was not written.
    pub fn over(&mut self, now: Timestamp) -> Vec<Entry> {
        let is_over = |streak: &Streak| is_past(streak.last, OVER, now);
        let mut over: Vec<Entry> =
            self.0.values_mut().filter(|streak| is_over(streak)).filter_map(|streak| streak.waiting.take()).collect();
        self.0.retain(|_, streak| !is_over(streak));
        over.sort_by_key(|entry| entry.time);
        over
    }

    /// Everything that was not written, since nobody will know of it later.
    pub fn rest(&mut self) -> Vec<Entry> {
        let mut rest: Vec<Entry> =
            std::mem::take(&mut self.0).into_values().filter_map(|streak| streak.waiting).collect();
        rest.sort_by_key(|entry| entry.time);
        rest
    }
}

impl Key {
    fn of(entry: &Entry) -> Self {
        let Entry { vm, action, reason, outcome, message, .. } = entry;
        let (vm, action, reason) = (vm.clone(), action.clone(), reason.clone());
        Self { vm, action, reason, outcome: *outcome, text: without_numbers(message) }
    }
}

/// Whether so much time has passed; a clock that was set back says so too.
fn is_past(since: Timestamp, wait: Duration, now: Timestamp) -> bool {
    let passed = now.duration_since(since);
    passed.is_negative() || passed.unsigned_abs() >= wait
}

/// A message with `#` for each number that stands alone and is not an exit status, a signal or an error's. Those in names, as of
/// `eth0` or `loop7`, tell things apart.
fn without_numbers(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find(|character: char| character.is_ascii_digit()) {
        text.push_str(&rest[..at]);
        let digits = rest[at..].find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len() - at);
        let is_in_name = text.ends_with(|last: char| last.is_alphanumeric() || "-_.".contains(last));
        let says_why = ["status ", "signal ", "error "].iter().any(|word| text.ends_with(word));
        text.push_str(if is_in_name || says_why { &rest[at..at + digits] } else { "#" });
        rest = &rest[at + digits..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reasons::Reason;
    use crate::status::EventType;

    fn entry(second: i64, message: &str) -> Entry {
        let time = Timestamp::from_second(second).unwrap();
        let entry = Entry::new(time, EventType::Warning, Reason::Failed, message);
        Entry { vm: Some("web".parse().unwrap()), ..entry }
    }

    #[test]
    fn the_same_is_written_ever_more_rarely_and_its_last_time_when_it_is_over() {
        let mut repeats = Repeats::default();
        let written: Vec<Option<u32>> = (1..=9)
            .filter_map(|number| repeats.take(&entry(number, &format!("backing off after {number} failures"))))
            .map(|entry| entry.count)
            .collect();
        assert_eq!(written, [None, Some(2), Some(4), Some(8)]);
        assert_eq!(repeats.over(Timestamp::from_second(600).unwrap()), []);
        let over = repeats.over(Timestamp::from_second(609).unwrap());
        let since = Some(Timestamp::from_second(1).unwrap());
        assert_eq!(over, [Entry { count: Some(9), since, ..entry(9, "backing off after 9 failures") }]);
        assert_eq!(repeats.take(&entry(700, "backing off after 1 failures")).unwrap().count, None, "it begins anew");
    }

    #[test]
    fn what_goes_on_is_written_once_an_hour_and_the_rest_at_the_end() {
        let mut repeats = Repeats::default();
        let counts: Vec<Option<u32>> =
            (0..100).filter_map(|number| repeats.take(&entry(number * 300, "x"))).map(|entry| entry.count).collect();
        let counts: Vec<u32> = counts.into_iter().flatten().collect();
        assert_eq!(counts, [2, 4, 8, 16, 28, 32, 44, 56, 64, 76, 88, 100]);
        assert!(repeats.take(&entry(30_000, "x")).is_none());
        assert_eq!(repeats.rest().iter().map(|entry| entry.count).collect::<Vec<_>>(), [Some(101)]);
        assert_eq!(repeats.rest(), []);
    }

    #[test]
    fn another_reason_is_another_thing() {
        let mut repeats = Repeats::default();
        for (message, is_known) in [
            ("exit status 1, pid 4711", false),
            ("exit status 1, pid 4712", true),
            ("exit status 137, pid 4713", false),
            ("killed by signal 9", false),
            ("killed by signal 11", false),
            ("tap eth0: busy (os error 16)", false),
            ("tap eth0: busy (os error 17)", false),
        ] {
            assert_eq!(repeats.take(&entry(1, message)).unwrap().count.is_some(), is_known, "{message}");
        }
        let other = Entry { vm: Some("db".parse().unwrap()), ..entry(1, "killed by signal 9") };
        assert_eq!(repeats.take(&other).unwrap().count, None);
    }

    #[test]
    fn numbers_in_names_tell_things_apart_and_others_do_not() {
        let same = |one: &str, other: &str| without_numbers(one) == without_numbers(other);
        assert!(same("started qemu, pid 47, incarnation 2", "started qemu, pid 5, incarnation 13"));
        assert!(same("4 failures (3s ago)", "15 failures (20s ago)"));
        for (one, other) in [("tap of eth0", "tap of eth1"), ("disk data-1", "disk data-2"), ("error 5", "error 28")] {
            assert!(!same(one, other), "{one} and {other}");
        }
    }
}
