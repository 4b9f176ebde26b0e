//! Does what [`super::next`] says, one thing at a time, and writes each down before it is done.

use super::ours::Ours;
use super::verify::{self, Unfit};
use super::{Act, DAY, ORDER_PREFIX, OrderRow, Step, next};
use crate::ca::{Authority, Challenge, Class, Kind, NewOrder, Problem, Reply, Status};
use crate::certificate::{CERT_PREFIX, CertRow, cert_key, parse_cert_key, sealed_as};
use crate::limits::{About, Held, Limiter, date};
use crate::rows::{Rows, RowsError};
use crate::seal::{SealError, Sealer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use std::sync::Arc;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// Gives the answers to challenges to whoever the CA may ask: every PoP, since it looks from several places.
pub trait Challenges: Send + Sync {
    /// Returns when every PoP that is announced has them.
    ///
    /// # Errors
    /// [`Class::Unready`]: some PoP could not be told in time.
    ///
    /// # Cancel safety
    /// Some PoPs may have them; they stay until [`Self::withdraw`] or their end.
    fn publish<'a>(&'a self, id: &'a str, challenges: &'a [Challenge]) -> Reply<'a, ()>;

    /// By which kind these names are to be proved now, when `wanted` is what the order would go by; asked before each order
    /// is placed, since it costs nothing at the CA.
    ///
    /// # Errors
    /// [`Class::Undelegated`]: what that kind needs is not there.
    fn kind<'a>(&'a self, id: &'a str, names: &'a [String], wanted: Kind) -> Reply<'a, Kind>;

    /// Takes them back. What cannot be taken back ends by itself.
    fn withdraw<'a>(&'a self, id: &'a str) -> Reply<'a, ()>;

    /// An order at this CA has come to a certificate, or was refused something: for whoever counts.
    fn came_of_it(&self, ca: &str, outcome: Result<(), Class>) {
        let _ = (ca, outcome);
    }
}

/// Works on orders. What it needs is given to it, the time too.
pub struct Issuer {
    /// The table.
    pub rows: Arc<dyn Rows>,
    /// What seals keys.
    pub sealer: Arc<Sealer>,
    /// Where answers go.
    pub challenges: Arc<dyn Challenges>,
    /// What is taken from before a CA is asked.
    pub limits: Arc<Limiter>,
    /// What is never in an order.
    pub ours: Ours,
}

/// An order this process works on.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its id.
    pub id: String,
    /// Its row.
    pub row: OrderRow,
    /// The row's version.
    pub version: u64,
}

/// What became of a step.
#[derive(Debug)]
pub enum Outcome {
    /// There is more to do at once.
    Again,
    /// Nothing before then, seconds since 1970.
    Wait(u64),
    /// One of our own limits is used up; the row says so.
    Held(Held),
    /// It is done, and the order's row is gone.
    Issued(Box<CertRow>),
}

/// Why a step ended early.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The table. With [`RowsError::Conflict`] somebody else works on it: read the row again.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// The key in the row.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The library refused to make a key or a request.
    #[error("a key or request could not be made: {0}")]
    Key(#[from] rcgen::Error),
}

/// The key of an order's row.
#[must_use]
pub fn order_key(id: &str) -> String {
    format!("{ORDER_PREFIX}{id}")
}

impl Issuer {
    /// The order of this id, if there is one that can be read.
    ///
    /// # Errors
    /// [`RowsError`].
    pub async fn find(&self, id: &str) -> Result<Option<Order>, RowsError> {
        let Some(found) = self.rows.get(&order_key(id)).await? else { return Ok(None) };
        let row = serde_json::from_slice(&found.value).map_err(|error| {
            let why = format!("{}: {error}; delete the row to order anew", found.key);
            RowsError::Unavailable(why)
        })?;
        Ok(Some(Order { id: id.to_owned(), row, version: found.version }))
    }

    /// Begins an order.
    ///
    /// # Errors
    /// [`RowsError::Conflict`] when there is one.
    pub async fn begin(&self, id: &str, row: OrderRow) -> Result<Order, RowsError> {
        let version = self.rows.compare_and_set(&order_key(id), None, Some(&row.encode())).await?;
        Ok(Order { id: id.to_owned(), row, version })
    }

