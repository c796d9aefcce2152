//! Loop devices by their ioctls (loop(4), `linux/loop.h`).
//!
//! A loop's number is recycled at once, so each loop of ours carries a tag in `lo_file_name`, and none is freed before its
//! tag was read through the very open file that is then told to let go: while that is open nobody else can free the number.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{self, O_NONBLOCK};

use super::{holders, kernel_files};
use crate::desired::FileId;
use crate::host::devices::{LoopDevice, LoopRequest, SECTOR};

/// `LO_NAME_SIZE`: bytes of a tag with the zero that ends it.
const NAME_SIZE: usize = 64;

/// `LO_FLAGS_READ_ONLY`: it refuses writes.
const READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`: it lets go of its file once nobody has it open.
const AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`: its I/O goes past the page cache of its file.
const DIRECT_IO: u32 = 16;

/// The major number of loop devices (`linux/major.h`).
const LOOP_MAJOR: u32 = 7;

/// How often somebody else may snatch a free loop before this gives up. Each time means that another got one.
const ATTEMPTS: u32 = 256;
/// How long a loop that was told to let go may take: whoever looks at it at that moment, be it udev or another thread of
/// stead, keeps it for the time of that look.
const PATIENCE: Duration = Duration::from_millis(100);

/// `struct loop_info64`, where all names begin with `lo_`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    /// `st_dev` of the file it is bound to, in the kernel's `huge_encode_dev`.
    device: u64,
    /// `st_ino` of that file.
    inode: u64,
    /// `st_rdev` of that file if it is a device.
    rdevice: u64,
    /// Where in the file it begins, in bytes.
    offset: u64,
    /// Where in the file it ends, in bytes; 0 is the file's end.
    sizelimit: u64,
    /// Its number.
    number: u32,
    /// Of no use any more, like the key and its size.
    encrypt_type: u32,
    encrypt_key_size: u32,
    /// `LO_FLAGS_*`.
    flags: u32,
    /// The tag, ended by a zero.
    file_name: [u8; NAME_SIZE],
    crypt_name: [u8; NAME_SIZE],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    /// The open file to bind to.
    fd: u32,
    /// Bytes of a block of the device.
    block_size: u32,
    /// Offset, limit, flags and tag; the rest is the kernel's to fill.
    info: LoopInfo64,
    /// Zeros.
    reserved: [u64; 8],
}

impl LoopInfo64 {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; NAME_SIZE],
        crypt_name: [0; NAME_SIZE],
        encrypt_key: [0; 32],
        init: [0; 2],
    };

    /// A stranger's may be anything; ours are text.
    fn tag(&self) -> String {
        let end = self.file_name.iter().position(|byte| *byte == 0).unwrap_or(NAME_SIZE);
        String::from_utf8_lossy(&self.file_name[..end]).into_owned()
    }

    /// The kernel has 12 bits of major and 20 of minor number, which `huge_encode_dev` and the C library's `makedev` put
    /// into the same places: `lo_device` is the `st_dev` that stat(2) gives.
    fn backing(&self) -> FileId {
        FileId { device: self.device, inode: self.inode }
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

nix::ioctl_none_bad!(
    /// `LOOP_CTL_GET_FREE`, of `/dev/loop-control`: the number of a loop that is bound to nothing, made if need be.
    loop_ctl_get_free,
    0x4C82
);
nix::ioctl_write_ptr_bad!(
    /// `LOOP_CONFIGURE`: binds to a file and sets all else in one step (Linux 5.8).
    loop_configure,
    0x4C0A,
    LoopConfig
);
nix::ioctl_read_bad!(
    /// `LOOP_GET_STATUS64`: what it is bound to.
    loop_get_status64,
    0x4C05,
    LoopInfo64
);
nix::ioctl_none_bad!(
    /// `LOOP_CLR_FD`: lets go of the file, at once or when the last has closed it.
    loop_clr_fd,
    0x4C01
);

/// The loop device of this name, if it is bound to a file.
pub(super) fn one(device: &str) -> io::Result<Option<LoopDevice>> {
    let number = number_of(device)?;
    Ok(look(number)?.map(|(_, info)| describe(number, &info)))
}

/// Every loop device that is bound to a file, by number.
pub(super) fn all() -> io::Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    for number in bound_numbers()? {
        // One that vanished since is not there.
        found.extend(look(number)?.map(|(_, info)| describe(number, &info)));
    }
    Ok(found)
}

