//! A view as it is sent: JSON, as it is also kept.

use super::WireError;
use super::header::Kind;
use crate::replication::view::View;

/// The most bytes of a view.
pub const VIEW_BYTES_MAX: u32 = 64 * 1024;

/// The JSON of a view.
///
/// # Errors
///
/// [`WireError::View`] for one that [`decode`] would refuse.
pub(super) fn encode(kind: Kind, view: &View) -> Result<Vec<u8>, WireError> {
    view.check().map_err(|source| WireError::View { kind, source })?;
    serde_json::to_vec(view).map_err(|source| WireError::ViewSyntax { kind, source })
}

/// A view that can be used, from its JSON.
///
/// # Errors
///
/// [`WireError::ViewSyntax`] and [`WireError::View`].
pub(super) fn decode(kind: Kind, bytes: &[u8]) -> Result<Box<View>, WireError> {
    let view: View = serde_json::from_slice(bytes).map_err(|source| WireError::ViewSyntax { kind, source })?;
    view.check().map_err(|source| WireError::View { kind, source })?;
    Ok(Box::new(view))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::replication::view::{
        FailureMode, Incarnation, LEASE_MS_MAX, MEMBERS_MAX, Member, MemberState, ViewNumber, WRITERS_MAX, WriterId,
    };

    /// The bound of a body must not be what stops a view that is otherwise good.
    #[test]
    fn the_largest_view_fits() {
        let label = "a".repeat(63);
        let name = |index: usize| format!("{label}.{label}.{label}.{}{index:02}", "a".repeat(59));
        let member = |index: usize| Member {
            node: name(index).parse().unwrap(),
            // A quote takes two bytes in JSON.
            address: format!("{}:65535", "\"".repeat(253)),
            zone: Some("z".repeat(63).parse().unwrap()),
            state: MemberState::InSync(Incarnation(Uuid::max())),
        };
        let view = View {
            volume: Uuid::max(),
            number: ViewNumber::MAX,
            writer: Some(WriterId { node: name(0).parse().unwrap(), attachment: Uuid::max() }),
            members: (0..MEMBERS_MAX).map(member).collect(),
            failure_mode: FailureMode::AlwaysOn,
            lease_ms: LEASE_MS_MAX,
            writers: (0..WRITERS_MAX).map(|index| name(index).parse().unwrap()).collect(),
        };
        let bytes = encode(Kind::Accept, &view).unwrap();
        assert!(bytes.len() < VIEW_BYTES_MAX as usize / 2, "{}", bytes.len());
        assert_eq!(*decode(Kind::Accept, &bytes).unwrap(), view);
    }
}
