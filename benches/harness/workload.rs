//! Requests of one kind, as a load generator makes them.

/// Requests of one kind, so many at once on each of so many queues.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// What `WORKLOADS` picks it by.
    pub id: &'static str,
    /// What reports call it.
    pub name: &'static str,
    /// Writes, or reads.
    pub write: bool,
    /// Random places, or one after another.
    pub random: bool,
    /// Bytes of one request.
    pub bytes: usize,
    /// Requests in flight on each queue.
    pub depth: usize,
    /// Queues, each with a thread of its own in the front end.
    pub queues: usize,
}

impl Workload {
    /// Whether the throughput is better said in bytes than in operations.
    pub fn in_bytes(&self) -> bool {
        self.bytes > 64 << 10
    }
}
