//! Engines that move bytes between memory and a file.
