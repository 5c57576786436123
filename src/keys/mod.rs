//! Where keys come from.
