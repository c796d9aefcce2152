//! Reading and writing the formats: bytes to values and back, with what can be wrong said plainly.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fields::WithUnknown;
use super::{DiskRecord, FORMAT_VERSION, GateState, Handles, HostState, Ledger, OrphanState, SyncState};
use crate::names::{VmName, VmUid};

/// Why a state file's content cannot be trusted. Such a file is set aside, never deleted and never obeyed.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// A write that was cut off by a power failure on a filesystem that reorders.
    #[error("it is empty")]
    Empty,
    /// Truncated, binary, or not what stead writes.
    #[error("it is not what stead writes: {0}")]
    Malformed(#[source] serde_json::Error),
    /// Written by a later stead.
    #[error("it is of format version {found}; this stead knows versions up to {FORMAT_VERSION}")]
    Newer {
        /// The version it claims.
        found: u64,
    },
    /// A copy of another VM's file, or one from another state folder.
    #[error("it is of VM {found}, not of this one")]
    OtherVm {
        /// Whom it names.
        found: String,
    },
    /// A copy of another disk's record.
    #[error("it is of disk {found}, not of this one")]
    OtherDisk {
        /// Which it names.
        found: VmName,
    },
}

/// Reads a handles.json that should be of the VM `name` with `uid`.
pub fn parse_handles(bytes: &[u8], name: &VmName, uid: VmUid) -> Result<Handles, Flaw> {
    let WithUnknown(handles, extra) = parse::<Handles>(bytes)?;
    check_owner(&handles.name, handles.uid, name, uid)?;
    Ok(Handles { extra, ..handles })
}

/// Reads a ledger.json that should be of the VM `name` with `uid`.
pub fn parse_ledger(bytes: &[u8], name: &VmName, uid: VmUid) -> Result<Ledger, Flaw> {
    let WithUnknown(ledger, extra) = parse::<Ledger>(bytes)?;
    check_owner(&ledger.name, ledger.uid, name, uid)?;
    Ok(Ledger { extra, ..ledger })
}

/// Reads the record of a disk that should be `disk` of the VM `name` with `uid`.
pub fn parse_disk_record(bytes: &[u8], name: &VmName, uid: VmUid, disk: &VmName) -> Result<DiskRecord, Flaw> {
    let WithUnknown(record, extra) = parse::<DiskRecord>(bytes)?;
    check_owner(&record.name, record.uid, name, uid)?;
    if record.disk != *disk {
        return Err(Flaw::OtherDisk { found: record.disk });
    }
    Ok(DiskRecord { extra, ..record })
}

/// Reads gates.json.
pub fn parse_gates(bytes: &[u8]) -> Result<GateState, Flaw> {
    parse(bytes).map(|WithUnknown(gates, _)| gates)
}

/// Reads host.json.
pub fn parse_host(bytes: &[u8]) -> Result<HostState, Flaw> {
    parse(bytes).map(|WithUnknown(host, _)| host)
}

/// Reads orphans.json.
pub fn parse_orphans(bytes: &[u8]) -> Result<OrphanState, Flaw> {
    parse(bytes).map(|WithUnknown(orphans, _)| orphans)
}

/// Reads the sync.json of a git source.
pub fn parse_sync(bytes: &[u8]) -> Result<SyncState, Flaw> {
    parse(bytes).map(|WithUnknown(sync, _)| sync)
}

/// A value as stead writes it to disk: indented JSON with a newline at the end, so that people can read and diff it.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("state formats have only text keys");
    bytes.push(b'\n');
    bytes
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<WithUnknown<T>, Flaw> {
    if bytes.is_empty() {
        return Err(Flaw::Empty);
    }
    let error = match str::from_utf8(bytes).map_err(serde::de::Error::custom).and_then(serde_json::from_str) {
        Ok(record) => return Ok(record),
        Err(error) => error,
    };
    // What was refused is read once more, in a form that holds any content. Its version comes first: a later format may
    // differ in any other field.
    let value: Value = serde_json::from_slice(bytes).map_err(Flaw::Malformed)?;
    if let Some(found) = value.get("version").and_then(Value::as_u64).filter(|v| *v > u64::from(FORMAT_VERSION)) {
        return Err(Flaw::Newer { found });
    }
    // Of a field that stands there twice, which is an error above, the last counts.
    serde_json::from_value(value).map_err(|_| Flaw::Malformed(error))
}

fn check_owner(found_name: &VmName, found_uid: VmUid, name: &VmName, uid: VmUid) -> Result<(), Flaw> {
    if found_name == name && found_uid == uid {
        return Ok(());
    }
    Err(Flaw::OtherVm { found: Owner(found_name, found_uid).to_string() })
}

