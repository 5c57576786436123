//! The files in a volume's folder, with any content.

use super::{Superblock, checksum, holder, regions};

/// Reads `bytes` as each of the files, as they are and with checksums that are right, which fuzzing does not find by
/// itself: the entry of the fuzz target `store`. Whether one of them is taken.
///
/// # Panics
///
/// When what was taken is not what it would be written as again.
pub fn read_hostile(bytes: &[u8]) -> bool {
    let superblock = |content: &[u8]| match Superblock::parse(content) {
        Ok(superblock) => superblock.render() == content || panic!("{superblock:?} is written otherwise"),
        Err(_) => false,
    };
    let is_superblock = superblock(bytes) | superblock(&checksum::seal(bytes.to_vec()));
    let is_note = std::str::from_utf8(bytes).is_ok_and(|text| holder::parse(text, None).is_some());
    is_superblock | is_note | regions::read_hostile(bytes)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::corpus;
    use crate::store::SectorSize;

    #[test]
    fn the_fuzzing_corpus_passes() {
        let id = Uuid::from_bytes([7; 16]);
        let plain = Superblock::plain(id, 1 << 20, SectorSize::Bytes512).unwrap().render();
        let encrypted = Superblock::encrypted(id, 10 << 30, SectorSize::Bytes4096, [0xa5; 32], [0x5a; 32]).unwrap();
        corpus::assert_seed("store", "volume", &plain);
        corpus::assert_seed("store", "volume-plain", checksum::covered(&plain));
        corpus::assert_seed("store", "volume-encrypted", checksum::covered(&encrypted.render()));
        corpus::assert_seed("store", "holder", b"4711 123456\n");
        for (name, image) in regions::seeds() {
            corpus::assert_seed("store", name, &image);
        }
        assert!(corpus::taken("store", read_hostile) >= 6);
    }
}
