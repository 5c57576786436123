//! Whether the volume keys of a namespace are good, without showing any.

use serde::Serialize;

use super::session::Session;
use super::{Cluster, seclusion};
use crate::keys::error::KeyError;
use crate::keys::names::{Namespace, ObjectName};
use crate::keys::secret;

/// What was found in a namespace.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The namespace.
    pub namespace: String,
    /// Whether a rotation of the namespace's key has begun and not ended.
    pub rotation_unfinished: bool,
    /// Each Secret that holds a volume's key, in order of their names.
    pub volume_keys: Vec<Finding>,
}

/// What was found of one volume key.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The Secret's name.
    pub secret: String,
    /// `clear`: the key and its wrapped form; `wrapped`: only that.
    pub form: &'static str,
    /// Why it does not open; none when it does.
    pub problem: Option<String>,
}

impl Report {
    /// How many volume keys do not open.
    pub fn problems(&self) -> usize {
        self.volume_keys.iter().filter(|finding| finding.problem.is_some()).count()
    }
}

/// Opens every volume key of a namespace in every way that there is: the clear key must match its
/// `hmac`, and `vuk` must open to the same under the namespace's key.
///
/// # Errors
///
/// [`KeyError`] when the namespace's key or its Secrets cannot be read. A volume key that does not open
/// is no error but a [`Finding`].
pub fn verify(namespace: &Namespace, cluster: &Cluster<'_>) -> Result<Report, KeyError> {
    let (namespace, access, patience) = (namespace.clone(), cluster.access.clone(), cluster.patience);
    seclusion::run(cluster.stop, move || async move {
        let mut session = Session::open(&access, patience).await?;
        // The volumes first: a key that is wrapped anew between the two then opens under what is `next`
        // or has become `key`; the old key may be gone, so what does not open is read once more.
        let mut volumes = session.volume_secrets(&namespace).await?;
        let name = ObjectName::of_namespace_key();
        let keys = secret::open_namespace_keys(&session.secret(&namespace, &name).await?)?;
        let mut volume_keys = Vec::new();
        for (name, volume) in &mut volumes {
            let mut opened = secret::open_volume_key(volume, Some(&keys));
            if let Err(KeyError::UnwrapMismatch { .. }) = opened {
                *volume = session.secret(&namespace, name).await?;
                opened = secret::open_volume_key(volume, Some(&keys));
            }
            volume_keys.push(Finding {
                secret: name.to_string(),
                form: if secret::is_wrapped(volume) { "wrapped" } else { "clear" },
                problem: opened.err().map(|error| error.to_string()),
            });
        }
        Ok(Report { namespace: namespace.to_string(), rotation_unfinished: keys.next.is_some(), volume_keys })
    })
}
