//! Keys in Kubernetes: each story against a real API server and etcd, over TLS, with RBAC on and
//! ServiceAccounts' tokens.

#[path = "../support/mod.rs"]
mod support;

mod attach;
mod cluster;
mod errors;
mod kms;
mod memory;
mod proxy;
mod rotation;
mod storm;
mod tenant;
