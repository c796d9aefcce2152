//! The log, read from its end, or as it grows.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::Entry;
use crate::names::{Layout, VmName};

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// The last `count` entries, of this VM if one is named, oldest first. Reads from the end, and no more than it needs; none where
/// nothing was done yet.
///
/// # Errors
/// Where the log is there and cannot be read.
pub fn last(layout: &Layout, vm: Option<&VmName>, count: usize) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    // The newer one first: if it gets its other name in between, it is met twice and not missed.
    let newer = open(&layout.audit_log())?;
    let older = open(&layout.audit_log_before())?;
    let is_same = matches!((&newer, &older), (Some(newer), Some(older)) if id(newer)? == id(older)?);
    for file in [newer, older.filter(|_| !is_same)].into_iter().flatten() {
        let mut lines = Backwards::new(file)?;
        while found.len() < count {
            let Some(line) = lines.next()? else { break };
            let entry = Entry::parse(&line);
            found.extend(entry.filter(|entry| vm.is_none_or(|vm| entry.vm.as_ref() == Some(vm))));
        }
    }
    found.reverse();
    Ok(found)
}

/// Never through a link, and never waiting for a writer: the folder is stead's, but caution is cheap.
fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Device and inode.
type Id = (u64, u64);

fn id(file: &File) -> io::Result<Id> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The lines of a file, the last one first.
struct Backwards {
    file: File,
    /// What is before this was not read yet.
    at: u64,
    /// What was read and not given yet.
    rest: Vec<u8>,
}

impl Backwards {
    fn new(file: File) -> io::Result<Self> {
        let at = file.metadata()?.len();
        Ok(Self { file, at, rest: Vec::new() })
    }

    /// The line before; `None` at the beginning. Empty ones are left out.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(newline) = self.rest.iter().rposition(|byte| *byte == b'\n') {
                let line = self.rest.split_off(newline + 1);
                self.rest.truncate(newline);
                if !line.is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            if self.at == 0 {
                let line = std::mem::take(&mut self.rest);
                return Ok((!line.is_empty()).then_some(line));
            }
            let count = usize::try_from(self.at).unwrap_or(PIECE).min(PIECE);
            let mut piece = vec![0; count];
            self.at -= count as u64;
            self.file.read_exact_at(&mut piece, self.at)?;
            piece.append(&mut self.rest);
            self.rest = piece;
        }
    }
}

/// The log as it grows, from where it ended when this began.
pub struct Tail {
    path: PathBuf,
    path_before: PathBuf,
    file: Option<File>,
    /// The one before, when there was no log yet: nothing in it is new.
    before: Option<Id>,
    /// The start of a line whose end has not come yet.
    pending: Vec<u8>,
}

/// What was written to the log since it was read last.
#[derive(Debug, Default)]
pub struct News {
    /// What can be read of it, oldest first.
    pub entries: Vec<Entry>,
    /// Whether there may have been more: the log began anew more than once meanwhile, or somebody cut it.
    pub may_lack: bool,
}

impl Tail {
    /// From now on. What was written before is for [`last`], which is to be asked after this.
    ///
    /// # Errors
    /// Where the log is there and cannot be read.
    pub fn new(layout: &Layout) -> io::Result<Self> {
        let (path, path_before) = (layout.audit_log(), layout.audit_log_before());
        let mut file = open(&path)?;
        if let Some(file) = &mut file {
            file.seek(SeekFrom::End(0))?;
        }
        let before = open(&path_before)?.map(|before| id(&before)).transpose()?;
        Ok(Self { path, path_before, file, before, pending: Vec::new() })
    }

    /// What was written since, also what went into the log before it got its other name.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read_new(&mut self) -> io::Result<News> {
        let mut news = News::default();
        self.drain(&mut news)?;
        let (now, before) = self.open_both()?;
        let Some(now) = now else { return Ok(news) };
        let last = self.file.as_ref().map(id).transpose()?;
        if last == Some(id(&now)?) {
            return Ok(news);
        }
        // Between the look above and the new name, more may have gone into the old one.
        self.drain(&mut news)?;
        if let Some(before) = before
            && last.or(self.before) != Some(id(&before)?)
        {
            // Not the one that was read: it began anew at least twice, and of three times this one is all that is left.
            news.may_lack |= last.is_some();
            self.go_on_with(before, &mut news)?;
        }
        self.go_on_with(now, &mut news)?;
        Ok(news)
    }

    /// The log and the one before it, as they were at one moment.
    fn open_both(&self) -> io::Result<(Option<File>, Option<File>)> {
        loop {
            let both = (open(&self.path)?, open(&self.path_before)?);
            let again = open(&self.path)?;
            // A log takes its time to grow: it does not begin anew again and again while this looks.
            if both.0.as_ref().map(id).transpose()? == again.as_ref().map(id).transpose()? {
                return Ok(both);
            }
        }
    }

    fn go_on_with(&mut self, file: File, news: &mut News) -> io::Result<()> {
        self.file = Some(file);
        self.pending.clear();
        self.drain(news)
    }

    fn drain(&mut self, news: &mut News) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if file.metadata()?.len() < file.stream_position()? {
            // stead only ever appends: somebody has cut it.
            news.may_lack = true;
            self.pending.clear();
            file.seek(SeekFrom::Start(0))?;
        }
        file.read_to_end(&mut self.pending)?;
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        news.entries.extend(self.pending[..end].split(|byte| *byte == b'\n').filter_map(Entry::parse));
        self.pending.drain(..=end);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]
mod tests {
    use super::*;
    use crate::names::StateId;
    use crate::reasons::Reason;
    use crate::status::EventType;
    use jiff::Timestamp;
    use std::fs;
    use std::io::Write;

