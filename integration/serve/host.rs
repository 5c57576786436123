//! The host's file systems: direct I/O in units of 4096 bytes under a guest of 512, and memory
//! file systems that know no direct I/O.

use std::path::Path;

use tempfile::TempDir;

use crate::support::configuration::Configuration;
use crate::support::loopback::{LoopDevice, Mount};
use crate::support::pattern::pattern;
use crate::support::request::{DISCARD, OK, Request, WRITE_ZEROES};
use crate::support::served::Served;
use crate::support::volume::Volume;

const SIZE: u64 = 16 << 20;

under_every_configuration!(disk_with_sectors_of_4096, memory_file_system);

fn disk_with_sectors_of_4096(configuration: Configuration) {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let device = LoopDevice::attach(folder.path(), 128 << 20, 4096);
    let mount = Mount::ext4(device, folder.path());
    exercise(configuration, &mount.path);
}

fn memory_file_system(configuration: Configuration) {
    exercise(configuration, Path::new("/dev/shm"));
}

/// Single sectors, and runs of them that begin and end anywhere in a block of the host's.
fn exercise(configuration: Configuration, parent: &Path) {
    let volume = Volume::create_in(parent, configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let block = configuration.sector_size as usize;
    let mut model = vec![0; 1 << 20];
    for first in 0..9 {
        for count in [1, 2, 7, 8, 9, 17] {
            let data = pattern((first * 100 + count) as u64, count * block);
            let start = (first + 3 * count) * block;
            guest.done(0, &Request::write(start as u64, &data));
            model[start..start + data.len()].copy_from_slice(&data);
            let read = guest.done(0, &Request::read(start as u64, data.len()));
            assert!(read == data, "{count} sectors at sector {first}");
        }
    }
    for (kind, first) in [(DISCARD, 5), (WRITE_ZEROES, 23)] {
        let per_block = block as u64 / 512;
        let segment = (first * per_block, 9 * per_block as u32, 0);
        assert_eq!(guest.ranges(kind, &[segment]), OK);
        let start = first as usize * block;
        model[start..start + 9 * block].fill(0);
    }
    guest.flush();
    assert!(guest.read(0, model.len()) == model);
    drop(guest);
    served.terminate().assert_clean();
    volume.assert_holds(0, &model);
}
