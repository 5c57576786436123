//! A certificate that somebody else writes to files, such as cert-manager by way of a mounted Secret.
//!
//! Both files are looked at every few seconds instead of being watched: a mounted Secret changes by a
//! link that is moved, on some file systems without any notice. The two may be seen in different states
//! for a moment; then they do not fit, and the one before stays.

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::{CertificateError, Identity, Slot};

/// Where the certificate and its key are, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl Files {
    /// Shows what is in the files, now and whenever it changes. Never ends, unless there is nothing to
    /// show from the beginning.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Read`] and [`CertificateError::Files`], of the first look.
    pub async fn follow(&self, slot: &Slot) -> Result<Infallible, CertificateError> {
        let mut shown = Arc::new(self.read()?);
        slot.show(shown.clone());
        // Who writes the files has told the API servers.
        slot.note_trust();
        let mut complaint = None;
        loop {
            tokio::time::sleep(INTERVAL).await;
            match self.read() {
                Ok(identity) => {
                    complaint = None;
                    if !identity.is_same(&shown) {
                        log::info!("there is a new certificate in {}", self.certificate.display());
                        shown = Arc::new(identity);
                        slot.show(shown.clone());
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if complaint.as_ref() != Some(&text) {
                        log::warn!("the certificate stays as it is: {text}");
                    }
                    complaint = Some(text);
                }
            }
        }
    }

    /// Two small files, which are read on this thread because it wipes what it frees.
    fn read(&self) -> Result<Identity, CertificateError> {
        let read = |path: &PathBuf| match fs::read(path) {
            Ok(content) => Ok(Zeroizing::new(content)),
            Err(source) => Err(CertificateError::Read { path: path.clone(), source }),
        };
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        Identity::from_pem(&certificate, &key, SystemTime::now()).map_err(|source| CertificateError::Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })
    }
}

const INTERVAL: Duration = Duration::from_secs(2);
