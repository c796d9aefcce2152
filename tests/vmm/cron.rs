//! Debian's own cron, with the crontab that comes with stead, and the mail that it sends.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::bed::{Host, Vmm, bed, manifest, wait_within};

/// It looks at its clock once a minute, and a pass takes a moment.
const A_MINUTE_AND_MORE: Duration = Duration::from_secs(90);

/// Where what belongs to cron lies: nothing but memory, in mounts that are nobody else's, and gone with them.
const SPOOL: &str = "/var/spool";

/// cron, with mounts of its own. It ends with this.
struct Cron {
    child: Child,
}

impl Cron {
    /// One that has these files in /etc/cron.d. To be called in mounts that are nobody else's.
    fn start(crontabs: &[(&str, String)]) -> Self {
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        // Its pid lies in the other.
        for folder in [SPOOL, "/run"] {
            mount(nothing, folder, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        }
        // Its package makes the second one, and a group that owns it.
        for folder in ["mail", "cron/crontabs"] {
            fs::create_dir_all(Path::new(SPOOL).join(folder)).unwrap();
        }
        let etc = replace("/etc", &["crontab", "cron.d", "pam.d"]);
        for folder in ["cron.d", "pam.d"] {
            fs::create_dir(etc.join(folder)).unwrap();
        }
        fs::write(etc.join("crontab"), "").unwrap();
        let kinds = ["auth", "account", "session"].map(|kind| format!("{kind} required pam_permit.so\n"));
        fs::write(etc.join("pam.d/cron"), kinds.concat()).unwrap();
        for (name, text) in crontabs {
            fs::write(etc.join("cron.d").join(name), text).unwrap();
        }
        let sendmail = replace("/usr/sbin", &["sendmail"]).join("sendmail");
        script(&sendmail, &format!("exec cat >\"$(mktemp {SPOOL}/mail/XXXXXX)\"\n"));
        let mut command = Command::new(bed("servers/usr/sbin/cron"));
        command.env("LD_LIBRARY_PATH", bed("servers/usr/lib/x86_64-linux-gnu")).arg("-f").stdin(Stdio::null());
        Self { child: command.spawn().unwrap() }
    }
}

/// Puts a folder in the place of this one in which everything but `own` leads to what was there.
fn replace(folder: &str, own: &[&str]) -> PathBuf {
    let [was, is] = ["was", "is"].map(|when| Path::new(SPOOL).join(when.to_owned() + &folder.replace('/', "-")));
    fs::create_dir(&was).unwrap();
    fs::create_dir(&is).unwrap();
    mount(Some(folder), &was, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    for entry in fs::read_dir(&was).unwrap().flatten() {
        if own.iter().all(|own| entry.file_name() != *own) {
            symlink(entry.path(), is.join(entry.file_name())).unwrap();
        }
    }
    mount(Some(&is), folder, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    is
}

/// What cron mailed that has this word in it.
fn mails(word: &str) -> Vec<String> {
    let files = fs::read_dir(Path::new(SPOOL).join("mail")).unwrap().flatten();
    let texts = files.map(|file| fs::read_to_string(file.path()).unwrap());
    texts.filter(|text| text.contains(word)).collect()
}

impl Drop for Cron {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- mail ---\n{}", mails("").join("\n"));
        }
    }
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The crontab that comes with stead, for this host: its stead has the host's environment, and notes how each pass ended.
fn crontab(host: &Host) -> String {
    let program = host.root.path().join("stead");
    let command = host.stead(&[]);
    let variables = command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    let exports: String = variables.map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let run = format!("'{}' \"$@\"\nended=$?\n", env!("CARGO_BIN_EXE_stead"));
    let note = format!("echo $ended >>{}\nexit $ended\n", host.root.path().join("ended").display());
    script(&program, &(exports + &run + &note));
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/cron/stead");
    let sample = fs::read_to_string(sample).unwrap();
    assert!(sample.contains(" /usr/local/bin/stead reconcile --once\n"));
    sample.replace("/usr/local/bin/stead", &program.display().to_string())
}

/// How cron's passes ended until now.
fn ended(host: &Host) -> Vec<String> {
    let text = fs::read_to_string(host.root.path().join("ended")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn incarnation(host: &Host) -> u64 {
    host.ledger("crashes").and_then(|ledger| ledger["incarnation"].as_u64()).unwrap_or(0)
}

/// Milliseconds since the host was booted.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap()
}

#[test]
fn cron_keeps_vms_as_declared_lets_one_that_crashes_wait_and_mails_only_what_is_news() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: namespaces need root");
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        keeps_vms();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn keeps_vms() {
    // Up to twice as long, since it is spread: over when cron comes again.
    let crashing = Host::new().with_env("STEAD_BACKOFF_INITIAL", "20s");
    let well = Host::new();
    // Not at once: a Firecracker that is asked while its guest ends may hang, and would be another case.
    let crashes = manifest("crashes", Vmm::Firecracker)
        .replace("ctrlaltdel.elf", "exit_after.elf")
        .replace("args: console=ttyS0", "args: \"console=ttyS0 ms=1500\"");
    let ends = || wait_within(A_MINUTE_AND_MORE, "its end", || crashing.processes().is_empty().then_some(()));
    crashing.apply("crashes.yaml", &crashes);
    well.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    let _cron = Cron::start(&[("stead-crashing", crontab(&crashing)), ("stead-well", crontab(&well))]);

    let passes = |count: usize| {
        wait_within(A_MINUTE_AND_MORE, "cron's passes", || {
            let both = [&crashing, &well].map(ended);
            both.iter().all(|ended| ended.len() >= count).then_some(both)
        })
    };
    let [_, of_well] = passes(1);
    assert_eq!(of_well, ["0"]);
    let life = well.running("web");
    wait_within(A_MINUTE_AND_MORE, "its mail", || mails("web: started").pop());

    // The first pass ended before the VM did: the next one finds out, by hand here.
    ends();
    let until = wait_within(A_MINUTE_AND_MORE, "its back-off is on record", || {
        crashing.run(&["reconcile", "--once"]);
        crashing.ledger("crashes")?["backoff"]["until"]["boot_ms"].as_u64()
    });
    assert_eq!(incarnation(&crashing), 1);
    assert_eq!(crashing.run(&["reconcile", "--once"]).status.code(), Some(2));
    // Not before that moment, and then by cron's next pass.
    wait_within(A_MINUTE_AND_MORE, "its second life", || {
        let lives = incarnation(&crashing);
        let now = now();
        assert!(lives == 1 || now >= until, "started {} ms before its time", until - now);
        (lives == 2).then_some(())
    });
    let [of_crashing, of_well] = passes(2);
    assert!(of_crashing.iter().all(|code| code == "0" || code == "2"), "{of_crashing:?}");
    assert_eq!(of_well, ["0", "0"]);
    ends();
    crashing.run(&["reconcile", "--once"]);
    let ledger = crashing.ledger("crashes").unwrap();
    assert_eq!(ledger["restarts"], 1, "{ledger:#}");
    assert_eq!(incarnation(&crashing), 2);
    wait_within(A_MINUTE_AND_MORE, "its mail", || (!mails("crashes: started").is_empty()).then_some(()));

    // The VM that is well was as declared, and cron had nothing to tell.
    assert_eq!(well.life("web"), Some(life));
    let about = mails(&well.root.path().display().to_string());
    assert_eq!(about.len(), 1, "{about:?}");
}
