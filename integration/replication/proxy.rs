//! A bad link to a node: a proxy in the node's network that everybody has to go through to reach its replica.
//!
//! It passes bytes on in pieces of odd sizes, later than they came and each a little differently, and without
//! losing their order. It can end all connections as a router does that has forgotten them, and it can swallow
//! everything without a word, as one does that is gone. Connections from which something was swallowed are ended
//! when the link is well again: what came next would not fit.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::network::Network;
use super::support::pattern::next;

/// A link that may be bad; ended on drop.
pub struct Proxy {
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
    place: (Ipv4Addr, u16),
    enter: Enter,
}

/// Has work done in the node's network.
type Enter = Box<dyn Fn(Box<dyn FnOnce() + Send>) -> JoinHandle<()>>;

/// How a link is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// How long every byte takes, in each direction.
    pub delay: Duration,
    /// How much longer it may take.
    pub jitter: Duration,
    /// Nothing arrives, and nobody is told.
    pub silent: bool,
}

struct Shared {
    weather: Mutex<Weather>,
    connections: Mutex<Vec<Arc<Connection>>>,
    ended: AtomicBool,
}

/// What came from a writer, and what leads to the replica.
struct Connection {
    sides: [TcpStream; 2],
    swallowed: AtomicBool,
}

impl Proxy {
    /// Listens on a port of a node and leads to another.
    pub fn start(network: &Arc<Network>, node: usize, port: u16, target: u16) -> Proxy {
        let shared = Arc::new(Shared {
            weather: Mutex::default(),
            connections: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let address = network.address(node);
        let inside = network.clone();
        let enter: Enter = Box::new(move |work| inside.run_inside(node, work));
        let (theirs, (ready, listens)) = (shared.clone(), sync_channel(1));
        let listener = enter(Box::new(move || {
            let listener = TcpListener::bind((address, port)).expect("the proxy's port");
            ready.send(()).expect("the test waits for it");
            for (seed, accepted) in (1..).zip(listener.incoming()) {
                if theirs.ended.load(Ordering::Acquire) {
                    return;
                }
                // Without a replica the connection ends at once, as it does without a proxy.
                if let (Ok(near), Ok(far)) = (accepted, TcpStream::connect((address, target))) {
                    theirs.connect(near, far, seed);
                }
            }
        }));
        listens.recv().expect("the proxy listens");
        Proxy { shared, listener: Some(listener), place: (address, port), enter }
    }

    /// From now on the link is so.
    pub fn set(&self, weather: Weather) {
        let was = std::mem::replace(&mut *lock(&self.shared.weather), weather);
        if was.silent && !weather.silent {
            self.end_connections(|connection| connection.swallowed.load(Ordering::Acquire));
        }
    }

    /// All connections are gone from one moment to the next.
    pub fn reset(&self) {
        self.end_connections(|_| true);
    }

    fn end_connections(&self, which: impl Fn(&Connection) -> bool) {
        lock(&self.shared.connections).retain(|connection| {
            let ends = which(connection);
            if ends {
                connection.end();
            }
            !ends
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.reset();
        // Whoever waits for connections is woken by one.
        let place = self.place;
        let woken = (self.enter)(Box::new(move || drop(TcpStream::connect(place))));
        for thread in [Some(woken), self.listener.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, near: TcpStream, far: TcpStream, seed: u64) {
        for side in [&near, &far] {
            side.set_nodelay(true).expect("a socket's option");
        }
        let connection = Arc::new(Connection { sides: [near, far], swallowed: AtomicBool::new(false) });
        for from in [0, 1] {
            let (sender, receiver) = sync_channel(CHUNKS_MAX);
            let (shared, theirs) = (self.clone(), connection.clone());
            thread::spawn(move || shared.take(&theirs, from, seed * 2 + from as u64, &sender));
            let theirs = connection.clone();
            thread::spawn(move || theirs.give(1 - from, &receiver));
        }
        lock(&self.connections).push(connection);
    }

    /// Takes bytes from a side, and says when they are to arrive at the other.
    fn take(&self, connection: &Connection, from: usize, seed: u64, sender: &SyncSender<(Instant, Vec<u8>)>) {
        let (mut random, mut due) = (seed, Instant::now());
        loop {
            // Mostly much, and now and then next to nothing.
            let size = if next(&mut random).is_multiple_of(8) { 7 } else { CHUNK_BYTES_MAX };
            let mut bytes = vec![0; 1 + (next(&mut random) % size) as usize];
            let count = (&connection.sides[from]).read(&mut bytes).unwrap_or_default();
            bytes.truncate(count);
            let weather = *lock(&self.weather);
            if weather.silent {
                connection.swallowed.store(true, Ordering::Release);
                if count == 0 {
                    return;
                }
                continue;
            }
            let jitter_us = weather.jitter.as_micros() as u64;
            let late = weather.delay + Duration::from_micros(next(&mut random) % (jitter_us + 1));
            due = due.max(Instant::now() + late);
            if sender.send((due, bytes)).is_err() || count == 0 {
                return;
            }
        }
    }
}

impl Connection {
    /// Gives a side what is for it when it is time; no bytes are the end.
    fn give(&self, to: usize, receiver: &Receiver<(Instant, Vec<u8>)>) {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if bytes.is_empty() || (&self.sides[to]).write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = self.sides[to].shutdown(std::net::Shutdown::Write);
    }

    /// Ends both sides with a reset, whoever else waits for them.
    fn end(&self) {
        for side in &self.sides {
            // It may have ended by itself.
            let _ = rustix::net::connect_unspec(side);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics under the lock")
}

const CHUNK_BYTES_MAX: u64 = 16 << 10;
/// What may be on its way in a direction of a connection.
const CHUNKS_MAX: usize = 256;
