//! A view as the content of a file: JSON with a checksum, in the manner of the superblock.
//!
//! Invariant: [`parse`] accepts a content only if [`render`] of what it read gives back the same bytes.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::RecordDamage;
use crate::replication::View;
use crate::store::checksum;

/// The format version this code reads and writes.
pub const FORMAT: u32 = 1;

/// Bytes of a record that is worth reading; one of eight copies and 64 writers has some 25,000.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// The one valid content for a view.
pub fn render(view: &View) -> Vec<u8> {
    checksum::render(&Record { format: FORMAT, view })
}

/// Reads the view of a volume from a content.
///
/// # Errors
///
/// [`RecordDamage`] for any byte that is not as written, another format version, or another volume.
pub fn parse(content: &[u8], volume: Uuid) -> Result<View, RecordDamage> {
    checksum::verify(content)?;
    let version: Version = serde_json::from_slice(content).map_err(|_| RecordDamage::NotAView)?;
    if version.format != FORMAT {
        return Err(RecordDamage::UnknownFormat { found: version.format });
    }
    let Stored { view, .. } = serde_json::from_slice(content).map_err(|_| RecordDamage::NotAView)?;
    if view.volume != volume {
        return Err(RecordDamage::OtherVolume { found: view.volume });
    }
    if view.check().is_err() {
        return Err(RecordDamage::Impossible);
    }
    if render(&view) == content { Ok(view) } else { Err(RecordDamage::NotCanonical) }
}

#[derive(Serialize)]
struct Record<'a> {
    format: u32,
    view: &'a View,
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "format")]
    _format: u32,
    view: View,
    #[serde(rename = "checksum")]
    _checksum: String,
}

#[cfg(test)]
mod tests {
    use super::super::tests::first_view;
    use super::*;
    use crate::replication::view::ViewNumber;
    use crate::store::checksum::ChecksumError;

    const VOLUME: Uuid = Uuid::from_bytes([7; 16]);

    #[test]
    fn the_content_is_pinned_and_parses_back() {
        let view = first_view(VOLUME);
        let content = render(&view);
        let text = std::str::from_utf8(&content).unwrap();
        let expected = r#"{
  "format": 1,
  "view": {
    "volume": "07070707-0707-0707-0707-070707070707",
    "number": 1,
    "writer": null,
    "members": [
      {
        "node": "node-1",
        "address": "node-1.example:7000",
        "state": {
          "in-sync": "01010101-0101-0101-0101-010101010101"
        }
      },
      {
        "node": "node-2",
        "address": "node-2.example:7000",
        "state": "behind"
      }
    ],
    "failure_mode": "soft",
    "lease_ms": 5000
  },
"#;
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(parse(&content, VOLUME), Ok(view));
    }

    #[test]
    fn the_documented_example_is_a_record() {
        let page = include_str!("../../docs/format.md");
        let (_, example) =
            page.split_once("## A view in a folder").and_then(|(_, rest)| rest.split_once("```json\n")).unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let volume = "788e60bc-ef61-4c2f-925f-05d5393f7bf8".parse().unwrap();
        assert_eq!(parse(example.as_bytes(), volume).unwrap().number, ViewNumber(12));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let good = render(&first_view(VOLUME));
        for position in 0..good.len() {
            for pattern in [0x01, 0x20, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[position] ^= pattern;
                assert!(matches!(parse(&bad, VOLUME), Err(RecordDamage::Checksum(_))), "byte {position}");
            }
            let cut = parse(&good[..position], VOLUME);
            assert_eq!(cut, Err(RecordDamage::Checksum(ChecksumError::Absent)), "{position} bytes");
        }
    }

    #[test]
    fn a_right_checksum_does_not_excuse_wrong_values() {
        let view = first_view(VOLUME);
        assert_eq!(parse(&render(&view), Uuid::nil()), Err(RecordDamage::OtherVolume { found: VOLUME }));
        let zero = View { number: ViewNumber(0), ..view.clone() };
        assert_eq!(parse(&render(&zero), VOLUME), Err(RecordDamage::Impossible));
        let newer = checksum::render(&Record { format: 2, view: &view });
        assert_eq!(parse(&newer, VOLUME), Err(RecordDamage::UnknownFormat { found: 2 }));

        #[derive(Serialize)]
        struct Extended<'a> {
            format: u32,
            view: &'a View,
            more: u32,
        }
        let extended = checksum::render(&Extended { format: 1, view: &view, more: 0 });
        assert_eq!(parse(&extended, VOLUME), Err(RecordDamage::NotAView));

        #[derive(Serialize)]
        struct Turned<'a> {
            view: &'a View,
            format: u32,
        }
        let turned = checksum::render(&Turned { view: &view, format: 1 });
        assert_eq!(parse(&turned, VOLUME), Err(RecordDamage::NotCanonical));
    }
}
