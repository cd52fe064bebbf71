//! The length of a message's payload, its fields and how many descriptors come with it: checked as `vhost` does, but before
//! it, so that a refusal can give the numbers.

use vhost::vhost_user::message::FrontendReq;

use super::message::Message;
use crate::limits::bounds::MAX_TABLE_REGIONS;

/// Length of a memory table's head and of each of its regions.
const TABLE_HEAD_BYTES: usize = 8;
const REGION_BYTES: usize = 32;

/// Length of the head of a part of the configuration space.
const CONFIG_HEAD_BYTES: usize = 12;

/// `SET_VRING_KICK`, `SET_VRING_CALL`, `SET_VRING_ERR`: the ring's number, and the bit that says that no descriptor comes.
const RING_BITS: u64 = 0xff;
const NO_DESCRIPTOR: u64 = 0x100;

/// `SET_VRING_ADDR`: the used ring is logged.
const RING_FLAGS: u32 = 1;

/// `GET_CONFIG`, `SET_CONFIG`: writable fields, live migration.
const CONFIG_FLAGS: u32 = 3;

/// What is wrong with a payload.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PayloadError {
    #[error("its payload has {got} bytes, not {expected}")]
    Length { got: usize, expected: usize },
    #[error("its payload has {got} bytes, {regions} memory regions take {expected}")]
    Regions { got: usize, regions: u32, expected: usize },
    #[error("its payload has {got} bytes, {bytes} bytes of the configuration take {expected}")]
    Config { got: usize, bytes: u32, expected: usize },
    #[error("a table of {0} memory regions; it has at least 1 and at most {MAX_TABLE_REGIONS}")]
    TableRegions(u32),
    #[error("{regions} memory regions come with {files} descriptors")]
    RegionFiles { regions: u32, files: usize },
    #[error("it comes with {0} descriptors, not with one")]
    Files(usize),
    #[error("it comes with {0} descriptors, and says that there is none")]
    UnannouncedFiles(usize),
    #[error("bits {0:#x} mean nothing")]
    Reserved(u64),
    #[error("ring {ring}: the {what} at {address:#x} is not aligned to {alignment} bytes")]
    Misaligned { ring: u32, what: &'static str, address: u64, alignment: u64 },
    #[error("ring {0}: it is enabled by 1 and disabled by 0, not by {1}")]
    Enable(u32, u32),
    #[error("a log of {0:#x} bytes at {1:#x}: it has none or runs over the end of its file")]
    Log(u64, u64),
    #[error("direction {0}, phase {1}: a state is saved (0) or loaded (1), in phase 0")]
    Transfer(u32, u32),
    #[error("is not supported")]
    Unsupported,
    #[error(
        "region at {guest_start:#x} of {len_bytes:#x} bytes, at {user_start:#x} of the front-end, from \
         {file_offset:#x} of its file: it has no bytes or runs over the end of an address space"
    )]
    Region { guest_start: u64, len_bytes: u64, user_start: u64, file_offset: u64 },
    #[error("{bytes} bytes at {offset} of the configuration, whose space has 1 to 4096")]
    ConfigRange { offset: u32, bytes: u32 },
}

/// Cuts off what follows the last element that a list counts (User-Mode Linux sends room for two regions and counts one),
/// and checks the length, and the numbers that it depends on.
pub(super) fn check(request: FrontendReq, message: &mut Message) -> Result<(), PayloadError> {
    use FrontendReq as R;
    let got = message.payload().len();
    match request {
        R::SET_MEM_TABLE => {
            let regions = check_length(got, TABLE_HEAD_BYTES).map(|()| word(message.payload(), 0))?;
            let expected = listed(TABLE_HEAD_BYTES, regions, REGION_BYTES);
            if got < expected {
                return Err(PayloadError::Regions { got, regions, expected });
            }
            message.truncate_payload(expected);
            check_reserved(word(message.payload(), 1), 0)?;
            check_table(message, regions)
        }
        R::GET_CONFIG | R::SET_CONFIG => {
            check_length(got, CONFIG_HEAD_BYTES)?;
            let (offset, bytes) = (word(message.payload(), 0), word(message.payload(), 1));
            if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > 4096) {
                return Err(PayloadError::ConfigRange { offset, bytes });
            }
            check_reserved(word(message.payload(), 2), CONFIG_FLAGS)?;
            let expected = listed(CONFIG_HEAD_BYTES, bytes, 1);
            if got < expected {
                return Err(PayloadError::Config { got, bytes, expected });
            }
            message.truncate_payload(expected);
            Ok(())
        }
        R::ADD_MEM_REG | R::REM_MEM_REG => {
            check_exactly(message, TABLE_HEAD_BYTES.saturating_add(REGION_BYTES))?;
            if request == R::ADD_MEM_REG && message.files.len() != 1 {
                return Err(PayloadError::Files(message.files.len()));
            }
            check_regions(message.payload())
        }
        R::SET_LOG_FD
        | R::SEND_RARP
        | R::NET_SET_MTU
        | R::IOTLB_MSG
        | R::SET_VRING_ENDIAN
        | R::CREATE_CRYPTO_SESSION
        | R::CLOSE_CRYPTO_SESSION
        | R::GPU_SET_SOCKET
        | R::SET_STATUS
        | R::GET_STATUS => Err(PayloadError::Unsupported),
        _ => {
            fixed(request).map_or(Ok(()), |expected| check_exactly(message, expected))?;
            check_fields(request, message)
        }
    }
}

