//! Names that are not ours. Until upstreams can be named, there are none: such a name is refused, so that a client's
//! next nameserver gets its turn, and this room holds only that decision.

/// Whether anything answers for names that are not the cluster's.
pub const FORWARDING: bool = false;
