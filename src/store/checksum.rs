//! JSON files that prove themselves: the last member is a SHA-256 over every byte before it.
//!
//! The checksum is found by its place and not by parsing, so it can be verified before anything is
//! known of the rest, and by hand with `head -n -2 FILE | sha256sum`.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// A record as pretty JSON with its checksum as the last member. The record must be a struct with named
/// fields.
pub fn render(record: &impl Serialize) -> Vec<u8> {
    let body = serde_json::to_string_pretty(record).expect("a record has string keys only");
    let body = body.strip_suffix("\n}").expect("pretty JSON of a struct ends this way");
    seal(format!("{body},\n").into_bytes())
}

/// A content with the checksum of all that is `covered` behind it.
pub fn seal(mut covered: Vec<u8>) -> Vec<u8> {
    let checksum = hex(&Sha256::digest(&covered).into());
    covered.extend_from_slice(format!("{CHECKSUM_HEAD}{checksum}{CHECKSUM_TAIL}").as_bytes());
    covered
}

/// Whether the content of a file is as it was rendered.
///
/// # Errors
///
/// [`ChecksumError`] when there is no checksum in its place, or it is of other content.
pub fn verify(content: &[u8]) -> Result<(), ChecksumError> {
    let body = content.strip_suffix(CHECKSUM_TAIL.as_bytes()).ok_or(ChecksumError::Absent)?;
    let (rest, checksum) = body.split_last_chunk::<64>().ok_or(ChecksumError::Absent)?;
    let covered = rest.strip_suffix(CHECKSUM_HEAD.as_bytes()).ok_or(ChecksumError::Absent)?;
    if hex(&Sha256::digest(covered).into()).as_bytes() == checksum { Ok(()) } else { Err(ChecksumError::Mismatch) }
}

/// What the checksum of an intact content covers.
#[cfg(test)]
pub fn covered(content: &[u8]) -> &[u8] {
    &content[..content.len() - CHECKSUM_HEAD.len() - 64 - CHECKSUM_TAIL.len()]
}

/// Why a file does not prove itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    /// The last two lines do not hold a checksum.
    #[error("it does not end with a checksum")]
    Absent,
    /// The checksum is of other content.
    #[error("its checksum does not match")]
    Mismatch,
}

/// In lower case.
pub(super) fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) const CHECKSUM_HEAD: &str = "  \"checksum\": \"";
const CHECKSUM_TAIL: &str = "\"\n}\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Record {
        name: &'static str,
    }

    #[test]
    fn a_rendered_record_verifies_and_no_changed_bit_does() {
        let good = render(&Record { name: "disk" });
        assert!(good.starts_with(b"{\n  \"name\": \"disk\",\n  \"checksum\": \""));
        assert_eq!(verify(&good), Ok(()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert_eq!(verify(&good[..length]), Err(ChecksumError::Absent), "{length} bytes");
        }
    }
}
