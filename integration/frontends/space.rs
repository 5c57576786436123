//! Space that guests give back: DISCARD and WRITE_ZEROES, in one segment or several.

use crate::support::configuration::Configuration;
use crate::support::pattern::pattern;
use crate::support::request::{DISCARD, IOERR, OK, Request, UNSUPP, WRITE_ZEROES};
use crate::support::served::Served;
use crate::support::volume::{Volume, is_zero};

const SIZE: u64 = 16 << 20;
const UNMAP: u32 = 1;

under_every_configuration!(
    discard_gives_space_back,
    zeroing_the_volume_leaves_no_space_taken,
    ranges_touch_nothing_beside_them,
    several_segments_are_all_done,
    reserved_flags_are_unsupported,
    ranges_past_the_end_are_refused,
);

fn discard_gives_space_back(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let empty = volume.allocated_bytes();
    for megabyte in 0..4 {
        guest.write(megabyte << 20, &pattern(megabyte, 1 << 20));
    }
    guest.flush();
    let full = volume.allocated_bytes();
    assert!(full >= empty + (4 << 20), "{full} bytes after {empty}");

    assert_eq!(guest.ranges(DISCARD, &[(2048, 2048, 0)]), OK);
    guest.flush();
    assert!(volume.allocated_bytes() <= full - (1 << 20));
    assert!(is_zero(&guest.read(1 << 20, 1 << 20)));
    for megabyte in [0, 2, 3] {
        let data = guest.read(megabyte << 20, 1 << 20);
        assert!(data == pattern(megabyte, 1 << 20), "megabyte {megabyte}");
    }
}

fn zeroing_the_volume_leaves_no_space_taken(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let empty = volume.allocated_bytes();
    for megabyte in 0..SIZE >> 20 {
        guest.write(megabyte << 20, &pattern(megabyte, 1 << 20));
    }
    guest.flush();
    assert!(volume.allocated_bytes() >= SIZE);
    let all = (0, (SIZE / 512) as u32, UNMAP);
    assert_eq!(guest.ranges(WRITE_ZEROES, &[all]), OK);
    guest.flush();
    assert!(volume.allocated_bytes() <= empty + (64 << 10));
    assert!(is_zero(&volume.data()));
    assert!(is_zero(&guest.read(SIZE - (1 << 20), 1 << 20)));
}

/// Single sectors at every place within a block of the host's file system, which can punch only
/// whole blocks.
fn ranges_touch_nothing_beside_them(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let block = configuration.sector_size as usize;
    let in_sectors = u64::from(configuration.sector_size / 512);
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, UNMAP)] {
        for first in 0..9 {
            for count in [1, 2, 8, 11] {
                let data = pattern(20 + first, 32 * block);
                guest.write(0, &data);
                let segment = (first * in_sectors, (count * in_sectors) as u32, flags);
                assert_eq!(guest.ranges(kind, &[segment]), OK);
                let mut expected = data;
                let start = first as usize * block;
                expected[start..start + count as usize * block].fill(0);
                let read = guest.read(0, 32 * block);
                assert!(read == expected, "{kind} {segment:?}");
                volume.assert_holds(0, &expected);
            }
        }
    }
}

fn several_segments_are_all_done(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let block = configuration.sector_size as usize;
    let in_sectors = u64::from(configuration.sector_size / 512);
    let limit = |at: usize| u32::from_le_bytes(guest.config[at..at + 4].try_into().unwrap());
    let limits = [(DISCARD, limit(40)), (WRITE_ZEROES, limit(52))];
    for (kind, segments) in limits {
        let count = (segments as usize).min(50);
        let data = pattern(30, 3 * count * block);
        guest.write(0, &data);
        let list: Vec<_> = (0..count as u64).map(|index| (3 * index * in_sectors, in_sectors as u32, 0)).collect();
        assert_eq!(guest.ranges(kind, &list), OK);
        let mut expected = data;
        for hole in expected.chunks_mut(3 * block) {
            hole[..block].fill(0);
        }
        assert!(guest.read(0, expected.len()) == expected, "request {kind}");
        volume.assert_holds(0, &expected);
    }
}

/// 5.2.6.2: unknown flags, and UNMAP in a DISCARD, are UNSUPP.
fn reserved_flags_are_unsupported(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let data = pattern(40, 64 << 10);
    guest.write(0, &data);
    assert_eq!(guest.ranges(DISCARD, &[(0, 8, UNMAP)]), UNSUPP);
    for flags in [2, 4, 0x8000_0000, 3] {
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(guest.ranges(kind, &[(0, 8, flags)]), UNSUPP, "{kind} {flags}");
        }
    }
    assert!(guest.read(0, data.len()) == data);
}

fn ranges_past_the_end_are_refused(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let data = pattern(41, 64 << 10);
    let tail = SIZE - data.len() as u64;
    guest.write(tail, &data);
    let end = SIZE / 512;
    for kind in [DISCARD, WRITE_ZEROES] {
        for segment in [
            (end, 8, 0),
            (end - 8, 16, 0),
            (u64::MAX, 8, 0),
            (u64::MAX - 7, 8, 0),
            (u64::MAX / 512, 8, 0),
            (0, u32::MAX - 7, 0),
        ] {
            assert_eq!(guest.ranges(kind, &[segment]), IOERR, "{kind} {segment:?}");
        }
        let part = segments_of_whole_blocks(configuration);
        let list = crate::support::request::segments(&part)[..15].to_vec();
        let reply = guest.call(0, &Request::ranges(kind, &list));
        assert_eq!(reply.status, IOERR, "{kind} of 15 bytes");
    }
    assert!(guest.read(tail, data.len()) == data);
    assert_eq!(volume.data().len() as u64, SIZE);
}

fn segments_of_whole_blocks(configuration: Configuration) -> [(u64, u32, u32); 1] {
    [(0, configuration.sector_size / 512, 0)]
}
