//! The corpora of the fuzz targets, which go through the tests too.

use std::fs;
use std::path::PathBuf;

/// Gives each file of a target's corpus to the target's entry, which panics at what it finds. How many of them it
/// takes for good.
pub fn taken(target: &str, entry: impl Fn(&[u8]) -> bool) -> usize {
    let files = fs::read_dir(folder(target)).unwrap().map(|file| file.unwrap().path());
    let seeds = files.filter(|path| path.extension().is_some_and(|extension| extension == "bin"));
    seeds.filter(|seed| entry(&fs::read(seed).unwrap())).count()
}

/// Asserts that a seed has the bytes that our own code makes. With WRITE_SEEDS in the environment, it is given them.
pub fn assert_seed(target: &str, name: &str, bytes: &[u8]) {
    let path = folder(target).join(name).with_extension("bin");
    if std::env::var_os("WRITE_SEEDS").is_some() {
        fs::create_dir_all(folder(target)).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let seed = fs::read(&path).unwrap_or_default();
    assert!(seed == bytes, "{}: run this test with WRITE_SEEDS=1", path.display());
}

fn folder(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "corpus", target].iter().collect()
}
