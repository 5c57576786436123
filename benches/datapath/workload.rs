//! What is asked of each back end.

use super::harness::workload::Workload;

/// All of them, in the order in which they are done and reported.
pub const WORKLOADS: [Workload; 7] = [
    small("randread-32", "random read, 4 KiB, depth 32", false, 32, 1),
    small("randwrite-32", "random write, 4 KiB, depth 32", true, 32, 1),
    small("randread-1", "random read, 4 KiB, depth 1", false, 1, 1),
    small("randread-2q", "random read, 4 KiB, 2 queues of depth 32", false, 32, 2),
    small("randwrite-2q", "random write, 4 KiB, 2 queues of depth 32", true, 32, 2),
    SEQUENTIAL_READ,
    Workload { id: "seqwrite-16", name: "sequential write, 128 KiB, depth 16", write: true, ..SEQUENTIAL_READ },
];

const SEQUENTIAL_READ: Workload = Workload {
    id: "seqread-16",
    name: "sequential read, 128 KiB, depth 16",
    write: false,
    random: false,
    bytes: 128 << 10,
    depth: 16,
    queues: 1,
};

const fn small(id: &'static str, name: &'static str, write: bool, depth: usize, queues: usize) -> Workload {
    Workload { id, name, write, random: true, bytes: 4096, depth, queues }
}
