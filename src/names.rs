//! Every name stead gives to anything is built here: VM names, uids, files, sockets, taps, process id arguments.
//!
//! Names derive from the state's own id and the VM's name, never from chance, so that a lost record still leads to the
//! objects it named, and two steads with two state folders never take each other's objects for their own.

mod ids;
mod layout;

pub use ids::{Backing, DmLayer, Incarnation, Owner, ShortUid, StateId, VmUid};
pub use layout::{Layout, RunDirTooLong, SCOPE_SUFFIX, SLICE};

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest DNS-1123 label (RFC 1123 section 2.1), and so the longest VM name.
pub const VM_NAME_MAX: usize = 63;
/// Longest network interface name: `IFNAMSIZ` is 16 with its terminating NUL (`linux/if.h`). Longer names truncate silently.
pub const INTERFACE_NAME_MAX: usize = 15;
/// Longest path of a unix socket: `sun_path` has 108 bytes with its terminating NUL (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;
/// Longest name of a device-mapper device: `DM_NAME_LEN` is 128 with its NUL (`linux/dm-ioctl.h`).
pub const DM_NAME_MAX: usize = 127;
/// Longest uuid of a device-mapper device: `DM_UUID_LEN` is 129 with its NUL (`linux/dm-ioctl.h`).
pub const DM_UUID_MAX: usize = 128;
/// Longest `lo_file_name` of a loop device: `LO_NAME_SIZE` is 64 with its NUL (`linux/loop.h`).
pub const LOOP_TAG_MAX: usize = 63;
/// Longest alias of a network interface: `IFALIASZ` is 256 with its NUL (`linux/if.h`); 254 was the longest that held.
pub const INTERFACE_ALIAS_MAX: usize = 254;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or only part of a name.
    #[error("a name may not be empty")]
    Empty,
    /// Longer than [`VM_NAME_MAX`].
    #[error("a name has at most {VM_NAME_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// A character that DNS-1123 does not allow.
    #[error("a name consists of lower-case letters, digits and '-': {0:?} is none of them")]
    BadCharacter(char),
    /// `-` at the start or the end.
    #[error("a name starts and ends with a lower-case letter or a digit")]
    BadEdge,
}

/// A DNS-1123 label: the one check behind VM, disk and network interface names.
fn check_label(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(bad) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::BadCharacter(bad));
    }
    if text.len() > VM_NAME_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::BadEdge);
    }
    Ok(())
}