/// Binds a file to a free loop device, unless one of this tag is bound to it already.
///
/// Besides what the interface says, a writable loop is refused (`ResourceBusy`) while another writable one is bound to
/// the same file: the kernel would bind a file twice, and two writers destroy a disk.
pub(super) fn attach(request: &LoopRequest) -> io::Result<LoopDevice> {
    let tag = request.tag.as_bytes();
    if tag.is_empty() || tag.len() >= NAME_SIZE || tag.contains(&0) {
        let text = format!("{:?} is no tag for a loop device: 1 to {} bytes", request.tag, NAME_SIZE - 1);
        return Err(super::error(io::ErrorKind::InvalidInput, text));
    }
    let file = open_backing(request)?;
    if let Some(found) = attached(request)? {
        return Ok(found);
    }
    let mut info = LoopInfo64::EMPTY;
    info.file_name[..tag.len()].copy_from_slice(tag);
    // What a VM writes is cached once, above the loop; through the page cache of its file it would be there twice, and
    // be written back when that sees fit. Measured on ext4: 4 KiB writes with fsync take 0.6 to 1.0 of the time, long ones
    // into holes 0.6. A base is read through the cache on purpose: there all VMs share what one has read.
    // Where the filesystem cannot, the kernel falls back to its cache; a flush is an fsync of the file either way.
    info.flags = if request.read_only { READ_ONLY } else { DIRECT_IO };
    let config = LoopConfig {
        fd: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
        // Given, since with direct I/O newer kernels would take that of the disk below, and a VM's disk would change
        // its block size with the disk that it lies on.
        block_size: u32::try_from(SECTOR).map_err(io::Error::other)?,
        info,
        reserved: [0; 8],
    };
    let number = configure(&config, request.read_only)?;
    let bound = look(number)?.filter(|(_, found)| found.tag() == request.tag && found.backing() == request.backing);
    let Some((_, found)) = bound else {
        let text = format!("loop{number} was freed by somebody else as soon as it was bound");
        return Err(super::error(io::ErrorKind::NotFound, text));
    };
    Ok(describe(number, &found))
}