    /// Does one thing about it; `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`Halt`]. What the CA refuses is no error: it is in the row.
    ///
    /// # Cancel safety
    /// What was begun is in the row. Find it again.
    pub async fn step(&self, order: &mut Order, ca: &dyn Authority, now: u64) -> Result<Outcome, Halt> {
        let (mut seen, began) = (None, Instant::now());
        loop {
            let act = match next(&order.row, seen.as_ref(), now) {
                Act::Order => match self.ours.check(&order.row.names) {
                    Some(problem) => Act::Fail(problem),
                    None => self.by_kind(order).await?,
                },
                act => act,
            };
            if let Some(held) = self.take(order, &act, seen.as_ref(), now).await? {
                return self.held(order, held).await;
            }
            let did = match act {
                Act::Look => match ca.look(order.row.url.as_deref().unwrap_or_default()).await {
                    Ok(view) => {
                        seen = Some(view.status);
                        continue;
                    }
                    Err(problem) => Err(problem),
                },
                Act::Wait(until) => return Ok(Outcome::Wait(until)),
                Act::SealKey => Ok(self.seal_key(order).await?),
                Act::Order => self.place(order, ca, now).await?,
                Act::Use(kind) => {
                    self.write(order, OrderRow { kind, ..order.row.clone() }).await?;
                    Ok(())
                }
                Act::Prove => self.prove(order, ca, seen.as_ref(), now).await?,
                Act::Finalise => self.finalise(order, ca, now).await?,
                Act::Fetch => match self.fetch(order, ca, now).await? {
                    Ok(Some(issued)) => {
                        self.challenges.came_of_it(&issued.ca, Ok(()));
                        return Ok(Outcome::Issued(Box::new(issued)));
                    }
                    Ok(None) => return Ok(Outcome::Wait(now + 1)),
                    Err(problem) => Err(problem),
                },
                Act::Fail(problem) => Err(problem),
            };
            return match did {
                Ok(()) => Ok(Outcome::Again),
                // It has moved on since it was looked at, or the reply to an earlier try was lost: look again.
                Err(problem) if problem.class == Class::Order && seen.is_some() => Ok(Outcome::Wait(now + 1)),
                Err(problem) => {
                    tracing::info!(id = order.id, ca = order.row.ca, %problem, "a certificate has to wait");
                    self.challenges.came_of_it(&order.row.ca, Err(problem.class));
                    // What the CA says of the time counts from its answer on, which may have taken a while.
                    let took = began.elapsed();
                    let answered = now + took.as_secs() + u64::from(took.subsec_millis() > 0);
                    let failed = order.row.failed(problem, answered);
                    let wait = failed.next_try;
                    self.write(order, failed).await?;
                    Ok(if wait > now { Outcome::Wait(wait) } else { Outcome::Again })
                }
            };
        }
    }

    /// Looks by which kind of challenge an order is to go, before anything is taken for it or asked of the CA.
    async fn by_kind(&self, order: &mut Order) -> Result<Act, Halt> {
        match self.challenges.kind(&order.id, &order.row.names, order.row.kind).await {
            Err(problem) => Ok(Act::Fail(problem)),
            Ok(kind) if kind == order.row.kind => Ok(Act::Order),
            Ok(kind) => Ok(Act::Use(kind)),
        }
    }

    /// Takes from our own limits what the CA is about to count.
    async fn take(&self, order: &Order, act: &Act, seen: Option<&Status>, now: u64) -> Result<Option<Held>, RowsError> {
        let row = &order.row;
        let proofs: Vec<_>;
        let about = match act {
            // What the CA knows as a renewal it does not count (Let's Encrypt, of ARI's `replaces`).
            Act::Order if row.replaces.is_none() => About::Order(&row.names),
            Act::Finalise if row.replaces.is_none() => About::Issue(&row.names),
            Act::Prove => {
                proofs = names(&mine(seen, row.kind));
                About::Prove(&proofs)
            }
            _ => return Ok(None),
        };
        self.limits.take(&*self.rows, &row.ca, about, now).await
    }

