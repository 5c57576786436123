//! What every home of a view promises.

use sealblk::coordination::{RecordDamage, Swap, ViewStore, ViewStoreError};
use sealblk::replication::View;
use sealblk::replication::view::{FailureMode, Incarnation, Member, MemberState, ViewNumber};
use uuid::Uuid;

use super::nodes::name;

/// The volume of the views.
pub const ID: Uuid = Uuid::from_bytes([7; 16]);

/// A view with this number, which no other is equal to.
pub fn view(number: u64) -> View {
    let member = |node: usize| Member {
        node: name(node).parse().expect("a node's name"),
        address: format!("{}:7420", name(node)),
        zone: Some(format!("zone-{node}").parse().expect("a zone")),
        state: MemberState::InSync(Incarnation(Uuid::from_u128(number as u128 + node as u128))),
    };
    View {
        volume: ID,
        number: ViewNumber(number),
        writer: None,
        members: (0..3).map(member).collect(),
        failure_mode: FailureMode::Soft,
        lease_ms: 4000,
        writers: vec!["node-w".parse().expect("a node's name")],
    }
}

/// Why what is stored is no view.
pub fn damage(result: Result<impl std::fmt::Debug, ViewStoreError>) -> RecordDamage {
    match result {
        Err(ViewStoreError::Damaged { reason, .. }) => reason,
        other => panic!("not damaged: {other:?}"),
    }
}

/// Checks that of many who swap the view numbered `current` at once one succeeds, and all others learn of that.
pub fn assert_one_swaps<V: ViewStore>(open: impl Fn() -> V + Sync, current: u64) {
    // Each is of another writer.
    let next = |thread: u32| View { lease_ms: 4000 + thread, ..view(current + 1) };
    let swap = &|thread: u32| open().swap(ViewNumber(current), &next(thread)).expect("a swap");
    let results: Vec<Swap> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|thread| scope.spawn(move || swap(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
    });
    assert_eq!(results.iter().filter(|result| **result == Swap::Stored).count(), 1, "{results:?}");
    let last = open().load().expect("the view");
    let others = results.into_iter().filter(|result| *result != Swap::Stored);
    others.for_each(|result| assert_eq!(result, Swap::Conflict(last.clone())));
}

/// Swaps views, from the one numbered `number` on, while the store stands still at some moment, which `silence` does:
/// whatever is said of a swap, it must be true.
pub fn swap_through(store: &mut impl ViewStore, number: u64, silence: impl FnOnce() + Send) -> u64 {
    let mut number = number;
    std::thread::scope(|scope| {
        let silence = scope.spawn(silence);
        while !silence.is_finished() {
            match store.swap(ViewNumber(number), &view(number + 1)) {
                Ok(Swap::Stored) => number += 1,
                Ok(Swap::Conflict(stored)) => {
                    assert_eq!(stored, view(number + 1), "nobody else changes it");
                    number += 1;
                }
                Err(ViewStoreError::Unavailable { .. } | ViewStoreError::Unknown { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let last = store.load().expect("the view");
    assert!(last == view(number) || last == view(number + 1), "{last:?} is stored and {number} was told");
    number
}
