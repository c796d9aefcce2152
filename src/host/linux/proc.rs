//! What the kernel's text files say, from their bytes: `/proc` as in proc(5), and device numbers as in sysfs. Reads
//! nothing: open to whoever throws bytes at it.
//!
//! A process writes a part of these bytes itself (its name, its arguments), and a mount has the name that its maker chose.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A device's number, major and minor.
pub type DeviceNumber = (u32, u32);

/// What is needed of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Field 3.
    pub state: u8,
    /// Fields 14 and 15 together, in clock ticks: what all threads took of the CPUs for themselves, the guest's time among it, and
    /// in the kernel.
    pub cpu_ticks: u64,
    /// Field 22, in clock ticks since boot.
    pub start_time: u64,
    /// Field 24, in pages: what is in memory of its address space.
    pub resident_pages: u64,
    /// Field 52, as waitpid(2) would give it; meaningful for a zombie that may be looked at.
    pub exit_code: i32,
}

impl Stat {
    /// Reads the file's content.
    ///
    /// # Errors
    /// When it has not the form that the kernel gives it.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let malformed = || super::error(io::ErrorKind::InvalidData, "/proc/PID/stat has a form that is not known");
        // The name in field 2 may hold anything, also parentheses and blanks; no later field holds a parenthesis.
        let end = bytes.iter().rposition(|byte| *byte == b')').ok_or_else(malformed)?;
        let rest = std::str::from_utf8(&bytes[end + 1..]).map_err(|_| malformed())?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied().ok_or_else(malformed);
        let number = |number: usize| field(number)?.parse::<u64>().map_err(|_| malformed());
        Ok(Self {
            state: field(3)?.as_bytes()[0],
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            start_time: number(22)?,
            resident_pages: number(24)?,
            exit_code: field(52)?.parse().map_err(|_| malformed())?,
        })
    }
}

/// The arguments in a `/proc/PID/cmdline`. None for a process that is just ending: its memory is gone, its devices are not
/// yet.
pub fn split_arguments(cmdline: &[u8]) -> Vec<Vec<u8>> {
    let Some(cmdline) = cmdline.strip_suffix(&[0]).or((!cmdline.is_empty()).then_some(cmdline)) else {
        return Vec::new();
    };
    cmdline.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// The argument as text if it is exactly a UUID, `-` and a number, as `VmUid::process_id` writes it.
pub fn as_process_id(argument: &[u8]) -> Option<&str> {
    const UUID_LENGTH: usize = 36;
    let text = std::str::from_utf8(argument).ok()?;
    let (uuid, rest) = text.split_at_checked(UUID_LENGTH)?;
    let digits = rest.strip_prefix('-')?;
    let number: u64 = digits.parse().ok()?;
    let parsed = uuid::Uuid::try_parse(uuid).ok()?;
    (parsed.hyphenated().to_string() == uuid && number.to_string() == digits).then_some(text)
}

/// The interface that an open file of a tun driver is attached to, by its `fdinfo`.
pub fn tun_interface(fdinfo: &str) -> Option<&str> {
    fdinfo.lines().find_map(|line| line.strip_prefix("iff:\t")).map(str::trim).filter(|name| !name.is_empty())
}

/// `MAJOR:MINOR`, as sysfs and mountinfo write it.
pub fn device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    // `+3` parses too, but no kernel writes it.
    let number = |digits: &str| digits.parse().ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_digit()));
    Some((number(major)?, number(minor)?))
}

/// Where one of these devices is mounted, by `/proc/PID/mountinfo` (proc_pid_mountinfo(5)). Some filesystems, such as
/// btrfs, have a device number of their own there: these are told by their source.
pub fn mount_of(mountinfo: &str, numbers: &BTreeSet<DeviceNumber>, sources: &[String]) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let number = fields.nth(2).and_then(device_number)?;
        let place = fields.nth(1)?;
        let source = filesystem.split(' ').nth(1)?;
        (numbers.contains(&number) || sources.iter().any(|known| known == source)).then(|| place.to_owned())
    })
}

