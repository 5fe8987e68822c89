//! The framing of TCP: frames cover the stream without gap or overlap, and none is longer than a query may be.
#![no_main]

use callsign::server::tcp::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let mut at = 0;
    while let Some(frame) = Frame::parse(&stream[at..]) {
        let told = usize::from(u16::from_be_bytes([stream[at], stream[at + 1]]));
        match frame {
            Frame::Whole(message) => {
                assert_eq!(message, &stream[at + 2..at + 2 + told]);
                assert!(message.len() <= 4096);
                at += 2 + told;
            }
            Frame::Overlong { head, length } => {
                assert_eq!((head.len(), length), (12, told));
                assert!(length > 4096);
                at = (at + 2 + length).min(stream.len());
            }
        }
    }
    assert!(stream.len() - at < 2 + 4096);
});
