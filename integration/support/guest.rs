//! A front end with guest memory and rings, which speaks vhost-user the way Cloud Hypervisor or
//! Firecracker does, step by step.
//!
//! Both were read for the order of their messages and for what they insist on. Cloud Hypervisor
//! asks for the configuration space at offset 0x100 and means its start, negotiates protocol
//! features before features, and names every queue's size before any queue's addresses.
//! Firecracker takes CONFIG alone, so it sees no acknowledgement and no error.

use std::fs::File;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::PATIENCE;
use super::memory::Memory;
use super::request::Early;
use super::ring::Ring;

/// The feature bit of this number.
pub const fn bit(number: u32) -> u64 {
    1 << number
}

/// Everything that the device is to offer on a writable volume.
pub const OFFERED: u64 = bit(VIRTIO_BLK_F_SIZE_MAX)
    | bit(VIRTIO_BLK_F_SEG_MAX)
    | bit(VIRTIO_BLK_F_BLK_SIZE)
    | bit(VIRTIO_BLK_F_FLUSH)
    | bit(VIRTIO_BLK_F_TOPOLOGY)
    | bit(VIRTIO_BLK_F_CONFIG_WCE)
    | bit(VIRTIO_BLK_F_MQ)
    | bit(VIRTIO_BLK_F_DISCARD)
    | bit(VIRTIO_BLK_F_WRITE_ZEROES)
    | bit(VIRTIO_RING_F_EVENT_IDX)
    | bit(VIRTIO_RING_F_INDIRECT_DESC)
    | bit(VIRTIO_F_VERSION_1)
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The size of the configuration space in bytes.
pub const CONFIG_SIZE: usize = 60;
/// Where the cache mode lies in it.
pub const WRITEBACK: u32 = 32;

/// What a front end takes of what it is offered, and what it starts.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many queues are started.
    pub queues: usize,
    /// How many descriptors each has.
    pub queue_size: u16,
    /// The features taken, where they are offered.
    pub features: u64,
    /// The protocol features taken, all of which must be offered.
    pub protocol: VhostUserProtocolFeatures,
    /// The offset at which the configuration space is asked for.
    pub config_offset: u32,
    /// Bytes of guest memory.
    pub memory: usize,
}

impl Options {
    /// As Cloud Hypervisor: everything, acknowledged.
    pub const CLOUD_HYPERVISOR: Self = Self {
        queues: 1,
        queue_size: 128,
        features: OFFERED | bit(VIRTIO_BLK_F_RO),
        protocol: VhostUserProtocolFeatures::CONFIG
            .union(VhostUserProtocolFeatures::REPLY_ACK)
            .union(VhostUserProtocolFeatures::MQ)
            .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
            .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD),
        config_offset: 0x100,
        memory: 32 << 20,
    };

    /// As Firecracker: one queue of 256, few features, no acknowledgements.
    pub const FIRECRACKER: Self = Self {
        queues: 1,
        queue_size: 256,
        features: bit(VIRTIO_F_VERSION_1)
            | bit(VIRTIO_RING_F_EVENT_IDX)
            | bit(VIRTIO_BLK_F_RO)
            | bit(VIRTIO_BLK_F_FLUSH)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
        protocol: VhostUserProtocolFeatures::CONFIG,
        config_offset: 0,
        memory: 32 << 20,
    };

    /// The same with another number of queues.
    pub const fn queues(self, queues: usize) -> Self {
        Self { queues, ..self }
    }

    /// The same with another queue size.
    pub const fn queue_size(self, queue_size: u16) -> Self {
        Self { queue_size, ..self }
    }

    /// The same without some features.
    pub const fn without(self, features: u64) -> Self {
        Self { features: self.features & !features, ..self }
    }
}

/// A connected front end.
pub struct Guest {
    /// The connection.
    pub frontend: Frontend,
    /// Guest memory.
    pub memory: Memory,
    /// The rings that have been started.
    pub rings: Vec<Ring>,
    /// What the device offers.
    pub offered: u64,
    /// What was taken of it.
    pub features: u64,
    /// What the back end offers of the protocol.
    pub protocol: VhostUserProtocolFeatures,
    /// The configuration space, as read on connecting.
    pub config: Vec<u8>,
    /// Completions that came while another was waited for.
    pub early: Early,
    options: Options,
    /// Where the back end notes what it has in flight.
    pub inflight: Option<(VhostUserInflight, File)>,
    requests_in_flight: usize,
    floor: u64,
    watchdog: Option<Watchdog>,
}

