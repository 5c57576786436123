//! A hostile guest, and a hostile front end: whatever they put in memory, on the rings or on the
//! socket, the process lives, no byte outside the volume and outside their own memory is touched,
//! no other queue is held up, and the next front end finds the disk as it was.
//!
//! A request that is wrong is answered with the status that virtio asks for. A chain with nowhere
//! to put a status is given back, and a ring that makes no sense is stopped and its error event
//! raised: silence is what no test accepts. Each test ends with
//! [`scene::Scene::assert_unharmed`], which looks at all of that.

#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod chains;
mod endurance;
mod memory;
mod messages;
mod races;
mod requests;
mod rings;
mod scene;