    struct Log {
        layout: Layout,
        _folder: tempfile::TempDir,
    }

    impl Log {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let id = StateId::derive("m", folder.path());
            let layout = Layout::new(id, folder.path().to_owned(), Path::new("/r")).unwrap();
            Self { layout, _folder: folder }
        }

        fn add(&self, vm: &str, number: u32) {
            let entry = Entry::new(Timestamp::UNIX_EPOCH, EventType::Normal, Reason::Started, &number.to_string());
            self.write(&Entry { vm: Some(vm.parse().unwrap()), ..entry }.line());
        }

        fn write(&self, bytes: &[u8]) {
            let mut file = OpenOptions::new().append(true).create(true).open(self.layout.audit_log()).unwrap();
            file.write_all(bytes).unwrap();
        }

        fn rotate(&self) {
            fs::rename(self.layout.audit_log(), self.layout.audit_log_before()).unwrap();
        }

        fn last(&self, vm: Option<&str>, count: usize) -> Vec<String> {
            let vm = vm.map(|name| name.parse().unwrap());
            numbers(last(&self.layout, vm.as_ref(), count).unwrap())
        }
    }

    fn numbers(entries: Vec<Entry>) -> Vec<String> {
        entries.into_iter().map(|entry| entry.message).collect()
    }

    #[test]
    fn the_last_entries_are_found_in_both_files_and_of_one_vm() {
        let log = Log::new();
        assert_eq!(log.last(None, 9), [""; 0]);
        // More than is read at once.
        (0..3000).for_each(|number| log.add(if number % 1000 == 0 { "rare" } else { "web" }, number));
        assert_eq!(log.last(Some("rare"), 2), ["1000", "2000"]);
        log.rotate();
        assert_eq!(log.last(None, 2), ["2998", "2999"]);
        log.add("web", 3000);
        assert_eq!(log.last(None, 3), ["2998", "2999", "3000"]);
        assert_eq!(log.last(Some("rare"), 9), ["0", "1000", "2000"]);
        assert_eq!(log.last(None, usize::MAX).len(), 3001);
    }

    #[test]
    fn lines_that_were_cut_or_make_no_sense_are_left_out() {
        let log = Log::new();
        log.add("web", 1);
        log.write(b"{\"time\":\"1970\n\n\0\0\0\0\nnull\n\xff\xfe\n");
        log.add("web", 2);
        log.write(b"{\"time\":\"1970-01-01T00:00");
        assert_eq!(log.last(None, 9), ["1", "2"]);
    }

    #[test]
    fn a_log_is_followed_from_where_it_was_also_when_a_new_one_begins() {
        let log = Log::new();
        let mut tail = Tail::new(&log.layout).unwrap();
        assert_eq!(new(&mut tail), [""; 0]);
        log.add("web", 1);
        assert_eq!(new(&mut tail), ["1"]);
        let mut tail = Tail::new(&log.layout).unwrap();
        log.add("web", 2);
        log.write(b"{\"time\":\"1970-01");
        assert_eq!(new(&mut tail), ["2"]);
        // The line goes on, or not: then the next has a line of its own.
        log.write(b"\n");
        log.add("web", 3);
        log.rotate();
        log.add("web", 4);
        assert_eq!(new(&mut tail), ["3", "4"]);
        assert_eq!(new(&mut tail), [""; 0]);
    }

    /// What is new, of a log in which nothing was lost.
    fn new(tail: &mut Tail) -> Vec<String> {
        let News { entries, may_lack } = tail.read_new().unwrap();
        assert!(!may_lack, "nothing was lost");
        numbers(entries)
    }

    #[test]
    fn nothing_is_lost_or_repeated_when_it_begins_anew_twice_and_more_often_it_is_said() {
        let log = Log::new();
        log.add("web", 0);
        let mut tail = Tail::new(&log.layout).unwrap();
        for number in 1..=2 {
            log.add("web", number);
            log.rotate();
        }
        log.add("web", 3);
        let News { entries, may_lack } = tail.read_new().unwrap();
        // It cannot be told from three times.
        assert_eq!((numbers(entries), may_lack), (vec!["1".into(), "2".into(), "3".into()], true));
        log.add("web", 4);
        assert_eq!(new(&mut tail), ["4"]);
        for number in 5..=7 {
            log.add("web", number);
            log.rotate();
        }
        log.add("web", 8);
        let News { entries, may_lack } = tail.read_new().unwrap();
        assert_eq!((numbers(entries), may_lack), (vec!["5".into(), "7".into(), "8".into()], true));
        assert_eq!(new(&mut tail), [""; 0]);
    }

    #[test]
    fn a_log_that_somebody_cut_is_read_from_its_start_and_it_is_said() {
        let log = Log::new();
        log.add("web", 1);
        let mut tail = Tail::new(&log.layout).unwrap();
        log.add("web", 2);
        assert_eq!(new(&mut tail), ["2"]);
        fs::write(log.layout.audit_log(), "").unwrap();
        log.add("web", 3);
        let News { entries, may_lack } = tail.read_new().unwrap();
        assert_eq!((numbers(entries), may_lack), (vec!["3".into()], true));
        log.add("web", 4);
        assert_eq!(new(&mut tail), ["4"]);
    }

    #[test]
    fn where_there_was_no_log_yet_what_is_in_the_one_before_is_not_new() {
        let log = Log::new();
        log.add("web", 1);
        log.rotate();
        let mut tail = Tail::new(&log.layout).unwrap();
        log.add("web", 2);
        assert_eq!(new(&mut tail), ["2"]);
        let none = Log::new();
        let mut tail = Tail::new(&none.layout).unwrap();
        none.add("web", 3);
        none.rotate();
        none.add("web", 4);
        assert_eq!(new(&mut tail), ["3", "4"]);
    }
}
