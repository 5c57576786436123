//! Requests that are not what they say, or that ask for what is not there.

use super::scene::{Answer, PLAYGROUND, Parts, SIZE, Scene, content};
use crate::support::configuration::Configuration;
use crate::support::guest::Guest;
use crate::support::pattern::pattern;
use crate::support::request::{DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, Request, UNSUPP, WRITE_ZEROES, segments};
use crate::support::ring::Descriptor;

under_every_engine!(
    sectors_past_the_end,
    missing_status_byte,
    status_alone,
    header_too_short,
    readable_and_writable_mixed_up,
    unknown_request_type,
    reads_and_writes_of_nothing,
    odd_ranges,
    serial_into_odd_buffers,
);

type Choice = fn(&Parts) -> Vec<Descriptor>;

/// Sends a chain made of a request's parts, and checks that both queues still work.
fn try_chain(guest: &mut Guest, request: &Request<'_>, choose: Choice) -> Answer {
    let parts = guest.parts(request);
    let answer = guest.send(&choose(&parts), parts.status);
    guest.assert_second_queue_works();
    guest.assert_first_queue_recovers();
    answer
}

fn sectors_past_the_end(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let end = SIZE / 512;
    let sectors = [
        end,
        end - 1,
        end - 7,
        end + 1,
        1 << 32,
        1 << 54,
        (1 << 55) - 8,
        1 << 55,
        u64::MAX / 512,
        u64::MAX - 8,
        u64::MAX - 7,
        u64::MAX - 1,
        u64::MAX,
    ];
    for sector in sectors {
        for kind in [IN, OUT] {
            let parts = guest.parts(&Request::bare(kind, sector));
            let data = if kind == IN { parts.room } else { parts.data };
            let answer = guest.send(&[parts.header, data, parts.status], parts.status);
            assert_eq!(answer, Answer::Status(IOERR), "sector {sector:#x}");
        }
        for kind in [DISCARD, WRITE_ZEROES] {
            let status = guest.ranges(kind, &[(sector, 8, 0)]);
            assert_eq!(status, IOERR, "request {kind} at sector {sector:#x}");
        }
    }
    for count in [end as u32 + 8, 1 << 31, u32::MAX - 7, u32::MAX] {
        for kind in [DISCARD, WRITE_ZEROES] {
            let status = guest.ranges(kind, &[(8, count, 0)]);
            assert_eq!(status, IOERR, "request {kind} of {count} sectors");
        }
    }
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

fn missing_status_byte(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let choices: [Choice; 3] =
        [|parts| vec![parts.header], |parts| vec![parts.header, parts.data], |parts| vec![parts.data]];
    for kind in [IN, OUT, FLUSH, GET_ID, DISCARD, 99] {
        for choose in choices {
            let answer = try_chain(&mut guest, &Request::bare(kind, PLAYGROUND / 512), choose);
            answer.assert_refused();
        }
    }
    drop(guest);
    scene.assert_unharmed();
}

fn status_alone(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let choices: [Choice; 2] = [|parts| vec![parts.status], |parts| vec![parts.room, parts.status]];
    for choose in choices {
        try_chain(&mut guest, &Request::bare(IN, 0), choose).assert_refused();
    }
    drop(guest);
    scene.assert_unharmed();
}

fn header_too_short(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for kind in [IN, OUT, FLUSH] {
        for length in [1, 4, 8, 15] {
            let parts = guest.parts(&Request::bare(kind, PLAYGROUND / 512));
            let header = Descriptor { length, ..parts.header };
            guest.send(&[header, parts.status], parts.status).assert_refused();
            guest.assert_second_queue_works();
            guest.assert_first_queue_recovers();
        }
    }
    drop(guest);
    scene.assert_unharmed();
}

/// What the device reads comes before what it writes (2.7.4.2); a chain in another order may not
/// be done as if it were in the right one.
fn readable_and_writable_mixed_up(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let out = Request::bare(OUT, PLAYGROUND / 512);
    let choices: [Choice; 4] = [
        |parts| vec![parts.header, parts.status, parts.data],
        |parts| vec![parts.status, parts.header, parts.data],
        |parts| vec![parts.header, parts.room, parts.data, parts.status],
        |parts| {
            let header = Descriptor::writable(parts.header.address, 16);
            vec![header, parts.data, parts.status]
        },
    ];
    for choose in choices {
        try_chain(&mut guest, &out, choose).assert_refused();
    }

    // A write that brings room instead of data, and a read that brings data instead of room.
    let answer = try_chain(&mut guest, &out, |parts| vec![parts.header, parts.room, parts.status]);
    assert!(matches!(answer, Answer::Stopped | Answer::Status(OK | IOERR)));
    let parts = guest.parts(&Request::bare(IN, 0));
    let answer = guest.send(&[parts.header, parts.data, parts.status], parts.status);
    assert!(matches!(answer, Answer::Stopped | Answer::Status(OK | IOERR)));
    assert!(guest.memory.read(parts.data.address, 4096) == pattern(13, 4096));
    guest.assert_first_queue_recovers();

    // All of it writable: the header cannot be read from what the device is to write.
    let answer = try_chain(&mut guest, &out, |parts| {
        let header = Descriptor::writable(parts.header.address, 16);
        vec![header, parts.room, parts.status]
    });
    answer.assert_refused();
    let read = guest.read(PLAYGROUND, 4096);
    assert!(read == content()[PLAYGROUND as usize..][..4096]);
    drop(guest);
    scene.assert_unharmed();
}

fn unknown_request_type(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 255, 1 << 31, u32::MAX] {
        let parts = guest.parts(&Request::bare(kind, u64::MAX));
        let answer = guest.send(&[parts.header, parts.status], parts.status);
        assert_eq!(answer, Answer::Status(UNSUPP), "request type {kind:#x}");
        let parts = guest.parts(&Request::bare(kind, 0));
        let chain = [parts.header, parts.data, parts.room, parts.status];
        let answer = guest.send(&chain, parts.status);
        assert_eq!(answer, Answer::Status(UNSUPP), "request type {kind:#x}");
    }
    drop(guest);
    scene.assert_unharmed();
}

