//! The superblock: what a volume is, as `volume.json` records it.
//!
//! Everything that decides how the bytes of `data` are read stands in this one small file: identity,
//! size, data unit, cipher, and what proves a key right. A flipped bit in it would turn a good disk
//! into noise, so the file has exactly one valid rendering for each superblock and its last entry is
//! a SHA-256 over every byte before it.
//!
//! Invariant: [`Superblock::parse`] accepts a file only if [`Superblock::render`] of what it read
//! gives back the same bytes. The checksum is found by its place and not by parsing, so that it can
//! be verified before the format version is known and with `head -n -2 volume.json | sha256sum`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::checksum::{self, ChecksumError, hex};

/// The format version this code reads and writes.
pub const FORMAT: u32 = 1;

/// Bytes of a `volume.json` that is worth reading; a real one has about 500.
pub const SUPERBLOCK_BYTES_MAX: usize = 16 * 1024;

/// The largest volume: what a file offset can address on Linux.
const SIZE_BYTES_MAX: u64 = i64::MAX as u64;

/// Identity and geometry of a volume, and the values that prove a key right.
///
/// `cipher`, `key_check` and `writer_public_key` go together: an encrypted volume has all three, a
/// plain one has [`Cipher::None`] and neither value. [`Superblock::encrypted`] and
/// [`Superblock::plain`] build the two kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Random identity (UUID version 4), also the salt of the values derived from the key.
    pub id: Uuid,
    /// Size of the device in bytes, a multiple of the sector size.
    pub size_bytes: u64,
    /// Size of a sector, which is also the XTS data unit.
    pub sector_size: SectorSize,
    /// How sectors are sealed.
    pub cipher: Cipher,
    /// Value derived from the key and the id; a key that derives another one is wrong.
    pub key_check: Option<[u8; 32]>,
    /// Ed25519 public key of those who hold the volume's key.
    pub writer_public_key: Option<[u8; 32]>,
}

impl Superblock {
    /// A volume whose sectors are sealed with AES-256-XTS.
    ///
    /// # Errors
    ///
    /// [`GeometryError`] when the size is zero, too large or not a whole number of sectors.
    pub fn encrypted(
        id: Uuid,
        size_bytes: u64,
        sector_size: SectorSize,
        key_check: [u8; 32],
        writer_public_key: [u8; 32],
    ) -> Result<Superblock, GeometryError> {
        check_geometry(size_bytes, sector_size)?;
        Ok(Superblock {
            id,
            size_bytes,
            sector_size,
            cipher: Cipher::Aes256Xts,
            key_check: Some(key_check),
            writer_public_key: Some(writer_public_key),
        })
    }

    /// A volume that is stored as it is written.
    ///
    /// # Errors
    ///
    /// [`GeometryError`] when the size is zero, too large or not a whole number of sectors.
    pub fn plain(id: Uuid, size_bytes: u64, sector_size: SectorSize) -> Result<Superblock, GeometryError> {
        check_geometry(size_bytes, sector_size)?;
        Ok(Superblock { id, size_bytes, sector_size, cipher: Cipher::None, key_check: None, writer_public_key: None })
    }

    /// Number of sectors of [`Superblock::sector_size`] each.
    pub fn sectors(&self) -> u64 {
        self.size_bytes / u64::from(self.sector_size.bytes())
    }

    /// The one valid content of `volume.json` for this superblock.
    pub fn render(&self) -> Vec<u8> {
        let record = Record {
            format: FORMAT,
            id: self.id.hyphenated().to_string(),
            size_bytes: self.size_bytes,
            sector_size_bytes: self.sector_size.bytes(),
            cipher: self.cipher.name().to_owned(),
            key_check: self.key_check.as_ref().map(hex),
            writer_public_key: self.writer_public_key.as_ref().map(hex),
        };
        checksum::render(&record)
    }

    /// Reads the content of `volume.json`.
    ///
    /// # Errors
    ///
    /// [`SuperblockError::Damaged`] for any byte that is not as written, and
    /// [`SuperblockError::UnknownFormat`] for an intact file of another format version.
    pub fn parse(content: &[u8]) -> Result<Superblock, SuperblockError> {
        checksum::verify(content).map_err(Damage::from)?;
        let version: Version = serde_json::from_slice(content).map_err(|_| Damage::NotASuperblock)?;
        if version.format != FORMAT {
            return Err(SuperblockError::UnknownFormat { found: version.format });
        }
        let sealed: Sealed = serde_json::from_slice(content).map_err(|_| Damage::NotASuperblock)?;
        let superblock = sealed.into_superblock()?;
        if superblock.render() != content {
            return Err(Damage::NotCanonical.into());
        }
        Ok(superblock)
    }
}