/// The fields of a payload that has its length.
fn check_fields(request: FrontendReq, message: &Message) -> Result<(), PayloadError> {
    use FrontendReq as R;
    let (payload, files) = (message.payload(), message.files.len());
    let (first, second) = (word(payload, 0), word(payload, 1));
    match request {
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => {
            let bits = long(payload, 0);
            match (bits & !(RING_BITS | NO_DESCRIPTOR), bits & NO_DESCRIPTOR != 0, files) {
                (0, true, 0) | (0, false, 1) => Ok(()),
                (0, true, _) => Err(PayloadError::UnannouncedFiles(files)),
                (0, false, _) => Err(PayloadError::Files(files)),
                (reserved, ..) => Err(PayloadError::Reserved(reserved)),
            }
        }
        R::SET_VRING_ADDR => {
            check_reserved(second, RING_FLAGS)?;
            let areas = [("descriptor table", 1, 16), ("used ring", 2, 4), ("available ring", 3, 2)];
            let areas = areas.map(|(what, place, alignment)| (what, long(payload, place), alignment));
            let misaligned = areas.into_iter().find(|(_, address, alignment)| address % alignment != 0);
            misaligned.map_or(Ok(()), |(what, address, alignment)| {
                Err(PayloadError::Misaligned { ring: first, what, address, alignment })
            })
        }
        R::SET_VRING_ENABLE if second > 1 => Err(PayloadError::Enable(first, second)),
        R::SET_LOG_BASE | R::SET_DEVICE_STATE_FD if files != 1 => Err(PayloadError::Files(files)),
        R::SET_LOG_BASE => match (long(payload, 0), long(payload, 1)) {
            (bytes @ 1.., offset) if offset.checked_add(bytes).is_some() => Ok(()),
            (bytes, offset) => Err(PayloadError::Log(bytes, offset)),
        },
        R::SET_DEVICE_STATE_FD if first > 1 || second != 0 => Err(PayloadError::Transfer(first, second)),
        _ => Ok(()),
    }
}

const fn check_reserved(bits: u32, known: u32) -> Result<(), PayloadError> {
    match bits & !known {
        0 => Ok(()),
        reserved => Err(PayloadError::Reserved(reserved as u64)),
    }
}

/// The payload's length in bytes, for requests that always have the same.
const fn fixed(request: FrontendReq) -> Option<usize> {
    use FrontendReq as R;
    match request {
        R::SET_OWNER
        | R::RESET_OWNER
        | R::RESET_DEVICE
        | R::GET_FEATURES
        | R::GET_PROTOCOL_FEATURES
        | R::GET_QUEUE_NUM
        | R::GET_MAX_MEM_SLOTS => Some(0),
        R::SET_FEATURES
        | R::SET_PROTOCOL_FEATURES
        | R::SET_VRING_NUM
        | R::SET_VRING_BASE
        | R::GET_VRING_BASE
        | R::SET_VRING_KICK
        | R::SET_VRING_CALL
        | R::SET_VRING_ERR
        | R::SET_VRING_ENABLE
        | R::SET_DEVICE_STATE_FD => Some(8),
        R::SET_LOG_BASE => Some(16),
        R::SET_VRING_ADDR => Some(40),
        _ => None,
    }
}

fn check_table(message: &Message, regions: u32) -> Result<(), PayloadError> {
    if !(1..=MAX_TABLE_REGIONS).contains(&regions) {
        return Err(PayloadError::TableRegions(regions));
    }
    if usize::try_from(regions) != Ok(message.files.len()) {
        return Err(PayloadError::RegionFiles { regions, files: message.files.len() });
    }
    check_regions(message.payload())
}

