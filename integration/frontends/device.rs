//! The device as a guest's driver meets it: features, configuration space, requests at the edges
//! of what is legal, and what each of them says when it is done.

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SECURE_ERASE, VIRTIO_BLK_F_ZONED};
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

use crate::support::configuration::Configuration;
use crate::support::guest::{CONFIG_SIZE, OFFERED, Options, WRITEBACK, bit};
use crate::support::pattern::pattern;
use crate::support::request::{DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, Request, UNSUPP, WRITE_ZEROES, segments};
use crate::support::served::Served;
use crate::support::volume::{Volume, is_zero};

const SIZE: u64 = 16 << 20;

under_every_configuration!(
    features_are_those_of_the_design,
    configuration_space_describes_the_volume,
    configuration_space_can_only_change_in_its_cache_mode,
    serial_is_what_serve_was_given,
    used_length_is_what_the_device_wrote,
    data_on_disk_is_what_openssl_makes_of_it,
    unwritten_sectors_read_as_zeros,
    last_sector_is_the_last,
    partial_sectors_are_refused,
    unknown_requests_are_unsupported,
    read_only_volume_is_not_written,
);

fn features_are_those_of_the_design(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let guest = served.guest();
    assert_eq!(guest.offered & OFFERED, OFFERED, "a feature is missing");
    let absent = [
        VIRTIO_BLK_F_RO,
        15, // LIFETIME
        VIRTIO_BLK_F_SECURE_ERASE,
        VIRTIO_BLK_F_ZONED,
        VIRTIO_F_RING_PACKED,
    ];
    for feature in absent {
        assert_eq!(guest.offered & bit(feature), 0, "feature {feature}");
    }
    let protocol = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert!(guest.protocol.contains(protocol), "{:?}", guest.protocol);
}

fn configuration_space_describes_the_volume(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start_with(&volume, &["--queues", "7"]);
    let mut guest = served.guest();
    let config = guest.config.clone();
    let byte = |at: usize| u32::from(config[at]);
    let half = |at: usize| u16::from_le_bytes([config[at], config[at + 1]]);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    let sectors_in_a_block = configuration.sector_size / 512;

    let capacity = u64::from_le_bytes(config[..8].try_into().unwrap());
    assert_eq!(capacity, SIZE / 512);
    let (size_max, seg_max) = (word(8), word(12));
    assert!(size_max >= 4096, "size_max is {size_max}");
    assert!((1..=1022).contains(&seg_max), "seg_max is {seg_max}");
    assert_eq!(word(20), configuration.sector_size, "blk_size");
    let (exponent, alignment_offset) = (byte(24), byte(25));
    let physical = configuration.sector_size << exponent;
    assert!(physical.is_power_of_two() && physical <= 1 << 20);
    assert_eq!(alignment_offset, 0, "the data file has no header");
    assert!(half(26) >= 1, "min_io_size is in blocks and at least one");
    assert_eq!(config[WRITEBACK as usize], 1, "writes are cached at first");
    assert_eq!(half(34), 7, "num_queues");

    let (discard_sectors, discard_segments, discard_alignment) = (word(36), word(40), word(44));
    assert!(discard_sectors >= sectors_in_a_block);
    assert!(discard_segments > 1, "several segments a request");
    assert!(discard_alignment >= sectors_in_a_block);
    assert_eq!(discard_alignment % sectors_in_a_block, 0);
    let (zero_sectors, zero_segments) = (word(48), word(52));
    assert!(zero_sectors >= sectors_in_a_block);
    assert!(zero_segments > 1, "several segments a request");
    assert_eq!(byte(56), 1, "zeroing may unmap");

    // Cloud Hypervisor's offset and everyone else's name the same bytes.
    assert_eq!(guest.read_config(0), config);
    assert_eq!(guest.read_config(0x100), config);
    let (_, block_size) = guest
        .frontend
        .get_config(20, 4, VhostUserConfigFlags::empty(), &[0; 4])
        .expect("part of the configuration space");
    assert_eq!(block_size, configuration.sector_size.to_le_bytes());
    // QEMU asks for as much as there can be.
    let (_, bytes) =
        guest.frontend.get_config(0, 256, VhostUserConfigFlags::empty(), &[0; 256]).expect("more than the device has");
    assert_eq!(bytes[..CONFIG_SIZE], config);
    assert!(is_zero(&bytes[CONFIG_SIZE..]));
}

