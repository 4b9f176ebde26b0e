//! Who may say where a sprite lives, and what of it is believed.
//!
//! A sprite's row carries a chain of placements: the first link is signed by an operator, each further one
//! by the host that had the sprite until then. Every link names the key of the host it leads to, so
//! the operators' keys alone are enough to check it, whatever else is known of the hosts. The row as
//! a whole, policy included, is sealed by the host the chain ends at: who may ask for a sprite is as
//! good as having it, since the key of its share links stands there.
//!
//! What was known before is asked as well: at the generation this machine knew, the chain must name the
//! host this machine knew. So a host that gave a sprite away cannot give it away a second time.

use crate::names::SpriteName;
use crate::route::{Generation, HostId};
use crate::rows::{ROW_VERSION, RowError, SpriteRow};
use crate::signing::{Message, Operators, PublicKey, Seal, Signature, SigningKey};
use serde::{Deserialize, Serialize};

/// Most links of a chain (chosen: 32 moves, 6 KiB of a row's 64). An operator who signs the sprite again
/// begins a new one.
pub const LINKS_MAX: usize = 32;
/// Keys of grants begin with this.
pub const PLACEMENT_PREFIX: &str = "placement/";

/// A sprite was placed on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The first generation there.
    pub generation: Generation,
    /// The host that had it before; none when nobody had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<HostId>,
    /// The host that has it from here on.
    pub to: HostId,
    /// That host's signing key.
    pub key: PublicKey,
    /// An operator's, or that of the host that had it.
    pub signature: Signature,
}

/// What a link says, before anybody has signed it.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// The sprite.
    pub name: &'a SpriteName,
    /// Whose it is.
    pub tenant: &'a str,
    /// The first generation there.
    pub generation: Generation,
    /// The host that had it.
    pub from: Option<HostId>,
    /// The host that gets it.
    pub to: HostId,
    /// That host's signing key.
    pub key: PublicKey,
}

impl Placement<'_> {
    /// Signed: by an operator when there is no link before, by the host the one before leads to otherwise.
    #[must_use]
    pub fn sign(self, before: Option<&Link>, by: &SigningKey) -> Link {
        let Self { generation, from, to, key, .. } = self;
        Link { generation, from, to, key, signature: by.sign(&self.message(before)) }
    }

    /// With the signature before it: a link belongs to one chain.
    fn message(&self, before: Option<&Link>) -> Vec<u8> {
        let mut message = Message::new("edge-proxy placement 1");
        message.part(self.name.as_str().as_bytes());
        message.part(self.tenant.as_bytes());
        message.number(self.generation.0);
        // A host's number has 32 bits; none is one above them all.
        message.number(self.from.map_or(1 << 32, |host| host.0.into()));
        message.number(self.to.0.into());
        message.part(self.key.bytes());
        message.part(before.map_or(&[][..], |link| link.signature.bytes()));
        message.done()
    }
}

impl Link {
    const fn placement<'a>(&self, name: &'a SpriteName, tenant: &'a str) -> Placement<'a> {
        let Self { generation, from, to, key, .. } = *self;
        Placement { name, tenant, generation, from, to, key }
    }
}

/// What makes a sprite's row believable. Empty where no operator's key is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Number of the row among those of its generation: an old policy does not come back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub serial: u64,
    /// From an operator's word to where it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Link>,
    /// Over the whole row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Proof {
    /// Without anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What this machine knew of a sprite before a row came.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its host.
    pub host: HostId,
    /// Its generation.
    pub generation: Generation,
    /// The number of the row within it.
    pub serial: u64,
    /// The row says nothing else than what is known (its tenant aside, which a restart's file of format 1 lacks).
    pub unchanged: bool,
}

impl SpriteRow {
    /// Seals it as it stands: the last thing before it is written.
    pub fn seal(&mut self, name: &SpriteName, by: &SigningKey) {
        self.proof.seal = None;
        self.proof.seal = Some(Seal::new(&Self::key(name), &self.encode(), by));
    }

