//! Git sources on real servers: `git daemon`, a web server with TLS, `sshd`; and what goes wrong with each of them.
//!
//! Each test is on a host of its own: network, mounts and the user's home are nobody else's. `stead` has a terminal on which
//! nobody ever answers.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what users and servers do")]

mod bed;
mod daemon;
mod https;
mod killed;
mod large;
mod server;
mod ssh;
