//! The ways in which a volume can be served, and the macro that runs a test under each of them.

/// One way to serve a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The value of `--engine`.
    pub engine: &'static str,
    /// Whether the volume has a key.
    pub encrypted: bool,
    /// The volume's sector size in bytes.
    pub sector_size: u32,
}

impl Configuration {
    /// What a test uses that is about none of the three.
    pub const USUAL: Self = Self::new("io-uring", true, 512);

    /// The configuration with these values.
    pub const fn new(engine: &'static str, encrypted: bool, sector_size: u32) -> Self {
        Self { engine, encrypted, sector_size }
    }
}

/// Makes each named function, which takes a [`Configuration`], a test under every engine, with and
/// without encryption, at both sector sizes.
#[allow(unused_macros)]
macro_rules! under_every_configuration {
    ($($test:ident),+ $(,)?) => {
        under_configuration!(io_uring_encrypted_512, "io-uring", true, 512, $($test),+);
        under_configuration!(io_uring_encrypted_4096, "io-uring", true, 4096, $($test),+);
        under_configuration!(io_uring_plain_512, "io-uring", false, 512, $($test),+);
        under_configuration!(io_uring_plain_4096, "io-uring", false, 4096, $($test),+);
        under_configuration!(threads_encrypted_512, "threads", true, 512, $($test),+);
        under_configuration!(threads_encrypted_4096, "threads", true, 4096, $($test),+);
        under_configuration!(threads_plain_512, "threads", false, 512, $($test),+);
        under_configuration!(threads_plain_4096, "threads", false, 4096, $($test),+);
        under_configuration!(inline_encrypted_512, "inline", true, 512, $($test),+);
        under_configuration!(inline_encrypted_4096, "inline", true, 4096, $($test),+);
        under_configuration!(inline_plain_512, "inline", false, 512, $($test),+);
        under_configuration!(inline_plain_4096, "inline", false, 4096, $($test),+);
    };
}

/// Makes each named function a test under every engine, with and without encryption, at one sector
/// size: for what has nothing to do with the sector size.
macro_rules! under_every_engine {
    ($($test:ident),+ $(,)?) => {
        under_configuration!(io_uring_encrypted, "io-uring", true, 512, $($test),+);
        under_configuration!(io_uring_plain, "io-uring", false, 4096, $($test),+);
        under_configuration!(threads_encrypted, "threads", true, 4096, $($test),+);
        under_configuration!(threads_plain, "threads", false, 512, $($test),+);
        under_configuration!(inline_encrypted, "inline", true, 512, $($test),+);
        under_configuration!(inline_plain, "inline", false, 4096, $($test),+);
    };
}

/// One module of tests for one configuration.
macro_rules! under_configuration {
    ($name:ident, $engine:literal, $encrypted:literal, $sector_size:literal, $($test:ident),+) => {
        mod $name {
            const CONFIGURATION: $crate::support::configuration::Configuration =
                $crate::support::configuration::Configuration::new(
                    $engine,
                    $encrypted,
                    $sector_size,
                );
            $(
                #[test]
                fn $test() {
                    super::$test(CONFIGURATION);
                }
            )+
        }
    };
}
