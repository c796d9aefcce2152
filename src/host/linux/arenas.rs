//! What the C library's allocator keeps for threads.

/// As many arenas as threads find a free one in nearly always: turns are short, and allocate little.
#[cfg(target_env = "gnu")]
const ARENAS: nix::libc::c_int = 2;

/// Has all threads share a few arenas. glibc gives each new thread one of its own, up to eight for each CPU, and every one keeps
/// what its threads let go of (mallopt(3)): of a stead with 300 VMs that was a quarter of what it holds beside its program.
pub(super) fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and may be called at any time.
    unsafe {
        // It refuses nothing but a number below zero.
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives whole pages that hold nothing back to the kernel, also those between others that do (malloc_trim(3)): by itself glibc
/// gives back only the end of a heap.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and may be called at any time from any thread.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
