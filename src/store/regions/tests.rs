//! What a region table keeps through crashes, failures and damage.

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use super::*;

const VOLUME: Uuid = Uuid::from_bytes([7; 16]);
const REGION_BYTES: u64 = 4 << 20;
const COUNT: u32 = 200;

/// A disk in memory: what readers see, what would survive a power loss, and the blocks in between, of
/// which a power loss keeps any.
#[derive(Clone, Debug)]
struct Disk {
    seen: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Block)>,
    /// How many writes and syncs work before one fails.
    work_left: usize,
}

impl Disk {
    fn of(image: Vec<u8>) -> Disk {
        Disk { seen: image.clone(), durable: image, unsynced: Vec::new(), work_left: usize::MAX }
    }

    fn created() -> Disk {
        let dir = tempfile::tempdir().unwrap();
        RegionTable::create(dir.path(), VOLUME, REGION_BYTES, COUNT).unwrap();
        Disk::of(std::fs::read(dir.path().join(REGIONS_FILE)).unwrap())
    }

    fn load(self) -> (Arc<Mutex<Disk>>, Result<RegionTable, RegionTableError>) {
        let disk = Arc::new(Mutex::new(self));
        let expected = first_header(VOLUME, REGION_BYTES, COUNT).unwrap();
        (Arc::clone(&disk), RegionTable::load(Box::new(Shared(disk)), PathBuf::from("regions"), expected))
    }

    /// Every disk that a power loss may leave.
    fn after_power_loss(&self) -> impl Iterator<Item = Disk> {
        self.with_some_unsynced(BLOCK_BYTES)
    }

    /// Every disk that a power loss may leave which tears the blocks that it does not lose.
    fn torn(&self) -> impl Iterator<Item = Disk> {
        self.with_some_unsynced(BLOCK_BYTES / 2)
    }

    /// For every choice of the unsynced blocks, the disk with the first bytes of the chosen ones.
    fn with_some_unsynced(&self, bytes: usize) -> impl Iterator<Item = Disk> {
        assert!(self.unsynced.len() <= 10, "too many to try all");
        (0..1_u32 << self.unsynced.len()).map(move |chosen| {
            let mut image = self.durable.clone();
            for (bit, (place, block)) in self.unsynced.iter().enumerate() {
                if chosen & 1 << bit != 0 {
                    image[place * BLOCK_BYTES..][..bytes].copy_from_slice(&block[..bytes]);
                }
            }
            Disk::of(image)
        })
    }

    fn spend(&mut self) -> io::Result<()> {
        self.work_left = self.work_left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(())
    }
}

#[derive(Debug)]
struct Shared(Arc<Mutex<Disk>>);

