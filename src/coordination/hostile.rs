//! Views from where they are kept, with any content.

use uuid::Uuid;

use super::{RecordDamage, kubernetes, record};
use crate::store::checksum;

/// Reads `bytes` as a view in a folder or an etcd, as they are and with a checksum that is right, and as what an API
/// server says of a `Volume`: the entry of the fuzz target `views`. Whether one of them is taken.
///
/// # Panics
///
/// When what was taken is not what it would be written as again.
pub fn read_hostile(bytes: &[u8]) -> bool {
    is_record(bytes) | is_record(&checksum::seal(bytes.to_vec())) | kubernetes::read_hostile(bytes)
}

fn is_record(content: &[u8]) -> bool {
    let Err(RecordDamage::OtherVolume { found }) = record::parse(content, Uuid::nil()) else { return false };
    let Ok(view) = record::parse(content, found) else { return false };
    assert!(view.check().is_ok() && record::render(&view) == content, "{view:?} is written otherwise");
    true
}

#[cfg(test)]
mod tests {
    use super::super::tests::first_view;
    use super::*;
    use crate::corpus;

    #[test]
    fn the_fuzzing_corpus_passes() {
        let view = first_view(Uuid::from_bytes([7; 16]));
        let content = record::render(&view);
        corpus::assert_seed("views", "record", &content);
        corpus::assert_seed("views", "record-covered", checksum::covered(&content));
        for (name, object) in kubernetes::seeds(&view) {
            corpus::assert_seed("views", name, object.to_string().as_bytes());
        }
        assert!(corpus::taken("views", read_hostile) >= 4);
    }
}
