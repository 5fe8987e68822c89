//! Exit statuses of every command (sysexits.h).

/// The command ran, and its result is negative: a name does not resolve, or a finding is an error.
pub const NO: u8 = 1;
/// EX_USAGE: the command line is wrong.
pub const USAGE: u8 = 64;
/// EX_UNAVAILABLE: a source, a server or a resource of the system is not available.
pub const UNAVAILABLE: u8 = 69;
/// EX_CONFIG: the configuration is wrong.
pub const CONFIG: u8 = 78;