/// Size of a sector in bytes: what the guest addresses, and the XTS data unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectorSize {
    /// 512 bytes, the default.
    Bytes512,
    /// 4096 bytes: faster to seal, but the guest cannot write less.
    Bytes4096,
}

impl SectorSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            SectorSize::Bytes512 => 512,
            SectorSize::Bytes4096 => 4096,
        }
    }

    /// The sector size of that many bytes, if there is one.
    pub const fn from_bytes(bytes: u32) -> Option<SectorSize> {
        match bytes {
            512 => Some(SectorSize::Bytes512),
            4096 => Some(SectorSize::Bytes4096),
            _ => None,
        }
    }
}

/// How the sectors of a volume are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-256-XTS (IEEE 1619) with the sector's number as the tweak; dm-crypt's `aes-xts-plain64`.
    Aes256Xts,
    /// Not encrypted.
    None,
}

impl Cipher {
    /// The name in `volume.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Cipher::Aes256Xts => "aes-xts-plain64",
            Cipher::None => "none",
        }
    }

    fn from_name(name: &str) -> Option<Cipher> {
        [Cipher::Aes256Xts, Cipher::None].into_iter().find(|cipher| cipher.name() == name)
    }
}

/// A size that no volume can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The size is zero.
    #[error("a volume of 0 bytes cannot be made: give a size of at least one sector")]
    Empty,
    /// The size is not a whole number of sectors.
    #[error(
        "a size of {size_bytes} bytes is not a multiple of the sector size of {sector_size_bytes} bytes: give a size that is"
    )]
    NotWholeSectors {
        /// The size asked for.
        size_bytes: u64,
        /// The sector size asked for.
        sector_size_bytes: u32,
    },
    /// A file cannot be that long.
    #[error("a size of {size_bytes} bytes is more than a file can hold: give a smaller one")]
    TooLarge {
        /// The size asked for.
        size_bytes: u64,
    },
}

/// Why the content of `volume.json` was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// A byte is not as it was written.
    #[error("it is damaged ({0})")]
    Damaged(#[from] Damage),
    /// The file is intact but written by another version of sealblk.
    #[error("its format version is {found} and this sealblk reads version {FORMAT}")]
    UnknownFormat {
        /// The version found.
        found: u32,
    },
}

/// What shows that a `volume.json` is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The last two lines do not hold a checksum.
    #[error("it does not end with a checksum")]
    NoChecksum,
    /// The checksum is of other content.
    #[error("its checksum does not match")]
    ChecksumMismatch,
    /// Not JSON, or not with these fields and values.
    #[error("its fields are not those of a volume")]
    NotASuperblock,
    /// The same values in another rendering.
    #[error("it is not written the way sealblk writes it")]
    NotCanonical,
}

impl From<ChecksumError> for Damage {
    fn from(error: ChecksumError) -> Damage {
        match error {
            ChecksumError::Absent => Damage::NoChecksum,
            ChecksumError::Mismatch => Damage::ChecksumMismatch,
        }
    }
}

#[derive(Serialize)]
struct Record {
    format: u32,
    id: String,
    size_bytes: u64,
    sector_size_bytes: u32,
    cipher: String,
    key_check: Option<String>,
    writer_public_key: Option<String>,
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    #[serde(rename = "format")]
    _format: u32,
    id: Uuid,
    size_bytes: u64,
    sector_size_bytes: u32,
    cipher: String,
    key_check: Option<String>,
    writer_public_key: Option<String>,
    #[serde(rename = "checksum")]
    _checksum: String,
}

impl Sealed {
    fn into_superblock(self) -> Result<Superblock, Damage> {
        let sector_size = SectorSize::from_bytes(self.sector_size_bytes).ok_or(Damage::NotASuperblock)?;
        let value = |text: String| unhex(&text).ok_or(Damage::NotASuperblock);
        let key_check = self.key_check.map(value).transpose()?;
        let writer_public_key = self.writer_public_key.map(value).transpose()?;
        let built = match (Cipher::from_name(&self.cipher), key_check, writer_public_key) {
            (Some(Cipher::Aes256Xts), Some(key_check), Some(public_key)) => {
                Superblock::encrypted(self.id, self.size_bytes, sector_size, key_check, public_key)
            }
            (Some(Cipher::None), None, None) => Superblock::plain(self.id, self.size_bytes, sector_size),
            _ => return Err(Damage::NotASuperblock),
        };
        built.map_err(|_| Damage::NotASuperblock)
    }
}

