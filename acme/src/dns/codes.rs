//! The numbers of the protocol that we know (IANA, "Domain Name System (DNS) Parameters").

/// Types of records and of questions.
pub(super) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const HTTPS: u16 = 65;
    pub(crate) const TKEY: u16 = 249;
    pub(crate) const TSIG: u16 = 250;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const MAILB: u16 = 253;
    pub(crate) const MAILA: u16 = 254;
    pub(crate) const ANY: u16 = 255;
    pub(crate) const CAA: u16 = 257;
}

/// Response codes.
pub(super) mod rcode {
    pub(crate) const NO_ERROR: u8 = 0;
    pub(crate) const FORM_ERROR: u8 = 1;
    pub(crate) const NX_DOMAIN: u8 = 3;
    pub(crate) const NOT_IMPLEMENTED: u8 = 4;
    pub(crate) const REFUSED: u8 = 5;
    /// Needs an OPT for its upper bits.
    pub(crate) const BAD_VERSION: u8 = 16;
}

/// The class of the Internet.
pub(super) const IN: u16 = 1;
