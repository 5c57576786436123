//! Whatever a front end may say, with memory of its own and descriptors.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use sealblk::device::Disk;
use sealblk::io::Kind;
use sealblk::store::{Access, SectorSize};
use sealblk::volume::attachment::Attachment;
use sealblk::volume::{Creation, Volume};

fuzz_target!(|bytes: &[u8]| {
    sealblk::vhost::converse_hostile(&DISK, bytes);
});

/// Two queues, over a volume of 1 MiB in the folder for temporary files.
static DISK: LazyLock<Arc<Disk>> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("sealblk-fuzz-{}", std::process::id()));
    let creation = Creation { size_bytes: 1 << 20, sector_size: SectorSize::Bytes512, device: None };
    Volume::create(&dir, creation, None).expect("a volume");
    let volume = Volume::open(&dir, None, Access::Exclusive).expect("its key");
    let attachment = Attachment::new(volume, Kind::Inline, false).expect("an engine");
    // It is open: nothing more needs its names.
    std::fs::remove_dir_all(dir).expect("a folder of our own");
    Arc::new(Disk::new(Arc::new(attachment), "fuzz".parse().expect("a serial"), 2))
});
