//! One dump of all network interfaces (rtnetlink(7)), of which only what is asked is read.
//!
//! The library's own dump makes a value of each attribute of each interface, some sixty, and takes ten times as long as the
//! kernel does to tell them. Its iterators are used here, and of its values none.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};

use super::netlink::Link;

/// The kernel answers each read in well under a millisecond.
const BOUND_SECONDS: i64 = 10;
/// The kernel fills at most half of it (`netlink_dump` in `net/netlink/af_netlink.c`).
const BUFFER: usize = 1 << 16;
/// How often a dump is begun anew because interfaces came or went meanwhile.
const ATTEMPTS: usize = 4;
/// `struct ifinfomsg`: family, padding, type, index, flags, change.
const HEADER: usize = 16;

/// All interfaces of the calling thread's network namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct Dump {
    pub(super) links: Vec<Link>,
    /// Whether nothing came or went while they were told. Else one may be missing, or have been told as it was.
    pub(super) is_whole: bool,
}

/// Asks for them, again if the answer is not whole; at most four times.
pub(super) fn all() -> io::Result<Dump> {
    let mut dump = Dump::default();
    for _ in 0..ATTEMPTS {
        dump = once()?;
        if dump.is_whole {
            break;
        }
    }
    Ok(dump)
}

fn once() -> io::Result<Dump> {
    let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkRoute);
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(BOUND_SECONDS))?;
    send(socket.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    let mut dump = Dump { links: Vec::new(), is_whole: true };
    loop {
        // A socket with a timeout is interrupted by signals whatever their handlers say (signal(7)).
        let count = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        if count > buffer.len() {
            return Err(io::Error::other(format!("the kernel's list of interfaces came in {count} bytes at once")));
        }
        if !read(&buffer[..count], &mut dump)? {
            return Ok(dump);
        }
    }
}

/// RTM_GETLINK for all of them, without their statistics, which are most of an answer.
fn request() -> Vec<u8> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetLink(message));
    let mut request = NetlinkMessage::new(header, payload);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    bytes
}

/// Reads what one read from the socket gave; false at the end of the list.
fn read(mut bytes: &[u8], dump: &mut Dump) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkBuffer::new_checked(bytes).map_err(garbled)?;
        dump.is_whole &= message.flags() & NLM_F_DUMP_INTR == 0;
        let payload = message.payload();
        match message.message_type() {
            // Both begin with an error number, which is 0 at the end of a list that succeeded.
            NLMSG_DONE | NLMSG_ERROR => {
                return match payload.first_chunk().copied().map_or(0, i32::from_ne_bytes) {
                    0 => Ok(false),
                    errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                };
            }
            libc::RTM_NEWLINK => dump.links.push(link(payload)?),
            _ => {}
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(true)
}

fn link(payload: &[u8]) -> io::Result<Link> {
    let Some((header, attributes)) = payload.split_first_chunk::<HEADER>() else {
        return Err(garbled(DecodeError::from("an interface without a header")));
    };
    let number = |from: usize| u32::from_ne_bytes([header[from], header[from + 1], header[from + 2], header[from + 3]]);
    let mut link = Link { index: number(4), up: number(8) & libc::IFF_UP.cast_unsigned() != 0, ..Link::default() };
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.map_err(garbled)?;
        match attribute.kind() {
            libc::IFLA_IFNAME => link.name = text(&attribute),
            libc::IFLA_IFALIAS => link.alias = Some(text(&attribute)).filter(|alias| !alias.is_empty()),
            libc::IFLA_MASTER => link.master = Some(value(&attribute)).filter(|master| *master != 0),
            libc::IFLA_MTU => link.mtu = value(&attribute),
            libc::IFLA_GROUP => link.group = value(&attribute),
            libc::IFLA_LINKINFO => link.is_tun = is_tun(attribute.value())?,
            _ => {}
        }
    }
    Ok(link)
}

fn is_tun(info: &[u8]) -> io::Result<bool> {
    for attribute in NlasIterator::new(info) {
        let attribute = attribute.map_err(garbled)?;
        if attribute.kind() == libc::IFLA_INFO_KIND {
            return Ok(text(&attribute) == "tun");
        }
    }
    Ok(false)
}

fn value(attribute: &NlaBuffer<&[u8]>) -> u32 {
    attribute.value().first_chunk().copied().map_or(0, u32::from_ne_bytes)
}

/// Up to its NUL. One that is no UTF-8 is none of ours, and none that a manifest could name.
fn text(attribute: &NlaBuffer<&[u8]>) -> String {
    let bytes = attribute.value();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[expect(clippy::needless_pass_by_value, reason = "it is what an error is mapped by")]
fn garbled(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's list of interfaces is garbled: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A netlink message (`struct nlmsghdr`) of this type, with these flags.
    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len() + 16).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn a_tap() -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[4] = 7;
        bytes[8] = 1;
        bytes.extend(attribute(libc::IFLA_IFNAME, b"tap0\0"));
        bytes.extend(attribute(libc::IFLA_MTU, &1500_u32.to_ne_bytes()));
        bytes.extend(attribute(libc::IFLA_MASTER, &3_u32.to_ne_bytes()));
        bytes.extend(attribute(libc::IFLA_GROUP, &9_u32.to_ne_bytes()));
        bytes.extend(attribute(libc::IFLA_IFALIAS, b"ours"));
        bytes.extend(attribute(libc::IFLA_LINKINFO, &attribute(libc::IFLA_INFO_KIND, b"tun\0")));
        bytes
    }

    #[test]
    fn what_is_needed_of_an_interface_is_read() {
        let mut dump = Dump { links: Vec::new(), is_whole: true };
        let mut bytes = message(libc::RTM_NEWLINK, 2, &a_tap());
        bytes.extend(message(NLMSG_DONE, 2, &[0; 4]));
        assert!(!read(&bytes, &mut dump).unwrap(), "it ends");
        let (name, alias) = ("tap0".to_owned(), Some("ours".to_owned()));
        let tap = Link { index: 7, name, alias, master: Some(3), up: true, is_tun: true, mtu: 1500, group: 9 };
        assert_eq!(dump.links, [tap]);
        assert!(dump.is_whole);
    }

    #[test]
    fn a_list_that_was_disturbed_is_known_as_such() {
        let mut dump = Dump { links: Vec::new(), is_whole: true };
        assert!(read(&message(libc::RTM_NEWLINK, 2 | NLM_F_DUMP_INTR, &a_tap()), &mut dump).unwrap());
        assert!(!dump.is_whole);
        assert_eq!(dump.links.len(), 1);
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let error = read(&message(kind, 0, &(-libc::EPERM).to_ne_bytes()), &mut Dump::default()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
    }

    #[test]
    fn what_is_garbled_is_an_error() {
        let whole = message(libc::RTM_NEWLINK, 2, &a_tap());
        for length in 1..whole.len() {
            let read = read(&whole[..length], &mut Dump::default());
            assert!(read.is_err(), "{length} of {} bytes", whole.len());
        }
        let headless = message(libc::RTM_NEWLINK, 2, &[0; 8]);
        assert!(read(&headless, &mut Dump::default()).is_err());
    }

    #[test]
    fn this_machines_interfaces_are_told() {
        let dump = all().unwrap();
        let lo = dump.links.iter().find(|link| link.name == "lo").expect("each namespace has one");
        assert!(lo.index > 0 && lo.mtu > 0 && !lo.is_tun, "{lo:?}");
    }
}
