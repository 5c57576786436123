//! Volumes whose views are in an etcd: a real one that asks for certificates, a `sealblk replica` for each node, and
//! `sealblk serve` over them.
//!
//! The nodes are processes on one machine, each with a port of its own.

mod scene;
mod stories;
#[path = "../support/mod.rs"]
mod support;
mod views;

use support::{model, process, workload};