impl Guest {
    /// Connects as Cloud Hypervisor does, with one queue.
    pub fn connect(socket: &Path) -> Self {
        Self::connect_as(socket, Options::CLOUD_HYPERVISOR)
    }

    /// Connects, negotiates, shares memory and starts the queues.
    pub fn connect_as(socket: &Path, options: Options) -> Self {
        let mut guest = Self::negotiate(socket, options);
        guest.activate();
        guest
    }

    /// Connects and negotiates, and goes no further.
    pub fn negotiate(socket: &Path, options: Options) -> Self {
        let (frontend, watchdog, offered, protocol) = Self::shake_hands(socket, &options);
        let mut guest = Self {
            frontend,
            memory: Memory::new(options.memory),
            rings: Vec::new(),
            offered,
            features: offered & options.features,
            protocol,
            config: Vec::new(),
            early: Early::new(),
            options,
            inflight: None,
            requests_in_flight: 0,
            floor: super::memory::BASE,
            watchdog: Some(watchdog),
        };
        guest.config = guest.read_config(options.config_offset);
        guest
    }

    /// Goes on with another back end in the place of one that has ended without a word: rings and memory are as they
    /// were left, and nobody has said how far each ring is.
    // Of the programs that share this, those need it that kill a back end.
    #[allow(dead_code)]
    pub fn reconnect(&mut self, socket: &Path) {
        let (frontend, watchdog, ..) = Self::shake_hands(socket, &self.options);
        (self.frontend, self.watchdog) = (frontend, Some(watchdog));
        self.frontend.set_features(self.features).expect("SET_FEATURES");
        self.share_inflight();
        self.share_memory();
        for index in 0..self.rings.len() {
            self.frontend.set_vring_num(index, self.rings[index].size).expect("SET_VRING_NUM");
            self.start_queue(index, self.rings[index].used_index(&self.memory));
            self.enable(index, true);
        }
    }

    fn share_inflight(&mut self) {
        if let Some((inflight, file)) = &self.inflight {
            self.frontend.set_inflight_fd(inflight, file.as_raw_fd()).expect("SET_INFLIGHT_FD");
        }
    }

    fn shake_hands(socket: &Path, options: &Options) -> (Frontend, Watchdog, u64, VhostUserProtocolFeatures) {
        let stream = connect(socket);
        let watchdog = Watchdog::over(&stream);
        let mut frontend = Frontend::from_stream(stream, options.queues as u64);
        frontend.set_owner().expect("SET_OWNER");
        let offered = frontend.get_features().expect("GET_FEATURES");
        let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
        assert!(protocol.contains(options.protocol), "the back end offers {protocol:?}");
        frontend.set_protocol_features(options.protocol).expect("SET_PROTOCOL_FEATURES");
        if options.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if options.protocol.contains(VhostUserProtocolFeatures::MQ) {
            let queues = frontend.get_queue_num().expect("GET_QUEUE_NUM");
            assert!(queues >= options.queues as u64, "the back end has {queues} queues");
        }
        (frontend, watchdog, offered, protocol)
    }

    /// Lets it be connected for longer than [`PATIENCE`]: for those who wait for no answer of the back end from now
    /// on, or have time limits of their own.
    pub fn stay(&mut self) {
        self.watchdog = None;
    }

