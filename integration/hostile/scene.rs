//! A served volume that is full of data, and the check that nothing became of it.

use crate::support::configuration::Configuration;
use crate::support::guest::{Guest, Options};
use crate::support::pattern::pattern;
use crate::support::request::{HEADER, OK, Request, UNTOUCHED};
use crate::support::ring::{Descriptor, Outcome};
use crate::support::served::Served;
use crate::support::volume::Volume;

/// Bytes in the volume.
pub const SIZE: u64 = 4 << 20;
/// Where hostile tests may write, if they write at all: nothing else may change.
pub const PLAYGROUND: u64 = 2 << 20;
/// How long the playground is.
pub const PLAYGROUND_LENGTH: usize = 256 << 10;

/// The stage of one test.
pub struct Scene {
    /// The volume, full of [`content`].
    pub volume: Volume,
    /// Its server.
    pub served: Served,
    before: Vec<u8>,
}

impl Scene {
    /// Serves a volume and fills it.
    pub fn new(configuration: Configuration) -> Self {
        let volume = Volume::create(configuration, SIZE);
        let served = Served::start(&volume);
        let mut guest = served.guest();
        guest.write(0, &content());
        guest.flush();
        drop(guest);
        Self { before: volume.data(), volume, served }
    }

    /// A front end with two queues of 64, the second of which is to keep working.
    pub fn guest(&self) -> Guest {
        self.served.guest_as(OPTIONS)
    }

    /// Checks that the server lives and serves the next front end well, and that nothing outside
    /// the playground has changed.
    pub fn assert_unharmed(&mut self) {
        self.served.assert_alive();
        let mut guest = self.served.guest_as(OPTIONS);
        let start = PLAYGROUND as usize;
        let end = start + PLAYGROUND_LENGTH;
        let content = content();
        for (offset, expected) in [(0, &content[..start]), (end, &content[end..])] {
            let read = guest.read(offset as u64, expected.len());
            assert!(read == expected, "the content changed after byte {offset}");
        }
        let data = pattern(77, PLAYGROUND_LENGTH);
        guest.write(PLAYGROUND, &data);
        let read = guest.done(1, &Request::read(PLAYGROUND, 4096));
        assert!(read == data[..4096]);
        guest.flush();
        drop(guest);
        let after = self.volume.data();
        assert!(after[..start] == self.before[..start]);
        assert!(after[end..] == self.before[end..]);
        self.volume.assert_image(&after, PLAYGROUND, &data);
        self.served.assert_alive();
    }
}

const OPTIONS: Options = Options::CLOUD_HYPERVISOR.queues(2).queue_size(64);

/// What the volume holds.
pub fn content() -> Vec<u8> {
    pattern(99, SIZE as usize)
}

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The device completed it, with this in the status byte that the test has named.
    Status(u8),
    /// The device stopped the ring.
    Stopped,
}

impl Answer {
    /// Fails the test if the device says that it did what it was asked.
    pub fn assert_refused(self) {
        assert_ne!(self, Self::Status(OK), "the device took it");
    }

    /// Fails the test unless the device answered with `status`.
    pub fn assert_status(self, status: u8) {
        assert_eq!(self, Self::Status(status));
    }
}

/// The parts of a request that a test puts together as it likes.
pub struct Parts {
    /// A descriptor of the header.
    pub header: Descriptor,
    /// A buffer of 4096 bytes, as the device reads it.
    pub data: Descriptor,
    /// The same, as the device writes it.
    pub room: Descriptor,
    /// A descriptor of the status byte.
    pub status: Descriptor,
}

impl Guest {
    /// Puts a request's parts in memory: its data is what the disk does not hold anywhere.
    pub fn parts(&mut self, request: &Request<'_>) -> Parts {
        let header = self.memory.allocate(HEADER, 16);
        self.memory.write(header, &request.header());
        let data = self.memory.allocate(4096, 4096);
        self.memory.write(data, &pattern(13, 4096));
        let status = self.memory.allocate(1, 1);
        self.memory.write(status, &[UNTOUCHED]);
        Parts {
            header: Descriptor::readable(header, HEADER as u32),
            data: Descriptor::readable(data, 4096),
            room: Descriptor::writable(data, 4096),
            status: Descriptor::writable(status, 1),
        }
    }

    /// Sends a chain on the first queue and returns what the device made of it.
    pub fn send(&mut self, chain: &[Descriptor], status: Descriptor) -> Answer {
        let ring = &mut self.rings[0];
        ring.add(&self.memory, chain).expect("room on the ring");
        self.answer(status)
    }

    /// Notifies the device of what is on the first queue and waits for one answer.
    pub fn answer(&mut self, status: Descriptor) -> Answer {
        let ring = &mut self.rings[0];
        ring.kick_always();
        match ring.outcome(&self.memory) {
            Outcome::Used(_) => Answer::Status(self.memory.read(status.address, 1)[0]),
            Outcome::Stopped => Answer::Stopped,
        }
    }

    /// Checks that the second queue is served, whatever became of the first.
    pub fn assert_second_queue_works(&mut self) {
        let read = self.done(1, &Request::read(0, 4096));
        assert!(read == content()[..4096], "the second queue reads nonsense");
    }

    /// Starts the first ring anew, as a guest's driver does after a reset, and uses it.
    pub fn assert_first_queue_recovers(&mut self) {
        self.stop_queue(0);
        self.stop_queue(1);
        self.activate();
        let read = self.done(0, &Request::read(4096, 4096));
        assert!(read == content()[4096..8192], "the first queue is lost");
    }
}
