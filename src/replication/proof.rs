//! What a writer signs to show a replica that it holds the volume's key.
//!
//! A certificate says which node speaks, and gives no access to a volume. The signature does, with the
//! key that [`derive`](crate::crypto::derive) makes of the volume's key; the replica knows the public
//! half. It covers what makes the moment unique: the exporter value of the TLS connection (RFC 8446
//! §7.5), which both ends know and no other connection has, the volume, the view, and the connection's
//! place in its session. So a signature that was heard once is of no use on another connection, and one
//! for an old view is of none in a new one.

use uuid::Uuid;

use super::view::ViewNumber;

/// The bytes that are signed: a label, then each value in its fixed length, numbers in little endian.
pub fn message(exporter: &[u8; 32], volume: Uuid, view: ViewNumber, lane: u16, session: u64) -> Vec<u8> {
    [LABEL, exporter, volume.as_bytes(), &view.0.to_le_bytes(), &lane.to_le_bytes(), &session.to_le_bytes()].concat()
}

const LABEL: &[u8] = b"sealblk v1 attach";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::derive::{WriterKey, verify_writer, writer_public_key};
    use crate::crypto::xts::XtsKey;

    const VOLUME: Uuid = Uuid::from_u128(0x00112233_4455_4677_8899_aabbccddeeff);

    #[test]
    fn the_bytes_are_pinned() {
        let exporter = std::array::from_fn(|index| 0xa0 + index as u8);
        let message = message(&exporter, VOLUME, ViewNumber(0x0102_0304_0506_0708), 0x0a0b, 0x1112_1314_1516_1718);
        let mut expected = b"sealblk v1 attach".to_vec();
        expected.extend(0xa0..0xc0);
        expected.extend(b"\x00\x11\x22\x33\x44\x55\x46\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
        expected.extend(b"\x08\x07\x06\x05\x04\x03\x02\x01");
        expected.extend(b"\x0b\x0a");
        expected.extend(b"\x18\x17\x16\x15\x14\x13\x12\x11");
        assert_eq!(message, expected);
        assert_eq!(message.len(), 83);
    }

    #[test]
    fn a_proof_holds_for_its_connection_volume_view_and_place_only() {
        let key = XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| index as u8)).unwrap();
        let public = writer_public_key(&key, VOLUME);
        let (exporter, view) = ([7; 32], ViewNumber(5));
        let proof = WriterKey::derive(&key, VOLUME).unwrap().sign(&message(&exporter, VOLUME, view, 1, 9));
        let holds = |message: &[u8]| verify_writer(&public, message, &proof);
        assert!(holds(&message(&exporter, VOLUME, view, 1, 9)));

        let (other_connection, other_volume) = ([8; 32], Uuid::from_u128(VOLUME.as_u128() ^ 1));
        for (what, other) in [
            ("another connection", message(&other_connection, VOLUME, view, 1, 9)),
            ("another volume", message(&exporter, other_volume, view, 1, 9)),
            ("an older view", message(&exporter, VOLUME, ViewNumber(4), 1, 9)),
            ("a newer view", message(&exporter, VOLUME, ViewNumber(6), 1, 9)),
            ("another lane", message(&exporter, VOLUME, view, 2, 9)),
            ("another session", message(&exporter, VOLUME, view, 1, 8)),
        ] {
            assert!(!holds(&other), "{what}");
        }
        let thief = XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| 1 + index as u8)).unwrap();
        let forged = WriterKey::derive(&thief, VOLUME).unwrap().sign(&message(&exporter, VOLUME, view, 1, 9));
        assert!(!verify_writer(&public, &message(&exporter, VOLUME, view, 1, 9), &forged));
    }
}
