//! A guest that rewrites what it has handed over, while the device reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use super::scene::{PLAYGROUND, PLAYGROUND_LENGTH, SIZE, Scene, content};
use crate::support::configuration::Configuration;
use crate::support::guest::Guest;
use crate::support::request::{IN, OUT, Request, UNTOUCHED};
use crate::support::ring::{Descriptor, Outcome};

under_every_engine!(
    status_rewritten_while_in_flight,
    sector_rewritten_while_in_flight,
    type_rewritten_while_in_flight,
    descriptor_rewritten_while_in_flight,
    data_rewritten_while_in_flight,
);

/// A thread that stores values at an address of guest memory in turn until it is dropped.
struct Scribbler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scribbler {
    fn bytes(guest: &Guest, address: u64, values: &'static [u8]) -> Self {
        // SAFETY: the byte is mapped for as long as the guest's memory lives, which every test
        // keeps beyond its scribbler.
        let byte = unsafe { AtomicU8::from_ptr(guest.memory.user_address(address) as *mut u8) };
        Self::start(move |turn| byte.store(values[turn % values.len()], Ordering::Relaxed))
    }

    fn words(guest: &Guest, address: u64, values: Vec<u64>) -> Self {
        assert_eq!(address % 8, 0);
        // SAFETY: as above, and aligned.
        let word = unsafe { AtomicU64::from_ptr(guest.memory.user_address(address) as *mut u64) };
        Self::start(move |turn| word.store(values[turn % values.len()], Ordering::Relaxed))
    }

    fn start(mut store: impl FnMut(usize) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for turn in 0.. {
                store(turn);
                if seen.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const ROUNDS: usize = 1500;

/// Sends the same chain again and again, whatever becomes of it.
fn hammer(guest: &mut Guest, chain: &[Descriptor], before: impl Fn(&Guest)) {
    for _ in 0..ROUNDS {
        before(guest);
        let ring = &mut guest.rings[0];
        ring.add(&guest.memory, chain).expect("room on the ring");
        ring.kick_always();
        if ring.outcome(&guest.memory) == Outcome::Stopped {
            panic!("nothing here is a reason to stop the ring");
        }
    }
}

fn status_rewritten_while_in_flight(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let parts = guest.parts(&Request::read(PLAYGROUND, 0));
    let scribbler = Scribbler::bytes(&guest, parts.status.address, &[0, 1, 2, UNTOUCHED, 255]);
    hammer(&mut guest, &[parts.header, parts.room, parts.status], |_| {});
    drop(scribbler);
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

fn sector_rewritten_while_in_flight(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
    let bad = [SIZE / 512, u64::MAX, SIZE / 512 - 1, 1 << 40, u64::MAX - 7];
    let values = bad.iter().flat_map(|&bad| [PLAYGROUND / 512, bad]);
    let scribbler = Scribbler::words(&guest, parts.header.address + 8, values.collect());
    hammer(&mut guest, &[parts.header, parts.data, parts.status], |_| {});
    drop(scribbler);
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

fn type_rewritten_while_in_flight(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    // With both kinds of buffer, so that the type alone decides which one is used.
    let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
    let kinds = [OUT, IN, 4, 8, 11, 13, 99, u32::MAX].map(u64::from);
    let scribbler = Scribbler::words(&guest, parts.header.address, kinds.to_vec());
    let room = guest.memory.allocate(4096, 4096);
    let room = Descriptor::writable(room, 4096);
    let chain = [parts.header, parts.data, room, parts.status];
    hammer(&mut guest, &chain, |guest| {
        // Its data would be a range outside the playground for a discard: make it one inside.
        let range = crate::support::request::segments(&[(PLAYGROUND / 512, 8, 0); 256]);
        guest.memory.write(parts.data.address, &range);
    });
    drop(scribbler);
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

/// Address, length and flags of the data's descriptor change under the device's hands: it may read
/// any of them, but each only once.
fn descriptor_rewritten_while_in_flight(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
    let chain = [parts.header, parts.data, parts.status];
    let table = guest.indirect_table(&chain);
    let entry = table.address + 16;
    let address = parts.data.address;
    let addresses = vec![address, u64::MAX - 100, address, 0, address, address + 1];
    let length_and_flags = |length: u32, flags: u64| u64::from(length) | flags << 32 | 2 << 48;
    let words = vec![
        length_and_flags(4096, 1),
        length_and_flags(1 << 31, 1),
        length_and_flags(4096, 1),
        length_and_flags(0, 1),
        length_and_flags(PLAYGROUND_LENGTH as u32, 1),
    ];
    let first = Scribbler::words(&guest, entry, addresses);
    let second = Scribbler::words(&guest, entry + 8, words);
    hammer(&mut guest, &[table], |_| {});
    drop((first, second));
    guest.assert_second_queue_works();
    drop(guest);
    scene.assert_unharmed();
}

/// A sector on disk must be one that seals something: what was encrypted is what was read once.
fn data_rewritten_while_in_flight(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let mut guest = scene.guest();
    let parts = guest.parts(&Request::write(PLAYGROUND, &[]));
    let fill = vec![0x11; 4096];
    guest.memory.write(parts.data.address, &fill);
    let pattern = vec![0x1111_1111_1111_1111, 0x2222_2222_2222_2222];
    let scribbler = Scribbler::words(&guest, parts.data.address + 2048, pattern);
    hammer(&mut guest, &[parts.header, parts.data, parts.status], |_| {});
    drop(scribbler);
    guest.flush();
    // Only the word that was scribbled on may be anything but what was written.
    let read = guest.read(PLAYGROUND, 4096);
    assert!(read[..2048] == fill[..2048] && read[2056..] == fill[2056..]);
    assert!(read[2048..2056].iter().all(|byte| [0x11, 0x22].contains(byte)));
    scene.volume.assert_holds(PLAYGROUND, &read);
    assert!(guest.read(0, 4096) == content()[..4096]);
    drop(guest);
    scene.assert_unharmed();
}
