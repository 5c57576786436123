//! Making a copy of a volume that this node does not have yet.
//!
//! A copy is made beside its place, under a name that no volume has, and moved there when it is whole:
//! superblock, empty data, region table and the view in which it is made. So a crash leaves no copy or a
//! whole one, and what it left of an unfinished one is cleared away by the next try or start.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::House;
use super::admission::{Place, check_proof, volume_of};
use super::copies::Claim;
use super::denied::Denied;
use super::gate::Permit;
use crate::replication::copy::record_view;
use crate::replication::message::Welcome;
use crate::replication::region::Regions;
use crate::replication::transport::Connection;
use crate::replication::view::View;
use crate::store::{RegionTable, Store, StoreError, Superblock};

/// Makes the copy that an opening asks for, if its sender may, and opens it. The place at the door is kept until that
/// is done: so many are made at once, and no more wait.
///
/// # Errors
///
/// [`Denied`]; then there is no new copy, or if only opening it failed, a whole one.
pub fn create(
    house: &std::sync::Arc<House>,
    connection: &Connection,
    superblock: &[u8],
    view: &View,
    proof: Option<&[u8; 64]>,
    _permit: Permit,
) -> Result<Welcome, Denied> {
    let superblock = Superblock::parse(superblock)?;
    if superblock.id != view.volume {
        return Err(Denied::Mismatch("the view is of another volume than the superblock"));
    }
    // Whoever makes a copy is to be its writer, or before there is one, a node that has a copy too.
    let names = connection.peer();
    let asks = match &view.writer {
        Some(writer) if names.has(writer.node.as_str()) => Some(&writer.node),
        Some(_) => None,
        None => view.members.iter().map(|member| &member.node).find(|node| names.has(node.as_str())),
    };
    let Some(asks) = asks else {
        return Err(Denied::Mismatch("the certificate of who asks is not that of the view's writer"));
    };
    let own = &house.tls.current().names;
    if !view.members.iter().any(|member| own.has(member.node.as_str())) {
        return Err(Denied::Mismatch("this node is not a member of the view"));
    }
    let place = Place { view: view.number, lane: 0, session: 0 };
    let has_key = check_proof(connection, &superblock, place, proof)?;
    if !has_key && !view.may_write(asks) {
        return Err(Denied::NotAWriter { node: asks.clone() });
    }

    {
        let _one_at_a_time = house.creating.lock().unwrap_or_else(PoisonError::into_inner);
        house.copies.close_gone(superblock.id, Instant::now() + ENTER_PATIENCE)?;
        make(house.copies.root(), &superblock, view)?;
    }
    let claim = Claim { volume: superblock.id, view: view.number, has_key };
    let lease = house.copies.enter(claim, Instant::now() + ENTER_PATIENCE)?;
    let replica = lease.served().copy().replica();
    Ok(Welcome { incarnation: replica.incarnation(), accepted: replica.accepted() })
}

/// Clears away what creations have left that were interrupted. Nobody else uses `root`.
///
/// # Errors
///
/// What the operating system says.
pub fn clear(root: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().and_then(|name| name.strip_prefix(DRAFT_PREFIX)).and_then(volume_of).is_some() {
            log::info!("{}: clearing away an unfinished copy", entry.path().display());
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn make(root: &Path, superblock: &Superblock, view: &View) -> Result<(), Denied> {
    let volume = superblock.id;
    let name = volume.hyphenated().to_string();
    let (dir, draft) = (root.join(&name), root.join(format!("{DRAFT_PREFIX}{name}")));
    if dir.symlink_metadata().is_ok() {
        return Err(Denied::Exists { volume });
    }
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Denied::from(StoreError::Io { action, path, source })
    };
    match std::fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("clear away", &draft)(error)),
        _ => {}
    }
    let made = fill(&draft, superblock, view).and_then(|()| {
        std::fs::rename(&draft, &dir).map_err(failed("move to its place", &draft))?;
        File::open(root).and_then(|root| root.sync_all()).map_err(failed("sync", root))
    });
    if made.is_err() {
        // Whatever is left is cleared away by the next try.
        let _ = std::fs::remove_dir_all(&draft);
    }
    made
}

fn fill(dir: &Path, superblock: &Superblock, view: &View) -> Result<(), Denied> {
    let _held = Store::create(dir, superblock, None)?;
    let regions = Regions::of(superblock.size_bytes);
    let table = RegionTable::create(dir, superblock.id, regions.region_bytes(), regions.count());
    let mut table = table.map_err(|error| Denied::Copy(error.into()))?;
    record_view(dir, view)?;
    table.set_accepted(view.number.0, &[]).map_err(|error| Denied::Copy(error.into()))
}

const DRAFT_PREFIX: &str = ".new-";
const ENTER_PATIENCE: Duration = Duration::from_secs(15);