fn configuration_space_can_only_change_in_its_cache_mode(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let mut served = Served::start(&volume);
    let mut guest = served.guest();
    let before = guest.config.clone();

    let mut written_through = before.clone();
    written_through[WRITEBACK as usize] = 0;
    for flags in [VhostUserConfigFlags::WRITABLE, VhostUserConfigFlags::empty()] {
        guest.set_writeback(0, flags);
        assert_eq!(guest.read_config(0), written_through);
        guest.set_writeback(1, flags);
        assert_eq!(guest.read_config(0), before);
    }

    // The back end may answer with an error or close, but the capacity stays.
    let _ = guest.frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &[0xff; 8]);
    drop(guest);
    served.assert_alive();
    assert_eq!(served.guest().config, before);
}

fn serial_is_what_serve_was_given(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    for serial in ["disk-7", "exactly-twenty-bytes"] {
        let served = Served::start_with(&volume, &["--serial", serial]);
        let mut guest = served.guest();
        let request = Request { in_length: 20, ..Request::bare(GET_ID, 0) };
        let mut expected = serial.as_bytes().to_vec();
        expected.resize(20, 0);
        assert_eq!(guest.done(0, &request), expected);
    }
}

fn used_length_is_what_the_device_wrote(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let data = pattern(1, 8192);
    let reply = guest.call(0, &Request::write(0, &data));
    assert_eq!((reply.status, reply.used_length), (OK, 1));
    let reply = guest.call(0, &Request::read(0, 8192));
    assert_eq!((reply.status, reply.used_length), (OK, 8193));
    let reply = guest.call(0, &Request::flush());
    assert_eq!((reply.status, reply.used_length), (OK, 1));
    let block = configuration.sector_size / 512;
    for kind in [DISCARD, WRITE_ZEROES] {
        let list = segments(&[(0, block, 0)]);
        let reply = guest.call(0, &Request::ranges(kind, &list));
        assert_eq!((reply.status, reply.used_length), (OK, 1));
    }
    // A failed request must not claim more than its buffers hold.
    let reply = guest.call(0, &Request::read(SIZE, 8192));
    assert_eq!(reply.status, IOERR);
    assert!(reply.used_length <= 8193);
}

fn data_on_disk_is_what_openssl_makes_of_it(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let mut model = vec![0; SIZE as usize];
    let block = u64::from(configuration.sector_size);
    let lengths = [1, 2, 3, 7, 8, 9, 16, 31].map(|blocks| blocks * block as usize);
    let mut offset = 3 * block;
    for (seed, length) in (0..).zip(lengths) {
        let data = pattern(seed, length);
        guest.write(offset, &data);
        model[offset as usize..][..length].copy_from_slice(&data);
        offset += length as u64 + block;
    }
    // Over what is there already, the first and the last sector included.
    for (seed, offset) in [(90, 0), (91, 5 * block), (92, SIZE - 4 * block)] {
        let data = pattern(seed, 4 * block as usize);
        guest.write(offset, &data);
        model[offset as usize..][..data.len()].copy_from_slice(&data);
    }
    // Zeros are data too: they are sealed, or they are a hole.
    guest.write(8 * block, &vec![0; block as usize]);
    model[8 * block as usize..][..block as usize].fill(0);
    guest.flush();
    for start in (0..SIZE).step_by(64 << 10) {
        let expected = &model[start as usize..][..64 << 10];
        assert_eq!(guest.read(start, 64 << 10), expected, "at byte {start}");
    }
    drop(guest);
    served.terminate().assert_clean();
    volume.assert_holds(0, &model);
}

fn unwritten_sectors_read_as_zeros(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    assert!(is_zero(&guest.read(0, 64 << 10)));
    // Around one written sector, within one block of the host's file system.
    let block = configuration.sector_size as usize;
    let data = pattern(4, block);
    guest.write(10 * block as u64, &data);
    let read = guest.read(0, 64 * block);
    assert!(is_zero(&read[..10 * block]));
    assert_eq!(read[10 * block..11 * block], data);
    assert!(is_zero(&read[11 * block..]));
}

