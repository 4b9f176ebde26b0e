//! What would be answered, in words: the same function answers as for everybody, and hickory reads what it said.

use super::answer::Transport;
use super::authority::Authority;
use super::name;
use super::zone::Found;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use std::str::FromStr;

/// An answer in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The response code: "NOERROR", "NXDOMAIN", "REFUSED" and the like.
    pub code: String,
    /// Records of the answer, as in a zone file.
    pub answers: Vec<String>,
    /// What stands beside it: the SOA where something is not there.
    pub authority: Vec<String>,
    /// More that may help.
    pub additional: Vec<String>,
    /// Bytes over TCP.
    pub bytes: usize,
}

/// What cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// It is no name.
    #[error("{0:?} is no domain name")]
    Name(String),
    /// It is no type.
    #[error("{0:?} is no type of records, such as A, TXT or CAA")]
    Kind(String),
}

impl Authority {
    /// What is answered when `name` is asked for records of type `kind`. Takes nothing from anybody's limit and asks nobody.
    ///
    /// # Errors
    /// [`ExplainError`]: it is no question.
    pub fn explain(&self, name: &str, kind: &str) -> Result<Explained, ExplainError> {
        let mut asked = Name::from_ascii(name).map_err(|_| ExplainError::Name(name.to_owned()))?;
        asked.set_fqdn(true);
        let upper = kind.to_ascii_uppercase();
        let kind = RecordType::from_str(&upper).map_err(|_| ExplainError::Kind(kind.to_owned()))?;
        let mut message = Message::query();
        message.add_query(Query::query(asked, kind));
        let message = message.to_vec().map_err(|_| ExplainError::Name(name.to_owned()))?;
        let mut out = Vec::new();
        let answered = self.answer(&message, Transport::Tcp, &mut out);
        let (Some(_), Ok(read)) = (answered, Message::from_vec(&out)) else {
            return Err(ExplainError::Name(name.to_owned()));
        };
        let shown = |records: &[Record]| records.iter().map(ToString::to_string).collect();
        Ok(Explained {
            code: code(read.metadata.response_code).to_owned(),
            answers: shown(&read.answers),
            authority: shown(&read.authorities),
            additional: shown(&read.additionals),
            bytes: out.len(),
        })
    }

    /// Whether challenges are looked for at `name`: at `_acme-challenge.` of a suffix, or at an id of 32 hexadecimal
    /// digits in the part of a zone that others' challenges are delegated to.
    #[must_use]
    pub fn is_for_challenges(&self, name: &str) -> bool {
        let wire = name::wire(name.trim_end_matches('.'));
        let Some(name) = wire.and_then(|wire| name::Name::read(&wire)) else { return false };
        match self.view().find(&name) {
            Found::Node(_, node) => node.place == super::zone::Place::Challenge,
            Found::Id(_) => true,
            Found::Outside | Found::NoName(_) => false,
        }
    }
}

fn code(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::FormErr => "FORMERR",
        _ => "other",
    }
}
