//! Network interfaces by rtnetlink(7): one connection an operation, bounded in time.

use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkGetRequest, LinkMessageBuilder, LinkUnspec};

use super::io_thread::IoThread;

/// The kernel answers in milliseconds; deleting an interface waits for others to let go of it, some tens of them.
const BOUND: Duration = Duration::from_secs(10);

/// What is needed of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    /// The index of the bridge, bond … it is a port of.
    pub(super) master: Option<u32>,
    pub(super) up: bool,
    /// Whether it is a tun or tap device.
    pub(super) is_tun: bool,
    /// The longest frame that it carries, in bytes.
    pub(super) mtu: u32,
    /// The link group it is in; 0 unless somebody said otherwise (ip-link(8)).
    pub(super) group: u32,
}

/// Runs a conversation with the kernel.
pub(super) fn talk<T, F, Fut>(io: &IoThread, conversation: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce(Handle) -> Fut + Send + 'static,
    Fut: Future<Output = io::Result<T>> + Send,
{
    io.run(BOUND, async move {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        // A connection that breaks ends its replies as if there were no more: an interface is missing then, a list short, a
        // change acknowledged. So nobody hears of them once it is broken: it has its turn first.
        tokio::select! {
            biased;
            () = connection => Err(io::Error::other("the netlink socket to the kernel broke")),
            result = conversation(handle) => result,
        }
    })?
}

/// A question about interfaces, without their statistics: those are most of an answer, and most of what it takes the kernel
/// and the library.
fn get(handle: &Handle) -> LinkGetRequest {
    let mut request = handle.link().get();
    request.message_mut().attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    request
}

/// The interface of this name.
pub(super) async fn by_name(handle: &Handle, name: &str) -> io::Result<Option<Link>> {
    first(get(handle).match_name(name.to_owned()).execute()).await
}

/// The interface of this index.
pub(super) async fn by_index(handle: &Handle, index: u32) -> io::Result<Option<Link>> {
    first(get(handle).match_index(index).execute()).await
}

/// What is to be changed of an interface, all in one message.
#[derive(Debug, Clone, Default)]
pub(super) struct Change {
    pub(super) alias: Option<String>,
    /// The index of the bridge; 0 takes it off any.
    pub(super) master: Option<u32>,
    pub(super) mtu: Option<u32>,
    pub(super) up: bool,
}

/// Changes an interface.
pub(super) async fn change(handle: &Handle, index: u32, change: Change) -> io::Result<()> {
    let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index);
    if let Some(alias) = change.alias {
        message = message.alias(alias);
    }
    if let Some(master) = change.master {
        message = message.controller(master);
    }
    // The kernel sets it before the master, so that the bridge never sees a port that carries less than itself.
    if let Some(mtu) = change.mtu {
        message = message.mtu(mtu);
    }
    if change.up {
        message = message.up();
    }
    handle.link().change(message.build()).execute().await.map_err(into_io)
}

/// Removes an interface.
pub(super) async fn delete(handle: &Handle, index: u32) -> io::Result<()> {
    handle.link().del(index).execute().await.map_err(into_io)
}

/// Puts an interface into a link group.
pub(super) async fn join_group(handle: Handle, index: u32, group: u32) -> io::Result<()> {
    let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index).build();
    message.attributes.push(LinkAttribute::Group(group));
    handle.link().change(message).execute().await.map_err(into_io)
}

/// Removes every interface of a link group.
pub(super) async fn delete_group(handle: &Handle, group: u32) -> io::Result<()> {
    // An index of 0 and no name: the kernel goes by the group.
    let mut request = handle.link().del(0);
    request.message_mut().attributes.push(LinkAttribute::Group(group));
    request.execute().await.map_err(into_io)
}

async fn first(
    replies: impl futures_util::Stream<Item = Result<LinkMessage, rtnetlink::Error>>,
) -> io::Result<Option<Link>> {
    match std::pin::pin!(replies).next().await {
        Some(Ok(message)) => Ok(Some(read(message))),
        None => Ok(None),
        Some(Err(error)) => {
            let error = into_io(error);
            if error.raw_os_error() == Some(nix::libc::ENODEV) { Ok(None) } else { Err(error) }
        }
    }
}

fn read(message: LinkMessage) -> Link {
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { index: message.header.index, up, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias).filter(|alias| !alias.is_empty()),
            LinkAttribute::Controller(master) => link.master = Some(master).filter(|master| *master != 0),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::LinkInfo(info) => link.is_tun |= info.contains(&LinkInfo::Kind(InfoKind::Tun)),
            _ => {}
        }
    }
    link
}

/// The kernel's own error number where there is one.
fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
