//! The life of a server: what it refuses to attach, with nothing touched; how it takes over a
//! socket; how it sleeps and how it ends; and what it never says.

#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod attach;
mod host;
mod idle;
mod lifecycle;
mod secrecy;
