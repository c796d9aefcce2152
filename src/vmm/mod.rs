//! VMMs: from a spec to a command line and a configuration. Builds and parses, does no IO.

/// QEMU (stub).
pub mod qemu {
    /// How QEMU virtualises.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Accel {
        Auto,
        Kvm,
        Tcg,
    }
}
/// Input.
pub struct LaunchInput<'a> {
    pub spec: &'a crate::spec::VmSpec,
    pub kind: crate::spec::VmmKind,
    pub id: String,
    pub api_socket: &'a std::path::Path,
    pub identity_socket: Option<&'a std::path::Path>,
    pub config_file: &'a std::path::Path,
    pub console_log: &'a std::path::Path,
    pub vmm_log: &'a std::path::Path,
    pub taps: &'a [crate::state::TapHandle],
    pub accel: qemu::Accel,
    pub kvm_usable: bool,
}
/// Output.
pub struct Launch {
    pub args: Vec<std::ffi::OsString>,
    pub config: Option<Vec<u8>>,
    pub stdout: std::path::PathBuf,
}
/// Launch.
pub fn launch(_: &LaunchInput<'_>) -> Launch {
    todo!()
}