/// The mount point of the whole cgroup2 hierarchy, by `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
pub fn cgroup2_mount(mountinfo: &[u8]) -> Option<PathBuf> {
    mountinfo.split(|byte| *byte == b'\n').find_map(|line| {
        let middle = line.windows(3).position(|three| three == b" - ")?;
        let mut fields = line[..middle].split(|byte| *byte == b' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let kind = line[middle + 3..].split(|byte| *byte == b' ').next()?;
        (kind == b"cgroup2" && root == b"/").then(|| PathBuf::from(OsString::from_vec(unescape(point))))
    })
}

/// A name as it is, from the way that mountinfo writes it: blanks, tabs, line ends and backslashes are `\` and three octal
/// digits there.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, after) {
            plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_with_a_plain_number_is_taken_for_an_id() {
        let uuid = "6ba7b810-9dad-51d1-80b4-00c04fd430c8";
        assert_eq!(as_process_id(format!("{uuid}-12").as_bytes()), Some(format!("{uuid}-12").as_str()));
        for other in ["", "x", "-1", uuid, &format!("{uuid}-"), &format!("{uuid}-01"), &format!("{uuid}-+1")] {
            assert_eq!(as_process_id(other.as_bytes()), None, "{other}");
        }
        assert_eq!(as_process_id(format!("guest={uuid}-1").as_bytes()), None);
        assert_eq!(as_process_id(format!("{}-1", uuid.to_uppercase()).as_bytes()), None);
        assert_eq!(as_process_id(format!("{}-1", uuid.replace('-', "")).as_bytes()), None);
    }

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let line = format!("7 (a) Z (b) {}\n", fields.join(" "));
        let stat = Stat::parse(line.as_bytes()).unwrap();
        assert_eq!((stat.state, stat.start_time, stat.exit_code), (b'3', 22, 52));
        assert_eq!((stat.cpu_ticks, stat.resident_pages), (14 + 15, 24));
        assert!(Stat::parse(b"7 (a").is_err());
        assert!(Stat::parse(b"7 (a) S 1").is_err());
    }

    #[test]
    fn arguments_are_split_byte_for_byte() {
        assert_eq!(split_arguments(b""), Vec::<Vec<u8>>::new());
        assert_eq!(split_arguments(b"a\0\0b\0"), [b"a".to_vec(), b"".to_vec(), b"b".to_vec()]);
        assert_eq!(split_arguments(b"a\0b"), [b"a".to_vec(), b"b".to_vec()]);
    }

    #[test]
    fn a_mount_is_told_by_its_device_or_else_by_its_source() {
        let mountinfo = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:25 / /sys rw shared:7 - sysfs sysfs rw
41 22 253:3 / /mnt/a\\040b rw - ext4 /dev/mapper/stead-x rw
42 22 0:52 / /btrfs rw shared:2 master:1 - btrfs /dev/loop3 rw
43 22 253:30
";
        let at = |numbers: &[DeviceNumber], sources: &[&str]| {
            let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
            mount_of(mountinfo, &numbers.iter().copied().collect(), &sources)
        };
        assert_eq!(at(&[(254, 0)], &[]).unwrap(), "/");
        assert_eq!(at(&[(253, 3)], &[]).unwrap(), "/mnt/a\\040b");
        assert_eq!(at(&[(7, 3)], &["/dev/loop3", "/dev/mapper/"]).unwrap(), "/btrfs");
        assert_eq!(at(&[(253, 30)], &["/dev/dm-30"]), None);
    }

    #[test]
    fn the_whole_hierarchy_is_found_and_a_part_of_one_is_not() {
        let v1 = "30 25 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu";
        let v2 = "31 25 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw";
        let part = "32 25 0:27 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount([v1, part, v2].join("\n").as_bytes()), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount([v1, part].join("\n").as_bytes()), None);
    }

    #[test]
    fn a_mount_point_with_blanks_is_what_it_is_and_a_mount_in_no_alphabet_hides_no_other() {
        let odd = b"40 25 0:30 / /mnt/\xff rw - ext4 /dev/sda rw\n".to_vec();
        let v2 = br"31 25 0:27 / /my\040cgroups\134x rw - cgroup2 cgroup2 rw".to_vec();
        assert_eq!(cgroup2_mount(&[odd, v2].concat()), Some(r"/my cgroups\x".into()));
        assert_eq!(unescape(br"\04 \999 \777 \\"), br"\04 \999 \777 \\");
    }

    #[test]
    fn an_unattached_tun_file_has_no_interface() {
        assert_eq!(tun_interface("pos:\t0\nflags:\t0104002\niff:\tst1\n"), Some("st1"));
        assert_eq!(tun_interface("pos:\t0\niff:\t\n"), None);
        assert_eq!(tun_interface("pos:\t0\n"), None);
    }
}
