//! Custom domains: whole host names of other people that lead to a sprite.
//!
//! A domain leads to a sprite's *name* and never to a host, so a sprite that moves is still one
//! write. Nobody is served under a name he has not proved to be his: [`row`] holds what was claimed
//! and what was proved, [`proof`] decides what a look into the DNS means, [`table`] answers
//! requests, [`apply`] follows the store.

pub mod apply;
pub mod name;
pub mod proof;
pub mod row;
pub mod table;

pub use name::DomainName;
pub use row::DomainRow;
pub use table::DomainTable;
