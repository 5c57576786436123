//! Where connections wait until they have something to say and there is a place at the door.
//!
//! A connection that sends nothing costs a descriptor and nothing else; it takes no place from one that
//! does. The lobby is bounded: when it is full, somebody of the address with the most in it has to go, the
//! longest waiting of those that are silent first. So a peer that opens connections by the thousand gets in
//! its own way only.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use slab::Slab;

use super::gate::{Gate, Permit};

/// Connections that have been accepted by the kernel and by nobody else.
pub struct Lobby {
    /// Watches them for their first bytes.
    epoll: OwnedFd,
    waiting: Slab<Waiting>,
    gate: Arc<Gate>,
    patience: Duration,
}

/// A connection that may begin its handshake.
pub struct Caller {
    /// The connection.
    pub stream: TcpStream,
    /// Where it comes from.
    pub address: SocketAddr,
    /// When it must have shown what it wants.
    pub deadline: Instant,
    /// Its place at the door.
    pub permit: Permit,
}

struct Waiting {
    stream: TcpStream,
    address: SocketAddr,
    deadline: Instant,
    has_spoken: bool,
}

impl Lobby {
    /// An empty one, in which each may wait for `patience` altogether.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn new(gate: Arc<Gate>, patience: Duration) -> io::Result<Lobby> {
        Ok(Lobby { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, waiting: Slab::new(), gate, patience })
    }

    /// Lets a connection wait, as long as it may. The address of whoever had to go for it, if
    /// anybody had to.
    pub fn add(&mut self, stream: TcpStream, address: SocketAddr, now: Instant) -> io::Result<Option<SocketAddr>> {
        let evicted = if self.waiting.len() >= WAITING_MAX { self.evict() } else { None };
        let entry = self.waiting.vacant_entry();
        let data = epoll::EventData::new_u64(entry.key() as u64);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        epoll::add(&self.epoll, stream.as_fd(), data, flags)?;
        entry.insert(Waiting { stream, address, deadline: now + self.patience, has_spoken: false });
        Ok(evicted)
    }

    /// Those that may go to the door now.
    pub fn callers(&mut self, now: Instant) -> Vec<Caller> {
        self.listen();
        self.waiting.retain(|_, waiting| waiting.deadline > now);
        let mut callers = Vec::new();
        // First everybody's share, then what is left for those who want more.
        for alone in [false, true] {
            let mut ready: Vec<(Instant, usize)> = self.ready().collect();
            ready.sort_unstable();
            let mut wanting = self.count(|waiting| waiting.has_spoken);
            for (_, key) in ready {
                let ip = self.waiting[key].address.ip();
                if let Some(permit) = self.gate.enter(ip, alone && wanting.len() == 1) {
                    let Waiting { stream, address, deadline, .. } = self.waiting.remove(key);
                    match wanting.get_mut(&ip) {
                        Some(count) if *count > 1 => *count -= 1,
                        _ => _ = wanting.remove(&ip),
                    }
                    // It leaves the set with its socket's last descriptor only, and that lives on.
                    if epoll::delete(&self.epoll, stream.as_fd()).is_ok() {
                        callers.push(Caller { stream, address, deadline, permit });
                    }
                }
            }
        }
        callers
    }

    fn ready(&self) -> impl Iterator<Item = (Instant, usize)> {
        self.waiting.iter().filter(|(_, waiting)| waiting.has_spoken).map(|(key, waiting)| (waiting.deadline, key))
    }

    /// How many there are of each address, of those that are meant.
    fn count(&self, is_meant: impl Fn(&Waiting) -> bool) -> BTreeMap<IpAddr, usize> {
        let mut counts = BTreeMap::new();
        for (_, waiting) in self.waiting.iter().filter(|(_, waiting)| is_meant(waiting)) {
            *counts.entry(waiting.address.ip()).or_default() += 1;
        }
        counts
    }

    /// Notes who has begun to speak.
    fn listen(&mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        while epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&at_once)).is_ok() {
            for event in &events {
                let event: &epoll::Event = event;
                if let Some(waiting) = self.waiting.get_mut(event.data.u64() as usize) {
                    waiting.has_spoken = true;
                }
            }
            if events.len() < EVENTS_MAX {
                return;
            }
            events.clear();
        }
    }

    fn evict(&mut self) -> Option<SocketAddr> {
        let (ip, _) = self.count(|_| true).into_iter().max_by_key(|(_, count)| *count)?;
        let own = self.waiting.iter().filter(|(_, waiting)| waiting.address.ip() == ip);
        let key = own.min_by_key(|(_, waiting)| (waiting.has_spoken, waiting.deadline)).map(|(key, _)| key)?;
        Some(self.waiting.remove(key).address)
    }
}

impl AsFd for Lobby {
    /// Readable when somebody begins to speak.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

const WAITING_MAX: usize = 1024;
const EVENTS_MAX: usize = 256;
