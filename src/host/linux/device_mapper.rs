//! Device-mapper by its ioctls (`linux/dm-ioctl.h`), through the crate of the Stratis project.
//!
//! Two requests are made here and not by that crate: the one that brings a table to life and the one that removes a device.
//! Where udev runs, the crate waits after these without a bound until udev's rules have told it that they are done; on a
//! host whose udev has no such rules, or runs in another IPC namespace, that is for ever. And it retries a removal that is
//! refused for 0.8 s, where stead looks again when there is reason to.
//!
//! Each removal is by uuid: the name is looked up first, but it is the owner tag that the kernel goes by.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use devicemapper::errors::Error as CoreError;
use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUdevFlags, DmUuid};
use devicemapper_sys::{
    DM_DEV_REMOVE_CMD, DM_DEV_SUSPEND_CMD, DM_GET_TARGET_VERSION_CMD, DM_IOCTL, DM_UDEV_FLAGS_SHIFT, dm_ioctl,
};
use nix::errno::Errno;
use nix::libc;

use super::holders;
use crate::host::devices::{DmDevice, DmRequest, DmTarget};

const CONTROL: &str = "/dev/mapper/control";

/// How long a new device's file may take to appear. Where `/dev` is the kernel's own it is there at once.
const NODE_PATIENCE: Duration = Duration::from_millis(200);
/// How long what was made may stay in use by whoever looks at every new device, when it is unmade after a failure.
const UNDO_PATIENCE: Duration = Duration::from_millis(200);

/// What udev's rules are told of our devices: `/dev/mapper/NAME` may lead to them, for people to look at, but what is on them
/// is the VM's: nobody is to open them to probe for filesystems, volumes or arrays, or make a systemd unit of them.
const UDEV: DmUdevFlags = DmUdevFlags::DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
    .union(DmUdevFlags::DM_UDEV_DISABLE_DISK_RULES_FLAG)
    .union(DmUdevFlags::DM_UDEV_DISABLE_OTHER_RULES_FLAG)
    // Without this the rules take the event for one that somebody made by hand, and heed what they know from before.
    .union(DmUdevFlags::DM_UDEV_PRIMARY_SOURCE_FLAG);

nix::ioctl_readwrite!(
    /// `DM_DEV_SUSPEND`, which without `DM_SUSPEND_FLAG` resumes: the table that was loaded comes to life.
    dm_dev_suspend,
    DM_IOCTL,
    DM_DEV_SUSPEND_CMD,
    dm_ioctl
);
nix::ioctl_readwrite!(
    /// `DM_DEV_REMOVE`: at once, unless it is open.
    dm_dev_remove,
    DM_IOCTL,
    DM_DEV_REMOVE_CMD,
    dm_ioctl
);
nix::ioctl_readwrite!(
    /// `DM_GET_TARGET_VERSION` (Linux 5.5): whether there is such a target; its module is loaded if need be.
    dm_get_target_version,
    DM_IOCTL,
    DM_GET_TARGET_VERSION_CMD,
    dm_ioctl
);

/// Why there is no device-mapper, or not what stead needs of it.
pub(super) fn usable() -> Result<(), String> {
    let dm = context().map_err(|error| error.to_string())?;
    if has_target(dm, "snapshot") { Ok(()) } else { Err(no_target("snapshot")) }
}

/// The device of this name.
pub(super) fn one(name: &str) -> io::Result<Option<DmDevice>> {
    let id = dm_name(name)?;
    let Some(dm) = if_any()? else { return Ok(None) };
    status(dm, &DevId::Name(id))
}

