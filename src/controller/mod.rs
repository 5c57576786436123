//! What runs once for a cluster, beside the processes that serve its volumes.

pub mod protection;
