//! Known holes of VMMs, each only where it applies.

use crate::spec::VmmKind;

/// What of a VMM is in use: a hole in a part that stead does not use is no news to its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Firecracker's virtio over PCI (`--enable-pci`).
    Pci,
    /// Firecracker's jailer.
    Jailer,
}

/// The features that VMMs started by stead have. Neither is used yet.
const USED: &[Feature] = &[];

/// Major, minor, patch.
type Version = (u32, u32, u32);

/// One known hole.
struct Advisory {
    id: &'static str,
    vmm: VmmKind,
    /// First and last affected version, both included.
    ranges: &'static [(Version, Version)],
    feature: Feature,
    what: &'static str,
    cure: &'static str,
}

impl Advisory {
    fn is_in(&self, version: Version) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&version))
    }
}

const TABLE: &[Advisory] = &[
    Advisory {
        id: "CVE-2026-5747",
        vmm: VmmKind::Firecracker,
        ranges: &[((1, 13, 0), (1, 14, 3)), ((1, 15, 0), (1, 15, 0))],
        feature: Feature::Pci,
        what: "a hole in virtio over PCI",
        cure: "update to 1.14.4, 1.15.1 or later, or run without --enable-pci",
    },
    Advisory {
        id: "CVE-2026-1386",
        vmm: VmmKind::Firecracker,
        ranges: &[((0, 0, 0), (1, 13, 1)), ((1, 14, 0), (1, 14, 0))],
        feature: Feature::Jailer,
        what: "a hole in the jailer",
        cure: "update to 1.13.2, 1.14.1 or later",
    },
];

/// Known holes of a VMM of this version as stead runs it, each as a sentence for people. The version is asked for only where
/// it matters: to ask is to run the program.
pub fn of(vmm: VmmKind, version: impl FnOnce() -> Option<String>) -> Vec<String> {
    if !TABLE.iter().any(|hole| hole.vmm == vmm && USED.contains(&hole.feature)) {
        return Vec::new();
    }
    version().map_or_else(Vec::new, |version| with_features(vmm, &version, USED))
}

/// Known holes of a VMM of this version with these features in use. A version that cannot be read has none that are known.
pub fn with_features(vmm: VmmKind, version: &str, features: &[Feature]) -> Vec<String> {
    let Some(number) = read_version(version) else { return Vec::new() };
    let applies = |hole: &&Advisory| hole.vmm == vmm && features.contains(&hole.feature) && hole.is_in(number);
    let say = |hole: &Advisory| format!("{}: {} {version}: {}; {}", hole.id, hole.vmm, hole.what, hole.cure);
    TABLE.iter().filter(applies).map(say).collect()
}

/// Holes of this version in parts that stead does not use: their ids, each with what it is in.
pub fn unused(vmm: VmmKind, version: &str) -> Vec<String> {
    let Some(number) = read_version(version) else { return Vec::new() };
    let holes = TABLE.iter().filter(|hole| hole.vmm == vmm && !USED.contains(&hole.feature) && hole.is_in(number));
    holes.map(|hole| format!("{} ({})", hole.id, hole.what)).collect()
}

/// `1.14.3`, `1.14.3-dev`: a suffix is left out, since a build of one's own has the holes of what it was built from.
fn read_version(text: &str) -> Option<Version> {
    let number = text.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    let version = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(version: &str, feature: Feature) -> bool {
        !with_features(VmmKind::Firecracker, version, &[feature]).is_empty()
    }

    #[test]
    fn the_pci_hole_is_named_from_its_first_to_its_last_version() {
        for (version, expected) in [
            ("1.12.1", false),
            ("1.13.0", true),
            ("1.14.3", true),
            ("1.14.4", false),
            ("1.15.0", true),
            ("1.15.1", false),
            ("2.0.0", false),
        ] {
            assert_eq!(hit(version, Feature::Pci), expected, "{version}");
        }
    }

    #[test]
    fn the_jailers_hole_is_named_from_its_first_to_its_last_version() {
        for (version, expected) in [
            ("0.25.0", true),
            ("1.13.1", true),
            ("1.13.2", false),
            ("1.14.0", true),
            ("1.14.0-dev", true),
            ("1.14.1", false),
        ] {
            assert_eq!(hit(version, Feature::Jailer), expected, "{version}");
        }
    }

    #[test]
    fn a_hole_in_what_stead_does_not_use_is_no_news() {
        assert!(of(VmmKind::Firecracker, || Some("1.14.0".to_owned())).is_empty());
        assert_eq!(unused(VmmKind::Firecracker, "1.12.1"), ["CVE-2026-1386 (a hole in the jailer)"]);
        assert!(with_features(VmmKind::Qemu, "1.14.0", &[Feature::Pci, Feature::Jailer]).is_empty());
    }

    #[test]
    fn a_version_that_cannot_be_read_has_no_known_holes() {
        for version in ["", "unknown", "1", "v1.14.0"] {
            assert!(with_features(VmmKind::Firecracker, version, &[Feature::Pci]).is_empty(), "{version:?}");
        }
    }
}