fn reads_and_writes_of_nothing(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for kind in [IN, OUT] {
        for sector in [0, SIZE / 512, u64::MAX] {
            let reply = guest.call(0, &Request::bare(kind, sector));
            assert!([OK, IOERR].contains(&reply.status), "{reply:?}");
        }
    }
    for kind in [DISCARD, WRITE_ZEROES] {
        let reply = guest.call(0, &Request::bare(kind, 0));
        assert!([OK, IOERR].contains(&reply.status), "{reply:?}");
        let status = guest.ranges(kind, &[(0, 0, 0)]);
        assert!([OK, IOERR].contains(&status), "{status}");
    }
    // A flush with data in both directions is a flush, or refused.
    let out = pattern(1, 4096);
    let flush = Request { out: &out, in_length: 512, ..Request::flush() };
    let reply = guest.call(0, &flush);
    assert!([OK, IOERR].contains(&reply.status), "{reply:?}");
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

fn odd_ranges(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let playground = PLAYGROUND / 512;
    for kind in [DISCARD, WRITE_ZEROES] {
        let list = segments(&[(playground, 8, 0), (playground + 16, 8, 0)]);
        for length in [1, 8, 15, 17, 31] {
            let reply = guest.call(0, &Request::ranges(kind, &list[..length]));
            assert_eq!(reply.status, IOERR, "request {kind} of {length} bytes");
        }
        // Many more than the device said it takes; it may refuse them or do them.
        let many: Vec<_> = (0..3000).map(|index| (playground + index % 60 * 8, 8, 0)).collect();
        let reply = guest.call(0, &Request::ranges(kind, &segments(&many)));
        assert!([OK, IOERR, UNSUPP].contains(&reply.status), "{reply:?}");
        // One bad segment among good ones.
        let mixed = [(playground, 8, 0), (u64::MAX, 8, 0), (playground + 8, 8, 0)];
        assert_eq!(guest.ranges(kind, &mixed), IOERR);
        // The same place many times.
        assert_eq!(guest.ranges(kind, &[(playground, 8, 0); 4]), OK);
    }
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

fn serial_into_odd_buffers(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    for in_length in [0, 1, 19, 21, 4096, 1 << 20] {
        let request = Request { in_length, ..Request::bare(GET_ID, u64::MAX) };
        let reply = guest.call(0, &request);
        assert!([OK, IOERR].contains(&reply.status), "{in_length} bytes");
        assert!(reply.used_length as usize <= in_length + 1);
    }
    drop(guest);
    scene.assert_unharmed();
}
