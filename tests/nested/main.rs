//! Tests in a nested host: a machine emulated by QEMU whose Linux has what a test machine may lack, such as device-mapper, a
//! KVM that runs Linux guests, and cgroup v2; and whose power can be cut.
//!
//! This binary runs on both sides. Outside it is a test harness: each function in `inside::TESTS` is a test of its own,
//! which starts a fresh host, has this same binary run that function inside, and passes if the last word from there is
//! that it did. The functions in `outside::TESTS` handle their machines themselves, to cut their power, and run
//! `inside::JOBS` in them.
//!
//! Each test has machines and disks of its own, waits with a bound, and leaves nothing behind, also when it fails.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

#[path = "../differential/mod.rs"]
mod differential;
mod inside;
mod machine;
#[path = "../vmm/mortal.rs"]
mod mortal;
mod outside;
#[path = "../prepared/mod.rs"]
mod prepared;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test or a job: its name is the function's.
type Named = (&'static str, fn());

/// A table of functions, each by its own name.
macro_rules! named {
    ($($module:ident :: $name:ident),* $(,)?) => { &[$((stringify!($name), $module::$name)),*] };
}
use named;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|first| first == "--inside") {
        return inside::main(&args[2..]);
    }
    let mut arguments = Arguments::from_args();
    // Each nested host takes a core for itself.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    // A test fails by panicking, here as everywhere.
    let trial = |name: &'static str, test: Box<dyn FnOnce() + Send>| {
        Trial::test(name, || {
            test();
            Ok(())
        })
    };
    let inside = inside::TESTS.iter().map(|(name, _)| trial(name, Box::new(|| outside::run_inside(name))));
    let outside = outside::TESTS.iter().map(|(name, test)| trial(name, Box::new(test)));
    libtest_mimic::run(&arguments, inside.chain(outside).collect()).exit_code()
}
