//! Reads a sealblk volume without sealblk: OpenSSL, the key from its Secret, and one fact of the
//! format, that the data file is nothing but AES-256-XTS with the unit's index as the tweak.
//!
//! Usage: `decrypt MANIFEST DATA SECTOR_SIZE MARKER`. Prints the byte at which the decrypted disk
//! holds the marker. Exit status as of `grep`: 0 found, 1 not found, 2 trouble.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::process::ExitCode;

use openssl::base64;
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;

const CHUNK_BYTES: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match find(&arguments) {
        Ok(Some(offset)) => {
            println!("{offset}");
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::from(1),
        Err(error) => {
            eprintln!("decrypt: {error}");
            ExitCode::from(2)
        }
    }
}

fn find(arguments: &[String]) -> Result<Option<u64>, Box<dyn Error>> {
    let [manifest, data, sector_size, marker] = arguments else {
        return Err("usage: decrypt MANIFEST DATA SECTOR_SIZE MARKER".into());
    };
    let key = volume_key(&fs::read_to_string(manifest)?).ok_or("the manifest has no key of 64 bytes")?;
    let mut disk = Disk::new(&key, sector_size.parse()?, File::open(data)?)?;
    disk.find(marker.as_bytes())
}

/// The one `key` of 64 bytes. The manifest may also hold the namespace's key, which has 32.
fn volume_key(manifest: &str) -> Option<Vec<u8>> {
    manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("key:"))
        .filter_map(|value| base64::decode_block(value.trim().trim_matches('"')).ok())
        .find(|key| key.len() == 64)
}

struct Disk {
    context: CipherCtx,
    sector_size: usize,
    data: File,
}

impl Disk {
    fn new(key: &[u8], sector_size: usize, data: File) -> Result<Disk, Box<dyn Error>> {
        let mut context = CipherCtx::new()?;
        context.decrypt_init(Some(Cipher::aes_256_xts()), Some(key), None)?;
        Ok(Disk { context, sector_size, data })
    }

    /// The first place of `marker` on the decrypted disk, by whole chunks that overlap by its length.
    fn find(&mut self, marker: &[u8]) -> Result<Option<u64>, Box<dyn Error>> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut window = Vec::new();
        let mut window_start = 0;
        let mut offset = 0;
        loop {
            let length = read_full(&mut self.data, &mut chunk)?;
            if length == 0 {
                return Ok(None);
            }
            self.decrypt(&mut chunk[..length], offset)?;
            window.extend_from_slice(&chunk[..length]);
            if let Some(place) = window.windows(marker.len()).position(|bytes| bytes == marker) {
                return Ok(Some(window_start + place as u64));
            }
            offset += length as u64;
            let spent = window.len().saturating_sub(marker.len() - 1);
            window.drain(..spent);
            window_start += spent as u64;
        }
    }

    fn decrypt(&mut self, bytes: &mut [u8], offset: u64) -> Result<(), Box<dyn Error>> {
        let first = offset / self.sector_size as u64;
        let mut plain = vec![0; self.sector_size];
        for (index, unit) in (first..).zip(bytes.chunks_exact_mut(self.sector_size)) {
            // What was never written is a hole, and reads as zeros.
            if unit.iter().all(|byte| *byte == 0) {
                continue;
            }
            let tweak = u128::from(index).to_le_bytes();
            self.context.decrypt_init(None, None, Some(&tweak))?;
            self.context.cipher_update(unit, Some(&mut plain))?;
            unit.copy_from_slice(&plain);
        }
        Ok(())
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}
