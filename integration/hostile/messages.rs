//! A front end that sends garbage, halves of messages, and messages that are absurd.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight};
use vm_memory::ByteValued;
use vmm_sys_util::eventfd::EventFd;

use super::scene::Scene;
use crate::support::configuration::Configuration;
use crate::support::memory::Region;
use crate::support::message::{NEED_REPLY, RegionBytes, VERSION, Wire, header, ring_state};
use crate::support::pattern::{next, pattern};

under_every_engine!(
    garbage_on_the_socket,
    half_a_message,
    headers_that_lie,
    every_request_with_every_payload,
    absurd_ring_sizes,
    absurd_ring_indices,
    absurd_ring_addresses,
    absurd_descriptors,
    absurd_memory_regions,
    absurd_memory_for_what_is_in_flight,
    absurd_features,
    absurd_configuration_accesses,
    messages_in_the_wrong_order,
    too_many_descriptors,
);

/// Sends one message on a connection of its own, and checks that it is refused: with an error, or
/// by closing the connection.
fn assert_refused(scene: &mut Scene, what: &str, request: FrontendReq, payload: &[u8], descriptors: &[RawFd]) {
    let mut wire = Wire::negotiated(scene.served.socket());
    let answer = wire.acknowledged(request, payload, descriptors);
    assert!(answer != Some(0), "{request:?} with {what} was taken");
    wire.close();
    scene.served.assert_alive();
}

