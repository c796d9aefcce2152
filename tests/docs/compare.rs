//! What a page says a command prints, held against what it did print.

use std::sync::LazyLock;

use regex::Regex;

/// What differs from run to run, and what both sides have in its place.
static VARIES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        // Moments and uuids.
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
        (r"^[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d (\S+ \w+)\[\d+\]:", "TIME $1[N]:"),
        // Names that are made of the state's id or a VM's uid: sockets, taps.
        (r"/run/stead/[0-9a-f]{8}/", "/run/stead/ID/"),
        (r"\b[0-9a-f]{16}-\d+(\.id)?\.sock", "UID-N$1.sock"),
        (r"\bst[0-9a-f]{13}\b", "TAP"),
        // Commits, and digests of deletions that wait.
        (r"\b[0-9a-f]{12}\b", "DIGEST"),
        // Pids: in sentences, in `describe`, in JSON, in the table of `get`.
        (r"\bpid \d+", "pid N"),
        (r"^PID: +\d+", "PID: N"),
        (r#""pid": \d+"#, r#""pid": N"#),
        (r"\b(qemu|firecracker) +\d+ ", "$1 N "),
        // What a guest or its kernel says of the time since it booted, and of the kernel's release.
        (r"^\[ *\d+\.\d+\] ", "[UPTIME] "),
        (r"\bGUEST READY \d+\.\d+", "GUEST READY UPTIME"),
        (r"\b\d+\.\d+\.\d+-\d+-cloud-amd64\b", "RELEASE"),
        // How often it was tried, which is a matter of when one looks.
        (r"\bbacking off after \d+ failures?", "backing off after N failures"),
        // Ages, and how often the same was seen within one.
        (r"\b(\d+[dhm])*\d+(ms|[smhd])\b", "AGE"),
        (r"\(x\d+ over AGE\)", ""),
        // Columns are as wide as what is in them.
        (r"\s+", " "),
    ]
    .into_iter()
    .map(|(pattern, instead)| (Regex::new(pattern).expect("a pattern"), instead))
    .collect()
});

fn normal(line: &str) -> String {
    VARIES
        .iter()
        .fold(line.to_owned(), |line, (pattern, instead)| pattern.replace_all(&line, *instead).into_owned())
        .trim()
        .to_owned()
}

fn normal_lines<'a>(lines: impl Iterator<Item = &'a str>, any_order: bool) -> Vec<String> {
    let mut lines: Vec<String> = lines.map(normal).collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    if any_order {
        lines.sort();
    }
    lines
}

/// Whether they say the same. A line `...` on the page stands for any number of lines.
pub fn same(page: &[String], printed: &str, any_order: bool) -> bool {
    let wanted = normal_lines(page.iter().map(String::as_str), any_order);
    let printed = normal_lines(printed.lines(), any_order);
    matches(&wanted, &printed)
}

fn matches(wanted: &[String], printed: &[String]) -> bool {
    let Some(gap) = wanted.iter().position(|line| line == "...") else { return wanted == printed };
    let (before, after) = (&wanted[..gap], &wanted[gap + 1..]);
    printed.starts_with(before) && (gap..=printed.len()).any(|from| matches(after, &printed[from..]))
}

/// That the patterns hide what varies and nothing else.
pub fn check() {
    let page: Vec<String> = ["web  Running  True  qemu  11  0  1m2s", "...", "last"].map(str::to_owned).to_vec();
    assert!(same(&page, "web Running True qemu 4711 0 3s\na\nb\nlast\n", false));
    assert!(same(&page, "web Running True qemu 4711 0 3s\nlast", false));
    for other in [
        "web Held True qemu 4711 0 3s\nlast",
        "web Running True qemu 4711 1 3s\nlast",
        "web Running True firecracker 4711 0 3s\nlast",
        "web Running True qemu - 0 3s\nlast",
        "web Running True qemu 4711 0 3s\nlast\nmore",
        "web Running True qemu 4711 0 3s",
        "more\nweb Running True qemu 4711 0 3s\nlast",
    ] {
        assert!(!same(&page, other, false), "{other}");
    }
    let two = ["b".to_owned(), "a".to_owned()];
    assert!(same(&two, "a\nb", true) && !same(&two, "a\nb", false) && !same(&two, "a\nb\nb", true));
}
