//! vhost-user messages as bytes: whatever a front end should not send.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::Frontend;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::PATIENCE;
use super::guest::connect;

/// Protocol version 1.
pub const VERSION: u32 = 1;
/// The sender waits for an acknowledgement.
pub const NEED_REPLY: u32 = 8;

/// A connection that sends any bytes.
pub struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Connects, and sends nothing.
    pub fn connect(socket: &Path) -> Self {
        let stream = connect(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit on the socket");
        Self { stream }
    }

    /// A second hand on the connection of a front end, which must not be in a conversation.
    pub fn beside(frontend: &Frontend) -> Self {
        // SAFETY: the descriptor is open as long as the front end is borrowed.
        let connection = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
        let stream = UnixStream::from(connection.try_clone_to_owned().expect("another handle of the connection"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit on the socket");
        Self { stream }
    }

    /// Connects and negotiates CONFIG, REPLY_ACK, MQ and memory slots, so that whatever follows is
    /// acknowledged.
    pub fn negotiated(socket: &Path) -> Self {
        let mut wire = Self::connect(socket);
        wire.request(FrontendReq::SET_OWNER, &[], &[]);
        wire.request(FrontendReq::GET_FEATURES, &[], &[]);
        let features = wire.reply().expect("the back end's features");
        wire.request(FrontendReq::GET_PROTOCOL_FEATURES, &[], &[]);
        wire.reply().expect("the back end's protocol features");
        let protocol: u64 = 1 | 1 << 3 | 1 << 9 | 1 << 15;
        wire.request(FrontendReq::SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[]);
        assert_eq!(wire.acknowledged(FrontendReq::SET_FEATURES, &features, &[]), Some(0));
        wire
    }

    /// Sends bytes as they are. A connection that the back end has closed already is no failure.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            let closed = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(closed.contains(&error.kind()), "sending: {error}");
        }
    }

    /// Sends a message with any header, with descriptors.
    pub fn message(&mut self, request: u32, flags: u32, size: u32, payload: &[u8], descriptors: &[RawFd]) {
        let mut bytes = header(request, flags, size).to_vec();
        bytes.extend_from_slice(payload);
        if descriptors.is_empty() {
            self.bytes(&bytes);
        } else {
            // A closed connection shows in the reply that does not come.
            let _ = self.stream.send_with_fds(&[bytes.as_slice()], descriptors);
        }
    }

    /// Sends a message with a correct header.
    pub fn request(&mut self, request: FrontendReq, payload: &[u8], descriptors: &[RawFd]) {
        let size = payload.len() as u32;
        self.message(request as u32, VERSION, size, payload, descriptors);
    }

    /// Sends a message that is to be acknowledged. `None`: the back end closed the connection.
    pub fn acknowledged(&mut self, request: FrontendReq, payload: &[u8], descriptors: &[RawFd]) -> Option<u64> {
        let size = payload.len() as u32;
        let flags = VERSION | NEED_REPLY;
        self.message(request as u32, flags, size, payload, descriptors);
        let reply = self.reply()?;
        Some(u64::from_le_bytes(reply.try_into().expect("an acknowledgement is 8 bytes")))
    }

    /// The payload of the next reply. `None`: the back end closed the connection.
    pub fn reply(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 12];
        if !self.fill(&mut header) {
            return None;
        }
        let size = u32::from_le_bytes(header[8..].try_into().expect("four bytes"));
        let mut payload = vec![0; size as usize];
        self.fill(&mut payload).then_some(payload)
    }

    /// Waits until the back end closes the connection.
    pub fn wait_for_close(&mut self) {
        while self.fill(&mut [0]) {}
    }

    /// Ends this side's half of the connection and waits for the other half to end.
    pub fn close(mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        self.wait_for_close();
    }

    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        match self.stream.read_exact(buffer) {
            Ok(()) => true,
            Err(error) => {
                let closed = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
                assert!(closed.contains(&error.kind()), "no reply came: {error}");
                false
            }
        }
    }
}

/// A message header.
pub fn header(request: u32, flags: u32, size: u32) -> [u8; 12] {
    let mut header = [0; 12];
    header[..4].copy_from_slice(&request.to_le_bytes());
    header[4..8].copy_from_slice(&flags.to_le_bytes());
    header[8..].copy_from_slice(&size.to_le_bytes());
    header
}

/// The payload of messages that name a ring and a number.
pub fn ring_state(index: u32, number: u32) -> [u8; 8] {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&index.to_le_bytes());
    payload[4..].copy_from_slice(&number.to_le_bytes());
    payload
}

/// A memory region as messages carry it.
#[derive(Clone, Copy, Debug)]
pub struct RegionBytes {
    /// Guest-physical address.
    pub guest: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in the front end.
    pub user: u64,
    /// Offset in the file.
    pub offset: u64,
}

impl RegionBytes {
    /// The four numbers in order.
    pub fn bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let numbers = [self.guest, self.size, self.user, self.offset];
        for (slot, number) in bytes.chunks_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The payload of ADD_MEM_REG and REM_MEM_REG.
    pub fn single(self) -> Vec<u8> {
        let mut payload = vec![0; 8];
        payload.extend_from_slice(&self.bytes());
        payload
    }

    /// The payload of SET_MEM_TABLE.
    pub fn table(regions: &[Self]) -> Vec<u8> {
        let mut payload = (regions.len() as u32).to_le_bytes().to_vec();
        payload.extend_from_slice(&[0; 4]);
        for region in regions {
            payload.extend_from_slice(&region.bytes());
        }
        payload
    }
}
