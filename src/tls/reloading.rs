//! Certificates that are renewed while the process runs.
//!
//! The files are looked at when somebody asks, at most once a second, and read only when one of them is
//! another than before. They may be seen in the middle of a change, or be written wrongly; then what was
//! there before stays in force, the log says so once, and the files are read again each second until
//! they fit. Connections that are there keep what they began with.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use super::configs::Configs;
use super::files::{FilesError, TlsPaths};

/// A node's configurations as the files have them now.
#[derive(Debug)]
pub struct Reloading {
    paths: TlsPaths,
    shown: RwLock<Arc<Configs>>,
    watch: Mutex<Watch>,
}

#[derive(Debug)]
struct Watch {
    looked: Instant,
    /// Of the files that were last read.
    stamps: Stamps,
    /// Why those are not shown, as it was logged.
    complaint: Option<String>,
    /// It was logged that the revocation list that is in force is overdue.
    is_overdue: bool,
}

impl Reloading {
    /// Reads the files for the first time.
    ///
    /// # Errors
    ///
    /// [`FilesError`]: there is nothing to fall back to.
    pub fn open(paths: TlsPaths) -> Result<Reloading, FilesError> {
        let stamps = Stamps::of(&paths);
        let configs = Configs::load(&paths, SystemTime::now())?;
        let is_overdue = note_overdue(&paths, &configs, SystemTime::now());
        let watch = Watch { looked: Instant::now(), stamps, complaint: None, is_overdue };
        Ok(Reloading { paths, shown: RwLock::new(Arc::new(configs)), watch: Mutex::new(watch) })
    }

    /// The latest that are good. Cheap, but once a second it looks at the files, and when they have
    /// changed it reads them.
    pub fn current(&self) -> Arc<Configs> {
        self.current_at(Instant::now(), SystemTime::now())
    }

    fn current_at(&self, now: Instant, time: SystemTime) -> Arc<Configs> {
        // Whoever comes while another looks takes what is there.
        match self.watch.try_lock() {
            Ok(mut watch) => self.look(&mut watch, now, time),
            Err(TryLockError::Poisoned(poisoned)) => self.look(&mut poisoned.into_inner(), now, time),
            Err(TryLockError::WouldBlock) => {}
        }
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look(&self, watch: &mut Watch, now: Instant, time: SystemTime) {
        if now.saturating_duration_since(watch.looked) < INTERVAL {
            return;
        }
        watch.looked = now;
        if !watch.is_overdue {
            let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner).clone();
            watch.is_overdue = note_overdue(&self.paths, &shown, time);
        }
        // Taken before the files are read: if they change meanwhile, they are read again.
        let stamps = Stamps::of(&self.paths);
        // Bad ones may be good later without a change: a certificate's time comes.
        if stamps == watch.stamps && watch.complaint.is_none() {
            return;
        }
        watch.stamps = stamps;
        match Configs::load(&self.paths, time) {
            Ok(configs) => {
                log::info!("the certificate in {} was read again", self.paths.cert.display());
                watch.is_overdue = note_overdue(&self.paths, &configs, time);
                watch.complaint = None;
                *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(configs);
            }
            Err(error) => {
                let text = error.to_string();
                if watch.complaint.as_ref() != Some(&text) {
                    log::warn!("the certificate of before stays in use: {text}");
                }
                watch.complaint = Some(text);
            }
        }
    }
}

/// What tells one version of the files from another: device, inode, length, and times of change in
/// nanoseconds. Nothing for a file that is not there.
#[derive(Debug, PartialEq, Eq)]
struct Stamps(Vec<Option<[i128; 5]>>);

impl Stamps {
    fn of(paths: &TlsPaths) -> Stamps {
        let TlsPaths { cert, key, ca, crl } = paths;
        let all = [cert, key, ca].into_iter().chain(crl);
        Stamps(all.map(|path| stamp(path)).collect())
    }
}

fn stamp(path: &Path) -> Option<[i128; 5]> {
    let data = fs::metadata(path).ok()?;
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    Some([
        data.dev().into(),
        data.ino().into(),
        data.len().into(),
        time(data.mtime(), data.mtime_nsec()),
        time(data.ctime(), data.ctime_nsec()),
    ])
}

/// Says so if the revocation list is overdue; whether it is.
fn note_overdue(paths: &TlsPaths, configs: &Configs, time: SystemTime) -> bool {
    let (Some(path), Some(due)) = (&paths.crl, configs.crl_next_update) else { return false };
    if due <= time {
        log::warn!("a revocation list in {} is overdue and may lack names: write a newer one", path.display());
    }
    due <= time
}

const INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::super::authority::{Authority, Life};
    use super::super::fixture::{Fixture, HOUR, life, over_and_early};
    use super::*;

    /// Shows what is current at ever later times.
    struct Reader {
        reloading: Reloading,
        now: Instant,
        time: SystemTime,
    }

    impl Reader {
        fn open(paths: &TlsPaths) -> Reader {
            Reader { reloading: Reloading::open(paths.clone()).unwrap(), now: Instant::now(), time: SystemTime::now() }
        }

        fn next(&mut self) -> Arc<Configs> {
            self.now += 2 * INTERVAL;
            self.reloading.current_at(self.now, self.time)
        }

        fn complaint(&self) -> Option<String> {
            self.reloading.watch.lock().unwrap().complaint.clone()
        }
    }

    #[test]
    fn new_files_are_picked_up_and_unchanged_ones_not_read() {
        let fixture = Fixture::new();
        let paths = fixture.node("node-a");
        let mut reader = Reader::open(&paths);
        let first = reader.next();
        assert!(first.names.has("node-a"));
        assert!(Arc::ptr_eq(&first, &reader.next()));

        let renewed = fixture.authority.issue(&["node-a".into(), "node-a.example".into()], life()).unwrap();
        assert_eq!(fixture.write_issued("node-a", &renewed), paths);
        let second = reader.next();
        assert!(second.names.has("node-a.example"));
        assert!(!Arc::ptr_eq(&first.server, &second.server) && !Arc::ptr_eq(&first.client, &second.client));
        assert!(Arc::ptr_eq(&second, &reader.next()));
    }

    #[test]
    fn files_are_looked_at_once_a_second() {
        let fixture = Fixture::new();
        let mut reader = Reader::open(&fixture.node("node-a"));
        let first = reader.next();
        fixture.node("node-a");
        let soon = reader.reloading.current_at(reader.now + INTERVAL - Duration::from_nanos(1), reader.time);
        assert!(Arc::ptr_eq(&first, &soon));
        let later = reader.reloading.current_at(reader.now + INTERVAL, reader.time);
        assert!(!Arc::ptr_eq(&first, &later));
    }

    #[test]
    fn bad_files_leave_the_old_ones_in_force_until_they_are_good() {
        let fixture = Fixture::new();
        let paths = fixture.node("node-a");
        let mut reader = Reader::open(&paths);
        let first = reader.next();

        fixture.write("node-a-cert", "nonsense");
        assert!(Arc::ptr_eq(&first, &reader.next()));
        let complaint = reader.complaint().unwrap();
        assert!(complaint.contains("node-a-cert"), "{complaint}");

        // The halves of a renewal are seen one after the other.
        let renewed = fixture.issue("node-a");
        fixture.write("node-a-cert", &renewed.certificate);
        assert!(Arc::ptr_eq(&first, &reader.next()));
        assert_ne!(reader.complaint().unwrap(), complaint);
        fixture.write("node-a-key", renewed.key.as_bytes());
        assert!(!Arc::ptr_eq(&first, &reader.next()));
        assert_eq!(reader.complaint(), None);

        let second = reader.next();
        std::fs::remove_file(&paths.ca).unwrap();
        assert!(Arc::ptr_eq(&second, &reader.next()));
        assert!(reader.complaint().unwrap().contains("cannot read"));
        fixture.write("ca", fixture.authority.certificate());
        assert!(!Arc::ptr_eq(&second, &reader.next()));
    }

    #[test]
    fn a_certificate_whose_time_comes_is_taken_then() {
        let fixture = Fixture::new();
        let mut reader = Reader::open(&fixture.node("node-a"));
        let first = reader.next();
        let (_, early) = over_and_early();
        fixture.write_issued("node-a", &fixture.authority.issue(&["node-a".to_owned()], early).unwrap());
        fixture.write("ca", Authority::create(Life { end: early.end, ..life() }).unwrap().certificate());
        assert!(Arc::ptr_eq(&first, &reader.next()));
        assert!(reader.complaint().unwrap().contains("not valid before"));
        reader.time = early.begin + HOUR / 2;
        assert!(reader.next().not_after > first.not_after);
        assert_eq!(reader.complaint(), None);
    }

    #[test]
    fn a_new_revocation_list_comes_into_force() {
        let fixture = Fixture::new();
        let crl = Some(fixture.write("crl", fixture.revoke(&[])));
        let mut reader = Reader::open(&TlsPaths { crl, ..fixture.node("node-a") });
        let first = reader.next();
        fixture.write("crl", fixture.revoke(&[&fixture.issue("node-b")]));
        assert!(!Arc::ptr_eq(&first, &reader.next()));
    }

    #[test]
    fn that_a_revocation_list_becomes_overdue_is_noticed_without_a_change_and_ends_with_a_newer_one() {
        let fixture = Fixture::new();
        let crl = Some(fixture.write("crl", fixture.revoke(&[])));
        let mut reader = Reader::open(&TlsPaths { crl, ..fixture.node("node-a") });
        let due = reader.next().crl_next_update.unwrap();
        let is_overdue = |reader: &Reader| reader.reloading.watch.lock().unwrap().is_overdue;
        assert!(!is_overdue(&reader));
        reader.time = due;
        reader.next();
        assert!(is_overdue(&reader));
        reader.time = SystemTime::now();
        fixture.write("crl", fixture.revoke(&[&fixture.issue("node-b")]));
        reader.next();
        assert!(!is_overdue(&reader));
    }

    #[test]
    fn there_must_be_something_to_begin_with() {
        let fixture = Fixture::new();
        let paths = fixture.node("node-a");
        fixture.write("node-a-key", "nonsense");
        assert!(matches!(Reloading::open(paths), Err(FilesError::NoKey { .. })));
    }
}
