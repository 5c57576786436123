//! How many peers may be at the door at once: connections that have not shown yet who they are.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// The places at the door.
pub struct Gate {
    taken: Mutex<BTreeMap<IpAddr, usize>>,
    event: EventFd,
}

/// One place, until it is dropped.
pub struct Permit {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    /// A gate at which nobody stands.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Gate> {
        Ok(Gate { taken: Mutex::default(), event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)? })
    }

    /// A place for a peer, if there is one. An address may have [`PLACES_PER_ADDRESS`]; more only while
    /// `alone`, when nobody else wants one, and never the last ones.
    pub fn enter(self: &Arc<Self>, address: IpAddr, alone: bool) -> Option<Permit> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = taken.values().sum();
        let own = taken.get(&address).copied().unwrap_or_default();
        let allowed = total < PLACES && own < PLACES_PER_ADDRESS || alone && total < PLACES - PLACES_KEPT;
        if !allowed {
            return None;
        }
        *taken.entry(address).or_default() += 1;
        Some(Permit { gate: self.clone(), address })
    }

    /// Forgets that a place has become free: see [`as_fd`](Self::as_fd).
    pub fn acknowledge(&self) {
        let _ = self.event.read();
    }
}

impl AsFd for Gate {
    /// Readable when a place has become free.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.gate.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
        let _ = self.gate.event.write(1);
    }
}

/// Handshakes at once.
pub const PLACES: usize = 64;
/// Of them for one address, when others wait.
pub const PLACES_PER_ADDRESS: usize = 4;
/// Places that nobody takes beyond that share.
const PLACES_KEPT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place() {
        let gate = Arc::new(Gate::new().unwrap());
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let mut greedy: Vec<_> = (0..PLACES).map_while(|_| gate.enter(address(1), true)).collect();
        assert_eq!(greedy.len(), PLACES - PLACES_KEPT);
        assert!(gate.enter(address(1), false).is_none());
        let others: Vec<_> = (2..100).filter_map(|last| gate.enter(address(last), false)).collect();
        assert_eq!(others.len(), PLACES_KEPT);
        greedy.truncate(3);
        assert!(gate.enter(address(1), false).is_some());
        let share: Vec<_> = (0..PLACES).filter_map(|_| gate.enter(address(1), false)).collect();
        assert_eq!(share.len(), 1, "a fourth place, and no fifth");
        drop((others, share, greedy));
        assert!(gate.taken.lock().unwrap().is_empty());
    }
}
