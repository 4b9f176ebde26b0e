//! Certificates, compressed for clients that can (RFC 8879, TLS 1.3): the first flight is what a handshake waits for.
//!
//! rustls compresses as hard as it can and keeps the last few results, so an edge with more names than those would
//! pay that price at each handshake (brotli at its hardest: milliseconds). Here the quick level is used always, and what was
//! compressed is kept for more names.

use rustls::CertificateCompressionAlgorithm;
use rustls::ServerConfig;
use rustls::compress::{
    BROTLI_COMPRESSOR, CertCompressor, CompressionCache, CompressionFailed, CompressionLevel, ZLIB_COMPRESSOR,
};
use std::sync::Arc;

/// Compressed chains that are kept (chosen: rustls looks through all of them, some 10 ns each).
const KEPT: usize = 64;

/// Lets this server compress: brotli, which Chromium knows, then zlib, which Safari knows.
pub fn enable(config: &mut ServerConfig) {
    config.cert_compressors = vec![&Quick::Brotli, &Quick::Zlib];
    config.cert_compression_cache = Arc::new(CompressionCache::new(KEPT));
}

/// A compressor at its quick level.
#[derive(Debug)]
enum Quick {
    Brotli,
    Zlib,
}

impl Quick {
    const fn inner(&self) -> &'static dyn CertCompressor {
        match self {
            Self::Brotli => BROTLI_COMPRESSOR,
            Self::Zlib => ZLIB_COMPRESSOR,
        }
    }
}

impl CertCompressor for Quick {
    fn compress(&self, input: Vec<u8>, _: CompressionLevel) -> Result<Vec<u8>, CompressionFailed> {
        self.inner().compress(input, CompressionLevel::Interactive)
    }

    fn algorithm(&self) -> CertificateCompressionAlgorithm {
        self.inner().algorithm()
    }
}
