//! AES-256-XTS throughput, each implementation that this CPU runs beside `xts-mode` and OpenSSL:
//! 512 and 4096-byte units, encrypt and decrypt, 64 KiB batches in place, one core.
//!
//! `cargo bench --bench xts`, or with a filter: `cargo bench --bench xts -- 'encrypt/4096'`.

use std::time::Duration;

use aes::Aes256;
use aes::cipher::KeyInit;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use sealblk::crypto::self_test;
use sealblk::crypto::xts::{Direction, Implementation, Xts, XtsKey};
use xts_mode::{Xts128, get_tweak_default};

const BATCH_BYTES: usize = 64 * 1024;
const FIRST_UNIT: u64 = 1_000_000;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(40);
    targets = xts
}
criterion_main!(benches);

fn xts(criterion: &mut Criterion) {
    println!("beside {} and xts-mode", openssl::version::version());
    let key = XtsKey::generate().unwrap();
    for direction in [Direction::Encrypt, Direction::Decrypt] {
        for unit_size in [512, 4096] {
            let mut group = criterion.benchmark_group(format!("{direction}/{unit_size}"));
            group.throughput(Throughput::Bytes(BATCH_BYTES as u64));
            for &implementation in Implementation::available() {
                sealblk(&mut group, &key, implementation, direction, unit_size);
            }
            openssl(&mut group, &key, direction, unit_size);
            xts_mode(&mut group, &key, direction, unit_size);
            group.finish();
        }
    }
}

fn sealblk(
    group: &mut BenchmarkGroup<WallTime>,
    key: &XtsKey,
    implementation: Implementation,
    direction: Direction,
    unit_size: usize,
) {
    let xts = Xts::with_implementation(key, implementation).unwrap();
    self_test::run(&xts, key).unwrap();
    let mut batch = vec![0; BATCH_BYTES];
    group.bench_function(format!("sealblk-{implementation}"), |bencher| {
        bencher.iter(|| match direction {
            Direction::Encrypt => xts.encrypt(&mut batch, unit_size, FIRST_UNIT),
            Direction::Decrypt => xts.decrypt(&mut batch, unit_size, FIRST_UNIT),
        });
    });
}

/// OpenSSL's best: one context, only the tweak set anew for each unit.
fn openssl(group: &mut BenchmarkGroup<WallTime>, key: &XtsKey, direction: Direction, unit_size: usize) {
    let cipher = Cipher::aes_256_xts();
    let mut context = CipherCtx::new().unwrap();
    match direction {
        Direction::Encrypt => context.encrypt_init(Some(cipher), Some(key.bytes()), None),
        Direction::Decrypt => context.decrypt_init(Some(cipher), Some(key.bytes()), None),
    }
    .unwrap();
    let mut batch = vec![0; BATCH_BYTES];
    group.bench_function("openssl", |bencher| {
        bencher.iter(|| {
            for (index, unit) in batch.chunks_exact_mut(unit_size).enumerate() {
                let tweak = (u128::from(FIRST_UNIT) + index as u128).to_le_bytes();
                match direction {
                    Direction::Encrypt => context.encrypt_init(None, None, Some(&tweak)),
                    Direction::Decrypt => context.decrypt_init(None, None, Some(&tweak)),
                }
                .unwrap();
                let written = context.cipher_update_inplace(unit, unit.len()).unwrap();
                assert_eq!(written, unit_size);
            }
        });
    });
}

fn xts_mode(group: &mut BenchmarkGroup<WallTime>, key: &XtsKey, direction: Direction, unit_size: usize) {
    let (data_key, tweak_key) = key.bytes().split_at(32);
    let cipher = |half| Aes256::new_from_slice(half).unwrap();
    let xts = Xts128::new(cipher(data_key), cipher(tweak_key));
    let mut batch = vec![0; BATCH_BYTES];
    let first = u128::from(FIRST_UNIT);
    group.bench_function("xts-mode", |bencher| {
        bencher.iter(|| match direction {
            Direction::Encrypt => xts.encrypt_area(&mut batch, unit_size, first, get_tweak_default),
            Direction::Decrypt => xts.decrypt_area(&mut batch, unit_size, first, get_tweak_default),
        });
    });
}