/// Lets go of a loop device that carries this tag; true when it was bound.
///
/// One that is still in use is told to let go all the same: it does so by itself when the last has closed it, even if
/// nobody asks again. Until then it is bound, its file must stay, and this says `ResourceBusy`.
pub(super) fn detach(device: &str, tag: &str) -> io::Result<bool> {
    let number = number_of(device)?;
    let Some((file, info)) = look(number)? else { return Ok(false) };
    if info.tag() != tag {
        let text = format!("loop device {device} carries the tag {:?}: it is not this VM's", info.tag());
        return Err(super::error(io::ErrorKind::PermissionDenied, text));
    }
    // SAFETY: the request takes no argument, and `file` is an open loop device.
    match unsafe { loop_clr_fd(file.as_raw_fd()) } {
        // EBUSY: somebody else has told it, and it is about to.
        Ok(_) | Err(Errno::EBUSY) => {}
        Err(Errno::ENXIO) => return Ok(false),
        Err(errno) => return Err(explain(device, &errno.into())),
    }
    // Since Linux 6.12 it lets go only when the last has closed it, be that us.
    drop(file);
    let start = Instant::now();
    while is_bound(number)? {
        if start.elapsed() > PATIENCE {
            // By now it may be somebody else's. Not kept open: else we were among its holders.
            let found = look(number)?.map(|(_, found)| (found.tag(), found.backing()));
            if found != Some((tag.to_owned(), info.backing())) {
                return Ok(true);
            }
            let text = format!("loop device {device} is in use{}", holders::told(device));
            return Err(super::error(io::ErrorKind::ResourceBusy, text));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(true)
}

/// Opens the file, if it is still the one that is meant.
fn open_backing(request: &LoopRequest) -> io::Result<File> {
    // Links are followed, as they were when it was looked at: it is device and inode that count. O_NONBLOCK: opening what
    // has become a FIFO must not wait.
    let mut options = OpenOptions::new();
    options.read(true).write(!request.read_only).custom_flags(O_NONBLOCK);
    let path = request.file.display();
    let file = options.open(&request.file).map_err(|error| super::error(error.kind(), format!("{path}: {error}")))?;
    let metadata = file.metadata()?;
    if FileId::of(&metadata) != request.backing {
        let text = format!("{path} is another file now than when it was looked at");
        return Err(super::error(io::ErrorKind::StaleNetworkFileHandle, text));
    }
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        let text = format!("{path} is neither a regular file nor a block device: it cannot be a disk");
        return Err(super::error(io::ErrorKind::InvalidInput, text));
    }
    Ok(file)
}

/// The loop device that is what is asked for already.
fn attached(request: &LoopRequest) -> io::Result<Option<LoopDevice>> {
    for number in bound_numbers()? {
        let Some(info) = look(number)?.map(|(_, info)| info) else { continue };
        if info.backing() != request.backing {
            continue;
        }
        let same = info.tag() == request.tag && info.has(READ_ONLY) == request.read_only && !info.has(AUTOCLEAR);
        if same && info.offset == 0 && info.sizelimit == 0 {
            return Ok(Some(describe(number, &info)));
        }
        if !request.read_only && !info.has(READ_ONLY) {
            let device = format!("loop{number}");
            let text = format!(
                "{} is bound to loop device {device} (tag {:?}) already{}",
                request.file.display(),
                info.tag(),
                holders::told(&device)
            );
            return Err(super::error(io::ErrorKind::ResourceBusy, text));
        }
    }
    Ok(None)
}

/// Binds a free loop device; gives its number.
fn configure(config: &LoopConfig, read_only: bool) -> io::Result<u32> {
    let control = open_control()?;
    for attempt in 1..=ATTEMPTS {
        // SAFETY: the request takes no argument.
        let number =
            unsafe { loop_ctl_get_free(control.as_raw_fd()) }.map_err(|errno| explain(CONTROL, &errno.into()))?;
        let number = u32::try_from(number).map_err(io::Error::other)?;
        let Some(device) = open_unbound(number, !read_only)? else { continue };
        // SAFETY: `config` is a whole loop_config that lives through the call, as does the file whose number is in it.
        match unsafe { loop_configure(device.as_raw_fd(), &raw const *config) } {
            Ok(_) => return Ok(number),
            // Somebody else was faster.
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(explain(&format!("loop{number}"), &errno.into())),
        }
        // Many at a time all get the same number: after some tries they step aside.
        if attempt % 16 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let text = format!("no loop device could be had: {ATTEMPTS} times somebody else was faster");
    Err(super::error(io::ErrorKind::ResourceBusy, text))
}

const CONTROL: &str = "loop-control";

fn open_control() -> io::Result<File> {
    let path = "/dev/loop-control";
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if !Path::new("/sys/module/loop").exists() => {
            let text = format!("{path}: this kernel has no loop devices: load its module loop (modprobe loop)");
            super::error(error.kind(), text)
        }
        io::ErrorKind::NotFound => super::error(error.kind(), format!("{path} is missing: {NO_NODE}")),
        _ => explain(CONTROL, &error),
    })
}

const NO_NODE: &str =
    "this /dev is not the kernel's own (devtmpfs), as is usual in a container: it must be given there";

/// A bound loop device, open for reading, with what it is bound to; `None` when there is none or it is bound to nothing.
fn look(number: u32) -> io::Result<Option<(File, LoopInfo64)>> {
    let Some(device) = open(number, false)? else { return Ok(None) };
    let mut info = LoopInfo64::EMPTY;
    // SAFETY: `info` is a whole loop_info64, and lives through the call; `open` gives loop devices only.
    match unsafe { loop_get_status64(device.as_raw_fd(), &raw mut info) } {
        Ok(_) if info.number == number => Ok(Some((device, info))),
        Ok(_) => Err(misnamed(number)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(explain(&format!("loop{number}"), &errno.into())),
    }
}

/// Opens the file of a loop device; `None` when there is no such device. It may be another loop's: a node made by hand may
/// stand for anything.
fn open(number: u32, write: bool) -> io::Result<Option<File>> {
    let path = format!("/dev/loop{number}");
    let file = match OpenOptions::new().read(true).write(write).custom_flags(O_NONBLOCK).open(&path) {
        Ok(file) => file,
        // A node that stands for no device.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !sysfs(number).exists() {
                return Ok(None);
            }
            return Err(super::error(error.kind(), format!("{path} is missing: {NO_NODE}")));
        }
        Err(error) => return Err(explain(&format!("loop{number}"), &error)),
    };
    let metadata = file.metadata()?;
    let is_loop = metadata.file_type().is_block_device() && libc::major(metadata.rdev()) == LOOP_MAJOR;
    if is_loop { Ok(Some(file)) } else { Err(misnamed(number)) }
}