    /// Whether who wrote it may have. Costs a signature's check for each link and one more, about 40 µs each (measured):
    /// when rows are applied, never when a request comes. Without operators every row may have been written.
    ///
    /// # Errors
    /// [`RowError::Forged`]: why not.
    pub fn check_proof(&self, name: &SpriteName, known: Option<Known>, operators: &Operators) -> Result<(), RowError> {
        if !operators.demand() {
            return Ok(());
        }
        self.believe(name, known, operators).map_err(RowError::Forged)
    }

    fn believe(&self, name: &SpriteName, known: Option<Known>, operators: &Operators) -> Result<(), &'static str> {
        let Proof { chain, seal, serial } = &self.proof;
        let (Some(first), Some(last), Some(seal)) = (chain.first(), chain.last(), seal) else {
            return Err("nobody has signed it");
        };
        if last.to != self.host || last.generation > self.generation {
            return Err("its chain does not lead to its host");
        }
        if let Some(known) = known {
            let (now, before) = ((self.generation, *serial), (known.generation, known.serial));
            if now < before || (now == before && !known.unchanged) {
                return Err("it is older than what is known");
            }
            // Otherwise an operator has placed it anew since.
            if first.generation <= known.generation && holder(chain, known.generation) != Some(known.host) {
                return Err("it was another host's when its chain says it was given away");
            }
        }
        let mut before: Option<&Link> = None;
        for link in chain {
            let message = link.placement(name, &self.tenant).message(before);
            match before {
                None if !operators.signed(&message, &link.signature) => return Err("no operator has placed it"),
                Some(had) if link.from != Some(had.to) || link.generation <= had.generation => {
                    return Err("its chain is broken");
                }
                Some(had) if !had.key.signed(&message, &link.signature) => {
                    return Err("the host that had it has not handed it over");
                }
                _ => before = Some(link),
            }
        }
        // The row of a hand-over is written by the host that gives, and by it once only.
        let given = self.generation == last.generation
            && *serial == 0
            && known.is_none_or(|known| known.generation < self.generation || known.unchanged);
        let giver = chain.len().checked_sub(2).map(|at| chain[at].key).filter(|_| given);
        if seal.by != last.key && giver != Some(seal.by) && !operators.include(&seal.by) {
            return Err("it is sealed by somebody who does not have the sprite");
        }
        let unsealed = Self { proof: Proof { seal: None, ..self.proof.clone() }, ..self.clone() };
        match seal.fits(&Self::key(name), &unsealed.encode()) {
            true => Ok(()),
            false => Err("its seal is not of this row"),
        }
    }
}

/// Who had it at a generation.
fn holder(chain: &[Link], at: Generation) -> Option<HostId> {
    chain.iter().rev().find(|link| link.generation <= at).map(|link| link.to)
}

/// An operator's word that a sprite may be made on a host, under `placement/NAME`: the host takes the
/// link from there when it makes the sprite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// [`ROW_VERSION`].
    pub version: u32,
    /// Whose the sprite will be.
    pub tenant: String,
    /// The beginning of its chain.
    pub link: Link,
}

impl Grant {
    /// The key of a sprite's grant.
    #[must_use]
    pub fn key(name: &SpriteName) -> String {
        format!("{PLACEMENT_PREFIX}{name}")
    }

    /// The encoded value.
    ///
    /// # Panics
    /// Never: a struct of plain fields always encodes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of plain fields always encodes")
    }

    /// Decodes one and checks that an operator has signed it for this sprite.
    ///
    /// # Errors
    /// [`RowError`]: what is wrong with it.
    pub fn decode(name: &SpriteName, value: &[u8], operators: &Operators) -> Result<Self, RowError> {
        let grant: Self = serde_json::from_slice(value).map_err(RowError::Value)?;
        if grant.version != ROW_VERSION {
            return Err(RowError::Version(grant.version));
        }
        let message = grant.link.placement(name, &grant.tenant).message(None);
        match operators.signed(&message, &grant.link.signature) {
            true => Ok(grant),
            false => Err(RowError::Forged("no operator has placed it")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
