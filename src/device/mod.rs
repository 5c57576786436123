//! virtio-blk itself: features, configuration space, request parsing and the queue worker.
