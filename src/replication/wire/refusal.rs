//! Why a replica lets a writer not in.

use std::fmt;

use super::WireError;
use super::body::Body;
use super::header::{Header, Kind};
use crate::replication::view::ViewNumber;

/// The most bytes of the text of a refusal.
pub const REFUSAL_TEXT_BYTES_MAX: usize = 1024;

/// The answer to an opening that is not accepted. The connection ends with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    code: RefusalCode,
    view: ViewNumber,
    text: String,
}

impl Refusal {
    /// A refusal, with a sentence for people. Of the text one line is kept, cut to
    /// [`REFUSAL_TEXT_BYTES_MAX`].
    pub fn new(code: RefusalCode, text: &str) -> Refusal {
        let text = text.replace(char::is_control, " ");
        let end = |(start, char): (usize, char)| start + char.len_utf8();
        let kept = text.char_indices().map(end).take_while(|end| *end <= REFUSAL_TEXT_BYTES_MAX).last();
        Refusal { code, view: ViewNumber::NONE, text: text[..kept.unwrap_or(0)].to_owned() }
    }

    /// The refusal of a copy that has accepted a higher view, which is named; the text is as in
    /// [`new`](Self::new).
    pub fn superseded(view: ViewNumber, text: &str) -> Refusal {
        Refusal { view, ..Refusal::new(RefusalCode::Superseded, text) }
    }

    /// The reason, for programs.
    pub fn code(&self) -> RefusalCode {
        self.code
    }

    /// The higher view that the copy has accepted, of a refusal that names it.
    pub fn accepted(&self) -> Option<ViewNumber> {
        (self.view != ViewNumber::NONE).then_some(self.view)
    }

    /// The reason, for people; it may be empty.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Appends the frame.
    ///
    /// # Errors
    ///
    /// [`WireError::ViewNumber`] for a view that cannot be.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let mut body = Vec::with_capacity(2 + self.text.len());
        body.extend_from_slice(&(self.code as u16).to_le_bytes());
        body.extend_from_slice(self.text.as_bytes());
        Header { view: self.view, ..Header::of(Kind::Refused) }.append(&body, out)
    }

    pub(super) fn decode(view: ViewNumber, mut body: Body<'_>) -> Result<Refusal, WireError> {
        let code = RefusalCode::try_from(body.u16()?)?;
        if view != ViewNumber::NONE && code != RefusalCode::Superseded {
            return Err(WireError::NotZero { kind: Kind::Refused, field: "view" });
        }
        let text = str::from_utf8(body.remainder()).ok();
        let text = text.filter(|text| !text.contains(char::is_control));
        let text = text.ok_or(WireError::Field { kind: Kind::Refused, field: "text" })?;
        Ok(Refusal { code, view, text: text.to_owned() })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() { self.code.fmt(f) } else { write!(f, "{}: {}", self.code, self.text) }
    }
}

/// Why an opening is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RefusalCode {
    /// No version of the protocol in common. This code is the same in all versions.
    Version = 1,
    /// The replica has no copy of the volume.
    NoSuchVolume = 2,
    /// The proof is missing or wrong, or the node may not write the volume.
    NotPermitted = 3,
    /// The copy has accepted a higher view.
    Superseded = 4,
    /// Another process holds the copy.
    InUse = 5,
    /// The copy is damaged.
    Damaged = 6,
    /// There is such a copy already.
    Exists = 7,
    /// The replica has as much to do as it takes on: try again later.
    Busy = 8,
    /// The opening cannot be understood.
    Malformed = 9,
    /// The replica failed; its log says more.
    Internal = 10,
}

impl TryFrom<u16> for RefusalCode {
    type Error = WireError;

    fn try_from(code: u16) -> Result<Self, WireError> {
        Ok(match code {
            1 => Self::Version,
            2 => Self::NoSuchVolume,
            3 => Self::NotPermitted,
            4 => Self::Superseded,
            5 => Self::InUse,
            6 => Self::Damaged,
            7 => Self::Exists,
            8 => Self::Busy,
            9 => Self::Malformed,
            10 => Self::Internal,
            code => return Err(WireError::UnknownRefusal { code }),
        })
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "no version of the protocol in common",
            Self::NoSuchVolume => "no copy of this volume",
            Self::NotPermitted => "not permitted to write this volume",
            Self::Superseded => "a higher view has been accepted",
            Self::InUse => "the copy is in use by another process",
            Self::Damaged => "the copy is damaged",
            Self::Exists => "there is a copy of this volume already",
            Self::Busy => "too busy, try again later",
            Self::Malformed => "the opening cannot be understood",
            Self::Internal => "the replica failed",
        })
    }
}

pub(super) const REFUSED_BODY_BYTES_MIN: u32 = 2;
pub(super) const REFUSED_BODY_BYTES_MAX: u32 = 2 + REFUSAL_TEXT_BYTES_MAX as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_or_broken_text_becomes_one_short_line() {
        let refusal = Refusal::new(RefusalCode::Damaged, "volume.json\nis\tgone\u{85}");
        assert_eq!(refusal.text(), "volume.json is gone ");
        let refusal = Refusal::new(RefusalCode::Damaged, &"€".repeat(REFUSAL_TEXT_BYTES_MAX));
        assert_eq!(refusal.text(), "€".repeat(341));
        assert_eq!(Refusal::new(RefusalCode::Busy, "").to_string(), "too busy, try again later");
    }

    #[test]
    fn codes_survive_their_numbers() {
        let known: Vec<_> = (0..=u16::MAX).filter_map(|code| Some((code, RefusalCode::try_from(code).ok()?))).collect();
        assert_eq!(known.len(), 10);
        for (number, code) in known {
            assert_eq!(code as u16, number);
        }
    }
}
