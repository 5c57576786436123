//! The conversation with one front end, from its first message to its last.
//!
//! The `vhost` crate reads and checks messages and calls the `Session`; what they mean for rings
//! and memory is decided in [`super::rings`] and [`super::memory`]. A message that asks for
//! something impossible is answered with an error and changes nothing. If the front end did not ask
//! for an answer, or the conversation itself is broken, the connection ends: the front end would
//! otherwise go on in the belief that all is well.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    FrontendReq, VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut,
};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;

use super::SessionError;
use super::inflight::InflightMemory;
use super::memory::{MEMORY_SLOTS_MAX, MemoryTable, RegionInfo};
use super::rings::{RingAddresses, Rings};
use crate::device::config::WRITEBACK_OFFSET;
use crate::device::{Disk, features};
use crate::io::patience::Patience;

/// Serves one front end until it leaves or breaks the protocol. When this returns, nothing of its
/// is in flight.
pub fn serve(stream: UnixStream, disk: Arc<Disk>, patience: Patience) -> io::Result<()> {
    let peek = stream.try_clone()?;
    let session = Arc::new(Mutex::new(Session { rings: Rings::new(disk.clone(), patience), disk }));
    let mut handler = BackendReqHandler::from_stream(stream, session);
    while let Some(header) = Header::peek(&peek)? {
        match handler.handle_request() {
            Ok(()) => {}
            Err(error @ VhostError::ReqHandlerError(_)) if header.is_answered() => {
                log::warn!("the front end's request {} was refused: {error}", header.code);
            }
            Err(VhostError::Disconnected | VhostError::SocketBroken(_) | VhostError::PartialMessage) => break,
            Err(error) => {
                log::warn!("the front end's request {} ends the connection: {error}", header.code);
                break;
            }
        }
    }
    Ok(())
}

/// The first words of a message (vhost-user, "Header").
struct Header {
    code: u32,
    flags: u32,
}

impl Header {
    /// Looks at the next message without taking it; `None` when there will be none.
    fn peek(stream: &UnixStream) -> io::Result<Option<Self>> {
        let mut bytes = [0u8; 8];
        loop {
            // SAFETY: `bytes` is live and as long as said.
            let read = unsafe {
                libc::recv(
                    stream.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                    libc::MSG_PEEK | libc::MSG_WAITALL,
                )
            };
            return match read {
                8 => {
                    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|index| bytes[at + index]));
                    Ok(Some(Self { code: word(0), flags: word(4) }))
                }
                0.. => Ok(None),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
                    error => Err(error),
                },
            };
        }
    }

    /// Whether the front end has been told that this request failed: it asked for it (REPLY_ACK),
    /// and the request is one that is answered so.
    fn is_answered(&self) -> bool {
        self.flags & NEED_REPLY != 0 && ACKNOWLEDGED.iter().any(|&code| code as u32 == self.code)
    }
}

