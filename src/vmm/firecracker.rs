//! Firecracker: its `--config-file`, its arguments, its API's requests and replies.
//!
//! Sources: `docs/getting-started.md` and `src/firecracker/swagger/firecracker.yaml` of Firecracker; tried on 1.12.1.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Value, json};

use super::DiskSource;
use crate::host::{GuestState, VmmCommand, VmmError};
use crate::spec::VmSpec;
use crate::state::TapHandle;

/// The arguments. Configuring and booting are one effect: nobody can leave a half-configured VM behind.
///
/// There is no `--log-path`: Firecracker opens that file without `O_APPEND`, so that a second life would overwrite the
/// first one's words and trimming would leave holes. At level Error it says nothing while the guest runs; why it ended
/// goes to its standard output, after the guest's last words, and to its standard error.
pub fn arguments(id: &str, api_socket: &Path, config_file: &Path) -> Vec<OsString> {
    vec![
        "--id".into(),
        id.into(),
        "--api-sock".into(),
        api_socket.into(),
        "--config-file".into(),
        config_file.into(),
        "--level".into(),
        "Error".into(),
    ]
}

/// The content of the configuration file.
pub fn config(spec: &VmSpec, disks: &[DiskSource], taps: &[TapHandle]) -> Vec<u8> {
    let mut boot = json!({
        "kernel_image_path": spec.boot.kernel,
        "boot_args": super::kernel_command_line(spec),
    });
    if let Some(initrd) = &spec.boot.initrd {
        boot["initrd_path"] = json!(initrd);
    }
    let drives: Vec<Value> = spec
        .disks
        .iter()
        .zip(disks)
        .map(|(disk, source)| {
            json!({
                // Letters, digits and '_' only.
                "drive_id": disk.name.as_str().replace('-', "_"),
                "path_on_host": source.path(),
                // See `kernel_command_line`.
                "is_root_device": false,
                "is_read_only": disk.read_only,
                // A flush of the guest's reaches the disk: Firecracker's default ("Unsafe") drops it.
                "cache_type": "Writeback",
            })
        })
        .collect();
    let interfaces: Vec<Value> = spec
        .network_interfaces
        .iter()
        .zip(taps)
        .map(|(interface, tap)| {
            json!({
                "iface_id": interface.name.as_str().replace('-', "_"),
                "host_dev_name": tap.tap,
                "guest_mac": super::mac_address(interface, tap).to_string(),
            })
        })
        .collect();
    let config = json!({
        "boot-source": boot,
        // Required, also when there are none.
        "drives": drives,
        "machine-config": {"vcpu_count": spec.cpus, "mem_size_mib": spec.memory_mib},
        "network-interfaces": interfaces,
    });
    let mut bytes = serde_json::to_vec_pretty(&config).expect("a JSON value has only text keys");
    bytes.push(b'\n');
    bytes
}

/// A request of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The HTTP method.
    pub method: &'static str,
    /// The path.
    pub path: &'static str,
    /// The JSON body; empty for none.
    pub body: &'static str,
}

/// Asks what the guest is doing.
pub const QUERY: Request = Request { method: "GET", path: "/", body: "" };

