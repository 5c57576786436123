//! Volumes with copies on several nodes, as real processes in networks of their own: nodes die, stop, limp, are
//! cut off and come back while a guest works, and a writer is replaced.
//!
//! | file | what it is |
//! | --- | --- |
//! | `network` | a namespace for each node, and cuts between them |
//! | `proxy` | a link that is slow, breaks, or swallows everything |
//! | `cluster` | nodes with certificates and replicas, and the volume |
//! | `scene` | a cluster, its writer, and a guest at work |
//! | `disorder` | what can happen to nodes and their network |
//! | `stories/` | what is promised, one file a theme |
//!
//! Needs root, for the networks. Nothing here depends on how fast the machine is, within generous bounds.

#[path = "../guest/images.rs"]
#[allow(dead_code)]
mod images;
#[path = "../guest/machine.rs"]
#[allow(dead_code)]
mod machine;
#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod disorder;
mod network;
mod proxy;
mod scene;
mod stories;

use support::{model, workload};
