//! What `outside::power` has done inside.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::inside::arguments;

const TEXT: &[u8] = b"of value";

/// Writes one file that is synced, and then another that is not.
pub fn write_with_and_without_sync() {
    let [synced, unsynced] = arguments().try_into().unwrap();
    let mut file = File::create(&synced).unwrap();
    file.write_all(TEXT).unwrap();
    file.sync_all().unwrap();
    File::open(Path::new(&synced).parent().unwrap()).unwrap().sync_all().unwrap();
    // Not before the other: ext4 commits its journal as a whole, and a sync that came later could take this one along.
    fs::write(&unsynced, TEXT).unwrap();
    assert_eq!(fs::read(&unsynced).unwrap(), TEXT);
    println!("WRITTEN");
    // The power goes while this waits, long before the kernel would write by itself (30 s).
    std::thread::sleep(crate::machine::BOUND);
}

pub fn only_what_was_synced_is_there() {
    let [synced, unsynced] = arguments().try_into().unwrap();
    assert_eq!(fs::read(synced).unwrap(), TEXT);
    // Its name may have come with the journal; its data cannot have.
    assert_eq!(fs::read(unsynced).unwrap_or_default(), b"");
}
