//! Volumes of a cluster, as users have them: a `Volume` in a real API server with RBAC on, a `sealblk replica` for
//! each node, and `sealblk serve` over them with the permissions of `deploy/` and no more.
//!
//! The nodes are processes on one machine, each with a port of its own.

// Each test program uses a part of what it shares with the stories of replication.
#[allow(dead_code)]
#[path = "../replication/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../replication/process.rs"]
mod process;
mod scale;
mod scene;
mod stories;
#[path = "../support/mod.rs"]
mod support;
mod views;
#[allow(dead_code)]
#[path = "../replication/workload.rs"]
mod workload;
