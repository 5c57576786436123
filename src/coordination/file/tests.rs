//! What views in a folder keep when many change them, and when the folder fails.

use std::collections::BTreeMap;

use super::super::RecordDamage;
use super::super::tests::first_view;
use super::*;
use crate::replication::view::WriterId;

const VOLUME: Uuid = Uuid::from_bytes([7; 16]);
const PATIENCE: Duration = Duration::from_secs(120);

fn created() -> (tempfile::TempDir, FileViews) {
    let dir = tempfile::tempdir().unwrap();
    let mut views = FileViews::new(dir.path(), VOLUME, PATIENCE);
    views.create(&first_view(VOLUME)).unwrap();
    (dir, views)
}

fn following(view: &View, attachment: u128) -> View {
    let writer = WriterId { node: "node-1".parse().unwrap(), attachment: Uuid::from_u128(attachment) };
    View { number: view.number.next(), writer: Some(writer), ..view.clone() }
}

#[test]
fn a_view_is_made_once_swapped_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut views = FileViews::new(dir.path(), VOLUME, PATIENCE);
    let first = first_view(VOLUME);
    let second = following(&first, 1);
    assert!(matches!(views.load(), Err(ViewStoreError::NotFound { .. })));
    assert!(matches!(views.swap(ViewNumber(1), &second), Err(ViewStoreError::NotFound { .. })));

    views.create(&first).unwrap();
    assert_eq!(views.load().unwrap(), first);
    assert!(matches!(views.create(&first), Err(ViewStoreError::Exists { .. })));
    assert_eq!(views.swap(ViewNumber(1), &second).unwrap(), Swap::Stored);
    assert_eq!(FileViews::new(dir.path(), VOLUME, PATIENCE).load().unwrap(), second);

    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [format!("{VOLUME}.json"), format!("{VOLUME}.lock")]);
}

#[test]
fn a_swap_of_another_view_than_the_current_one_changes_nothing() {
    let (_dir, mut views) = created();
    let first = first_view(VOLUME);
    let second = following(&first, 1);
    views.swap(ViewNumber(1), &second).unwrap();
    assert_eq!(views.swap(ViewNumber(1), &following(&first, 2)).unwrap(), Swap::Conflict(second.clone()));
    let ahead = View { number: ViewNumber(4), ..second.clone() };
    assert_eq!(views.swap(ViewNumber(3), &ahead).unwrap(), Swap::Conflict(second.clone()));
    assert!(matches!(views.swap(ViewNumber(2), &ahead), Err(ViewStoreError::NotNext { .. })));
    let foreign = View { volume: Uuid::nil(), number: ViewNumber(3), ..second.clone() };
    assert!(matches!(views.swap(ViewNumber(2), &foreign), Err(ViewStoreError::OtherVolume { .. })));
    assert!(matches!(views.create(&foreign), Err(ViewStoreError::OtherVolume { .. })));
    assert_eq!(views.load().unwrap(), second);
}