/// Opens a loop device to be bound, which cannot say yet which one it is; `None` when it is gone.
fn open_unbound(number: u32, write: bool) -> io::Result<Option<File>> {
    let Some(file) = open(number, write)? else { return Ok(None) };
    let rdev = file.metadata()?.rdev();
    match kernel_files::read_text(sysfs(number).join("dev")) {
        Ok(dev) if dev.trim_end() == format!("{}:{}", libc::major(rdev), libc::minor(rdev)) => Ok(Some(file)),
        Ok(_) => Err(misnamed(number)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn misnamed(number: u32) -> io::Error {
    let text = format!("/dev/loop{number} stands for another device than the one that it is named for");
    super::error(io::ErrorKind::InvalidData, text)
}

fn describe(number: u32, info: &LoopInfo64) -> LoopDevice {
    // Gone if it was freed since: then the path is of no use either.
    let path = kernel_files::read(sysfs(number).join("loop/backing_file")).unwrap_or_default();
    let path = path.strip_suffix(b"\n").unwrap_or(&path);
    LoopDevice {
        device: format!("loop{number}"),
        tag: info.tag(),
        backing: info.backing(),
        backing_path: PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path)),
        read_only: info.has(READ_ONLY),
        autoclear: info.has(AUTOCLEAR),
        devices_on_top: fs::read_dir(sysfs(number).join("holders")).map_or(0, Iterator::count),
    }
}

fn sysfs(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/loop{number}"))
}

/// Whether it is bound to a file, by sysfs, where one looks without opening it.
fn is_bound(number: u32) -> io::Result<bool> {
    sysfs(number).join("loop/backing_file").try_exists()
}

/// The numbers of the loop devices that are bound, in order.
fn bound_numbers() -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let number = entry?.file_name().to_str().and_then(|name| number_of(name).ok());
        numbers.extend(number);
    }
    numbers.retain(|number| is_bound(*number).unwrap_or(true));
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number in a loop device's name. A name becomes part of a path, so it must be `loop` and a plain number.
fn number_of(device: &str) -> io::Result<u32> {
    let number = device.strip_prefix("loop").and_then(|digits| digits.parse::<u32>().ok());
    // Exactly as the kernel writes it: neither `loop+1` nor `loop01`.
    number
        .filter(|number| device == format!("loop{number}"))
        .ok_or_else(|| super::error(io::ErrorKind::InvalidInput, format!("{device:?} is no name of a loop device")))
}

/// The kernel's error with what to do about it.
fn explain(device: &str, error: &io::Error) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; loop devices need root (in a container, the right to use them too)",
        // What an older kernel says to a request that it does not know.
        Some(libc::EINVAL) => "; stead needs Linux 5.8 or later for loop devices",
        _ => "",
    };
    super::error(error.kind(), format!("/dev/{device}: {error}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<LoopInfo64>(), size_of::<LoopConfig>()), (232, 304));
    }

    #[test]
    fn a_device_number_reads_the_same_in_the_kernels_form_and_in_that_of_stat() {
        for (major, minor) in [(0, 0), (0, 35), (0, 256), (8, 1), (253, 0xf_ffff), (259, 4096), (0xfff, 0xf_ffff)] {
            // huge_encode_dev of linux/kdev_t.h.
            let kernels = (u64::from(minor) & 0xff) | (u64::from(major) << 8) | ((u64::from(minor) & !0xff) << 12);
            assert_eq!(kernels, libc::makedev(major, minor), "{major}:{minor}");
        }
    }

    #[test]
    fn only_names_that_the_kernel_gives_are_taken() {
        assert_eq!(number_of("loop0").unwrap(), 0);
        assert_eq!(number_of("loop1048575").unwrap(), 1_048_575);
        for other in ["", "loop", "loop01", "loop+1", "loop-1", "loop-control", "loop1p1", "loop1/..", "sda", "dm-1"] {
            assert_eq!(number_of(other).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{other}");
        }
    }

    #[test]
    fn a_tag_ends_at_its_zero_or_with_its_room() {
        let mut info = LoopInfo64::EMPTY;
        assert_eq!(info.tag(), "");
        info.file_name[..3].copy_from_slice(b"a\xffb");
        assert_eq!(info.tag(), "a\u{fffd}b");
        info.file_name = [b'x'; NAME_SIZE];
        assert_eq!(info.tag().len(), NAME_SIZE);
    }
}