/// Every device, by name.
pub(super) fn all() -> io::Result<Vec<DmDevice>> {
    let Some(dm) = if_any()? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (name, ..) in dm.list_devices().map_err(|error| explain("the list of devices", &error))? {
        // One that vanished since is not there.
        found.extend(status(dm, &DevId::Name(&name))?);
    }
    found.sort_unstable_by(|a: &DmDevice, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Makes a device; what a failure leaves is removed again.
pub(super) fn create(request: &DmRequest) -> io::Result<DmDevice> {
    let (name, uuid) = (dm_name(&request.name)?, dm_uuid(&request.uuid)?);
    let dm = context()?;
    let flags = if request.read_only { DmFlags::DM_READONLY } else { DmFlags::empty() };
    let options = DmOptions::default().set_flags(flags);
    match dm.device_create(name, Some(uuid), options) {
        Ok(_) => {}
        Err(error) if errno_of(&error) == Some(Errno::EBUSY) => {
            let text = format!("there is a device-mapper device named {}, or with its uuid", request.name);
            return Err(super::error(io::ErrorKind::AlreadyExists, text));
        }
        Err(error) => return Err(explain(&request.name, &error)),
    }
    bring_up(dm, request, uuid, options).map_err(|error| match undo(dm, uuid) {
        Ok(()) => error,
        Err(left) => {
            let text = format!("{error}; and {} could not be removed again: {left}", request.name);
            super::error(error.kind(), text)
        }
    })
}

/// Removes a device that carries this uuid, and confirms that it is gone; true when it was there.
pub(super) fn remove(name: &str, uuid: &str) -> io::Result<bool> {
    let (dm_name, uuid) = (dm_name(name)?, dm_uuid(uuid)?);
    let Some(dm) = if_any()? else { return Ok(false) };
    let Some(found) = status(dm, &DevId::Name(dm_name))? else { return Ok(false) };
    if found.uuid.as_bytes() != uuid.as_bytes() {
        let whose = if found.uuid.is_empty() { "no uuid".to_owned() } else { format!("the uuid {:?}", found.uuid) };
        let text = format!("device-mapper device {name} carries {whose}: it is not this VM's");
        return Err(super::error(io::ErrorKind::PermissionDenied, text));
    }
    if found.open_count > 0 {
        return Err(busy(&found));
    }
    match request(dm, uuid, dm_dev_remove) {
        Ok(()) => {}
        Err(Errno::ENXIO) => return Ok(false),
        // Opened since it was looked at.
        Err(Errno::EBUSY) => return Err(busy(&found)),
        Err(errno) => return Err(refused(name, errno)),
    }
    if status(dm, &DevId::Uuid(uuid))?.is_some() {
        let text = format!("device-mapper device {name} was removed, and is still there");
        return Err(super::error(io::ErrorKind::ResourceBusy, text));
    }
    Ok(true)
}

/// Loads the table of a device that was just made, and brings it to life.
fn bring_up(dm: &DM, asked: &DmRequest, uuid: &DmUuid, options: DmOptions) -> io::Result<DmDevice> {
    let name = &asked.name;
    let row = |target: &DmTarget| {
        // The crate panics beyond the room that the kernel has for it.
        if target.kind.len() >= TARGET_TYPE_SIZE {
            let text = format!("{:?} is no target of device-mapper", target.kind);
            return Err(super::error(io::ErrorKind::InvalidInput, text));
        }
        Ok((target.start, target.length, target.kind.to_owned(), target.parameters.clone()))
    };
    let table = asked.table.iter().map(row).collect::<io::Result<Vec<_>>>()?;
    dm.table_load(&DevId::Uuid(uuid), &table, options).map_err(|error| {
        let missing = asked.table.iter().find(|target| !has_target(dm, target.kind));
        match (missing, errno_of(&error)) {
            (Some(target), _) => super::error(io::ErrorKind::Unsupported, no_target(target.kind)),
            (None, Some(errno)) => {
                let table: Vec<String> =
                    table.iter().map(|(start, length, kind, rest)| format!("{start} {length} {kind} {rest}")).collect();
                let text = format!("the kernel refuses the table of {name}, {table:?}: {errno}; its log may say why");
                super::error(io::Error::from(errno).kind(), text)
            }
            (None, None) => explain(name, &error),
        }
    })?;
    request(dm, uuid, dm_dev_suspend).map_err(|errno| refused(name, errno))?;
    let info = dm.device_info(&DevId::Uuid(uuid)).map_err(|error| explain(name, &error))?;
    wait_for_node(&info)?;
    status(dm, &DevId::Uuid(uuid))?.ok_or_else(|| {
        super::error(io::ErrorKind::NotFound, format!("{name} was removed by somebody else as it was made"))
    })
}

/// `DM_MAX_TYPE_NAME`.
const TARGET_TYPE_SIZE: usize = 16;

/// Waits until the device can be opened by its file.
fn wait_for_node(info: &DeviceInfo) -> io::Result<()> {
    let device = info.device();
    let path = PathBuf::from(format!("/dev/{}", kernel_name(info)));
    let start = Instant::now();
    loop {
        let found = fs::metadata(&path);
        let is_it = |metadata: &fs::Metadata| {
            metadata.file_type().is_block_device() && metadata.rdev() == libc::makedev(device.major, device.minor)
        };
        match found {
            Ok(metadata) if is_it(&metadata) => return Ok(()),
            _ if start.elapsed() < NODE_PATIENCE => std::thread::sleep(Duration::from_millis(1)),
            found => {
                let what = if found.is_ok() { "is another device's file" } else { "does not appear" };
                let text = format!(
                    "{} {what}: this /dev is neither the kernel's own (devtmpfs) nor kept by udev; in a container, give it \
                     the host's /dev",
                    path.display()
                );
                return Err(super::error(io::ErrorKind::NotFound, text));
            }
        }
    }
}

/// Removes what [`create`] made. Nobody but those who look at every new device can have it open.
fn undo(dm: &DM, uuid: &DmUuid) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match request(dm, uuid, dm_dev_remove) {
            Ok(()) | Err(Errno::ENXIO) => return Ok(()),
            Err(Errno::EBUSY) if start.elapsed() < UNDO_PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Makes a request of ours for the device of this uuid.
fn request(dm: &DM, uuid: &DmUuid, ioctl: Request) -> nix::Result<()> {
    let mut argument = header();
    for (to, from) in argument.uuid.iter_mut().zip(uuid.as_bytes()) {
        *to = from.cast_signed();
    }
    // What udev's rules find in DM_COOKIE: these flags, with zeros where the number of a semaphore would be that somebody
    // waits on. For `dmsetup udevcomplete` that is a cookie that nobody waits for.
    argument.event_nr = UDEV.bits() << DM_UDEV_FLAGS_SHIFT;
    // SAFETY: `argument` is a whole dm_ioctl with a terminated uuid, says how long it is, and lives through the call.
    unsafe { ioctl(dm.file().as_raw_fd(), &raw mut argument) }.map(drop)
}

type Request = unsafe fn(libc::c_int, *mut dm_ioctl) -> nix::Result<libc::c_int>;

/// A request without data, of the interface's first version.
fn header() -> dm_ioctl {
    let bytes = u32::try_from(size_of::<dm_ioctl>()).expect("some hundred bytes");
    dm_ioctl { version: [4, 0, 0], data_size: bytes, data_start: bytes, ..Default::default() }
}

/// Whether the kernel has this target or can load it.
fn has_target(dm: &DM, kind: &str) -> bool {
    let mut argument = header();
    for (to, from) in argument.name.iter_mut().zip(kind.bytes()).take(TARGET_TYPE_SIZE - 1) {
        *to = from.cast_signed();
    }
    // SAFETY: `argument` is a whole dm_ioctl with a terminated name, says how long it is, and lives through the call.
    unsafe { dm_get_target_version(dm.file().as_raw_fd(), &raw mut argument) }.is_ok()
}

fn no_target(kind: &str) -> String {
    format!("this kernel's device-mapper has no target {kind}: load its module (modprobe dm-{kind})")
}

/// The device as it is now; `None` when there is none.
fn status(dm: &DM, id: &DevId<'_>) -> io::Result<Option<DmDevice>> {
    // NOFLUSH: for some targets of strangers a look would be a commit.
    let (info, targets) = match dm.table_status(id, DmOptions::default().set_flags(DmFlags::DM_NOFLUSH)) {
        Ok(found) => found,
        Err(error) if errno_of(&error) == Some(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(explain(&id.to_string(), &error)),
    };
    let flags = info.flags();
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    Ok(Some(DmDevice {
        name: text(info.name().map(DmName::as_bytes)),
        uuid: text(info.uuid().map(DmUuid::as_bytes)),
        device: kernel_name(&info),
        open_count: u32::try_from(info.open_count()).unwrap_or(0),
        has_table: flags.contains(DmFlags::DM_ACTIVE_PRESENT),
        suspended: flags.contains(DmFlags::DM_SUSPEND),
        deferred_remove: flags.contains(DmFlags::DM_DEFERRED_REMOVE),
        status: targets.into_iter().next_back().map(|(.., status)| status.trim().to_owned()).unwrap_or_default(),
    }))
}

/// What the kernel calls it.
fn kernel_name(info: &DeviceInfo) -> String {
    format!("dm-{}", info.device().minor)
}

/// The way to the kernel's device-mapper. Opening it loads the module where its file is there and the module is not.
fn context() -> io::Result<&'static DM> {
    // Kept once it is there; a failure is not, since the module may be loaded at any time.
    static CONTEXT: OnceLock<DM> = OnceLock::new();
    if let Some(dm) = CONTEXT.get() {
        return Ok(dm);
    }
    // The crate's error says as text only what was wrong.
    File::options().read(true).write(true).open(CONTROL).map_err(|error| why_not(&error))?;
    let dm = DM::new().map_err(|error| explain(CONTROL, &error))?;
    dm.version().map_err(|error| explain(CONTROL, &error))?;
    Ok(CONTEXT.get_or_init(|| dm))
}

/// As [`context`], for looking: without device-mapper there are no devices.
fn if_any() -> io::Result<Option<&'static DM>> {
    match context() {
        Ok(dm) => Ok(Some(dm)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why device-mapper cannot be reached.
fn why_not(error: &io::Error) -> io::Error {
    let absent = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO));
    if absent && !Path::new("/sys/class/misc/device-mapper").exists() {
        let text = "this kernel has no device-mapper: load its modules (modprobe -a dm_mod dm_snapshot)";
        super::error(io::ErrorKind::Unsupported, text)
    } else if absent {
        let text = format!(
            "{CONTROL} is missing, though this kernel has device-mapper: in a container it must be given there"
        );
        super::error(io::ErrorKind::NotFound, text)
    } else {
        refused(CONTROL, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }
}

fn dm_name(name: &str) -> io::Result<&DmName> {
    let invalid =
        || super::error(io::ErrorKind::InvalidInput, format!("{name:?} is no name of a device-mapper device"));
    // Such a name becomes one of a file in /dev/mapper.
    if name.contains(['/', '\0']) || name.starts_with('.') {
        return Err(invalid());
    }
    DmName::new(name).map_err(|_| invalid())
}

fn dm_uuid(uuid: &str) -> io::Result<&DmUuid> {
    let invalid =
        || super::error(io::ErrorKind::InvalidInput, format!("{uuid:?} is no uuid of a device-mapper device"));
    if uuid.contains('\0') { Err(invalid()) } else { DmUuid::new(uuid).map_err(|_| invalid()) }
}

fn busy(found: &DmDevice) -> io::Error {
    let mut text = format!("device-mapper device {} is in use{}", found.name, holders::told(&found.device));
    if found.deferred_remove {
        text.push_str("; somebody has asked for its removal when it is closed, and it is still there");
    }
    if found.suspended {
        let name = &found.name;
        text.push_str(&format!("; it is suspended, so what was written to it waits (dmsetup resume {name})"));
    }
    super::error(io::ErrorKind::ResourceBusy, text)
}

/// What the kernel said, if it was the kernel.
fn errno_of(error: &DmError) -> Option<Errno> {
    match error {
        DmError::Core(CoreError::Ioctl(.., errno)) => Some(**errno),
        _ => None,
    }
}

fn explain(what: &str, error: &DmError) -> io::Error {
    match errno_of(error) {
        Some(errno) => refused(what, errno),
        None => super::error(io::ErrorKind::Other, format!("device-mapper, {what}: {error}")),
    }
}

/// The kernel's error with what to do about it.
fn refused(what: &str, errno: Errno) -> io::Error {
    let advice = match errno {
        Errno::EPERM | Errno::EACCES => "; device-mapper needs root",
        _ => "",
    };
    super::error(io::Error::from(errno).kind(), format!("device-mapper, {what}: {}{advice}", errno.desc()))
}