impl Medium for Shared {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        bytes.copy_from_slice(&self.0.lock().unwrap().seen[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let start = offset as usize;
        disk.seen[start..][..bytes.len()].copy_from_slice(bytes);
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        assert!(start.is_multiple_of(BLOCK_BYTES) && rest.is_empty(), "only whole blocks are written");
        disk.unsynced.extend((start / BLOCK_BYTES..).zip(blocks.iter().copied()));
        // One that fails may have written a part.
        disk.spend()
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.spend()?;
        let written = std::mem::take(&mut disk.unsynced);
        for (place, block) in written {
            disk.durable[place * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&block);
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Content {
    accepted: u64,
    rows: Vec<u64>,
}

impl Content {
    fn of(table: &RegionTable) -> Content {
        Content { accepted: table.accepted(), rows: table.rows().to_vec() }
    }

    fn after(&self, step: &Step) -> Content {
        let mut next = self.clone();
        for &(region, row) in &step.rows {
            next.rows[region as usize] = row;
        }
        next.accepted = step.accept.unwrap_or(self.accepted);
        next
    }
}

struct Step {
    accept: Option<u64>,
    rows: Vec<(u32, u64)>,
}

impl Step {
    fn take(&self, table: &mut RegionTable) -> Result<(), RegionTableError> {
        match self.accept {
            Some(view) => table.set_accepted(view, &self.rows),
            None => table.set_rows(&self.rows).map_err(RegionTableError::io(Path::new("regions"), "change")),
        }
    }
}

fn story() -> Vec<Step> {
    vec![
        Step { accept: Some(1), rows: vec![(0, 3), (1, 3)] },
        Step { accept: None, rows: vec![(0, 2), (62, 3), (63, 3), (199, 3)] },
        Step { accept: Some(4), rows: vec![(1, 9), (130, 9)] },
        Step { accept: None, rows: vec![(1, 8), (1, 9), (1, 8)] },
        Step { accept: Some(5), rows: vec![] },
        Step { accept: None, rows: (0..COUNT).map(|region| (region, 11)).collect() },
        Step { accept: Some(5), rows: vec![(77, 10)] },
    ]
}

/// Plays the story until a write or sync fails: the disk, the content when the last step had returned,
/// and the content that the failed step was about to reach. None when nothing failed any more.
fn played_until_failure(work: usize) -> Option<(Disk, Content, Content)> {
    let (disk, table) = Disk::created().load();
    let mut table = table.unwrap();
    disk.lock().unwrap().work_left = work;
    for step in story() {
        let before = Content::of(&table);
        let after = before.after(&step);
        if step.take(&mut table).is_err() {
            assert!(table.set_rows(&[(0, 0)]).is_err(), "a failure is final");
            assert!(table.set_accepted(99, &[]).is_err(), "a failure is final");
            let disk = disk.lock().unwrap().clone();
            return Some((disk, before, after));
        }
        assert_eq!(Content::of(&table), after);
    }
    None
}

fn assert_between(found: &Content, before: &Content, after: &Content, may_be: Option<u64>) {
    assert!((before.accepted..=after.accepted).contains(&found.accepted), "{}", found.accepted);
    for (region, row) in found.rows.iter().enumerate() {
        let expected = [before.rows[region], after.rows[region]];
        assert!(expected.contains(row) || may_be == Some(*row), "row {row} of region {region}, not of {expected:?}");
    }
    if found.accepted > before.accepted {
        assert_eq!(found.rows, after.rows, "the rows come before the view");
    }
}

#[test]
fn after_a_power_loss_at_any_moment_each_row_is_old_or_new_and_the_view_never_lower() {
    let mut work = 0;
    let mut states = 0;
    while let Some((disk, before, after)) = played_until_failure(work) {
        for left in disk.after_power_loss() {
            let found = Content::of(&left.clone().load().1.unwrap());
            assert_between(&found, &before, &after, None);
            states += 1;
            // Another power loss while the table is opened changes nothing.
            for work in 0..4 {
                let opening = Disk { work_left: work, ..left.clone() };
                let disk = opening.load().0.lock().unwrap().clone();
                for left in disk.after_power_loss() {
                    assert_eq!(Content::of(&left.load().1.unwrap()), found);
                }
                for left in disk.torn() {
                    assert_between(&Content::of(&left.load().1.unwrap()), &found, &found, None);
                }
            }
        }
        for left in disk.torn() {
            let table = left.load().1.unwrap();
            assert_between(&Content::of(&table), &before, &after, Some(table.accepted() << 1 | 1));
        }
        work += 1;
    }
    assert!(work > 15 && states > 40, "{states} states at {work} moments are not the whole story");
}

#[test]
fn what_a_process_read_after_a_failed_sync_is_durable() {
    let mut work = 0;
    while let Some((mut disk, before, after)) = played_until_failure(work) {
        // The system counts the blocks as written, and readers see them.
        disk.unsynced.clear();
        disk.work_left = usize::MAX;
        let (disk, table) = disk.load();
        let found = Content::of(&table.unwrap());
        assert_between(&found, &before, &after, None);
        for left in disk.lock().unwrap().after_power_loss() {
            assert_eq!(Content::of(&left.load().1.unwrap()), found);
        }
        work += 1;
    }
}

#[test]
fn no_damaged_header_takes_the_accepted_view_back() {
    let (disk, table) = Disk::created().load();
    table.unwrap().set_accepted(3, &[(5, 7)]).unwrap();
    let good = disk.lock().unwrap().durable.clone();
    for bit in 0..2 * BLOCK_BYTES * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let (disk, table) = Disk::of(bad).load();
        let table = table.unwrap();
        assert_eq!((table.accepted(), table.rows()[5]), (3, 7), "bit {bit}");
        assert_eq!(disk.lock().unwrap().durable, good, "opening mends it");
    }
    let mut bad = good;
    bad[100] ^= 1;
    bad[BLOCK_BYTES + 100] ^= 1;
    assert!(matches!(Disk::of(bad).load().1, Err(RegionTableError::Damaged { .. })));
}

#[test]
fn after_a_generation_that_none_can_follow_nothing_changes() {
    let mut disk = Disk::created();
    let (blocks, _) = disk.seen.as_chunks_mut::<BLOCK_BYTES>();
    let header = Header { generation: u64::MAX, accepted: 4, ..first_header(VOLUME, REGION_BYTES, COUNT).unwrap() };
    for place in HEADER_PLACES {
        blocks[place as usize] = header.to_block(place);
    }
    let (disk, table) = disk.load();
    let mut table = table.unwrap();
    let before = Content::of(&table);
    let error = table.set_accepted(5, &[(0, 11)]).unwrap_err();
    assert!(matches!(error, RegionTableError::Damaged { .. }), "{error}");
    assert_eq!(Content::of(&table), before);
    let left = disk.lock().unwrap().clone();
    assert_eq!(Content::of(&left.load().1.unwrap()), before);
}

#[test]
fn damaged_rows_count_as_written_in_the_accepted_view() {
    let (disk, table) = Disk::created().load();
    let rows: Vec<_> = (0..COUNT).map(|region| (region, 2)).collect();
    table.unwrap().set_accepted(6, &rows).unwrap();
    let good = disk.lock().unwrap().durable.clone();
    for bit in 0..BLOCK_BYTES * 8 {
        let mut bad = good.clone();
        bad[3 * BLOCK_BYTES + bit / 8] ^= 1 << (bit % 8);
        let table = Disk::of(bad).load().1.unwrap();
        for (region, row) in table.rows().iter().enumerate() {
            let expected = if (63..126).contains(&region) { 6 << 1 | 1 } else { 2 };
            assert_eq!(*row, expected, "region {region}, bit {bit}");
        }
    }
}

#[test]
fn a_table_in_a_folder_is_made_once_changed_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let open = |volume, region_bytes, count| RegionTable::open(dir.path(), volume, region_bytes, count);
    assert!(matches!(open(VOLUME, REGION_BYTES, COUNT), Err(RegionTableError::Missing { .. })));

    std::fs::write(dir.path().join(NEW_REGIONS_FILE), b"left over by a crash").unwrap();
    let mut table = RegionTable::create(dir.path(), VOLUME, REGION_BYTES, COUNT).unwrap();
    assert_eq!((table.accepted(), table.rows()), (0, [0; COUNT as usize].as_slice()));
    table.set_accepted(2, &[(0, 5), (199, 5)]).unwrap();
    table.set_rows(&[(64, 4)]).unwrap();
    assert!(matches!(table.set_accepted(1, &[(3, 1)]), Err(RegionTableError::Lower { accepted: 2, view: 1, .. })));
    assert!(matches!(table.set_accepted(1 << 63, &[]), Err(RegionTableError::ViewTooLarge { .. })));
    assert_eq!(table.set_rows(&[(1, 1), (COUNT, 1)]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let content = Content::of(&table);
    drop(table);
    assert_eq!(Content::of(&open(VOLUME, REGION_BYTES, COUNT).unwrap()), content);
    assert_eq!((content.accepted, content.rows[1], content.rows[3], content.rows[64]), (2, 0, 0, 4));

    let again = RegionTable::create(dir.path(), VOLUME, REGION_BYTES, COUNT);
    assert!(matches!(again, Err(RegionTableError::Exists { .. })));
    assert!(matches!(open(Uuid::nil(), REGION_BYTES, COUNT), Err(RegionTableError::OtherVolume { .. })));
    assert!(matches!(open(VOLUME, REGION_BYTES * 2, COUNT), Err(RegionTableError::OtherDivision { .. })));
    assert!(matches!(open(VOLUME, REGION_BYTES, COUNT - 1), Err(RegionTableError::OtherDivision { .. })));
    assert_eq!(Content::of(&open(VOLUME, REGION_BYTES, COUNT).unwrap()), content, "refusals change nothing");
}

#[test]
fn a_file_that_was_cut_off_is_refused() {
    let image = Disk::created().durable;
    for length in [0, 1, 1023, 1024, image.len() - 1] {
        let (_, table) = Disk::of(image[..length].to_vec()).load();
        assert!(matches!(table, Err(RegionTableError::TooShort { .. })), "{length} bytes");
    }
}

#[test]
fn a_huge_table_takes_space_only_where_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let allocated = || std::fs::metadata(dir.path().join(REGIONS_FILE)).unwrap().blocks() * 512;
    let mut table = RegionTable::create(dir.path(), VOLUME, REGION_BYTES, REGIONS_MAX).unwrap();
    assert!(allocated() <= 64 << 10, "{} bytes", allocated());
    table.set_rows(&[(REGIONS_MAX - 1, 9), (500_000, 9)]).unwrap();
    drop(table);
    let table = RegionTable::open(dir.path(), VOLUME, REGION_BYTES, REGIONS_MAX).unwrap();
    assert!(allocated() <= 128 << 10, "{} bytes", allocated());
    assert_eq!(table.rows().len(), REGIONS_MAX as usize);
    assert_eq!(table.rows().iter().sum::<u64>(), 18);
    assert_eq!(table.rows()[REGIONS_MAX as usize - 1], 9);

    let error = RegionTable::create(dir.path(), VOLUME, REGION_BYTES, REGIONS_MAX + 1).unwrap_err();
    assert!(matches!(error, RegionTableError::TooManyRegions { .. }), "{error}");
}

#[test]
fn blocks_that_touch_are_written_in_one_piece() {
    let (disk, table) = Disk::created().load();
    let mut table = table.unwrap();
    disk.lock().unwrap().work_left = 3;
    table.set_rows(&[(190, 2), (0, 2), (63, 2)]).unwrap();
    assert_eq!(disk.lock().unwrap().work_left, 0, "two writes and one sync");
    table.set_rows(&[]).unwrap();
}