fn garbage_on_the_socket(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for seed in 0..50 {
        let mut wire = Wire::connect(scene.served.socket());
        wire.bytes(&pattern(seed, 1 + seed as usize * 97));
        wire.close();
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

fn half_a_message(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let region = Region::new(0, 4096);
    let info = region.info();
    let whole = {
        let payload = RegionBytes { guest: 0, size: 4096, user: info.userspace_addr, offset: 0 }.single();
        let head = header(FrontendReq::ADD_MEM_REG as u32, VERSION | NEED_REPLY, 40);
        [&head[..], &payload].concat()
    };
    for length in [0, 1, 4, 11, 12, 13, 20, 51] {
        let mut wire = Wire::negotiated(scene.served.socket());
        wire.bytes(&whole[..length]);
        wire.close();
        scene.served.assert_alive();
        // And at the very start of a connection.
        let mut wire = Wire::connect(scene.served.socket());
        wire.bytes(&whole[..length]);
        drop(wire);
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

fn headers_that_lie(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let cases = [
        // Sizes that do not fit the request, or anything.
        (FrontendReq::SET_FEATURES as u32, VERSION, 4),
        (FrontendReq::SET_FEATURES as u32, VERSION, 0),
        (FrontendReq::SET_FEATURES as u32, VERSION, 0x1001),
        (FrontendReq::SET_MEM_TABLE as u32, VERSION, u32::MAX),
        (FrontendReq::GET_CONFIG as u32, VERSION, 4),
        // A version that does not exist, a reply where a request belongs, reserved bits.
        (FrontendReq::GET_FEATURES as u32, 0, 0),
        (FrontendReq::GET_FEATURES as u32, 2, 0),
        (FrontendReq::GET_FEATURES as u32, VERSION | 4, 0),
        (FrontendReq::GET_FEATURES as u32, VERSION | 0xffff_fff0, 0),
        // Requests that do not exist.
        (0, VERSION, 0),
        (45, VERSION, 8),
        (1000, VERSION, 8),
        (u32::MAX, VERSION, 8),
    ];
    for (request, flags, size) in cases {
        let mut wire = Wire::negotiated(scene.served.socket());
        wire.message(request, flags | NEED_REPLY, size, &[0xff; 64], &[]);
        wire.close();
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

fn every_request_with_every_payload(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let event = EventFd::new(0).expect("an eventfd");
    let mut state = 3;
    for request in 0..=46 {
        for length in [0, 1, 8, 12, 32, 40, 64, 512, 4096] {
            let payload = match next(&mut state) % 3 {
                0 => vec![0; length],
                1 => vec![0xff; length],
                _ => pattern(u64::from(request), length),
            };
            let descriptors = match next(&mut state) % 3 {
                0 => vec![event.as_raw_fd()],
                _ => vec![],
            };
            let mut wire = Wire::negotiated(scene.served.socket());
            let size = length as u32;
            wire.message(request, VERSION, size, &payload, &descriptors);
            wire.close();
        }
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

fn absurd_ring_sizes(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for size in [0, 3, 100, 1023, 1025, 2048, 32768, 65535, 65536, u32::MAX] {
        let payload = ring_state(0, size);
        let what = format!("size {size}");
        assert_refused(&mut scene, &what, FrontendReq::SET_VRING_NUM, &payload, &[]);
    }
    scene.assert_unharmed();
}

fn absurd_ring_indices(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let event = EventFd::new(0).expect("an eventfd");
    let requests = [
        FrontendReq::SET_VRING_NUM,
        FrontendReq::SET_VRING_BASE,
        FrontendReq::GET_VRING_BASE,
        FrontendReq::SET_VRING_ENABLE,
    ];
    // The volume is served with the usual 16 queues.
    for index in [16, 17, 64, 255, 256, 65536, u32::MAX] {
        for request in requests {
            let mut wire = Wire::negotiated(scene.served.socket());
            wire.message(request as u32, VERSION | NEED_REPLY, 8, &ring_state(index, 1), &[]);
            let refused = wire.reply().is_none_or(|reply| reply != [0; 8]);
            assert!(refused, "{request:?} for ring {index} was taken");
            wire.close();
        }
        let mut payload = [0; 40];
        payload[..4].copy_from_slice(&index.to_le_bytes());
        let what = format!("ring {index}");
        let request = FrontendReq::SET_VRING_ADDR;
        assert_refused(&mut scene, &what, request, &payload, &[]);
        if index < 256 {
            for request in [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_ERR] {
                let payload = u64::from(index).to_le_bytes();
                let descriptors = [event.as_raw_fd()];
                assert_refused(&mut scene, &what, request, &payload, &descriptors);
            }
        }
    }
    scene.assert_unharmed();
}

/// A ring's addresses: flags and addresses of descriptors, used ring and available ring.
fn addresses(flags: u32, descriptors: u64, used: u64, available: u64) -> Vec<u8> {
    let mut payload = 0_u32.to_le_bytes().to_vec();
    payload.extend_from_slice(&flags.to_le_bytes());
    for address in [descriptors, used, available, 0] {
        payload.extend_from_slice(&address.to_le_bytes());
    }
    payload
}

fn absurd_ring_addresses(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let region = Region::new(0, 1 << 20);
    let info = region.info();
    let base = info.userspace_addr;
    let end = base + (1 << 20);
    let cases = [
        ("no memory at all", base - (1 << 20), base, base + 4096),
        ("a used ring outside", base, end, base + 4096),
        ("an available ring outside", base, base + 4096, 4096),
        ("descriptors at the top", u64::MAX - 15, base, base + 4096),
        ("descriptors that reach out", end - 16, base, base + 4096),
        ("a used ring that reaches out", base, end - 4, base + 4096),
        ("an available ring that reaches out", base, base + 4096, end - 2),
        ("descriptors off alignment", base + 8, base + 4096, base + 8192),
        ("a used ring off alignment", base, base + 4098, base + 8192),
        ("an available ring off alignment", base, base + 4096, base + 8193),
        ("null", 0, 0, 0),
    ];
    for (what, descriptors, used, available) in cases {
        let mut wire = Wire::negotiated(scene.served.socket());
        let table = RegionBytes::table(&[RegionBytes { guest: 0, size: 1 << 20, user: base, offset: 0 }]);
        let answer = wire.acknowledged(FrontendReq::SET_MEM_TABLE, &table, &[info.mmap_handle]);
        assert_eq!(answer, Some(0));
        let answer = wire.acknowledged(FrontendReq::SET_VRING_NUM, &ring_state(0, 256), &[]);
        assert_eq!(answer, Some(0));
        let payload = addresses(0, descriptors, used, available);
        let answer = wire.acknowledged(FrontendReq::SET_VRING_ADDR, &payload, &[]);
        if answer == Some(0) {
            // A back end may look only when the ring is started: then it must refuse that.
            assert_not_started(&mut wire, what);
        }
        wire.close();
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

/// Goes on to start a ring and makes a request available: nothing may come of it.
fn assert_not_started(wire: &mut Wire, what: &str) {
    let kick = EventFd::new(0).expect("an eventfd");
    kick.write(1).expect("a kick");
    let started = [
        wire.acknowledged(FrontendReq::SET_VRING_BASE, &ring_state(0, 0), &[]),
        wire.acknowledged(FrontendReq::SET_VRING_KICK, &[0; 8], &[kick.as_raw_fd()]),
        wire.acknowledged(FrontendReq::SET_VRING_ENABLE, &ring_state(0, 1), &[]),
    ];
    assert!(started != [Some(0); 3], "a ring with {what} was started");
}

fn absurd_descriptors(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let requests = [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_ERR];
    let event = EventFd::new(0).expect("an eventfd");
    for request in requests {
        // The payload promises a descriptor and none comes, and the other way round.
        assert_refused(&mut scene, "no descriptor", request, &[0; 8], &[]);
        let payload = 0x100_u64.to_le_bytes();
        let descriptors = [event.as_raw_fd()];
        let what = "a descriptor too many";
        assert_refused(&mut scene, what, request, &payload, &descriptors);
        let descriptors = [event.as_raw_fd(), event.as_raw_fd()];
        assert_refused(&mut scene, "two descriptors", request, &[0; 8], &descriptors);
    }
    // What is no eventfd may be taken, but must not hurt: a file is always readable, a full pipe
    // never writable.
    let null = File::open("/dev/null").expect("/dev/null");
    let zero = File::open("/dev/zero").expect("/dev/zero");
    let file = File::open(scene.volume.key_path()).expect("a file");
    let folder = File::open("/").expect("a folder");
    for other in [&null, &zero, &file, &folder] {
        let mut wire = Wire::negotiated(scene.served.socket());
        for request in requests {
            let descriptors = [other.as_raw_fd()];
            if wire.acknowledged(request, &[0; 8], &descriptors).is_none() {
                break;
            }
        }
        wire.close();
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

fn absurd_memory_regions(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let region = Region::new(0, 1 << 20);
    let good = RegionBytes { guest: 1 << 32, size: 1 << 20, user: 1 << 40, offset: 0 };
    let cases = [
        ("no size", RegionBytes { size: 0, ..good }),
        ("a size that wraps", RegionBytes { size: u64::MAX, ..good }),
        ("half of everything", RegionBytes { size: 1 << 63, ..good }),
        ("a guest address that wraps", RegionBytes { guest: u64::MAX - 4095, ..good }),
        ("a user address that wraps", RegionBytes { user: u64::MAX - 4095, ..good }),
        ("an offset beyond the file", RegionBytes { offset: 1 << 30, ..good }),
        ("an offset that wraps", RegionBytes { offset: u64::MAX - 4095, ..good }),
        ("an offset past the last page", RegionBytes { offset: 4096, ..good }),
        ("more than its file", RegionBytes { size: 2 << 20, ..good }),
        ("petabytes", RegionBytes { size: 1 << 50, ..good }),
    ];
    let file = [region.info().mmap_handle];
    for (what, bytes) in cases {
        let single = bytes.single();
        assert_refused(&mut scene, what, FrontendReq::ADD_MEM_REG, &single, &file);
        let table = RegionBytes::table(&[bytes]);
        assert_refused(&mut scene, what, FrontendReq::SET_MEM_TABLE, &table, &file);
    }

    let twice = RegionBytes::table(&[good, good]);
    let files = [file[0], file[0]];
    let request = FrontendReq::SET_MEM_TABLE;
    assert_refused(&mut scene, "overlapping regions", request, &twice, &files);
    let table = RegionBytes::table(&[good]);
    assert_refused(&mut scene, "no file", request, &table, &[]);
    assert_refused(&mut scene, "a file too many", request, &table, &files);
    assert_refused(&mut scene, "fewer regions than said", request, &table[..8], &file);
    let mut many = 255_u32.to_le_bytes().to_vec();
    many.extend_from_slice(&table[4..]);
    assert_refused(&mut scene, "255 regions in one", request, &many, &file);

    // What cannot be mapped.
    let event = EventFd::new(0).expect("an eventfd");
    let folder = File::open("/").expect("a folder");
    for descriptor in [event.as_raw_fd(), folder.as_raw_fd()] {
        let single = good.single();
        let what = "what is no memory";
        let request = FrontendReq::ADD_MEM_REG;
        assert_refused(&mut scene, what, request, &single, &[descriptor]);
    }

    let mut wire = Wire::negotiated(scene.served.socket());
    let answer = wire.acknowledged(FrontendReq::ADD_MEM_REG, &good.single(), &file);
    assert_eq!(answer, Some(0));
    let answer = wire.acknowledged(FrontendReq::ADD_MEM_REG, &good.single(), &file);
    assert_ne!(answer, Some(0), "the same region twice");
    wire.close();
    scene.assert_unharmed();
}

fn absurd_memory_for_what_is_in_flight(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let sealed = |bytes: u64, seals: SealFlags| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("hostile", flags).expect("memory"));
        file.set_len(bytes).expect("its size");
        fcntl_add_seals(&file, seals).expect("its seals");
        file
    };
    let good = VhostUserInflight::new(2112, 0, 1, 128);
    let file = sealed(1 << 16, SealFlags::SHRINK);
    let mut set = |what: &str, inflight: VhostUserInflight, descriptors: &[RawFd]| {
        let mut wire = Wire::negotiated(scene.served.socket());
        let features = u64::to_le_bytes(1 << 3 | 1 << 12);
        assert_eq!(wire.acknowledged(FrontendReq::SET_PROTOCOL_FEATURES, &features, &[]), Some(0));
        let answer = wire.acknowledged(FrontendReq::SET_INFLIGHT_FD, inflight.as_slice(), descriptors);
        assert_eq!(answer == Some(0), what == "nothing wrong", "{what}");
        wire.close();
        scene.served.assert_alive();
    };
    set("nothing wrong", good, &[file.as_raw_fd()]);
    let of = |size, offset, queues, entries| VhostUserInflight::new(size, offset, queues, entries);
    for (what, inflight) in [
        ("no size", of(0, 0, 1, 128)),
        ("too little", of(2111, 0, 1, 128)),
        ("less than two queues need", of(2112, 0, 2, 128)),
        ("no queues", of(2112, 0, 0, 128)),
        ("more queues than there are", of(1 << 16, 0, 65, 1)),
        ("queues that are too large", of(1 << 16, 0, 1, 2048)),
        ("no descriptors", of(2112, 0, 1, 0)),
        ("an offset beyond the file", of(2112, 1 << 16, 1, 128)),
        ("an offset that wraps", of(2112, u64::MAX - 4095, 1, 128)),
        ("an offset that is no page's", of(2112, 64, 1, 128)),
        ("more than its file", of(1 << 17, 0, 1, 128)),
    ] {
        set(what, inflight, &[file.as_raw_fd()]);
    }
    let unsealed = sealed(1 << 16, SealFlags::GROW);
    set("a file that may be shrunk", good, &[unsealed.as_raw_fd()]);
    let null = File::open("/dev/null").expect("/dev/null");
    set("a device", good, &[null.as_raw_fd()]);
    set("no file", good, &[]);
    set("two files", good, &[file.as_raw_fd(), file.as_raw_fd()]);
    scene.assert_unharmed();
}

fn absurd_features(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    for bit in [3, 7, 27, 34, 40, 63] {
        let payload = (1_u64 << bit).to_le_bytes();
        let what = format!("feature {bit}");
        let request = FrontendReq::SET_FEATURES;
        assert_refused(&mut scene, &what, request, &payload, &[]);
    }
    // The whole offer, and with it each bit that is not in it.
    let offered = 1 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 15;
    let request = FrontendReq::SET_PROTOCOL_FEATURES;
    let mut wire = Wire::negotiated(scene.served.socket());
    assert_eq!(wire.acknowledged(request, &u64::to_le_bytes(offered), &[]), Some(0));
    wire.close();
    for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
        let payload = (offered | 1 << bit).to_le_bytes();
        let what = format!("protocol feature {bit}");
        assert_refused(&mut scene, &what, request, &payload, &[]);
    }
    // Who does not ask for an answer is cut off.
    let mut wire = Wire::connect(scene.served.socket());
    wire.request(FrontendReq::GET_FEATURES, &[], &[]);
    wire.reply().expect("the back end's features");
    wire.request(request, &u64::to_le_bytes(1 << 11), &[]);
    wire.wait_for_close();
    // A message of a feature that was not taken.
    let mut wire = Wire::negotiated(scene.served.socket());
    wire.request(FrontendReq::GET_INFLIGHT_FD, &pattern(1, 24), &[]);
    wire.close();
    scene.assert_unharmed();
}

fn absurd_configuration_accesses(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let access = |offset: u32, size: u32, flags: u32, content: &[u8]| {
        let mut payload = Vec::new();
        for number in [offset, size, flags] {
            payload.extend_from_slice(&number.to_le_bytes());
        }
        payload.extend_from_slice(content);
        payload
    };
    let accesses = [
        access(0, 0, 0, &[]),
        access(0, 60, 0, &[0; 8]),
        access(u32::MAX, 60, 0, &[0; 60]),
        access(0xfff, 60, 0, &[0; 60]),
        access(60, 60, 0, &[0; 60]),
        access(59, 2, 0, &[0; 2]),
        access(0x100 + 59, 2, 0, &[0; 2]),
        access(0, u32::MAX, 0, &[0; 60]),
        access(0, 4000, 0, &[0xaa; 4000]),
        access(32, 1, 0xffff_ffff, &[1]),
        access(31, 3, 1, &[0xff; 3]),
        access(32, 60, 1, &[0xff; 60]),
        access(0, 60, 1, &[0xff; 60]),
    ];
    for payload in &accesses {
        for request in [FrontendReq::GET_CONFIG, FrontendReq::SET_CONFIG] {
            let mut wire = Wire::negotiated(scene.served.socket());
            let size = payload.len() as u32;
            let flags = VERSION | NEED_REPLY;
            wire.message(request as u32, flags, size, payload, &[]);
            wire.close();
            scene.served.assert_alive();
        }
    }
    let config = scene.guest().config;
    assert_eq!(config[..8], (super::scene::SIZE / 512).to_le_bytes());
    scene.assert_unharmed();
}

fn messages_in_the_wrong_order(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let kick = EventFd::new(0).expect("an eventfd");
    kick.write(1).expect("a kick");
    // A ring without size, addresses or memory is enabled and kicked.
    let mut wire = Wire::negotiated(scene.served.socket());
    wire.acknowledged(FrontendReq::SET_VRING_ENABLE, &ring_state(0, 1), &[]);
    wire.close();
    let mut wire = Wire::negotiated(scene.served.socket());
    wire.acknowledged(FrontendReq::SET_VRING_KICK, &[0; 8], &[kick.as_raw_fd()]);
    wire.close();
    scene.served.assert_alive();
    for payload in [ring_state(0, 2), ring_state(0, u32::MAX)] {
        let request = FrontendReq::SET_VRING_ENABLE;
        assert_refused(&mut scene, "neither 0 nor 1", request, &payload, &[]);
    }
    // A ring that was never started is asked for its base.
    let mut wire = Wire::negotiated(scene.served.socket());
    wire.request(FrontendReq::GET_VRING_BASE, &ring_state(3, 0), &[]);
    if let Some(reply) = wire.reply() {
        assert_eq!(reply, ring_state(3, 0));
    }
    wire.close();
    // Without any negotiation.
    for request in [
        FrontendReq::GET_QUEUE_NUM,
        FrontendReq::GET_MAX_MEM_SLOTS,
        FrontendReq::SET_VRING_ENABLE,
        FrontendReq::RESET_OWNER,
        FrontendReq::RESET_DEVICE,
    ] {
        let mut wire = Wire::connect(scene.served.socket());
        wire.request(request, &[], &[]);
        wire.close();
        scene.served.assert_alive();
    }
    scene.assert_unharmed();
}

/// More descriptors than any message takes: none of them may stay open.
fn too_many_descriptors(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let event = EventFd::new(0).expect("an eventfd");
    scene.guest();
    let mut wire = Wire::negotiated(scene.served.socket());
    let mut before = None;
    for round in 0..20 {
        let descriptors = vec![event.as_raw_fd(); 200];
        wire.request(FrontendReq::GET_FEATURES, &[], &descriptors);
        wire.close();
        wire = Wire::negotiated(scene.served.socket());
        let open = scene.served.open_files();
        let first = *before.get_or_insert(open);
        assert!(open <= first, "{open} files in round {round}, {first} at first");
    }
    wire.close();
    scene.assert_unharmed();
}
