//! Taps are removed in batches: the kernel waits some 16 ms for all its CPUs after each removal of an interface (RCU), but only
//! once for a whole link group (`rtnl_group_dellink`, net/core/rtnetlink.c).
//!
//! One batch is under way at a time; what is asked for meanwhile is the next one. Deleting a group takes everything that is in
//! it, so each batch uses a group that no interface was in, and looks at who is in it right before.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use nix::libc;
use rtnetlink::Handle;

use super::io_thread::IoThread;
use super::link_dump::{self, Dump};
use super::netlink::{self, Link};
use super::tap::foreign;
use crate::host::devices::{TapRemoval, TapsRemoved};

/// How long one batch may take.
const BOUND: Duration = Duration::from_secs(30);
/// How long the first of a burst waits for the others: little against what it costs to go without them.
const GATHER: Duration = Duration::from_millis(1);
/// Requests on their way at once. Each answer waits in the socket's receive buffer until it is read, and one that does not
/// fit is lost (netlink(7), ENOBUFS).
const PIPELINED: usize = 64;
/// Groups are for people to number from 0 up; these are far from there.
const FIRST_GROUP: u32 = 0x5000_0000;

/// Collects the taps that are asked to be removed.
#[derive(Default)]
pub(super) struct TapRemover(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    waiting: Vec<(Vec<TapRemoval>, TapsRemoved)>,
    is_running: bool,
}

impl TapRemover {
    /// Has these taps removed; `done` is called once, from another thread.
    pub(super) fn remove(&self, io: &IoThread, taps: Vec<TapRemoval>, done: TapsRemoved) {
        let mut queue = lock(&self.0);
        queue.waiting.push((taps, done));
        if queue.is_running {
            return;
        }
        match io.handle() {
            Ok(runtime) => {
                queue.is_running = true;
                drop(queue);
                runtime.spawn(run(Arc::clone(&self.0)));
            }
            Err(error) => {
                let waiting = std::mem::take(&mut queue.waiting);
                drop(queue);
                std::thread::spawn(move || fail(waiting, &error));
            }
        }
    }
}

/// One batch after the other, until nobody waits.
async fn run(queue: Arc<Mutex<Queue>>) {
    loop {
        tokio::time::sleep(GATHER).await;
        let batch = {
            let mut queue = lock(&queue);
            if queue.waiting.is_empty() {
                queue.is_running = false;
                return;
            }
            std::mem::take(&mut queue.waiting)
        };
        let all: Vec<TapRemoval> = batch.iter().flat_map(|(taps, _)| taps).cloned().collect();
        let removed = match tokio::time::timeout(BOUND, converse(&all)).await {
            Ok(removed) => removed,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match removed {
            Ok(results) => {
                let mut results = results.into_iter();
                for (taps, done) in batch {
                    done(results.by_ref().take(taps.len()).collect());
                }
            }
            Err(error) => fail(batch, &error),
        }
    }
}

fn fail(waiting: Vec<(Vec<TapRemoval>, TapsRemoved)>, error: &io::Error) {
    for (taps, done) in waiting {
        done(taps.iter().map(|_| Err(again(error))).collect());
    }
}

/// The same error once more.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| super::error(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

async fn converse(taps: &[TapRemoval]) -> io::Result<Vec<io::Result<bool>>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let driver = tokio::spawn(connection);
    let result = remove(&handle, taps).await;
    driver.abort();
    result
}

/// Removes what carries its tag; what became of each.
async fn remove(handle: &Handle, taps: &[TapRemoval]) -> io::Result<Vec<io::Result<bool>>> {
    let links = match taps {
        [tap] => netlink::by_name(handle, &tap.name).await?.into_iter().collect(),
        _ => named(handle, taps).await?,
    };
    let by_name: BTreeMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let judged: Vec<io::Result<Option<u32>>> = taps.iter().map(|tap| judge(tap, &by_name)).collect();
    let ours: BTreeSet<u32> = judged.iter().filter_map(|judged| judged.as_ref().ok().copied().flatten()).collect();
    let mut failures: BTreeMap<u32, io::Error> = BTreeMap::new();
    if ours.len() > 1 {
        let used: BTreeSet<u32> = links.iter().map(|link| link.group).collect();
        // Whatever kept the group from going, one by one each may still go.
        let _ = remove_group(handle, &ours, unused_group(&used)).await;
    }
    let there = if ours.is_empty() { BTreeSet::new() } else { still_there(handle, &ours).await? };
    for index in &there {
        match netlink::delete(handle, *index).await {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => drop(failures.insert(*index, error)),
        }
    }
    // The kernel's word for it, for all that had to be removed one by one.
    let left = if there.is_empty() { there } else { still_there(handle, &ours).await? };
    let end = |(judged, tap): (io::Result<Option<u32>>, &TapRemoval)| match judged? {
        None => Ok(false),
        Some(index) if !left.contains(&index) => Ok(true),
        Some(index) => Err(failures.get(&index).map_or_else(
            || super::error(io::ErrorKind::ResourceBusy, format!("tap {} is still there", tap.name)),
            again,
        )),
    };
    Ok(judged.into_iter().zip(taps).map(end).collect())
}