    /// Writes down what an order waits for. It has not failed, and whoever comes next asks the bucket again.
    async fn held(&self, order: &mut Order, held: Held) -> Result<Outcome, Halt> {
        let why = format!("our own limit {} is used up; at the earliest at {}", held.bucket, date(held.until));
        let problem = Some(Problem::new(Class::Held, why));
        if order.row.last_problem != problem {
            self.write(order, OrderRow { last_problem: problem, ..order.row.clone() }).await?;
        }
        Ok(Outcome::Held(held))
    }

    /// Puts `row` in place of an order's row.
    ///
    /// # Errors
    /// [`RowsError`].
    pub async fn write(&self, order: &mut Order, row: OrderRow) -> Result<(), RowsError> {
        let key = order_key(&order.id);
        order.version = self.rows.compare_and_set(&key, Some(order.version), Some(&row.encode())).await?;
        order.row = row;
        Ok(())
    }

    async fn begins(&self, order: &mut Order, step: Step) -> Result<(), RowsError> {
        let row = OrderRow { step, asked_at: 0, proving: Vec::new(), ..order.row.clone() };
        self.write(order, row).await
    }

    async fn seal_key(&self, order: &mut Order) -> Result<(), Halt> {
        let key = Zeroizing::new(KeyPair::generate()?.serialize_der());
        let sealed = self.sealer.seal(&sealed_as(&order.id), order.row.generation, &key)?;
        let sealed_key = Some(STANDARD.encode(sealed));
        self.write(order, OrderRow { step: Step::KeySealed, sealed_key, ..order.row.clone() }).await?;
        Ok(())
    }

    /// Whether the key in the row is sealed under a data key that another one has taken the place of.
    #[must_use]
    pub fn is_superseded(&self, row: &OrderRow) -> bool {
        let sealed = row.sealed_key.as_deref().and_then(|sealed| STANDARD.decode(sealed).ok());
        sealed.is_some_and(|sealed| self.sealer.is_superseded(&sealed))
    }

