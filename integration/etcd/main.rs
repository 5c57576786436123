//! Volumes whose views are in an etcd: a real one that asks for certificates, a `sealblk replica` for each node, and
//! `sealblk serve` over them.
//!
//! The nodes are processes on one machine, each with a port of its own.

// Each test program uses a part of what it shares with others.
#[allow(dead_code)]
#[path = "../replication/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../replication/process.rs"]
mod process;
mod scene;
mod stories;
#[path = "../support/mod.rs"]
mod support;
mod views;
#[allow(dead_code)]
#[path = "../replication/workload.rs"]
mod workload;
