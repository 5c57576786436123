//! Keys in Kubernetes: each story against a real API server and etcd, over TLS, with RBAC on and
//! ServiceAccounts' tokens.

#[path = "../support/mod.rs"]
mod support;

mod admission;
mod attach;
mod balancer;
mod certificates;
mod cluster;
mod controller;
mod deploy;
mod errors;
mod https;
mod kms;
mod memory;
mod permissions;
mod protection;
mod proxy;
mod replicas;
mod rotation;
mod rules;
mod serving;
mod storm;
mod tenant;