#[test]
fn of_all_who_swap_at_once_one_wins_each_number() {
    const LAST: u64 = 1001;
    let (dir, mut views) = created();
    let racer = |attachment: u128| {
        let mut views = FileViews::new(dir.path(), VOLUME, PATIENCE);
        move || {
            let mut won = Vec::new();
            let mut view = views.load().unwrap();
            while view.number.0 < LAST {
                let next = following(&view, attachment);
                match views.swap(view.number, &next).unwrap() {
                    Swap::Stored => {
                        won.push(next.number.0);
                        view = next;
                    }
                    Swap::Conflict(other) => {
                        assert!(other.number > view.number, "views do not go back");
                        view = other;
                    }
                }
            }
            (attachment, won, view)
        }
    };
    let finished: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (1..=3).map(|attachment| scope.spawn(racer(attachment))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut winners = BTreeMap::new();
    for (attachment, won, last_seen) in finished {
        assert_eq!(last_seen, views.load().unwrap());
        for number in won {
            assert_eq!(winners.insert(number, attachment), None, "view {number} was won twice");
        }
    }
    assert!(winners.keys().copied().eq(2..=LAST), "each number was won");
    let last = views.load().unwrap();
    assert_eq!(last.writer.unwrap().attachment, Uuid::from_u128(winners[&LAST]));
}

#[test]
fn a_damaged_view_is_refused_with_its_path_and_not_replaced() {
    let (dir, mut views) = created();
    let path = dir.path().join(format!("{VOLUME}.json"));
    let mut content = std::fs::read(&path).unwrap();
    content[40] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let error = views.load().unwrap_err();
    assert!(matches!(error, ViewStoreError::Damaged { reason: RecordDamage::Checksum(_), .. }), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    let error = views.swap(ViewNumber(1), &following(&first_view(VOLUME), 1)).unwrap_err();
    assert!(matches!(error, ViewStoreError::Damaged { .. }), "{error}");
    assert!(matches!(views.create(&first_view(VOLUME)), Err(ViewStoreError::Exists { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), content);

    let other = Uuid::from_bytes([8; 16]);
    std::fs::write(&path, record::render(&first_view(other))).unwrap();
    let error = views.load().unwrap_err();
    assert!(matches!(error, ViewStoreError::Damaged { reason: RecordDamage::OtherVolume { .. }, .. }), "{error}");
}

#[test]
fn a_folder_that_cannot_be_used_has_changed_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let mut views = FileViews::new(&parent.path().join("absent"), VOLUME, PATIENCE);
    let first = first_view(VOLUME);
    assert!(matches!(views.load(), Err(ViewStoreError::Unavailable { .. })));
    assert!(matches!(views.create(&first), Err(ViewStoreError::Unavailable { .. })));
    assert!(matches!(views.swap(ViewNumber(1), &following(&first, 1)), Err(ViewStoreError::Unavailable { .. })));

    let (dir, mut views) = created();
    std::fs::create_dir(dir.path().join(format!("{VOLUME}.json.new"))).unwrap();
    let error = views.swap(ViewNumber(1), &following(&first, 1)).unwrap_err();
    assert!(matches!(error, ViewStoreError::Unavailable { .. }), "{error}");
    assert_eq!(views.load().unwrap(), first);
}

#[test]
fn a_failure_from_the_rename_on_is_not_called_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let views = FileViews::new(dir.path(), VOLUME, PATIENCE);
    // A file cannot be renamed over a folder.
    std::fs::create_dir(views.path()).unwrap();
    let error = views.store(&first_view(VOLUME)).unwrap_err();
    assert!(matches!(error, ViewStoreError::Unknown { .. }), "{error}");
}

#[test]
fn a_lock_that_is_held_too_long_is_given_up_and_one_that_is_freed_is_taken() {
    let (dir, mut views) = created();
    let next = following(&first_view(VOLUME), 1);
    let lock_path = dir.path().join(format!("{VOLUME}.lock"));
    let holder = File::open(&lock_path).unwrap();
    rustix::fs::flock(&holder, FlockOperation::NonBlockingLockExclusive).unwrap();
    for wait in [Duration::ZERO, Duration::from_millis(5)] {
        let mut hasty = FileViews::new(dir.path(), VOLUME, wait);
        let error = hasty.swap(ViewNumber(1), &next).unwrap_err();
        assert!(matches!(error, ViewStoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(lock_path.to_str().unwrap()), "{error}");
        assert_eq!(hasty.load().unwrap(), first_view(VOLUME), "reading needs no lock");
    }
    thread::scope(|scope| {
        let waiting = scope.spawn(|| views.swap(ViewNumber(1), &next).unwrap());
        drop(holder);
        assert_eq!(waiting.join().unwrap(), Swap::Stored);
    });
    assert!(lock_path.exists());
}
