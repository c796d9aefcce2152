//! The kernel's text files: `/proc`, sysfs, cgroupfs. They have no length that could be asked for, and most are short.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// As much as nearly every such file has: then one read brings it all, and another one its end.
const USUAL: usize = 4 << 10;

/// All of a file. Spares the questions for a length and the small first reads that `std::fs::read` begins with: a look at a VM
/// reads five such files.
pub(super) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL);
    // `take`, since `File` itself would ask for the length.
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same as text.
pub(super) fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| super::error(io::ErrorKind::InvalidData, "it is no UTF-8"))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a file to be read, no state")]
mod tests {
    #[test]
    fn a_file_is_read_to_its_end_however_long_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for length in [0, 1, super::USUAL - 1, super::USUAL, super::USUAL + 1, 100_000] {
            let text = "x".repeat(length);
            std::fs::write(&path, &text).unwrap();
            assert_eq!(super::read_text(&path).unwrap(), text);
        }
        assert!(super::read_text("/proc/self/mountinfo").unwrap().ends_with('\n'));
    }
}
