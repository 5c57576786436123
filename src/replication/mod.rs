//! One volume on many nodes: every write on every copy before the guest hears of it.
//!
//! The shape is primary-backup with a store of configuration outside: one **writer**, the process
//! that serves the guest, and a **replica** before each copy. The [`View`] of a volume says who the
//! writer is and which copies are in sync; it changes only by compare-and-swap where it is kept (see
//! `coordination`), and its number grows by one each time. Everything the writer asks of a replica
//! carries a view number, and a replica that has once accepted a view refuses all lower ones.
//!
//! | file | what it is |
//! | --- | --- |
//! | [`view`] | who writes, who is in sync, and what is promised when few are |
//! | [`region`] | the pieces of a volume by which copies are compared |
//! | [`message`] | what a writer asks of a replica, and the answers |
//! | [`writer`] | the side of the guest: every write on every copy |
//! | [`replica`] | the side of a copy: what it lets a writer do |
//! | [`copy`] | a copy that is opened for it, and the hands that move its bytes |
//! | [`wire`] | the bytes of those messages |
//! | [`server`] | the copies of a node, for writers on others |
//! | [`creation`] | making a volume with several copies |
//! | [`description`] | what a volume is, for a node without a copy |
//! | [`primary`] | the writer at work: sockets, disks, clocks |
//! | [`proof`] | what a writer signs to show that it holds the volume's key |
//! | [`transport`] | those bytes over TCP and TLS |
//!
//! This room sees ciphertext only.

pub mod copy;
pub mod creation;
pub mod description;
pub mod message;
pub mod primary;
pub mod proof;
pub mod region;
pub mod replica;
pub mod server;
pub mod transport;
pub mod view;
pub mod wire;
pub mod writer;

pub use view::View;