fn last_sector_is_the_last(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let block = configuration.sector_size as usize;
    let data = pattern(5, 2 * block);
    let last = SIZE - block as u64;
    guest.write(last - block as u64, &data);
    assert_eq!(guest.read(last, block), data[block..]);

    let over_the_end = pattern(6, 2 * block);
    let reply = guest.call(0, &Request::write(last, &over_the_end));
    assert_eq!(reply.status, IOERR);
    let reply = guest.call(0, &Request::read(last, 2 * block));
    assert_eq!(reply.status, IOERR);
    let reply = guest.call(0, &Request::read(SIZE, block));
    assert_eq!(reply.status, IOERR);
    let reply = guest.call(0, &Request::write(SIZE, &data[..block]));
    assert_eq!(reply.status, IOERR);
    assert_eq!(guest.read(last - block as u64, 2 * block), data);
    guest.flush();
    volume.assert_holds(last - block as u64, &data);
}

fn partial_sectors_are_refused(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    let block = configuration.sector_size as usize;
    let data = pattern(7, 4 * block);
    guest.write(0, &data);

    let lengths = [1, 100, block - 1, block + 1, block + block / 2];
    for length in lengths {
        let reply = guest.call(0, &Request::write(0, &pattern(8, length)));
        assert_eq!(reply.status, IOERR, "a write of {length} bytes");
        let reply = guest.call(0, &Request::read(0, length));
        assert_eq!(reply.status, IOERR, "a read of {length} bytes");
    }
    if block > 512 {
        let reply = guest.call(0, &Request::write(512, &pattern(8, block)));
        assert_eq!(reply.status, IOERR, "a write at half a sector");
        let reply = guest.call(0, &Request::read(512, block));
        assert_eq!(reply.status, IOERR, "a read at half a sector");
        for kind in [DISCARD, WRITE_ZEROES] {
            for segment in [(1, 8, 0), (0, 7, 0), (8, 1, 0)] {
                assert_eq!(guest.ranges(kind, &[segment]), IOERR, "{kind} {segment:?}");
            }
        }
    }
    assert_eq!(guest.read(0, data.len()), data);
}

fn unknown_requests_are_unsupported(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let served = Served::start(&volume);
    let mut guest = served.guest();
    // SCSI commands, GET_LIFETIME, SECURE_ERASE, a zone report, and numbers that nobody has given.
    for kind in [2, 3, 5, 10, 14, 16, 0x8000_0000, u32::MAX] {
        let out = pattern(9, 64);
        let request = Request { out: &out, in_length: 64, ..Request::bare(kind, 0) };
        let reply = guest.call(0, &request);
        assert_eq!(reply.status, UNSUPP, "request type {kind:#x}");
        let reply = guest.call(0, &Request::bare(kind, 0));
        assert_eq!(reply.status, UNSUPP, "request type {kind:#x}, bare");
    }
    assert_eq!([IN, OUT, FLUSH], [0, 1, 4]);
    guest.flush();
}

fn read_only_volume_is_not_written(configuration: Configuration) {
    let volume = Volume::create(configuration, SIZE);
    let data = pattern(10, 64 << 10);
    let served = Served::start(&volume);
    served.guest().write(0, &data);
    served.terminate().assert_clean();

    let before = volume.data();
    let served = Served::start_with(&volume, &["--read-only"]);
    let mut guest = served.guest_as(Options::CLOUD_HYPERVISOR);
    assert_ne!(guest.offered & bit(VIRTIO_BLK_F_RO), 0);
    let zeros = vec![0; 4096];
    let reply = guest.call(0, &Request::write(0, &zeros));
    assert_eq!(reply.status, IOERR);
    for kind in [DISCARD, WRITE_ZEROES] {
        let status = guest.ranges(kind, &[(0, 8, 0)]);
        assert!([IOERR, UNSUPP].contains(&status), "{kind}: {status}");
    }
    guest.flush();
    assert_eq!(guest.read(0, data.len()), data);
    drop(guest);
    served.terminate().assert_clean();
    assert_eq!(volume.data(), before);
}