/// What one front end has said so far.
struct Session {
    disk: Arc<Disk>,
    rings: Rings,
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        self.rings.halt_all();
        Ok(())
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        Err(SessionError::NotOffered("RESET_DEVICE").into())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, accepted: u64) -> VhostResult<()> {
        let offered = self.offered();
        if accepted & !offered != 0 {
            return Err(SessionError::Features { accepted, offered }.into());
        }
        self.disk.negotiate(accepted);
        log::debug!("the driver accepted features {accepted:#x}");
        if accepted & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.rings.enable_all()?;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        let table = MemoryTable::new(regions.iter().map(RegionInfo::from).zip(files))?;
        self.rings.set_memory_table(table)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> VhostResult<()> {
        Ok(self.rings.set_size(index, size)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> VhostResult<()> {
        Ok(self.rings.set_addresses(index, RingAddresses { descriptors, available, used })?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        Ok(self.rings.set_base(index, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let next_available = self.rings.stop(index)?;
        Ok(VhostUserVringState::new(index, next_available.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        Ok(self.rings.set_kick(index.into(), fd)?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        Ok(self.rings.set_call(index.into(), fd)?)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        Ok(self.rings.set_error(index.into(), fd)?)
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, accepted: u64) -> VhostResult<()> {
        let offered = PROTOCOL_FEATURES.bits();
        if accepted & !offered != 0 {
            // The connection ends with this: `vhost` takes the features over whatever is said here.
            return Err(SessionError::ProtocolFeatures { accepted, offered }.into());
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        Ok(self.disk.queues_max().into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        Ok(self.rings.enable(index, enable)?)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> VhostResult<Vec<u8>> {
        // Fields beyond what the device has read as zeros, up to the largest space there can be.
        let mut space = vec![0; CONFIG_SPACE_BYTES_MAX];
        let config = self.disk.config();
        space[..config.len()].copy_from_slice(&config);
        let start = config_offset(offset);
        match space.get(start..start.saturating_add(size as usize)) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(SessionError::Config { offset, len: size as usize }.into()),
        }
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> VhostResult<()> {
        let negotiated = features::has(self.disk.accepted_features(), VIRTIO_BLK_F_CONFIG_WCE);
        match bytes {
            [value @ (0 | 1)] if config_offset(offset) == WRITEBACK_OFFSET && negotiated => {
                self.rings.set_writeback(*value == 1);
                Ok(())
            }
            _ => Err(SessionError::Config { offset, len: bytes.len() }.into()),
        }
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> VhostResult<()> {
        Err(SessionError::NotOffered("a GPU socket").into())
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        Err(SessionError::NotOffered("SHARED_OBJECT").into())
    }

    fn get_inflight_fd(&mut self, inflight: &VhostUserInflight) -> VhostResult<(VhostUserInflight, File)> {
        Ok(InflightMemory::create(inflight, self.disk.queues_max())?)
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> VhostResult<()> {
        Ok(self.rings.set_inflight(InflightMemory::map(inflight, file, self.disk.queues_max())?)?)
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        Ok(MEMORY_SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<VhostUserMemoryRegionBase>> {
        let table = self.rings.memory_table().with(RegionInfo::from(&**region), file)?;
        self.rings.set_memory_table(table)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        let table = self.rings.memory_table().without(RegionInfo::from(&**region))?;
        Ok(self.rings.set_memory_table(table)?)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> VhostResult<Option<File>> {
        Err(SessionError::NotOffered("DEVICE_STATE").into())
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        Err(SessionError::NotOffered("DEVICE_STATE").into())
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        Err(SessionError::NotOffered("SHMEM").into())
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> VhostResult<()> {
        Err(SessionError::NotOffered("LOG_SHMFD").into())
    }
}

impl Session {
    fn offered(&self) -> u64 {
        self.disk.offered_features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }
}

/// Where in the configuration space an offset of a message points. The specification counts from
/// the space's beginning, as QEMU does; front ends on the `vhost` crate, Cloud Hypervisor among
/// them, count from where virtio-mmio has the space, 0x100.
fn config_offset(offset: u32) -> usize {
    offset.checked_sub(MMIO_CONFIG_OFFSET).unwrap_or(offset) as usize
}

/// What is offered of the protocol.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
/// Requests whose failure is reported by REPLY_ACK rather than by the lack of an answer.
const ACKNOWLEDGED: &[FrontendReq] = &[
    FrontendReq::SET_FEATURES,
    FrontendReq::SET_MEM_TABLE,
    FrontendReq::SET_VRING_NUM,
    FrontendReq::SET_VRING_ADDR,
    FrontendReq::SET_VRING_BASE,
    FrontendReq::SET_VRING_KICK,
    FrontendReq::SET_VRING_CALL,
    FrontendReq::SET_VRING_ERR,
    FrontendReq::SET_VRING_ENABLE,
    FrontendReq::SET_CONFIG,
    FrontendReq::SET_INFLIGHT_FD,
    FrontendReq::ADD_MEM_REG,
    FrontendReq::REM_MEM_REG,
];
const NEED_REPLY: u32 = 1 << 3;
/// VHOST_USER_MAX_CONFIG_SIZE.
const CONFIG_SPACE_BYTES_MAX: usize = 256;
const MMIO_CONFIG_OFFSET: u32 = 0x100;
