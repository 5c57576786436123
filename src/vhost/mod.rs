//! The conversation with the VMM.
