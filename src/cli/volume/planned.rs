//! What a new volume with several copies is to be: as the command line says, or as the `Volume` of a cluster does.

use std::time::Duration;

use crate::cli::view_args::in_cluster;
use crate::cli::{CliError, KeyArgs, ViewPlace};
use crate::coordination::kubernetes::{ClusterVolume, KeyPlace, Size, Spec, VolumeName};
use crate::crypto::xts::XtsKey;
use crate::keys::Source;
use crate::replication::view::{FailureMode, NewMember, NodeName};
use crate::store::SectorSize;

/// What it is to be.
pub struct Planned {
    pub size_bytes: u64,
    pub sector_size: SectorSize,
    pub members: Vec<NewMember>,
    pub failure_mode: FailureMode,
    pub lease: Duration,
    pub writers: Vec<NodeName>,
}

impl Planned {
    /// What the spec of a cluster's volume says, and the key that it names or the command line does.
    pub fn of_spec(volume: &ClusterVolume, key: &KeyArgs) -> Result<(Planned, Option<XtsKey>), CliError> {
        let (spec, view) = volume.read()?;
        if view.is_some() {
            return Err(CliError::VolumeExists { volume: volume.name.clone() });
        }
        let key = spec_key(&volume.name, &spec, key, None)?;
        let planned = Planned {
            size_bytes: spec.size.0,
            sector_size: sector_size(spec.sector_size)?,
            members: spec.members,
            failure_mode: spec.failure_mode,
            lease: Duration::from_millis(spec.lease_milliseconds.into()),
            writers: spec.writers,
        };
        Ok((planned, key))
    }

    /// Makes the object of a cluster's volume; nothing elsewhere.
    pub fn announce(&self, place: &ViewPlace, key: &KeyArgs, is_encrypted: bool) -> Result<(), CliError> {
        let ViewPlace::Kubernetes(name) = place else { return Ok(()) };
        let spec = Spec {
            size: Size(self.size_bytes),
            sector_size: self.sector_size.bytes(),
            encrypted: is_encrypted,
            key: key_place(name, key.source()?),
            members: self.members.clone(),
            writers: self.writers.clone(),
            failure_mode: self.failure_mode,
            below_min: Default::default(),
            lease_milliseconds: self.lease.as_millis() as u32,
        };
        Ok(in_cluster(name, &key.cluster()).create(&spec)?)
    }
}

/// The key of a cluster's volume: from where the command line says, else from where its spec does.
pub fn spec_key(
    volume: &VolumeName,
    spec: &Spec,
    key: &KeyArgs,
    stop: Option<std::os::fd::BorrowedFd<'_>>,
) -> Result<Option<XtsKey>, CliError> {
    let wrong = |what: &str| CliError::Spec { volume: volume.clone(), what: what.to_owned() };
    if !spec.encrypted {
        return match key.is_key() {
            true => Err(wrong("it is not encrypted: leave --key away")),
            false => Ok(None),
        };
    }
    if key.is_no_encryption() {
        return Err(wrong("it is encrypted: leave --no-encryption away"));
    }
    if key.is_key() {
        return key.load_unless(stop);
    }
    let named = |name: &str| format!("{}/{name}", volume.namespace());
    let source = match &spec.key {
        Some(KeyPlace::SecretName(name)) => format!("kubernetes:{}", named(name)),
        Some(KeyPlace::ClaimName(name)) => format!("pvc:{}", named(name)),
        None => return Err(wrong("it is encrypted and says not where its key is: give it a `key`, or give --key")),
    };
    key.load_from(&source.parse()?, stop).map(Some)
}

/// A key of another place than the volume's namespace is for the command line to name each time.
fn key_place(volume: &VolumeName, source: Option<Source>) -> Option<KeyPlace> {
    match source {
        Some(Source::Kubernetes { namespace, name }) if namespace.as_str() == volume.namespace() => {
            Some(KeyPlace::SecretName(name.as_str().to_owned()))
        }
        Some(Source::Pvc { namespace, name }) if namespace.as_str() == volume.namespace() => {
            Some(KeyPlace::ClaimName(name.as_str().to_owned()))
        }
        _ => None,
    }
}

fn sector_size(bytes: u32) -> Result<SectorSize, CliError> {
    [SectorSize::Bytes512, SectorSize::Bytes4096]
        .into_iter()
        .find(|size| size.bytes() == bytes)
        .ok_or_else(|| CliError::Usage(format!("a sector has 512 or 4096 bytes, not {bytes}")))
}