    fn key(&self, order: &Order) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let name = sealed_as(&order.id);
        let sealed = STANDARD.decode(order.row.sealed_key.as_deref().unwrap_or_default());
        let sealed = sealed.map_err(|_| SealError::Forged(name.clone()))?;
        self.sealer.open(&name, order.row.generation, &sealed)
    }

    async fn place(&self, order: &mut Order, ca: &dyn Authority, now: u64) -> Result<Result<(), Problem>, Halt> {
        self.begins(order, Step::Ordering).await?;
        let (names, profile, replaces) = (&order.row.names, &order.row.profile, order.row.replaces.as_deref());
        let view = match ca.order(NewOrder { names, profile, replaces }).await {
            Ok(view) => view,
            // A CA that dislikes what is replaced issues all the same when it is not told: one says `alreadyReplaced`,
            // another `malformed`, and one that has renewal information no more is not even asked.
            Err(problem) if matches!(problem.class, Class::Rejected | Class::Other) && replaces.is_some() => {
                tracing::warn!(id = order.id, %problem, "the CA does not take the renewal for one");
                self.write(order, OrderRow { replaces: None, ..order.row.clone() }).await?;
                return Ok(Ok(()));
            }
            Err(problem) => return Ok(Err(problem)),
        };
        // A CA without profiles ignores them silently.
        if !profile.is_empty() && view.profile.as_ref() != Some(profile) {
            let has = view.profile.as_deref().unwrap_or("none");
            let why = format!("profile {profile:?} was asked for, and the order has {has}");
            return Ok(Err(Problem::new(Class::Rejected, why)));
        }
        // It may have waited for long before.
        let row = OrderRow { step: Step::Ordered, url: Some(view.url), began: now, ..order.row.clone() };
        self.write(order, row).await?;
        Ok(Ok(()))
    }

    async fn prove(
        &self,
        order: &mut Order,
        ca: &dyn Authority,
        seen: Option<&Status>,
        now: u64,
    ) -> Result<Result<(), Problem>, Halt> {
        let mine = mine(seen, order.row.kind);
        self.begins(order, Step::Publishing).await?;
        if let Err(problem) = self.challenges.publish(&order.id, &mine).await {
            return Ok(Err(problem));
        }
        let row = OrderRow { step: Step::Asking, proving: names(&mine), ..order.row.clone() };
        self.write(order, row).await?;
        if let Err(problem) = ca.ask(order.row.url.as_deref().unwrap_or_default(), order.row.kind).await {
            return Ok(Err(problem));
        }
        self.write(order, OrderRow { asked_at: now, ..order.row.clone() }).await?;
        Ok(Ok(()))
    }

    async fn finalise(&self, order: &mut Order, ca: &dyn Authority, now: u64) -> Result<Result<(), Problem>, Halt> {
        let key = self.key(order)?;
        let key = KeyPair::try_from(key.as_slice())?;
        let mut params = CertificateParams::new(order.row.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        let proved = order.row.proving.clone();
        self.begins(order, Step::Finalising).await?;
        // Once: whoever dies here gives nothing back.
        self.limits.give_back(&*self.rows, &order.row.ca, &proved, now).await?;
        Ok(ca.finalise(order.row.url.as_deref().unwrap_or_default(), request.der()).await)
    }

    async fn fetch(
        &self,
        order: &Order,
        ca: &dyn Authority,
        now: u64,
    ) -> Result<Result<Option<CertRow>, Problem>, Halt> {
        let chain = match ca.fetch(order.row.url.as_deref().unwrap_or_default()).await {
            Ok(Some(chain)) => chain,
            Ok(None) => return Ok(Ok(None)),
            Err(problem) => return Ok(Err(problem)),
        };
        let row = &order.row;
        let fit = match verify::verify(&chain, &self.key(order)?, &row.names, now) {
            Ok(fit) => fit,
            Err(unfit) => return Ok(Err(refused(&unfit))),
        };
        let issued = CertRow {
            names: row.names.clone(),
            ca: row.ca.clone(),
            generation: row.generation,
            chain,
            sealed_key: row.sealed_key.clone().unwrap_or_default(),
            not_before: fit.not_before,
            not_after: fit.not_after,
            issued_at: now,
            ari: fit.ari,
            window: None,
            compromised: false,
            renew_asked: None,
            revocation: None,
        };
        match self.rows.compare_and_set(&cert_key(&order.id, row.generation), None, Some(&issued.encode())).await {
            // Written by whoever was here before, as the same key shows.
            Ok(_) | Err(RowsError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
        if let Err(problem) = self.challenges.withdraw(&order.id).await {
            tracing::debug!(id = order.id, %problem, "answers to challenges stay until their end");
        }
        if let Err(error) = self.forget_older(&order.id, row.generation, now).await {
            tracing::debug!(id = order.id, %error, "certificates of before stay until the next one comes");
        }
        self.rows.compare_and_set(&order_key(&order.id), Some(order.version), None).await?;
        Ok(Ok(Some(issued)))
    }

    /// Takes away what came before the certificate before this one, unless it is still to be revoked: a PoP that cannot
    /// open the newest serves the one before.
    async fn forget_older(&self, id: &str, newest: u64, now: u64) -> Result<(), RowsError> {
        for found in self.rows.scan(&format!("{CERT_PREFIX}{id}/")).await? {
            let is_older = parse_cert_key(&found.key).is_some_and(|(_, generation)| generation + 1 < newest);
            let row = serde_json::from_slice::<CertRow>(&found.value);
            if is_older && row.is_ok_and(|row| !row.is_being_withdrawn(now)) {
                self.rows.compare_and_set(&found.key, Some(found.version), None).await?;
            }
        }
        Ok(())
    }
}

/// The challenges of this kind that are still to be met.
fn mine(seen: Option<&Status>, kind: Kind) -> Vec<Challenge> {
    let Some(Status::Pending(all)) = seen else { return Vec::new() };
    all.iter().filter(|challenge| challenge.kind == kind).cloned().collect()
}

fn names(challenges: &[Challenge]) -> Vec<String> {
    challenges.iter().map(|challenge| challenge.name.clone()).collect()
}

/// What a CA sent that cannot be used: asked for again after a day, with a key of its own.
fn refused(unfit: &Unfit) -> Problem {
    let wait = Some(std::time::Duration::from_secs(DAY));
    Problem { retry_after: wait, ..Problem::new(Class::Other, unfit.to_string()) }
}
