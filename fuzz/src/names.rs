//! Names and tags: what stead builds keeps every length limit and is read back; what it did not build is nobody's.

use std::path::Path;
use std::sync::OnceLock;

use stead::host::linux::proc::as_process_id;
use stead::names::{
    Backing, DM_NAME_MAX, DM_UUID_MAX, DmLayer, INTERFACE_ALIAS_MAX, INTERFACE_NAME_MAX, Incarnation, LOOP_TAG_MAX,
    Layout, Owner, SOCKET_PATH_MAX, ShortUid, StateId, VM_NAME_MAX, VmName,
};

fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let state = StateId::derive("fuzz", Path::new("/state"));
        Layout::new(state, "/state".into(), Path::new("/run/stead")).unwrap()
    })
}

/// A name on the first line; a text that something on the host carries after it.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, &text));
    let name = VmName::new(first).ok();
    let is_label = (1..=VM_NAME_MAX).contains(&first.len())
        && first.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !first.starts_with('-')
        && !first.ends_with('-');
    assert_eq!(name.is_some(), is_label, "{first:?}");
    if let Some(name) = &name {
        let incarnation = rest.bytes().fold(1, |number: u64, byte| number.wrapping_mul(257).wrapping_add(byte.into()));
        built(name, Incarnation(incarnation % Incarnation::MAX));
    }
    found(&name.unwrap_or_else(|| VmName::new("web").unwrap()), rest);
}

/// What is built from a name.
fn built(name: &VmName, incarnation: Incarnation) {
    let layout = layout();
    let state = layout.state_id;
    let uid = state.uid(name);
    let owner = Some(Owner::Vm(uid.short()));

    assert_eq!(uid.tap(name).len(), INTERFACE_NAME_MAX);
    let tags = [
        (uid.tap_alias(&state, name), INTERFACE_ALIAS_MAX),
        (uid.dm_uuid(&state, name, DmLayer::Snapshot), DM_UUID_MAX),
        (uid.dm_uuid(&state, name, DmLayer::Origin), DM_UUID_MAX),
        (uid.loop_tag(&state, name), LOOP_TAG_MAX),
    ];
    for (tag, limit) in &tags {
        assert!(tag.len() <= *limit, "{tag}");
        assert_eq!(state.owner_of(tag), owner, "{tag}");
    }
    assert!(uid.dm_name(name, DmLayer::Origin).len() <= DM_NAME_MAX);
    assert_eq!(ShortUid::parse(uid.short().as_str()), Some(uid.short()));

    let id = uid.process_id(incarnation);
    assert!(id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{id}");
    assert_eq!(uid.incarnation_in(&id), Some(incarnation));
    assert_eq!(as_process_id(id.as_bytes()), Some(id.as_str()));
    assert_eq!(ShortUid::of_process_id(&id), uid.short());

    let sockets = [layout.api_socket(name, incarnation), layout.identity_socket(name, incarnation)];
    for (socket, is_identity) in sockets.iter().zip([false, true]) {
        assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX);
        let file = socket.file_name().unwrap().to_str().unwrap();
        assert_eq!(layout.read_socket_name(name, file), Some((incarnation, is_identity)));
        assert_eq!(Layout::read_socket_owner(file), Some(uid.short()));
    }
    let entry = layout.trash_entry(name, incarnation.0);
    let entry = entry.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(Layout::read_trash_entry(&entry), Some((name.clone(), incarnation.0)));
    // Each file lies right in its folder, and no two are one.
    let files = Backing::ALL.map(|backing| layout.disk_file(name, name, backing));
    for file in files.iter().chain([&layout.disk_record(name, name)]) {
        assert_eq!(file.parent(), Some(layout.disks(name).as_path()));
    }
    assert_eq!(layout.vm_dir(name).parent(), Some(layout.vms().as_path()));
}

/// What is made of a text that may be anybody's: only what stead itself would write is read back.
fn found(name: &VmName, text: &str) {
    let layout = layout();
    let state = layout.state_id;
    let file_name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    if let Some(owner) = state.owner_of(text) {
        let simple = state.to_string().replace('-', "");
        assert!(text.contains(&state.to_string()) || text.contains(&simple), "{text:?}");
        match owner {
            Owner::Shared => assert_eq!(text, state.base_loop_tag()),
            Owner::Vm(uid) => assert_eq!(ShortUid::parse(uid.as_str()), Some(uid)),
        }
    }
    if let Some(incarnation) = state.uid(name).incarnation_in(text) {
        assert_eq!(state.uid(name).process_id(incarnation), text);
    }
    if let Some((incarnation, is_identity)) = layout.read_socket_name(name, text) {
        let path =
            if is_identity { layout.identity_socket(name, incarnation) } else { layout.api_socket(name, incarnation) };
        assert_eq!(file_name(&path), text);
        assert_eq!(Layout::read_socket_owner(text), Some(state.uid(name).short()));
    }
    if let Some(uid) = Layout::read_socket_owner(text) {
        let number = text.strip_prefix(uid.as_str()).and_then(|rest| rest.strip_prefix('-')).unwrap();
        let number = number.strip_suffix(".sock").unwrap();
        let number = number.strip_suffix(".id").unwrap_or(number);
        assert_eq!(number.parse::<u64>().unwrap().to_string(), number, "{text:?}");
    }
    if let Some((of, at)) = Layout::read_trash_entry(text) {
        assert_eq!(file_name(&layout.trash_entry(&of, at)), text);
    }
    if let Ok(id) = text.parse::<StateId>() {
        assert_eq!(id.to_string().parse::<StateId>(), Ok(id));
        assert_eq!(id.short().len(), 8);
    }
    // Whatever a process is called, its owner is a text that can be compared.
    let _ = ShortUid::of_process_id(text);
}
