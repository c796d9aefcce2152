//! `sshd`, by ssh://.

use std::fs;
use std::path::PathBuf;

use crate::bed::{Bed, NAME, done, on_its_own_host, prepared};
use crate::server::Server;

/// A key of this name, with its public half beside it.
fn key(bed: &Bed, name: &str) -> PathBuf {
    let file = bed.path(name);
    if !file.exists() {
        done(bed.command("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&file));
    }
    file
}

fn public(bed: &Bed, name: &str) -> String {
    fs::read_to_string(key(bed, name).with_extension("pub")).unwrap()
}

/// One that proves itself by this key, and lets in who has the key `deploy`.
pub fn ssh_server(bed: &Bed, port: u16, host_key: &str) -> Server {
    fs::write(bed.path("authorized_keys"), public(bed, "deploy")).unwrap();
    let mut config = format!(
        "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n",
        key(bed, host_key).display(),
        bed.path("authorized_keys").display()
    );
    // Later releases are in parts, and look for them where they would be installed.
    for (setting, name) in [("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")] {
        let program = prepared("servers/usr/lib/openssh").join(name);
        if program.exists() {
            config += &format!("{setting} {}\n", program.display());
        }
    }
    let file = bed.path("sshd_config");
    fs::write(&file, config).unwrap();
    let mut command = bed.server(prepared("servers/usr/sbin/sshd"));
    command.env("LD_LIBRARY_PATH", prepared("servers/usr/lib/x86_64-linux-gnu"));
    command.args(["-i", "-e", "-f"]).arg(file);
    Server::of(port, command)
}

/// Has the user trust a server with this key.
pub fn trust(bed: &Bed, host_key: &str) {
    let trusted = public(bed, host_key);
    fs::write(bed.home().join(".ssh/known_hosts"), format!("{NAME},[{NAME}]:2222 {trusted}")).unwrap();
}

/// What follows with this key.
pub fn follow_by_ssh(bed: &Bed, port: u16, key_name: &str, more: &str) {
    let url = format!("ssh://root@{NAME}:{port}{}", bed.origin().display());
    bed.follow(&url, &format!(", sshKey: {}{more}", key(bed, key_name).display()));
}

#[test]
fn a_repository_behind_ssh_is_followed_and_stays_as_it_was_whatever_goes_wrong() {
    on_its_own_host(|bed| {
        trust(bed, "host");
        let server = ssh_server(bed, 22, "host");
        follow_by_ssh(bed, 22, "deploy", "");
        bed.follows(&bed.push("web"));
        bed.follow(
            &format!("root@{NAME}:{}", bed.origin().display()),
            &format!(", sshKey: {}", key(bed, "deploy").display()),
        );
        bed.follows(&bed.push("db"));

        follow_by_ssh(bed, 22, "stranger", "");
        bed.stays_since("FetchFailed", "Permission denied");
        bed.follow(
            &format!("ssh://root@{NAME}{}", bed.origin().display()),
            &format!(", sshKey: {}", bed.path("no-such-key").display()),
        );
        bed.stays("FetchFailed");
        // A key that asks for the words that it is locked with.
        let locked = key(bed, "locked");
        done(bed.command("ssh-keygen").args(["-q", "-p", "-N", "secret words", "-f"]).arg(&locked));
        follow_by_ssh(bed, 22, "locked", "");
        bed.stays_since("FetchFailed", "Permission denied");
        bed.follow(
            &format!("ssh://root@gone.example{}", bed.origin().display()),
            &format!(", sshKey: {}", key(bed, "deploy").display()),
        );
        bed.stays_since("FetchFailed", "gone.example");

        follow_by_ssh(bed, 22, "deploy", "");
        drop(server);
        bed.stays_since("FetchFailed", "Connection refused");
        let silent = Server::silent(22);
        follow_by_ssh(bed, 22, "deploy", ", timeout: 1s");
        bed.stays("TimedOut");
        drop(silent);
        let _server = ssh_server(bed, 22, "host");
        follow_by_ssh(bed, 22, "deploy", "");
        bed.follows(&bed.push("cache"));
    });
}

#[test]
fn a_host_whose_key_is_not_known_or_is_another_one_is_not_spoken_to() {
    on_its_own_host(|bed| {
        trust(bed, "host");
        let server = ssh_server(bed, 22, "host");
        follow_by_ssh(bed, 22, "deploy", "");
        bed.follows(&bed.push("web"));
        let commit = bed.push("db");
        let known = bed.home().join(".ssh/known_hosts");
        fs::remove_file(&known).unwrap();
        bed.stays_since("FetchFailed", "Host key verification failed");
        assert!(!known.exists(), "nobody said that it may be trusted");
        trust(bed, "host");
        drop(server);
        let server = ssh_server(bed, 22, "another");
        bed.stays_since("FetchFailed", "Host key verification failed");
        drop(server);
        let _server = ssh_server(bed, 22, "host");
        bed.follows(&commit);
    });
}

#[test]
fn an_ssh_server_that_hangs_in_the_middle_of_a_pack_is_not_waited_for() {
    on_its_own_host(|bed| {
        trust(bed, "host");
        let _server = ssh_server(bed, 22, "host");
        bed.is_not_held_up_in_a_pack(22, 2222, "3s", |port, more| follow_by_ssh(bed, port, "deploy", more));
    });
}
