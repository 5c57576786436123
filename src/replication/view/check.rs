//! Whether a view that came from outside can be used: from a peer, or from where views are kept.
//!
//! What the types say has been checked when it was parsed. What only the whole view shows is checked
//! here, so that whoever holds a checked view may count on its bounds.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    FailureMode, FailureModeError, MEMBERS_MAX, Member, NODE_NAME_BYTES_MAX, NodeName, View, ViewNumber, WRITERS_MAX,
};

/// The longest lease: whoever replaces a writer may have to wait for that long.
pub const LEASE_MS_MAX: u32 = 10 * 60 * 1000;

impl View {
    /// Whether a view that came from outside can be used. What types alone do not say is checked here:
    /// numbers within their bounds, one copy a node, addresses that can be dialled.
    ///
    /// # Errors
    ///
    /// [`ViewError`] with the first thing that is wrong.
    pub fn check(&self) -> Result<(), ViewError> {
        self.find_fault().map_or(Ok(()), |fault| Err(ViewError { volume: self.volume, number: self.number, fault }))
    }

    fn find_fault(&self) -> Option<ViewFault> {
        if !(ViewNumber(1)..=ViewNumber::MAX).contains(&self.number) {
            return Some(ViewFault::Number);
        }
        if !(1..=MEMBERS_MAX).contains(&self.members.len()) {
            return Some(ViewFault::MemberCount { count: self.members.len() });
        }
        if !(1..=LEASE_MS_MAX).contains(&self.lease_ms) {
            return Some(ViewFault::Lease { lease_ms: self.lease_ms });
        }
        if matches!(self.failure_mode, FailureMode::AtLeast(count) if !(1..=MEMBERS_MAX).contains(&count.into())) {
            return Some(ViewFault::FailureMode(FailureModeError));
        }
        if self.writers.len() > WRITERS_MAX {
            return Some(ViewFault::WriterCount { count: self.writers.len() });
        }
        let mut nodes = BTreeSet::new();
        for Member { node, address, .. } in &self.members {
            if !nodes.insert(node) {
                return Some(ViewFault::SameNode { node: node.clone() });
            }
            if !is_address(address) {
                return Some(ViewFault::Address { node: node.clone() });
            }
        }
        None
    }
}

/// A view that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("view {number} of volume {volume} cannot be used: {fault}: correct it where the volume's views are kept")]
pub struct ViewError {
    /// The volume that it claims to be of.
    pub volume: Uuid,
    /// The number that it claims.
    pub number: ViewNumber,
    /// What is wrong with it.
    #[source]
    pub fault: ViewFault,
}

/// What is wrong with a view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewFault {
    /// No number of a view.
    #[error("views are numbered from 1 to {}", ViewNumber::MAX)]
    Number,
    /// Too few members, or too many.
    #[error("it has {count} members and a volume has 1 to {MEMBERS_MAX} copies")]
    MemberCount {
        /// How many.
        count: usize,
    },
    /// Too many nodes that may write it.
    #[error("it names {count} nodes as writers beside its members and a volume has at most {WRITERS_MAX}")]
    WriterCount {
        /// How many.
        count: usize,
    },
    /// No lease, or one that nobody would wait for.
    #[error("its lease has {lease_ms} ms and a lease has 1 to {LEASE_MS_MAX}")]
    Lease {
        /// How long it is.
        lease_ms: u32,
    },
    /// A count that no volume can have.
    #[error(transparent)]
    FailureMode(FailureModeError),
    /// Two copies on one node.
    #[error("two of its members are on node {node}")]
    SameNode {
        /// The node.
        node: NodeName,
    },
    /// A member whose address names no host and port.
    #[error("the address of its member on node {node} is not HOST:PORT")]
    Address {
        /// The member's node.
        node: NodeName,
    },
}

/// HOST:PORT. What the host is, the resolver decides; it is a word of printable ASCII.
pub(in crate::replication) fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = host.as_bytes();
    (1..=NODE_NAME_BYTES_MAX).contains(&host.len())
        && host.iter().all(u8::is_ascii_graphic)
        && port.len() <= 5
        && port.parse().is_ok_and(|port: u16| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::view::MemberState;

    fn view() -> View {
        let member = |node: &str| Member {
            node: node.parse().unwrap(),
            address: format!("{node}.example:7420"),
            zone: None,
            state: MemberState::Behind,
        };
        View {
            volume: Uuid::nil(),
            number: ViewNumber(1),
            writer: None,
            members: vec![member("a"), member("b")],
            failure_mode: FailureMode::Soft,
            lease_ms: 1000,
            writers: Vec::new(),
        }
    }

    #[test]
    fn a_view_that_cannot_be_is_found_out() {
        assert_eq!(view().check(), Ok(()));
        let fault = |change: &dyn Fn(&mut View)| {
            let mut view = view();
            change(&mut view);
            view.check().unwrap_err().fault
        };
        assert_eq!(fault(&|view| view.number = ViewNumber::NONE), ViewFault::Number);
        assert_eq!(fault(&|view| view.number = ViewNumber::MAX.next()), ViewFault::Number);
        assert_eq!(fault(&|view| view.members.clear()), ViewFault::MemberCount { count: 0 });
        assert_eq!(fault(&|view| view.members = vec![view.members[0].clone(); 9]), ViewFault::MemberCount { count: 9 });
        let writers = vec!["w".parse().unwrap(); 65];
        assert_eq!(fault(&|view| view.writers = writers.clone()), ViewFault::WriterCount { count: 65 });
        for lease_ms in [0, LEASE_MS_MAX + 1] {
            assert_eq!(fault(&|view| view.lease_ms = lease_ms), ViewFault::Lease { lease_ms });
        }
        for count in [0, 9] {
            assert!(matches!(
                fault(&|view| view.failure_mode = FailureMode::AtLeast(count)),
                ViewFault::FailureMode(_)
            ));
        }
        let node: NodeName = "a".parse().unwrap();
        assert_eq!(fault(&|view| view.members[1].node = node.clone()), ViewFault::SameNode { node: node.clone() });
    }

    #[test]
    fn addresses_name_a_host_and_a_port() {
        let check = |address: &str| {
            let mut view = view();
            view.members[0].address = address.to_owned();
            view.check()
        };
        for address in ["a:1", "10.0.0.1:65535", "[fe80::1%eth0]:7420"] {
            assert_eq!(check(address), Ok(()), "{address}");
        }
        let long = format!("{}:1", "a".repeat(254));
        for address in ["", "a", ":1", "a:", "a:0", "a:65536", "a:+1000000", "a b:1", "ä:1", &long] {
            let error = check(address).unwrap_err();
            assert_eq!(error.fault, ViewFault::Address { node: "a".parse().unwrap() }, "{address}");
        }
    }
}