/// The name of a VM, or of a part of one: a DNS-1123 label. Holding one proves that it was checked, so that a path built
/// from it stays inside its folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// Checks `text` against DNS-1123.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        check_label(&text)?;
        Ok(Self(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for VmName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for VmName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl Borrow<str> for VmName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn names_outside_dns_1123_are_refused_with_the_reason() {
        for (text, why) in [
            ("", NameError::Empty),
            ("..", NameError::BadCharacter('.')),
            ("a/b", NameError::BadCharacter('/')),
            ("Web", NameError::BadCharacter('W')),
            ("-a", NameError::BadEdge),
            ("a-", NameError::BadEdge),
            (&"a".repeat(64), NameError::TooLong(64)),
        ] {
            assert_eq!(VmName::new(text), Err(why), "{text:?}");
        }
        assert!(VmName::new("a".repeat(63)).is_ok());
    }

    #[test]
    fn a_lost_state_yields_the_same_names_again() {
        let dir = Path::new("/var/lib/stead");
        let name: VmName = "web".parse().unwrap();
        let before = StateId::derive("0123abcd\n", dir);
        let after = StateId::derive("0123abcd", dir);
        assert_eq!(before.uid(&name), after.uid(&name));
        assert_ne!(before.uid(&name), StateId::derive("0123abcd", Path::new("/other")).uid(&name));
    }

    #[test]
    fn a_socket_tells_whose_it_is_and_other_files_do_not() {
        let state = StateId::derive("m", Path::new("/s"));
        let layout = Layout::new(state, "/s".into(), Path::new("/r")).unwrap();
        let name: VmName = "web".parse().unwrap();
        for socket in [layout.api_socket(&name, Incarnation(7)), layout.identity_socket(&name, Incarnation(7))] {
            let file_name = socket.file_name().unwrap().to_str().unwrap();
            assert_eq!(Layout::read_socket_owner(file_name), Some(layout.uid(&name).short()), "{file_name}");
        }
        for other in [
            "0123456789abcdef-+7.sock",
            "0123456789abcdef-07.id.sock",
            "stead.sock",
            "0123456789abcdef.sock",
            "0123456789abcdef-7",
            "0123456789abcde-7.sock",
            "g-1.sock",
        ] {
            assert_eq!(Layout::read_socket_owner(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_id_is_read_back_only_in_the_exact_shape() {
        let name: VmName = "web".parse().unwrap();
        let uid = StateId::derive("m", Path::new("/s")).uid(&name);
        let id = uid.process_id(Incarnation(7));
        assert!(id.len() <= 64);
        assert_eq!(uid.incarnation_in(&id), Some(Incarnation(7)));
        for not_ours in [uid.to_string(), format!("{uid}-"), format!("{uid}-07"), format!("{uid}-+7"), format!("x{id}")]
        {
            assert_eq!(uid.incarnation_in(&not_ours), None, "{not_ours}");
        }
    }

    #[test]
    fn every_kernel_name_keeps_its_length_limit() {
        let long: VmName = "a".repeat(63).parse().unwrap();
        let state = StateId::derive("m", Path::new("/s"));
        let uid = state.uid(&long);
        assert_eq!(uid.tap(&long).len(), INTERFACE_NAME_MAX);
        assert!(uid.tap_alias(&state, &long).len() <= INTERFACE_ALIAS_MAX);
        assert!(uid.dm_name(&long, DmLayer::Origin).len() <= DM_NAME_MAX);
        assert!(uid.dm_uuid(&state, &long, DmLayer::Origin).len() <= DM_UUID_MAX);
        assert_eq!(uid.loop_tag(&state, &long).len(), LOOP_TAG_MAX);
        let layout = Layout::new(state, "/s".into(), Path::new("/run/stead")).unwrap();
        assert!(layout.identity_socket(&long, Incarnation(u64::MAX)).as_os_str().len() <= SOCKET_PATH_MAX);
        assert!(Layout::new(state, "/s".into(), Path::new(&format!("/{}", "r".repeat(90)))).is_err());
    }

    #[test]
    fn every_tag_leads_back_to_its_owner_and_to_no_other_state() {
        let (state, other) = (StateId::derive("m", Path::new("/s")), StateId::derive("m", Path::new("/t")));
        let (name, part): (VmName, VmName) = ("web".parse().unwrap(), "root".parse().unwrap());
        let uid = state.uid(&name);
        let tags = [
            uid.tap_alias(&state, &part),
            uid.dm_uuid(&state, &part, DmLayer::Snapshot),
            uid.dm_uuid(&state, &part, DmLayer::Origin),
            uid.loop_tag(&state, &part),
        ];
        for tag in &tags {
            assert_eq!(state.owner_of(tag), Some(Owner::Vm(uid.short())), "{tag}");
            assert_eq!(other.owner_of(tag), None, "{tag}");
            assert_eq!(state.owner_of(&format!("x{tag}")), None, "{tag}");
        }
        assert_eq!(state.owner_of(&state.base_loop_tag()), Some(Owner::Shared));
        assert_eq!(other.owner_of(&state.base_loop_tag()), None);
        for foreign in ["", "stead", "stead:", "stead:x:base", "/var/lib/images/stead.img", &format!("stead:{state}:")]
        {
            assert_eq!(state.owner_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_trash_tells_whose_disks_it_keeps_and_since_when() {
        let layout = Layout::new(StateId::derive("m", Path::new("/s")), "/s".into(), Path::new("/run")).unwrap();
        let name: VmName = "web-1".parse().unwrap();
        let entry = layout.trash_entry(&name, 1_700_000_000);
        let entry = entry.file_name().unwrap().to_str().unwrap();
        assert_eq!(Layout::read_trash_entry(entry), Some((name, 1_700_000_000)));
        for other in ["web", "web.", "web.x", "..1", ".1", "web.1.2", "web.+1", "web.01"] {
            assert_eq!(Layout::read_trash_entry(other), None, "{other}");
        }
    }
}