fn check_geometry(size_bytes: u64, sector_size: SectorSize) -> Result<(), GeometryError> {
    let sector_size_bytes = sector_size.bytes();
    if size_bytes == 0 {
        Err(GeometryError::Empty)
    } else if !size_bytes.is_multiple_of(u64::from(sector_size_bytes)) {
        Err(GeometryError::NotWholeSectors { size_bytes, sector_size_bytes })
    } else if size_bytes > SIZE_BYTES_MAX {
        Err(GeometryError::TooLarge { size_bytes })
    } else {
        Ok(())
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::checksum::CHECKSUM_HEAD;
    use super::*;

    fn encrypted() -> Superblock {
        let id = Uuid::from_bytes([7; 16]);
        Superblock::encrypted(id, 1 << 30, SectorSize::Bytes4096, [0xa5; 32], [0x5a; 32]).unwrap()
    }

    fn plain() -> Superblock {
        Superblock::plain(Uuid::from_bytes([9; 16]), 1024, SectorSize::Bytes512).unwrap()
    }

    /// Gives edited content a checksum that is right.
    fn resealed(content: &str) -> Vec<u8> {
        checksum::seal(content[..content.rfind(CHECKSUM_HEAD).unwrap()].into())
    }

    #[test]
    fn what_is_rendered_parses_back() {
        for superblock in [encrypted(), plain()] {
            assert_eq!(Superblock::parse(&superblock.render()), Ok(superblock.clone()));
        }
    }

    #[test]
    fn the_rendering_is_pinned() {
        let text = String::from_utf8(plain().render()).unwrap();
        let expected = concat!(
            "{\n",
            "  \"format\": 1,\n",
            "  \"id\": \"09090909-0909-0909-0909-090909090909\",\n",
            "  \"size_bytes\": 1024,\n",
            "  \"sector_size_bytes\": 512,\n",
            "  \"cipher\": \"none\",\n",
            "  \"key_check\": null,\n",
            "  \"writer_public_key\": null,\n",
        );
        let checksum = openssl::sha::sha256(expected.as_bytes());
        assert_eq!(text, format!("{expected}  \"checksum\": \"{}\"\n}}\n", hex(&checksum)));
    }

    #[test]
    fn every_changed_byte_is_found() {
        for superblock in [encrypted(), plain()] {
            let good = superblock.render();
            for position in 0..good.len() {
                for pattern in 1..=255u8 {
                    let mut bad = good.clone();
                    bad[position] ^= pattern;
                    let result = Superblock::parse(&bad);
                    assert!(
                        matches!(result, Err(SuperblockError::Damaged(_))),
                        "byte {position} xor {pattern:#04x} gave {result:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_cut_and_every_appended_byte_is_found() {
        let good = encrypted().render();
        for length in 0..good.len() {
            assert!(Superblock::parse(&good[..length]).is_err(), "cut at {length}");
            assert!(Superblock::parse(&good[good.len() - length..]).is_err());
        }
        for extra in [b'\n', b' ', 0, b'}'] {
            let mut bad = good.clone();
            bad.push(extra);
            assert!(Superblock::parse(&bad).is_err(), "extra byte {extra:#04x}");
        }
    }

    #[test]
    fn another_format_version_has_its_own_error() {
        let text = String::from_utf8(encrypted().render()).unwrap();
        let other = resealed(&text.replace("\"format\": 1", "\"format\": 2"));
        assert_eq!(Superblock::parse(&other), Err(SuperblockError::UnknownFormat { found: 2 }));
    }

    #[test]
    fn a_right_checksum_does_not_excuse_wrong_fields() {
        let text = String::from_utf8(encrypted().render()).unwrap();
        let edits = [
            ("\"size_bytes\": 1073741824", "\"size_bytes\": 1073741825"),
            ("\"size_bytes\": 1073741824", "\"size_bytes\": 0"),
            ("\"size_bytes\": 1073741824", "\"size_bytes\": 1073741824.0"),
            ("\"size_bytes\": 1073741824", "\"size_bytes\":  1073741824"),
            ("4096", "1024"),
            ("aes-xts-plain64", "none"),
            ("aes-xts-plain64", "aes-cbc"),
            ("a5a5", "A5A5"),
            ("a5a5", "a5"),
            ("07070707-", "07070707"),
            ("  \"id\"", "  \"extra\": 1,\n  \"id\""),
        ];
        for (from, to) in edits {
            let edited = text.replacen(from, to, 1);
            assert_ne!(edited, text, "{from} is not in the rendering");
            let result = Superblock::parse(&resealed(&edited));
            assert!(matches!(result, Err(SuperblockError::Damaged(_))), "{from} -> {to} gave {result:?}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let id = Uuid::nil();
        let plain = |size| Superblock::plain(id, size, SectorSize::Bytes4096);
        assert_eq!(plain(0), Err(GeometryError::Empty));
        assert_eq!(
            plain(4096 + 512),
            Err(GeometryError::NotWholeSectors { size_bytes: 4608, sector_size_bytes: 4096 })
        );
        assert_eq!(plain(1 << 63), Err(GeometryError::TooLarge { size_bytes: 1 << 63 }));
        assert_eq!(plain((1 << 63) - 4096).map(|s| s.sectors()), Ok((1 << 51) - 1));
    }
}
