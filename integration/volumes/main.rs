//! Volumes of a cluster, as users have them: a `Volume` in a real API server with RBAC on, a `sealblk replica` for
//! each node, and `sealblk serve` over them with the permissions of `deploy/` and no more.
//!
//! The nodes are processes on one machine, each with a port of its own.

mod scale;
mod scene;
mod stories;
#[path = "../support/mod.rs"]
mod support;
mod views;

use support::{model, workload};
