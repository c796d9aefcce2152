//! Taps and bridges, in network namespaces of the tests' own.

use std::process::Command;

use crate::bed::{Host, Vmm, bed, manifest, wait};

/// A host in a network namespace of its own with a bridge `br0`: everything `stead` starts is in it too.
pub struct Net {
    pub host: Host,
    namespace: String,
}

impl Net {
    pub fn new() -> Self {
        let host = Host::new();
        let namespace =
            format!("stead-{}", host.root.path().file_name().unwrap().to_string_lossy().trim_start_matches('.'));
        let net = Self { host, namespace };
        run("ip", &["netns", "add", &net.namespace]);
        net.ip(&["link", "add", "br0", "type", "bridge"]);
        net.ip(&["link", "set", "br0", "up"]);
        net
    }

    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.host.set_env(name, value);
        self
    }

    fn ip(&self, args: &[&str]) -> String {
        run("ip", &[&["-n", &self.namespace], args].concat())
    }

    /// `stead` inside the namespace, run to its end.
    pub fn stead(&self, args: &[&str]) -> std::process::Output {
        self.command(args).output().unwrap()
    }

    /// `stead` inside the namespace.
    pub fn command(&self, args: &[&str]) -> Command {
        let plain = self.host.stead(args);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(plain.get_program()).args(plain.get_args());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    #[track_caller]
    pub fn once(&self, expected: i32) -> String {
        let output = self.stead(&["reconcile", "--once"]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(expected), "{text}");
        text
    }

    fn tap(&self) -> String {
        self.host.handles("web").unwrap()["tap_devices"][0]["tap"].as_str().unwrap().to_owned()
    }

    /// The taps there are, whoever's.
    pub fn taps(&self) -> String {
        self.ip(&["tuntap", "show"])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Its taps and its bridge go with it.
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn with_tap(vmm: Vmm) -> String {
    format!("{}  networkInterfaces: [{{name: eth0, bridge: br0}}]\n", manifest("web", vmm))
}

#[test]
fn a_vms_tap_comes_with_it_and_goes_with_it() {
    for vmm in [Vmm::Firecracker, Vmm::Qemu] {
        let net = Net::new();
        net.host.apply("web.yaml", &with_tap(vmm));
        net.once(0);
        let life = net.host.running("web");
        let tap = net.tap();
        let shown = net.ip(&["-d", "link", "show", "dev", &tap]);
        assert!(shown.contains("master br0") && shown.contains("alias stead:"), "{shown}");
        net.host.remove("web.yaml");
        net.once(0);
        net.host.gone("web", &life);
        assert_eq!(net.taps(), "");
    }
}

#[test]
fn a_killed_vms_tap_is_freed_before_the_next_one_is_made() {
    let net = Net::new();
    net.host.apply("web.yaml", &with_tap(Vmm::Firecracker));
    net.once(0);
    let life = net.host.running("web");
    let before = net.ip(&["-o", "link", "show", "dev", &net.tap()]);
    crate::bed::signal(life.pid, rustix::process::Signal::KILL);
    wait("a second life", || {
        net.stead(&["reconcile", "--once"]);
        net.host.life("web").filter(|life| life.incarnation == 2)
    });
    let after = net.ip(&["-o", "link", "show", "dev", &net.tap()]);
    assert_ne!(before.split(':').next(), after.split(':').next(), "a new interface, not the stale one");
    assert_eq!(net.taps().lines().count(), 1);
}

#[test]
fn a_tap_that_drifted_off_its_bridge_is_put_back_without_touching_the_vm() {
    let net = Net::new();
    net.host.apply("web.yaml", &with_tap(Vmm::Firecracker));
    net.once(0);
    let life = net.host.running("web");
    net.ip(&["link", "set", &net.tap(), "nomaster"]);
    net.once(0);
    assert!(net.ip(&["link", "show", "dev", &net.tap()]).contains("master br0"));
    // Another bridge in the manifest is taken up live, too.
    net.ip(&["link", "add", "br1", "type", "bridge"]);
    net.host.apply("web.yaml", &with_tap(Vmm::Firecracker).replace("bridge: br0", "bridge: br1"));
    net.once(0);
    assert!(net.ip(&["link", "show", "dev", &net.tap()]).contains("master br1"));
    assert_eq!(net.host.running("web"), life);
}

#[test]
fn a_tap_name_taken_by_another_is_left_alone_and_told() {
    let net = Net::new();
    net.host.apply("web.yaml", &with_tap(Vmm::Firecracker));
    net.once(0);
    let life = net.host.running("web");
    let tap = net.tap();
    net.host.remove("web.yaml");
    net.once(0);
    net.host.gone("web", &life);
    net.ip(&["tuntap", "add", "dev", &tap, "mode", "tap"]);
    net.host.apply("web.yaml", &with_tap(Vmm::Firecracker));
    let said = net.once(2);
    assert!(said.contains(&format!("tap {tap}")) && said.contains("is not this VM's"), "{said}");
    net.host.remove("web.yaml");
    net.once(0);
    assert!(net.taps().contains(&tap), "another's tap is never removed");
}

#[test]
fn a_missing_bridge_is_named_and_leaves_no_tap() {
    let net = Net::new();
    net.host.apply("web.yaml", &with_tap(Vmm::Firecracker).replace("br0", "br7"));
    let said = net.once(2);
    assert!(said.contains("br7"), "{said}");
    assert_eq!(net.taps(), "");
}

#[test]
fn the_sample_with_a_disk_and_a_bridge_runs_as_it_is() {
    let net = Net::new();
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/web.yaml")).unwrap();
    let images = bed("images");
    // The image is written to: this test has one of its own.
    let data = net.host.root.path().join("data.img");
    std::fs::copy(images.join("data.img"), &data).unwrap();
    let text = text.replace("/var/lib/stead/images/data.img", &data.display().to_string());
    net.host.apply("web.yaml", &text.replace("/var/lib/stead/images", &images.display().to_string()));
    net.once(0);
    net.host.running("web");
    net.host.console_shows("web", "GUEST DISK vda");
    net.host.console_shows("web", "GUEST NIC eth0 06:00:00:00:00:01");
    // It is protected: its manifest may go, and it stays.
    let life = net.host.running("web");
    net.host.remove("web.yaml");
    net.once(0);
    assert_eq!(net.host.running("web"), life);
    assert_eq!(net.stead(&["delete", "web"]).status.code(), Some(0));
    net.host.gone("web", &life);
    assert_eq!(net.taps(), "");
}