/// All interfaces, each of these taps that exists among them.
async fn named(handle: &Handle, taps: &[TapRemoval]) -> io::Result<Vec<Link>> {
    let mut dump = dump().await?;
    if !dump.is_whole {
        let told: BTreeSet<String> = dump.links.iter().map(|link| link.name.clone()).collect();
        for tap in taps.iter().filter(|tap| !told.contains(&tap.name)) {
            dump.links.extend(netlink::by_name(handle, &tap.name).await?);
        }
    }
    Ok(dump.links)
}

/// All interfaces, asked for on a thread that may wait.
async fn dump() -> io::Result<Dump> {
    tokio::task::spawn_blocking(link_dump::all).await.map_err(io::Error::other)?
}

/// The index of a tap that may be removed; none when it is gone.
fn judge(tap: &TapRemoval, links: &BTreeMap<&str, &Link>) -> io::Result<Option<u32>> {
    match links.get(tap.name.as_str()) {
        None => Ok(None),
        Some(link) if link.is_tun && link.alias.as_deref() == Some(&tap.alias) => Ok(Some(link.index)),
        Some(link) => Err(foreign(&tap.name, link.alias.as_deref())),
    }
}

/// Removes interfaces as a group of their own.
async fn remove_group(handle: &Handle, ours: &BTreeSet<u32>, group: u32) -> io::Result<()> {
    let indices: Vec<u32> = ours.iter().copied().collect();
    for some in indices.chunks(PIPELINED) {
        let mut joins = Vec::new();
        for index in some {
            joins.push(netlink::join_group(handle.clone(), *index, group));
        }
        for joined in join_all(joins).await {
            match joined {
                // One that is gone was removed by somebody else.
                Err(error) if error.raw_os_error() != Some(libc::ENODEV) => return Err(error),
                _ => {}
            }
        }
    }
    let dump = dump().await?;
    if !dump.is_whole {
        let text = format!("interfaces come and go: who is in group {group} cannot be told");
        return Err(super::error(io::ErrorKind::ResourceBusy, text));
    }
    let members = dump.links.into_iter().filter(|link| link.group == group);
    if let Some(stranger) = members.map(|link| link.index).find(|index| !ours.contains(index)) {
        let text = format!("interface {stranger} joined group {group}");
        return Err(super::error(io::ErrorKind::ResourceBusy, text));
    }
    netlink::delete_group(handle, group).await
}

async fn still_there(handle: &Handle, ours: &BTreeSet<u32>) -> io::Result<BTreeSet<u32>> {
    if let (1, Some(index)) = (ours.len(), ours.first()) {
        return Ok(netlink::by_index(handle, *index).await?.into_iter().map(|link| link.index).collect());
    }
    let dump = dump().await?;
    let mut there: BTreeSet<u32> =
        dump.links.into_iter().map(|link| link.index).filter(|index| ours.contains(index)).collect();
    if !dump.is_whole {
        for index in ours.difference(&there.clone()) {
            there.extend(netlink::by_index(handle, *index).await?.map(|link| link.index));
        }
    }
    Ok(there)
}

/// A group that no interface is in.
fn unused_group(used: &BTreeSet<u32>) -> u32 {
    let mut random = RandomState::new().build_hasher().finish();
    loop {
        let group = FIRST_GROUP + u32::try_from(random % 0x1000_0000).unwrap_or_default();
        if !used.contains(&group) {
            return group;
        }
        random = random.wrapping_add(1);
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    // Each use leaves the queue whole, so a panic elsewhere while it was locked did not break it.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
