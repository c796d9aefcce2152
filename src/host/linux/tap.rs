//! Taps: made by ioctl, tagged and put on a bridge by netlink, kept last (`Documentation/networking/tuntap.rst`).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use super::io_thread::IoThread;
use super::link_dump;
use super::netlink::{self, Change, Link};
use crate::host::Tap;
use crate::names::{INTERFACE_ALIAS_MAX, INTERFACE_NAME_MAX};

nix::ioctl_write_ptr_bad!(
    /// Attaches this open file to an interface, made if need be.
    tun_set_iff,
    libc::TUNSETIFF,
    libc::ifreq
);
nix::ioctl_write_int_bad!(
    /// Whether the interface outlives this open file.
    tun_set_persist,
    libc::TUNSETPERSIST
);

/// Every tap of this network namespace.
///
/// One that comes or goes meanwhile may be missing: whoever misses it asks for it by name.
pub(super) fn all() -> io::Result<Vec<Tap>> {
    let (taps, others): (Vec<Link>, Vec<Link>) = link_dump::all()?.links.into_iter().partition(|link| link.is_tun);
    // No tap is a bridge.
    let names: HashMap<u32, String> = others.into_iter().map(|link| (link.index, link.name)).collect();
    let bridge = |index: u32| names.get(&index).cloned();
    let tap = |link: Link| {
        let bridge = link.master.and_then(bridge);
        describe(link, bridge)
    };
    Ok(taps.into_iter().map(tap).collect())
}

/// The interface of this name.
pub(super) fn one(io: &IoThread, name: &str) -> io::Result<Option<Tap>> {
    let name = name.to_owned();
    netlink::talk(io, |handle| async move {
        let Some(link) = netlink::by_name(&handle, &name).await? else { return Ok(None) };
        let bridge = match link.master {
            Some(master) => netlink::by_index(&handle, master).await?.map(|bridge| bridge.name),
            None => None,
        };
        Ok(Some(describe(link, bridge)))
    })
}

fn describe(link: Link, bridge: Option<String>) -> Tap {
    Tap { name: link.name, alias: link.alias, bridge, up: link.up }
}

/// Makes a tap. Until its last step it vanishes with the open file, so neither a failure nor a crash leaves one.
pub(super) fn create(io: &IoThread, name: &str, alias: &str, bridge: Option<&str>) -> io::Result<()> {
    if alias.len() > INTERFACE_ALIAS_MAX {
        return Err(super::error(io::ErrorKind::InvalidInput, format!("alias {alias:?} is too long")));
    }
    let file = attach(name)?;
    let (tap, alias, bridge) = (name.to_owned(), alias.to_owned(), bridge.map(str::to_owned));
    netlink::talk(io, |handle| async move {
        let link = expect(&handle, &tap).await?;
        let master = match &bridge {
            Some(bridge) => Some(bridge_link(&handle, bridge).await?),
            None => None,
        };
        // A port that carries less than its bridge lowers the bridge's own, or loses frames.
        let mtu = master.as_ref().map(|bridge| bridge.mtu).filter(|mtu| *mtu != link.mtu);
        let change = Change { alias: Some(alias), master: master.map(|bridge| bridge.index), mtu, up: true };
        netlink::change(&handle, link.index, change).await.map_err(|error| explain(error, bridge.as_deref()))
    })?;
    // SAFETY: the request takes a plain number, and `file` is an open tap.
    unsafe { tun_set_persist(file.as_raw_fd(), 1) }?;
    Ok(())
}

