//! `git daemon`, by git://.

use crate::bed::{Bed, NAME, on_its_own_host};
use crate::server::Server;

/// Where git looks for it.
const PORT: u16 = 9418;

pub fn git_daemon(bed: &Bed, port: u16) -> Server {
    let mut command = bed.server("git");
    command.args(["daemon", "--inetd", "--export-all"]).arg(format!("--base-path={}", bed.path("").display()));
    Server::of(port, command)
}

#[test]
fn a_repository_of_git_daemon_is_followed_and_stays_as_it_was_whatever_goes_wrong() {
    on_its_own_host(|bed| {
        let url = format!("git://{NAME}/fleet.git");
        bed.follow(&url, "");
        let server = git_daemon(bed, PORT);
        bed.follows(&bed.push("web"));
        bed.follows(&bed.push("db"));

        bed.follow(&format!("git://{NAME}/other.git"), "");
        bed.stays("FetchFailed");
        // No name but the servers' is known, and nobody is there to be asked for one.
        bed.follow("git://gone.example/fleet.git", "");
        bed.stays_since("FetchFailed", "gone.example");
        bed.follow(&url, "");
        drop(server);
        bed.stays_since("FetchFailed", "Connection refused");
        let server = git_daemon(bed, PORT);
        bed.follows(&bed.push("cache"));
        drop(server);

        let silent = Server::silent(PORT);
        bed.follow(&url, ", timeout: 1s");
        bed.stays("TimedOut");
        drop(silent);
        let _server = git_daemon(bed, PORT);
        bed.follows(&bed.push("queue"));
    });
}

#[test]
fn a_server_that_hangs_in_the_middle_of_a_pack_is_not_waited_for_and_leaves_nothing_behind() {
    on_its_own_host(|bed| {
        let _server = git_daemon(bed, PORT);
        bed.is_not_held_up_in_a_pack(PORT, 9419, "2s", |port, more| {
            bed.follow(&format!("git://{NAME}:{port}/fleet.git"), more);
        });
    });
}
