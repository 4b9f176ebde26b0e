//! Engine `corrosion`, without a Corrosion to install: recorded answers ([`replays`]), the contract and what an agent may do
//! to it on one of our own ([`agent`]), and the contract on a real one where there is one ([`live`]).

mod agent;
mod live;
mod replays;

crate::contract::common!(crate::CorrosionWorld);
