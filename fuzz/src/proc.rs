//! What the kernel's text files say. A process chooses a part of these bytes: its name and its arguments.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;

use stead::host::linux::proc::{
    Stat, as_process_id, cgroup2_mount, device_number, mount_of, split_arguments, tun_interface,
};

/// A choice of the file, and its content or a part of it.
pub fn proc(data: &[u8]) {
    let Some((choice, bytes)) = super::split_choice(data) else { return };
    let text = String::from_utf8_lossy(bytes);
    match choice % 6 {
        0 => stat(bytes),
        1 => named(bytes),
        2 => arguments(bytes),
        3 => mounts(bytes, &text),
        4 => descriptors(&text),
        _ => mounted_at(bytes),
    }
}

/// Any content of `stat`. What it says does not depend on the process's name, and is told by counting from its end too.
fn stat(bytes: &[u8]) {
    let Ok(stat) = Stat::parse(bytes) else { return };
    let end = bytes.iter().rposition(|byte| *byte == b')').unwrap();
    let fields: Vec<&str> = std::str::from_utf8(&bytes[end + 1..]).unwrap().split_ascii_whitespace().collect();
    assert!(fields.len() >= 50);
    assert_eq!(fields[0].as_bytes()[0], stat.state);
    assert_eq!(fields[19].parse(), Ok(stat.start_time));
    assert_eq!(fields[21].parse(), Ok(stat.resident_pages));
    assert_eq!(fields[49].parse(), Ok(stat.exit_code));
}

/// A process of any name, as the kernel writes it.
fn named(name: &[u8]) {
    let fields: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
    let line = [b"7 (", name, b") S ", fields.join(" ").as_bytes(), b"\n"].concat();
    let expected = Stat { state: b'S', cpu_ticks: 14 + 15, start_time: 22, resident_pages: 24, exit_code: 52 };
    assert_eq!(Stat::parse(&line).unwrap(), expected);
}

fn arguments(cmdline: &[u8]) {
    let arguments = split_arguments(cmdline);
    let mut joined = arguments.join(&0);
    if cmdline.last() == Some(&0) {
        joined.push(0);
    }
    assert_eq!(joined, cmdline);
    for argument in &arguments {
        assert!(!argument.contains(&0));
        let Some(id) = as_process_id(argument) else { continue };
        // Told apart from all that only resembles it: 36 characters of a UUID, and a number as it is written.
        assert_eq!(id.as_bytes(), argument);
        let (uuid, number) = (&id[..36], &id[37..]);
        assert_eq!(number.parse::<u64>().unwrap().to_string(), number);
        assert!(uuid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')), "{uuid}");
        assert_eq!([8, 13, 18, 23].map(|at| uuid.as_bytes()[at]), [b'-'; 4]);
    }
}

fn mounts(bytes: &[u8], text: &str) {
    if let Some(point) = cgroup2_mount(bytes) {
        assert!(text.contains(" - cgroup2"));
        assert!(!point.as_os_str().as_bytes().is_empty() || text.contains("  "));
    }
    let numbers = BTreeSet::from([(7, 0), (253, 3)]);
    if let Some(place) = mount_of(text, &numbers, &["/dev/loop0".to_owned()]) {
        assert!(["7:0", "253:3", "/dev/loop0"].iter().any(|known| text.contains(known)) || text.contains('0'));
        assert!(!place.contains([' ', '\n']));
    }
    assert_eq!(mount_of(text, &BTreeSet::new(), &[]), None);
}

fn descriptors(text: &str) {
    if let Some(name) = tun_interface(text) {
        assert!(!name.is_empty() && name.trim() == name && text.contains(name));
    }
    if let Some((major, minor)) = device_number(text) {
        assert_eq!(device_number(&format!("{major}:{minor}")), Some((major, minor)));
    }
}

/// A cgroup2 mounted at a place of any name: the kernel writes four of its bytes, and `#`, in another way.
fn mounted_at(place: &[u8]) {
    let escaped: Vec<u8> = place
        .iter()
        .filter(|byte| **byte != 0)
        .flat_map(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            other => vec![*other],
        })
        .collect();
    let line = [b"31 25 0:27 / /", escaped.as_slice(), b" rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"].concat();
    let plain: Vec<u8> = b"/".iter().chain(place.iter().filter(|byte| **byte != 0)).copied().collect();
    assert_eq!(cgroup2_mount(&line).unwrap().as_os_str().as_bytes(), plain);
}
