//! What the benchmarks of this folder share: what the host says of itself, a folder to work in of
//! which nothing is left behind, a load generator, and medians.

// Each benchmark uses a part of this module.
#![allow(dead_code)]

pub mod listening;
pub mod load;
pub mod machine;
pub mod nowhere;
pub mod random;
pub mod rounds;
pub mod scratch;
pub mod setting;
pub mod statistics;
pub mod workload;

use std::error::Error;

/// What can fail for reasons that are only told to a person.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