/// The request that carries out a command.
pub fn request(command: VmmCommand) -> Request {
    match command {
        VmmCommand::Shutdown => {
            Request { method: "PUT", path: "/actions", body: r#"{"action_type":"SendCtrlAltDel"}"# }
        }
        VmmCommand::Pause => Request { method: "PATCH", path: "/vm", body: r#"{"state":"Paused"}"# },
        VmmCommand::Resume => Request { method: "PATCH", path: "/vm", body: r#"{"state":"Resumed"}"# },
    }
}

/// Reads the reply to [`QUERY`].
pub fn read_state(status: u16, body: &[u8]) -> Result<GuestState, VmmError> {
    read_done(status, body)?;
    let value: Value = serde_json::from_slice(body).map_err(|error| VmmError::Nonsense(error.to_string()))?;
    match value.get("state").and_then(Value::as_str) {
        Some("Running") => Ok(GuestState::Running),
        Some("Paused") => Ok(GuestState::Paused),
        Some("Not started") => Ok(GuestState::NotStarted),
        Some(other) => Err(VmmError::Nonsense(format!("state `{other:.80}`"))),
        None => Err(VmmError::Nonsense("no field `state`".to_owned())),
    }
}

/// Reads the reply to a command.
pub fn read_done(status: u16, body: &[u8]) -> Result<(), VmmError> {
    match status {
        200..=299 => Ok(()),
        // It serves ten connections.
        503 => Err(VmmError::Busy),
        _ => {
            let value: Option<Value> = serde_json::from_slice(body).ok();
            let fault = value.as_ref().and_then(|value| value.get("fault_message")).and_then(Value::as_str);
            let said = fault.map_or_else(|| String::from_utf8_lossy(body).trim().to_owned(), str::to_owned);
            Err(VmmError::Refused(format!("{said:.400} (HTTP status {status})")))
        }
    }
}

/// The version in what `firecracker --version` prints: `Firecracker v1.12.1`.
pub fn read_version(output: &str) -> Option<String> {
    let version = output.lines().next()?.strip_prefix("Firecracker v")?.split_ascii_whitespace().next()?;
    Some(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::tests::{disk, interface, sources, spec};

    fn read(spec: &VmSpec, taps: &[TapHandle]) -> Value {
        serde_json::from_slice(&config(spec, &sources(spec), taps)).unwrap()
    }

    #[test]
    fn a_vm_without_disks_still_has_a_list_of_drives() {
        let config = read(&spec(), &[]);
        assert_eq!(config["drives"], json!([]));
        assert_eq!(config["machine-config"], json!({"vcpu_count": 2, "mem_size_mib": 128}));
        assert_eq!(config["boot-source"], json!({"kernel_image_path": "/k/vmlinux", "boot_args": "console=ttyS0"}));
    }

    #[test]
    fn disks_keep_their_order_and_ids_have_no_dashes() {
        let mut spec = spec();
        spec.disks = vec![disk("my-data", "/d,1.img", true), disk("root", "/r.img", false)];
        let (eth, tap) = interface("eth-0", "st0", Some("06:00:00:00:00:01"));
        spec.network_interfaces = vec![eth];
        let config = read(&spec, &[tap]);
        assert_eq!(config["drives"][0]["drive_id"], "my_data");
        assert_eq!(config["drives"][0]["path_on_host"], "/d,1.img");
        assert_eq!(config["drives"][0]["is_read_only"], true);
        assert_eq!(config["drives"][1]["is_root_device"], false);
        assert_eq!(config["boot-source"]["boot_args"], "console=ttyS0 root=/dev/vdb rw");
        let nic = json!({"iface_id": "eth_0", "host_dev_name": "st0", "guest_mac": "06:00:00:00:00:01"});
        assert_eq!(config["network-interfaces"], json!([nic]));
    }

    #[test]
    fn every_reply_has_one_meaning() {
        let running = br#"{"app_name":"Firecracker","id":"x","state":"Running","vmm_version":"1.12.1"}"#;
        assert_eq!(read_state(200, running), Ok(GuestState::Running));
        assert_eq!(read_state(200, br#"{"state":"Paused"}"#), Ok(GuestState::Paused));
        assert_eq!(read_state(200, br#"{"state":"Not started"}"#), Ok(GuestState::NotStarted));
        assert!(matches!(read_state(200, b"<html>"), Err(VmmError::Nonsense(_))));
        assert!(matches!(read_state(200, br#"{"state":"Dreaming"}"#), Err(VmmError::Nonsense(_))));
        assert_eq!(read_state(503, b""), Err(VmmError::Busy));
        assert_eq!(read_done(204, b""), Ok(()));
        let long = format!(r#"{{"fault_message":"{}"}}"#, "x".repeat(1 << 20));
        assert!(read_done(400, long.as_bytes()).unwrap_err().to_string().len() < 500);
        let refused = read_done(400, br#"{"fault_message":"not now"}"#);
        assert_eq!(refused, Err(VmmError::Refused("not now (HTTP status 400)".to_owned())));
    }

    #[test]
    fn the_version_is_read_from_the_first_line() {
        assert_eq!(read_version("Firecracker v1.12.1\n\n2026 exiting"), Some("1.12.1".to_owned()));
        assert_eq!(read_version("Firecracker v1.14.0-dev\n"), Some("1.14.0-dev".to_owned()));
        assert_eq!(read_version("something else"), None);
    }
}