struct Owner<'a>(&'a VmName, VmUid);

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::names::{Incarnation, StateId};

    fn vm() -> (VmName, VmUid) {
        let name: VmName = "web".parse().unwrap();
        let uid = StateId::derive("m", Path::new("/s")).uid(&name);
        (name, uid)
    }

    #[test]
    fn unknown_fields_survive_a_rewrite() {
        let (name, uid) = vm();
        let mut value = serde_json::to_value(Ledger::new(name.clone(), uid)).unwrap();
        value["from_the_future"] = serde_json::json!({"a": [1, 2]});
        let ledger = parse_ledger(&encode(&value), &name, uid).unwrap();
        let rewritten: Value = serde_json::from_slice(&encode(&ledger)).unwrap();
        assert_eq!(rewritten["from_the_future"], value["from_the_future"]);
    }

    #[test]
    fn of_a_field_that_is_written_twice_the_last_counts() {
        let (name, uid) = vm();
        let text = format!(
            r#"{{"version": 7, "version": 1, "name": "db", "uid": "{uid}", "a": 1, "b": 2, "restarts": [], "restarts": 3,
            "a": 3, "name": "{name}"}}"#
        );
        let ledger = parse_ledger(text.as_bytes(), &name, uid).unwrap();
        assert_eq!(ledger.restarts, 3);
        assert_eq!(serde_json::to_string(&ledger.extra).unwrap(), r#"{"a":3,"b":2}"#);
    }

    #[test]
    fn a_newer_version_is_told_whatever_else_is_in_the_file() {
        let (name, uid) = vm();
        for text in
            [r#"{"version": 2}"#, r#"{"name": [], "version": 18446744073709551615}"#, r#"{"version": 2, "name": 5}"#]
        {
            assert!(matches!(parse_ledger(text.as_bytes(), &name, uid), Err(Flaw::Newer { .. })), "{text}");
            assert!(matches!(parse_gates(text.as_bytes()), Err(Flaw::Newer { .. })), "{text}");
        }
    }

    #[test]
    fn a_number_that_is_not_understood_is_the_same_after_a_rewrite() {
        let (name, uid) = vm();
        for number in ["0.1", "1.7976931348623157e308", "5e-324", "8.41e21", "2.2250738585072011e-308", "1e23"] {
            let text = format!(r#"{{"version": 1, "name": "{name}", "uid": "{uid}", "future": {number}}}"#);
            let ledger = parse_ledger(text.as_bytes(), &name, uid).unwrap();
            assert_eq!(ledger.extra["future"].as_f64(), Some(number.parse().unwrap()), "{number}");
            assert_eq!(parse_ledger(&encode(&ledger), &name, uid).unwrap(), ledger, "{number}");
        }
    }

    #[test]
    fn a_life_after_which_the_count_would_begin_anew_is_not_believed() {
        let (name, uid) = vm();
        let ledger = |number: u64| {
            let text = format!(r#"{{"version": 1, "name": "{name}", "uid": "{uid}", "incarnation": {number}}}"#);
            parse_ledger(text.as_bytes(), &name, uid)
        };
        for number in [u64::MAX, Incarnation::MAX + 1] {
            assert!(ledger(number).unwrap_err().to_string().contains("beyond"), "{number}");
            assert_eq!(uid.incarnation_in(&uid.process_id(Incarnation(number))), None);
        }
        let last = ledger(Incarnation::MAX).unwrap().incarnation;
        assert!(last.next() > last);
    }

    #[test]
    fn a_file_that_cannot_be_trusted_says_why() {
        let (name, uid) = vm();
        let sound = encode(&Ledger::new(name.clone(), uid));
        let other: VmName = "db".parse().unwrap();
        let other_uid = StateId::derive("m", Path::new("/s")).uid(&other);
        let flaw = |bytes: &[u8]| parse_ledger(bytes, &name, uid).unwrap_err().to_string();
        assert_eq!(flaw(b""), "it is empty");
        assert!(flaw(&sound[..sound.len() / 2]).starts_with("it is not what stead writes"));
        assert!(flaw(&[0; 4096]).starts_with("it is not what stead writes"));
        assert!(flaw(br#"{"version": 7}"#).contains("format version 7"));
        assert!(flaw(b"{\"version\": 1,\n\"name\": 5}").ends_with("expected a string at line 2 column 9"));
        assert!(flaw(b"{\"version\": 1, \"\xff\": 5}").contains("unicode"));
        assert!(parse_orphans(br"[7, {}]").unwrap_err().to_string().contains("expected a JSON object"));
        assert!(parse_gates(br"[7, [], null]").unwrap_err().to_string().contains("expected a JSON object"));
        assert!(flaw(&encode(&Ledger::new(other, other_uid))).starts_with("it is of VM db"));
    }
}