/// Opens a tap of this name that did not exist.
fn attach(name: &str) -> io::Result<File> {
    if name.is_empty() || name.len() > INTERFACE_NAME_MAX || name.contains(['\0', '/', '%']) {
        // The kernel would cut a longer name silently, and number one with `%d`.
        return Err(super::error(io::ErrorKind::InvalidInput, format!("{name:?} is no name of an interface")));
    }
    let device = "/dev/net/tun";
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(device);
    let file = open.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "load the kernel module tun (modprobe tun)",
            io::ErrorKind::PermissionDenied => "making taps needs root or CAP_NET_ADMIN",
            _ => "the kernel cannot make taps",
        };
        super::error(error.kind(), format!("{device}: {error}; {advice}"))
    })?;
    // SAFETY: all zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // EXCL: without it one attaches to a stranger's tap. VNET_HDR: both VMMs attach with it.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    // All within 16 bits; the highest one is what a signed number calls its sign.
    request.ifr_ifru.ifru_flags = u16::try_from(flags).map_err(io::Error::other)?.cast_signed();
    // SAFETY: `request` is a whole ifreq with a terminated name, and lives through the call.
    match unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) } {
        Ok(_) => Ok(file),
        Err(nix::errno::Errno::EBUSY) => {
            Err(super::error(io::ErrorKind::AlreadyExists, format!("an interface named {name} exists")))
        }
        Err(nix::errno::Errno::EPERM) => {
            Err(super::error(io::ErrorKind::PermissionDenied, "making taps needs root or CAP_NET_ADMIN"))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Puts a tap on a bridge, or off any.
pub(super) fn set_bridge(io: &IoThread, name: &str, bridge: Option<&str>) -> io::Result<()> {
    let (name, bridge) = (name.to_owned(), bridge.map(str::to_owned));
    netlink::talk(io, |handle| async move {
        let link = expect(&handle, &name).await?;
        let master = match &bridge {
            Some(bridge) => Some(bridge_link(&handle, bridge).await?),
            None => None,
        };
        let mtu = master.as_ref().map(|bridge| bridge.mtu).filter(|mtu| *mtu != link.mtu);
        let master = master.map_or(0, |bridge| bridge.index);
        if link.master.unwrap_or(0) == master && link.up && mtu.is_none() {
            return Ok(());
        }
        let change = Change { alias: None, master: Some(master), mtu, up: true };
        netlink::change(&handle, link.index, change).await.map_err(|error| explain(error, bridge.as_deref()))
    })
}

/// Tags a tap that carries no tag yet.
pub(super) fn tag(io: &IoThread, name: &str, alias: &str) -> io::Result<()> {
    let (name, alias) = (name.to_owned(), alias.to_owned());
    netlink::talk(io, |handle| async move {
        let link = expect(&handle, &name).await?;
        match link.alias {
            Some(found) if found == alias => Ok(()),
            Some(found) => Err(foreign(&name, Some(&found))),
            None if !link.is_tun => Err(super::error(io::ErrorKind::InvalidInput, format!("{name} is not a tap"))),
            None => {
                let change = Change { alias: Some(alias), ..Change::default() };
                netlink::change(&handle, link.index, change).await.map_err(|error| explain(error, None))
            }
        }
    })
}

/// Removes a tap that carries this tag, and confirms that it is gone; false when it was.
pub(super) fn delete(io: &IoThread, name: &str, alias: &str) -> io::Result<bool> {
    let (name, alias) = (name.to_owned(), alias.to_owned());
    netlink::talk(io, |handle| async move {
        let Some(link) = netlink::by_name(&handle, &name).await? else { return Ok(false) };
        if link.alias.as_deref() != Some(&alias) {
            return Err(foreign(&name, link.alias.as_deref()));
        }
        // By index, which unlike the name is nobody else's even if this one is gone by now: the kernel counts on.
        match netlink::delete(&handle, link.index).await {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
            Err(error) => return Err(explain(error, None)),
        }
        match netlink::by_index(&handle, link.index).await? {
            None => Ok(true),
            Some(_) => Err(super::error(io::ErrorKind::ResourceBusy, format!("tap {name} is still there"))),
        }
    })
}

async fn expect(handle: &rtnetlink::Handle, name: &str) -> io::Result<Link> {
    let link = netlink::by_name(handle, name).await?;
    link.ok_or_else(|| super::error(io::ErrorKind::NotFound, format!("there is no interface named {name}")))
}

async fn bridge_link(handle: &rtnetlink::Handle, bridge: &str) -> io::Result<Link> {
    let link = netlink::by_name(handle, bridge).await?;
    link.ok_or_else(|| {
        let text = format!("there is no bridge named {bridge}; make it with `ip link add {bridge} type bridge`");
        super::error(io::ErrorKind::NotFound, text)
    })
}

pub(super) fn foreign(name: &str, alias: Option<&str>) -> io::Error {
    let whose = alias.map_or_else(|| "no tag".to_owned(), |alias| format!("the tag {alias:?}"));
    super::error(io::ErrorKind::PermissionDenied, format!("interface {name} carries {whose}: it is not this VM's"))
}

/// The kernel's error with what to do about it.
fn explain(error: io::Error, bridge: Option<&str>) -> io::Error {
    match (error.raw_os_error(), bridge) {
        (Some(libc::EPERM), _) => {
            super::error(io::ErrorKind::PermissionDenied, "changing interfaces needs root or CAP_NET_ADMIN")
        }
        (Some(libc::EOPNOTSUPP | libc::EINVAL), Some(bridge)) => {
            super::error(error.kind(), format!("{bridge} does not take ports: is it a bridge? ({error})"))
        }
        (Some(libc::EXFULL), Some(bridge)) => {
            super::error(error.kind(), format!("bridge {bridge} has no port left, of 1024 ({error})"))
        }
        _ => error,
    }
}
