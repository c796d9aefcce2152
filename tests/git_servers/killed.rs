//! git, when the stead that runs it is no more.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::bed::{Bed, NAME, on_its_own_host, wait};
use crate::daemon::git_daemon;
use crate::https::{trusted, web_server};
use crate::server::Server;
use crate::ssh::{follow_by_ssh, ssh_server, trust};

/// Every process that this one and its children have started, and their names.
fn descendants(pid: u32) -> Vec<(u32, String)> {
    let mut found: Vec<(u32, String)> = Vec::new();
    let mut asked = vec![pid];
    while let Some(pid) = asked.pop() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace().map(|child| child.parse().unwrap()) {
                let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
                found.push((child, name.trim().to_owned()));
                asked.push(child);
            }
        }
    }
    found
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

/// Starts this command of stead, ends it by this signal while this server lets it wait, and waits until nothing is left of all
/// that it had started, this program too.
fn ends_with_all_that_it_started(bed: &Bed, command: &[&str], signal: Signal, server: &Server, program: &str) {
    let before = server.hanging();
    let mut stead = bed.stead(command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let family = wait(&format!("{program} waits for the server"), || {
        let family = descendants(stead.id());
        let waits = server.hanging() > before && family.iter().any(|(_, name)| name == program);
        waits.then_some(family)
    });
    let pid = rustix::process::Pid::from_child(&stead);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(pidfd, signal).unwrap();
    wait("its end", || stead.try_wait().unwrap());
    wait(&format!("the end of {family:?}"), || family.iter().all(|(pid, _)| !is_alive(*pid)).then_some(()));
}

#[test]
fn git_and_all_that_it_started_end_with_a_stead_that_ends_while_a_server_is_silent() {
    on_its_own_host(|bed| {
        drop(trusted(bed, 443));
        trust(bed, "host");
        bed.follow(&format!("git://{NAME}/fleet.git"), ", timeout: 50s");
        ends_while_silent(bed, 9418, "git", || git_daemon(bed, 9418));
        bed.follow(&format!("https://{NAME}/git/fleet.git"), ", timeout: 50s");
        ends_while_silent(bed, 443, "git-remote-http", || web_server(bed, 443, "certificate"));
        follow_by_ssh(bed, 22, "deploy", ", timeout: 50s");
        ends_while_silent(bed, 22, "ssh", || ssh_server(bed, 22, "host"));
    });
}

/// Ends stead in three ways while it asks a server on this port that says nothing, by this program.
fn ends_while_silent(bed: &Bed, port: u16, program: &str, serve: impl Fn() -> Server) {
    let server = serve();
    bed.follows(&bed.push(&format!("by-{port}")));
    drop(server);
    let commit = bed.push(&format!("later-{port}"));
    let silent = Server::silent(port);
    ends_with_all_that_it_started(bed, &["sync"], Signal::KILL, &silent, program);
    // A daemon that is told to stop, and somebody at a terminal who has waited long enough.
    ends_with_all_that_it_started(bed, &["run"], Signal::TERM, &silent, program);
    ends_with_all_that_it_started(bed, &["reconcile", "--once"], Signal::INT, &silent, program);
    drop(silent);
    let _server = serve();
    bed.follows(&commit);
    assert_eq!(bed.left_behind(), [""; 0]);
}

#[test]
fn a_stead_that_is_killed_in_the_middle_of_a_pack_leaves_the_next_one_nothing_to_stumble_over() {
    on_its_own_host(|bed| {
        let _server = git_daemon(bed, 9418);
        bed.follow(&format!("git://{NAME}/fleet.git"), "");
        bed.follows(&bed.push("web"));
        let commit = bed.push_noise(1 << 20, "something larger");
        let stalls = Server::stalling(9419, 9418, 300 << 10);
        bed.follow(&format!("git://{NAME}:9419/fleet.git"), ", timeout: 50s");
        ends_with_all_that_it_started(bed, &["sync"], Signal::KILL, &stalls, "git");
        bed.follow(&format!("git://{NAME}/fleet.git"), "");
        bed.follows(&commit);
        assert_eq!(bed.left_behind(), [""; 0]);
    });
}
