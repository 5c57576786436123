//! Well-behaved front ends, of more than one make, find the disk that they were promised: its
//! features and sizes, their data in any descriptor layout, space given back, durability where
//! they asked for it, and all of that across pauses, memory changes and reconnects. What they
//! write is held against OpenSSL's XTS in the data file.

#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod device;
mod durability;
mod inflight;
mod layouts;
mod library;
mod memory;
mod polling;
mod sequences;
mod space;
