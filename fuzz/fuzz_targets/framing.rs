//! TCP framing: frames cover the stream without gaps or overlaps, and no accepted frame exceeds the limit of a query.
#![no_main]

use callsign::server::tcp::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let mut at = 0;
    while let Some(frame) = Frame::parse(&stream[at..]) {
        let declared = usize::from(u16::from_be_bytes([stream[at], stream[at + 1]]));
        match frame {
            Frame::Whole(message) => {
                assert_eq!(message, &stream[at + 2..at + 2 + declared]);
                assert!(message.len() <= 4096);
                at += 2 + declared;
            }
            Frame::Overlong { head, length } => {
                assert_eq!((head.len(), length), (12, declared));
                assert!(length > 4096);
                at = (at + 2 + length).min(stream.len());
            }
        }
    }
    assert!(stream.len() - at < 2 + 4096);
});
