//! Sizes as people write them.

/// Reads a size in bytes: a whole number, perhaps followed by K, M, G or T (powers of 1024).
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((end, 'K' | 'k')) => (&text[..end], 10),
        Some((end, 'M' | 'm')) => (&text[..end], 20),
        Some((end, 'G' | 'g')) => (&text[..end], 30),
        Some((end, 'T' | 't')) => (&text[..end], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::NotASize);
    }
    let number = digits.parse::<u64>().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

/// Writes a size in bytes, and in the largest unit that it is a whole number of.
pub fn display(bytes: u64) -> String {
    for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{bytes} bytes ({}{unit})", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// A size to be taken in at a glance: three digits and a unit.
pub fn rounded(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            return format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{bytes} bytes")
}

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number with one of the four units.
    #[error("not a size: write a whole number of bytes, or of K, M, G or T, such as 10G")]
    NotASize,
    /// Does not fit 64 bits.
    #[error("too large: give a size below 8388608T")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let sizes = [("0", 0), ("512", 512), ("1K", 1024), ("3m", 3 << 20), ("10G", 10 << 30), ("2T", 2 << 40)];
        for (text, bytes) in sizes {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "K", "-1", "+1", "1.5G", "1 G", "1GB", "1Gi", "0x10", "1P", "１", "1é"] {
            assert_eq!(parse(text), Err(SizeError::NotASize), "{text}");
        }
        for text in ["18446744073709551616", "16777216T", "99999999999999999999G"] {
            assert_eq!(parse(text), Err(SizeError::TooLarge), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_in_their_largest_whole_unit() {
        assert_eq!(display(0), "0 bytes");
        assert_eq!(display(1536), "1536 bytes");
        assert_eq!(display(10 << 30), "10737418240 bytes (10G)");
        assert_eq!(display(1025 << 10), "1049600 bytes (1025K)");
    }
}
