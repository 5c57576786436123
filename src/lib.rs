//! An encrypted disk for virtual machines, as a vhost-user-blk backend.
//!
//! One process serves one volume: it takes virtio-blk requests straight from guest memory, seals
//! every sector with AES-256-XTS, and keeps only ciphertext below. Data falls straight down through
//! the rooms; a room imports only rooms below it. One rule shapes them all: **the key stops at
//! [`volume`]; everything below that floor sees only ciphertext.**
//!
//! | floor | room | what it is |
//! | --- | --- | --- |
//! | 6 | [`cli`] | the command line: one file a subcommand |
//! | 5 | [`vhost`] | the conversation with the VMM: accept, negotiate, memory table, rings, reconnect |
//! | 5 | [`controller`] | what runs for the cluster: keys for new claims, and their protection |
//! | 4 | [`device`] | virtio-blk itself: features, configuration space, request parsing, the queue worker |
//! | 3 | [`volume`] | plaintext above, ciphertext below: encrypt, decrypt, holes, discard |
//! | 3 | [`keys`] | where keys come from: files, the Secret format, the cluster |
//! | 2 | [`replication`] | one volume on many nodes: views, writer, replica, resync |
//! | 2 | [`coordination`] | the home of a view, which changes by compare-and-swap: a folder, an etcd, a cluster |
//! | 1 | [`store`] | one copy on one disk: superblock, data file, region table, lock |
//! | 0 | [`io`], [`crypto`], [`tls`], [`kubernetes`] | engines, ciphers and clients that know nothing of the rest |

pub mod cli;
pub mod controller;
pub mod coordination;
#[cfg(test)]
mod corpus;
pub mod crypto;
pub mod device;
pub mod io;
pub mod keys;
pub mod kubernetes;
pub mod replication;
pub mod store;
pub mod tls;
pub mod vhost;
pub mod volume;
