//! Certificates: a CA of this machine's own, files, and the resolver that hands the right
//! one to rustls by server name. It knows nothing of sprites.

pub mod compression;
pub mod load;
pub mod local_ca;
pub mod resolver;
pub mod tickets;
pub mod validity;