/// Regions behind a head of [`TABLE_HEAD_BYTES`].
fn check_regions(payload: &[u8]) -> Result<(), PayloadError> {
    let (words, _) = payload.get(TABLE_HEAD_BYTES..).unwrap_or_default().as_chunks::<8>();
    for region in words.as_chunks::<4>().0 {
        let [guest_start, len_bytes, user_start, file_offset] = region.map(u64::from_ne_bytes);
        let starts = [guest_start, user_start, file_offset];
        if len_bytes == 0 || starts.iter().any(|start| start.checked_add(len_bytes).is_none()) {
            return Err(PayloadError::Region { guest_start, len_bytes, user_start, file_offset });
        }
    }
    Ok(())
}

fn check_exactly(message: &Message, expected: usize) -> Result<(), PayloadError> {
    let got = message.payload().len();
    if got == expected { Ok(()) } else { Err(PayloadError::Length { got, expected }) }
}

const fn check_length(got: usize, expected: usize) -> Result<(), PayloadError> {
    if got >= expected { Ok(()) } else { Err(PayloadError::Length { got, expected }) }
}

fn listed(head_bytes: usize, count: u32, each_bytes: usize) -> usize {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    count.saturating_mul(each_bytes).saturating_add(head_bytes)
}

/// The 64-bit word of this number; 0 where there is none.
fn long(payload: &[u8], number: usize) -> u64 {
    payload.as_chunks::<8>().0.get(number).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// The 32-bit word of this number; 0 where there is none.
fn word(payload: &[u8], number: usize) -> u32 {
    payload.as_chunks::<4>().0.get(number).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vhost_user::message::Message;

    fn message(payload: &[u8], files: usize) -> Message {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        Message::of(5, payload, (0..files).map(|_| null()).collect())
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn room_that_a_table_does_not_count_is_cut_away() {
        let region = [0, 4096, 0, 0];
        let mut uml = message(&words(&[&[1][..], &region, &[0; 4]].concat()), 1);
        assert_eq!(uml.payload().len(), 72);
        assert_eq!(check(FrontendReq::SET_MEM_TABLE, &mut uml), Ok(()));
        assert_eq!(uml.payload(), words(&[&[1][..], &region].concat()));
        let mut short = message(&words(&[&[2][..], &region].concat()), 2);
        let error = PayloadError::Regions { got: 40, regions: 2, expected: 72 };
        assert_eq!(check(FrontendReq::SET_MEM_TABLE, &mut short), Err(error));
    }

    #[test]
    fn what_is_refused_is_told_in_numbers() {
        let told = |request, payload: &[u8], files| {
            check(request, &mut message(payload, files)).unwrap_err().to_string()
        };
        assert_eq!(told(FrontendReq::SET_VRING_NUM, &[0; 7], 0), "its payload has 7 bytes, not 8");
        assert_eq!(
            told(FrontendReq::SET_MEM_TABLE, &words(&[&[1][..], &[0, 1, 0, 0]].concat()), 2),
            "1 memory regions come with 2 descriptors"
        );
        assert_eq!(
            told(FrontendReq::SET_CONFIG, &[0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1], 0),
            "its payload has 13 bytes, 2 bytes of the configuration take 14"
        );
        let region = told(FrontendReq::ADD_MEM_REG, &words(&[0, 0x1000, 0, 7, 8]), 1);
        assert!(region.starts_with("region at 0x1000 of 0x0 bytes"), "{region}");
    }

    proptest! {
        /// Whatever comes: what passes has exactly the length that `vhost` insists on.
        #[test]
        fn what_passes_is_as_long_as_its_count_says(
            count in prop_oneof![0..40_u32, any::<u32>()],
            second in prop_oneof![0..64_u32, any::<u32>()],
            rest in prop::collection::vec(any::<u8>(), 0..200),
            files in 0..3_usize,
        ) {
            let payload = [&count.to_ne_bytes()[..], &second.to_ne_bytes(), &rest].concat();
            let mut table = message(&payload, files);
            if check(FrontendReq::SET_MEM_TABLE, &mut table).is_ok() {
                prop_assert_eq!(table.payload().len(), 8 + 32 * count as usize);
                prop_assert_eq!(files, count as usize);
            }
            let mut config = message(&payload, 0);
            if check(FrontendReq::GET_CONFIG, &mut config).is_ok() {
                prop_assert_eq!(config.payload().len(), 12 + second as usize);
            }
        }
    }
}
