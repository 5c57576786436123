//! Stands in for the crate of this name, and finds no VAES.
//!
//! What is looked up for each block, one atomic load, is what it is there, so that nothing else
//! becomes faster or slower.

/// A module that tells whether the CPU has all the features.
#[macro_export]
macro_rules! new {
    ($module:ident, $($feature:literal),+ $(,)?) => {
        mod $module {
            use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

            static FOUND: AtomicU8 = AtomicU8::new(0);

            #[derive(Copy, Clone, Debug)]
            pub struct InitToken(());

            #[allow(dead_code)]
            impl InitToken {
                pub fn init() -> Self {
                    init()
                }

                pub fn init_get() -> (Self, bool) {
                    init_get()
                }

                #[inline(always)]
                pub fn get(&self) -> bool {
                    FOUND.load(Relaxed) == 1
                }
            }

            #[allow(dead_code)]
            pub fn init_get() -> (InitToken, bool) {
                let found = true $(&& $crate::has($feature))+;
                FOUND.store(found.into(), Relaxed);
                (InitToken(()), found)
            }

            #[allow(dead_code)]
            pub fn init() -> InitToken {
                init_get().0
            }

            #[allow(dead_code)]
            pub fn get() -> bool {
                init_get().1
            }
        }
    };
}

/// Only what the `aes` crate asks for, less VAES. Other crates take their portable ways.
pub fn has(feature: &str) -> bool {
    feature == "aes" && std::is_x86_feature_detected!("aes")
}
