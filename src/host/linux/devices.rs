//! The devices of the real host: each call goes to the module of its kind.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::{LinuxHost, device_mapper, holders, images, loops};
use crate::host::devices::{
    Cgroup, CgroupFacts, CgroupLimits, Copied, DeviceOps, DeviceView, DmDevice, DmRequest, Holder, ImageIdentity,
    LoopDevice, LoopRequest, TapRemoval, TapsRemoved,
};

impl DeviceView for LinuxHost {
    fn device_mapper(&self) -> Result<(), String> {
        self.count_look();
        device_mapper::usable()
    }

    fn dm_device(&self, name: &str) -> io::Result<Option<DmDevice>> {
        self.count_look();
        device_mapper::one(name)
    }

    fn dm_devices(&self) -> io::Result<Vec<DmDevice>> {
        self.count_look();
        device_mapper::all()
    }

    fn loop_device(&self, device: &str) -> io::Result<Option<LoopDevice>> {
        self.count_look();
        loops::one(device)
    }

    fn loop_devices(&self) -> io::Result<Vec<LoopDevice>> {
        self.count_look();
        loops::all()
    }

    fn holders(&self, device: &str) -> io::Result<Vec<Holder>> {
        self.count_look();
        holders::of_device(device)
    }

    fn tap_holders(&self) -> io::Result<Vec<(String, Holder)>> {
        self.count_look();
        holders::of_taps()
    }

    fn image(&self, path: &Path) -> io::Result<Option<ImageIdentity>> {
        self.count_look();
        images::identify(path)
    }

    fn cgroup_facts(&self) -> Result<CgroupFacts, String> {
        self.count_look();
        self.cgroups.facts()
    }

    fn cgroup(&self, path: &str) -> io::Result<Option<Cgroup>> {
        self.count_look();
        self.cgroups.one(path)
    }

    fn child_cgroups(&self, path: &str) -> io::Result<Vec<String>> {
        self.count_look();
        self.cgroups.children(path)
    }
}

impl DeviceOps for LinuxHost {
    fn attach_loop(&self, request: &LoopRequest) -> io::Result<LoopDevice> {
        loops::attach(request)
    }

    fn detach_loop(&self, device: &str, tag: &str) -> io::Result<bool> {
        loops::detach(device, tag)
    }

    fn create_dm(&self, request: &DmRequest) -> io::Result<DmDevice> {
        device_mapper::create(request)
    }

    fn remove_dm(&self, name: &str, uuid: &str) -> io::Result<bool> {
        device_mapper::remove(name, uuid)
    }

    fn remove_taps(&self, taps: Vec<TapRemoval>, done: TapsRemoved) {
        self.tap_removal.remove(&self.io, taps, done);
    }

    fn make_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<bool> {
        self.cgroups.make(path, limits)
    }

    fn kill_cgroup(&self, path: &str) -> io::Result<bool> {
        self.cgroups.kill(path)
    }

    fn remove_cgroup(&self, path: &str) -> io::Result<bool> {
        self.cgroups.remove(path)
    }

    fn make_sparse_file(&self, path: &Path, bytes: u64) -> io::Result<bool> {
        images::make_sparse(path, bytes)
    }

    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        images::overwrite(path, offset, bytes)
    }

    fn copy_image(
        &self,
        image: &Path,
        expected: &ImageIdentity,
        copy: &Path,
        bytes: u64,
        slice: Duration,
    ) -> io::Result<Copied> {
        images::copy(image, expected, copy, bytes, slice)
    }

    fn rename_durable(&self, from: &Path, to: &Path) -> io::Result<bool> {
        images::rename(from, to)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<bool> {
        images::remove_folder(path)
    }
}
