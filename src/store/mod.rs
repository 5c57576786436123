//! One copy of a volume on one disk.