    /// Takes the features, shares memory and starts the queues: what happens when a guest's driver
    /// comes up, the second time as well as the first.
    pub fn activate(&mut self) {
        self.memory.release(super::memory::BASE);
        self.rings.clear();
        self.early.clear();
        self.requests_in_flight = 0;
        self.frontend.set_features(self.features).expect("SET_FEATURES");
        if self.options.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            let wanted = VhostUserInflight::new(0, 0, self.options.queues as u16, self.options.queue_size);
            self.inflight = Some(self.frontend.get_inflight_fd(&wanted).expect("GET_INFLIGHT_FD"));
            self.share_inflight();
        }
        self.share_memory();
        let event_idx = self.features & bit(VIRTIO_RING_F_EVENT_IDX) != 0;
        for _ in 0..self.options.queues {
            let ring = Ring::new(&mut self.memory, self.options.queue_size, event_idx);
            self.rings.push(ring);
        }
        self.floor = self.memory.mark();
        for index in 0..self.rings.len() {
            self.frontend.set_vring_num(index, self.rings[index].size).expect("SET_VRING_NUM");
        }
        for index in 0..self.rings.len() {
            self.start_queue(index, 0);
        }
        for index in 0..self.rings.len() {
            self.enable(index, true);
        }
    }

    /// Gives a ring's addresses and events to the back end, to go on at available index `base`.
    pub fn start_queue(&mut self, index: usize, base: u16) {
        let ring = &self.rings[index];
        let addresses = self.ring_addresses(index);
        self.frontend.set_vring_addr(index, &addresses).expect("SET_VRING_ADDR");
        self.frontend.set_vring_base(index, base).expect("SET_VRING_BASE");
        self.frontend.set_vring_call(index, &ring.call).expect("SET_VRING_CALL");
        self.frontend.set_vring_err(index, &ring.error).expect("SET_VRING_ERR");
        self.frontend.set_vring_kick(index, &ring.kick).expect("SET_VRING_KICK");
    }

    /// Enables or disables a ring.
    pub fn enable(&mut self, index: usize, enable: bool) {
        self.frontend.set_vring_enable(index, enable).expect("SET_VRING_ENABLE");
    }

    /// Stops a ring and returns the available index at which it stopped.
    pub fn stop_queue(&mut self, index: usize) -> u16 {
        let base = self.frontend.get_vring_base(index).expect("GET_VRING_BASE");
        u16::try_from(base).expect("a split ring's index has 16 bits")
    }

    /// Sends the whole memory table.
    pub fn share_memory(&mut self) {
        let table: Vec<VhostUserMemoryRegionInfo> =
            self.memory.regions.iter().map(super::memory::Region::info).collect();
        self.frontend.set_mem_table(&table).expect("SET_MEM_TABLE");
    }

    /// A ring's addresses, as the back end is told them.
    pub fn ring_addresses(&self, index: usize) -> VringConfigData {
        let ring = &self.rings[index];
        VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: self.memory.user_address(ring.descriptors),
            used_ring_addr: self.memory.user_address(ring.used),
            avail_ring_addr: self.memory.user_address(ring.available),
            log_addr: None,
        }
    }

    /// The configuration space, asked for at `offset`.
    pub fn read_config(&mut self, offset: u32) -> Vec<u8> {
        let room = [0; CONFIG_SIZE];
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, config) = self.frontend.get_config(offset, CONFIG_SIZE as u32, flags, &room).expect("GET_CONFIG");
        config
    }

    /// Sets the cache mode: 0 writes through, 1 writes back. Cloud Hypervisor marks this message
    /// as writable, QEMU does not.
    pub fn set_writeback(&mut self, writeback: u8, flags: VhostUserConfigFlags) {
        self.frontend.set_config(WRITEBACK, flags, &[writeback]).expect("SET_CONFIG");
    }

    /// Room for a request's buffers: all of it anew when none is in flight.
    pub fn start_request(&mut self) {
        if self.requests_in_flight == 0 {
            self.memory.release(self.floor);
        }
        self.requests_in_flight += 1;
    }

    /// Keeps what has been allocated so far through later requests.
    pub fn keep_allocations(&mut self) {
        self.floor = self.memory.mark();
    }

    /// Counts a request's end.
    pub fn end_request(&mut self) {
        self.requests_in_flight -= 1;
    }
}

/// Breaks a connection that is still there after [`PATIENCE`]: the `vhost` crate's front end
/// waits for an answer for ever, whatever time limit its socket has.
struct Watchdog {
    _cancelled_on_drop: mpsc::Sender<()>,
}

impl Watchdog {
    fn over(stream: &UnixStream) -> Self {
        let stream = stream.try_clone().expect("another handle of the socket");
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            if receiver.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        Self { _cancelled_on_drop: sender }
    }
}

/// Connects to a socket that somebody is about to listen on.
pub fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() < deadline => {
                let early = [ErrorKind::ConnectionRefused, ErrorKind::NotFound];
                assert!(early.contains(&error.kind()), "connecting: {error}");
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("nobody listens on {}: {error}", socket.display()),
        }
    }
}
