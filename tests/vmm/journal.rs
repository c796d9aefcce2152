//! What systemd's journal is told: its native protocol, spoken to a socket that stands where the journal's does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::bed::{BOUND, Host, Vmm, manifest};

/// The fields of one entry (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): `KEY=value`, or `KEY`, a newline, the length in
/// eight bytes, the value.
fn fields(mut bytes: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("a field ends with a newline");
        let line = String::from_utf8(bytes[..end].to_vec()).unwrap();
        bytes = &bytes[end + 1..];
        if let Some((key, value)) = line.split_once('=') {
            fields.insert(key.to_owned(), value.to_owned());
            continue;
        }
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
        fields.insert(line, String::from_utf8(value.to_vec()).unwrap());
        bytes = rest.strip_prefix(b"\n").expect("a value ends with a newline");
    }
    fields
}

/// A socket that stands where the journal's does for this host.
fn journal_of(host: &Host) -> (PathBuf, UnixDatagram) {
    let path = host.root.path().join("journal.sock");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(BOUND)).unwrap();
    (path, journal)
}

/// The entry that tells of a start.
fn start_of_web(journal: &UnixDatagram) -> BTreeMap<String, String> {
    let mut entry = vec![0; 64 << 10];
    let mut seen = Vec::new();
    loop {
        let length = journal.recv(&mut entry).unwrap_or_else(|error| panic!("{error} after {seen:#?}"));
        let entry = fields(&entry[..length]);
        if entry.get("ACTION").is_some_and(|action| action == "start") {
            return entry;
        }
        seen.push(entry);
    }
}

#[test]
fn a_pass_of_a_timer_tells_the_journal_as_the_daemon_does() {
    let mut host = Host::new();
    let (path, journal) = journal_of(&host);
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once_with_journal(&path);
    let started = start_of_web(&journal);
    assert_eq!((started["VM"].as_str(), started["OUTCOME"].as_str()), ("web", "done"), "{started:#?}");
    let log = host.log();
    assert!(log.contains("as declared") && !log.contains("started firecracker"), "nothing is said twice: {log}");
}

#[test]
fn lines_go_to_the_journal_with_their_fields_where_standard_error_leads_there() {
    let mut host = Host::new();
    let (path, journal) = journal_of(&host);
    host.start_daemon_with_journal(&path, true);
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.running("web");
    let started = start_of_web(&journal);
    for (field, value) in [
        ("VM", "web"),
        ("REASON", "Starting"),
        ("OUTCOME", "done"),
        ("ORIGIN", "manifests:web.yaml:1"),
        ("SYSLOG_IDENTIFIER", "stead"),
    ] {
        assert_eq!(started.get(field).map(String::as_str), Some(value), "{field} in {started:#?}");
    }
    assert!(started["MESSAGE"].contains("started firecracker"), "{started:#?}");
    assert_eq!(started["PLAN_DIGEST"].len(), 12);
    assert!(started["DURATION_MICROS"].parse::<u64>().unwrap() > 0);
    // Syslog's levels: what is as it should be is no warning.
    assert!(started["PRIORITY"].parse::<u8>().unwrap() > 4);
    assert_eq!(host.log(), "", "nothing is said twice");
    host.kill_daemon();
}

#[test]
fn lines_stay_where_they_are_when_standard_error_was_led_elsewhere() {
    let mut host = Host::new();
    let path = host.root.path().join("journal.sock");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_nonblocking(true).unwrap();
    host.start_daemon_with_journal(&path, false);
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.running("web");
    let log = fs::read_to_string(host.log_path()).unwrap();
    let line = log.lines().find(|line| line.contains("started firecracker")).unwrap();
    assert!(line.ends_with(" vm=web action=\"start\""), "what is for programs is in a line for people: {line}");
    assert_eq!(journal.recv(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    host.kill_daemon();
}
