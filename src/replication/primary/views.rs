//! Changing the stored view, in a thread of its own: the store may be slow, and nobody waits for it here.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::shared::Shared;
use crate::coordination::{self, ViewStore, ViewStoreError};
use crate::replication::view::{View, ViewNumber};
use crate::replication::writer::Swapped;

/// What is to be put in the place of what.
pub(super) struct Swap {
    pub(super) current: ViewNumber,
    pub(super) next: Box<View>,
}

/// Makes changes until there are no more to come, and tells the writer what became of each.
pub(super) fn run(shared: &Arc<Shared>, store: &mut dyn ViewStore, swaps: &Receiver<Swap>) {
    let mut complaint = String::new();
    for Swap { current, next } in swaps {
        if shared.is_closing() {
            return;
        }
        let result = match store.swap(current, &next) {
            Ok(coordination::Swap::Stored) => Swapped::Stored,
            Ok(coordination::Swap::Conflict(actual)) => Swapped::Conflict(Box::new(actual)),
            Err(error) => {
                let text = error.to_string();
                if complaint != text {
                    log::warn!("the view cannot be changed to number {}: {text}", next.number);
                }
                complaint = text;
                match error {
                    ViewStoreError::Unknown { .. } => Swapped::Unknown,
                    _ => Swapped::Unavailable,
                }
            }
        };
        if matches!(result, Swapped::Stored) {
            complaint.clear();
        }
        shared.with_writer(None, |state, now| state.writer.swapped(now, result));
    }
}
