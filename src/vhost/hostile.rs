//! A front end that says anything.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::session;
use crate::device::Disk;
use crate::io::patience::Patience;

/// Holds the conversation that `bytes` are on the front end's side, from its beginning to its end: the entry of the
/// fuzz target `vhost`. Whether the back end said anything.
///
/// A message is three bytes (its code, a sum of the switches below, the length of its payload) and its payload. What
/// it shares is memory that begins with `bytes`.
///
/// # Panics
///
/// When the back end does not end the conversation with the front end.
pub fn converse_hostile(disk: &Arc<Disk>, bytes: &[u8]) -> bool {
    let Ok(Scene { front, back, memory, event }) = Scene::new(bytes) else { return false };
    let mut rest = bytes;
    for _ in 0..MESSAGES_MAX {
        let Some((&[code, switches, length], after)) = rest.split_first_chunk() else { break };
        let payload = &after[..after.len().min(length.into())];
        rest = &after[payload.len()..];
        let flags = 1 | u32::from(switches & NEED_REPLY);
        let size = if switches & LIE == 0 { payload.len() as u32 } else { u32::from(switches) << 6 };
        let head = [code.into(), flags, size].map(u32::to_ne_bytes).concat();
        let descriptors: Vec<RawFd> =
            [(EVENT, event.as_raw_fd()), (MEMORY, memory.as_raw_fd()), (MORE, event.as_raw_fd())]
                .into_iter()
                .filter_map(|(switch, descriptor)| (switches & switch != 0).then_some(descriptor))
                .collect();
        // One that the back end no longer takes is of no interest.
        let message = [&head[..], payload].concat();
        if front.send_with_fds(&[&message[..]], &descriptors).is_err() {
            break;
        }
    }
    if front.shutdown(Shutdown::Write).is_err() {
        return false;
    }
    let _ = session::serve(back, disk.clone(), Patience::new(Duration::ZERO));
    disk.reset();
    let mut answer = [0];
    // SAFETY: `answer` is live and as long as said.
    let received = unsafe { libc::recv(front.as_raw_fd(), answer.as_mut_ptr().cast(), 1, libc::MSG_DONTWAIT) };
    assert!(
        received >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock,
        "the conversation goes on"
    );
    received > 0
}

/// What a front end has.
struct Scene {
    front: UnixStream,
    back: UnixStream,
    memory: File,
    event: EventFd,
}

impl Scene {
    fn new(bytes: &[u8]) -> io::Result<Scene> {
        let (front, back) = UnixStream::pair()?;
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
        memory.set_len(MEMORY_BYTES)?;
        memory.write_all_at(&bytes[..bytes.len().min(MEMORY_BYTES as usize)], 0)?;
        // Kicked once: a ring that starts looks into its memory.
        let event = EventFd::new(libc::EFD_NONBLOCK)?;
        event.write(1)?;
        Ok(Scene { front, back, memory, event })
    }
}

/// The answers to these fit the socket's buffer.
const MESSAGES_MAX: usize = 64;
const MEMORY_BYTES: u64 = 1 << 16;

/// An eventfd comes with the message.
const EVENT: u8 = 1;
/// The memory comes with it.
const MEMORY: u8 = 2;
/// An eventfd comes last.
const MORE: u8 = 4;
/// As in the protocol: the message is to be acknowledged.
const NEED_REPLY: u8 = 8;
/// The header has a length of its own.
const LIE: u8 = 16;

#[cfg(test)]
mod tests {
    use vhost::vhost_user::message::FrontendReq as Code;

    use super::*;
    use crate::corpus;
    use crate::device::Serial;
    use crate::io::Kind;
    use crate::store::{Access, SectorSize};
    use crate::volume::attachment::Attachment;
    use crate::volume::{Creation, Volume};

    #[test]
    fn the_fuzzing_corpus_passes() {
        let protocol = (1u64 | 1 << 3 | 1 << 9 | 1 << 15).to_le_bytes();
        let features = (1u64 << 30 | 1 << 32).to_le_bytes();
        let negotiation = [
            said(Code::SET_OWNER, 0, &[]),
            said(Code::GET_FEATURES, 0, &[]),
            said(Code::GET_PROTOCOL_FEATURES, 0, &[]),
            said(Code::SET_PROTOCOL_FEATURES, 0, &protocol),
            said(Code::SET_FEATURES, NEED_REPLY, &features),
        ]
        .concat();
        let ring = |value: u32| [0u32.to_le_bytes(), value.to_le_bytes()].concat();
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let region = words(&[0, MEMORY_BYTES, 0x10000, 0]);
        let start = [
            said(Code::SET_VRING_NUM, NEED_REPLY, &ring(16)),
            said(Code::SET_VRING_BASE, NEED_REPLY, &ring(0)),
            said(Code::SET_VRING_ADDR, NEED_REPLY, &words(&[0, 0x11000, 0x13000, 0x12000, 0])),
            said(Code::SET_VRING_CALL, NEED_REPLY | EVENT, &words(&[0])),
            said(Code::SET_VRING_ERR, NEED_REPLY | EVENT, &words(&[0])),
            said(Code::SET_VRING_KICK, NEED_REPLY | EVENT, &words(&[0])),
            said(Code::SET_VRING_ENABLE, NEED_REPLY, &ring(1)),
        ]
        .concat();
        let end =
            [said(Code::SET_VRING_ENABLE, NEED_REPLY, &ring(0)), said(Code::GET_VRING_BASE, 0, &ring(0))].concat();
        let table = said(Code::SET_MEM_TABLE, NEED_REPLY | MEMORY, &[words(&[1]), region.clone()].concat());
        let added = said(Code::ADD_MEM_REG, NEED_REPLY | MEMORY, &[words(&[0]), region.clone()].concat());
        let removed = said(Code::REM_MEM_REG, NEED_REPLY, &[words(&[0]), region].concat());
        let config = [
            said(Code::GET_QUEUE_NUM, 0, &[]),
            said(Code::GET_MAX_MEM_SLOTS, 0, &[]),
            said(Code::GET_CONFIG, 0, &[&[0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0][..], &[0; 60]].concat()),
            said(Code::SET_CONFIG, NEED_REPLY, &[32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
        ]
        .concat();
        for (name, parts) in [
            ("table", [&negotiation, &table, &start, &end]),
            ("regions", [&negotiation, &added, &start, &removed]),
            ("configuration", [&negotiation, &config, &table, &config]),
        ] {
            corpus::assert_seed("vhost", name, &parts.map(Vec::as_slice).concat());
        }

        let dir = tempfile::tempdir().unwrap();
        let creation = Creation { size_bytes: 1 << 20, sector_size: SectorSize::Bytes512, device: None };
        Volume::create(dir.path(), creation, None).unwrap();
        let volume = Volume::open(dir.path(), None, Access::Exclusive).unwrap();
        let attachment = Arc::new(Attachment::new(volume, Kind::Inline, false).unwrap());
        let serial: Serial = "fuzz".parse().unwrap();
        let disk = Arc::new(Disk::new(attachment, serial, 2));
        assert!(corpus::taken("vhost", |bytes| converse_hostile(&disk, bytes)) >= 3);
    }

    fn said(code: Code, switches: u8, payload: &[u8]) -> Vec<u8> {
        [&[code as u8, switches, payload.len() as u8], payload].concat()
    }
}
