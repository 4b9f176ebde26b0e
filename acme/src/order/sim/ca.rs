//! A CA in memory: issues by the clock of its world, refuses as it is told, and notes what it was asked.

use super::Stage;
use super::limits::Counted;
use crate::ca::{Authority, Challenge, Class, Kind, NewOrder, Problem, Reply, Status, View, Window};
use crate::order::DAY;
use rcgen::{CertificateSigningRequestParams, SerialNumber};
use rustls_pki_types::CertificateDer;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use time::OffsetDateTime;

/// The thumbprint of the account there.
const THUMBPRINT: &str = "thumb";

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Order {
        names: Vec<String>,
        profile: String,
        replaces: Option<String>,
    },
    /// Any call that was refused.
    Refused,
    Look,
    Ask,
    Finalise,
    Fetch,
    /// Of the certificate with this id.
    Window(String),
    Revoke,
}

struct SimOrder {
    names: Vec<String>,
    status: Status,
    chain: Option<String>,
    /// Whether limits count it.
    counts: bool,
    /// Until when it looks at the answers, and what comes of it.
    looks: Option<(u64, Status)>,
}

/// What is issued.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) id: String,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
}

/// A window as a test wants it, of a certificate.
pub(crate) type Says = Box<dyn Fn(&Issued) -> (u64, u64) + Send>;

/// How it is just now.
pub(crate) struct State {
    /// What it says next instead of doing anything, the last one first.
    pub(crate) refuses: Vec<Problem>,
    /// What it says to everything.
    pub(crate) down: Option<Problem>,
    /// Seconds a certificate is valid.
    pub(crate) life: u64,
    /// Seconds it looks at answers; its challenges are `pending` meanwhile, as Let's Encrypt's are.
    pub(crate) looks_for: u64,
    /// Seconds after which it wants to be asked again for a window; `None`: it has no such thing.
    pub(crate) ari: Option<u64>,
    /// The windows.
    pub(crate) says: Says,
    /// The limits it keeps.
    pub(crate) limits: Option<Counted>,
    /// Names it finds no proof of.
    pub(crate) unproved: BTreeSet<String>,
    /// Whether it notes what it is asked.
    pub(crate) notes: bool,
    /// What it was asked when.
    pub(crate) calls: Vec<(u64, Call)>,
    orders: BTreeMap<String, SimOrder>,
    pub(crate) issued: HashMap<Vec<u8>, Issued>,
}

/// The CA.
pub(crate) struct Ca {
    name: String,
    stage: Arc<Stage>,
    pub(crate) state: Mutex<State>,
}

impl Ca {
    pub(super) fn new(name: &str, stage: Arc<Stage>) -> Self {
        let state = State {
            refuses: Vec::new(),
            down: None,
            life: 45 * DAY,
            looks_for: 0,
            ari: None,
            says: Box::new(|issued| {
                let third = (issued.not_after - issued.not_before) / 3;
                (issued.not_after - third - DAY, issued.not_after - third + DAY)
            }),
            limits: None,
            unproved: BTreeSet::new(),
            notes: true,
            calls: Vec::new(),
            orders: BTreeMap::new(),
            issued: HashMap::new(),
        };
        Self { name: name.to_owned(), stage, state: Mutex::new(state) }
    }

    /// Names in orders that were placed, in order.
    pub(crate) fn placed(&self) -> Vec<Vec<String>> {
        let calls = &self.state.lock().unwrap().calls;
        let names = calls.iter().filter_map(|(_, call)| match call {
            Call::Order { names, .. } => Some(names.clone()),
            _ => None,
        });
        names.collect()
    }

    /// When it was asked for what `pick` likes.
    pub(crate) fn asked(&self, pick: impl Fn(&Call) -> bool) -> Vec<u64> {
        let calls = &self.state.lock().unwrap().calls;
        calls.iter().filter(|(_, call)| pick(call)).map(|(at, _)| *at).collect()
    }

    fn view(&self, url: &str, order: &SimOrder) -> View {
        View { url: url.to_owned(), status: order.status.clone(), profile: None }
    }

    /// Notes a call, then refuses it or does it.
    fn call<T>(&self, call: Call, does: impl FnOnce(&mut State) -> Result<T, Problem>) -> Result<T, Problem> {
        let mut state = self.state.lock().unwrap();
        let refused = state.down.clone().or_else(|| state.refuses.pop());
        if state.notes {
            state.calls.push((self.stage.clock.now(), if refused.is_some() { Call::Refused } else { call }));
        }
        match refused {
            Some(problem) => Err(problem),
            None => does(&mut state),
        }
    }

    fn of<T>(
        &self,
        call: Call,
        url: &str,
        does: impl FnOnce(&mut SimOrder) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        self.call(call, |state| {
            does(state.orders.get_mut(url).ok_or_else(|| Problem::new(Class::Order, "no such order"))?)
        })
    }

    /// Signs a request (DER) that is valid from `from` on; the chain.
    pub(crate) fn sign(&self, state: &mut State, request: &[u8], from: u64) -> (String, BTreeSet<String>) {
        let mut request = CertificateSigningRequestParams::from_der(&request.to_vec().into()).unwrap();
        let has = request.params.subject_alt_names.iter().map(|name| format!("{name:?}")).collect();
        let (not_before, not_after) = (from, from + state.life);
        let time = |unix| OffsetDateTime::from_unix_timestamp(i64::try_from(unix).unwrap()).unwrap();
        request.params.not_before = time(not_before);
        request.params.not_after = time(not_after);
        request.params.use_authority_key_identifier_extension = true;
        request.params.serial_number = Some(SerialNumber::from(u64::try_from(state.issued.len()).unwrap() + 1));
        let certificate = request.signed_by(&self.stage.signer).unwrap();
        let der = CertificateDer::clone(certificate.der());
        let id = instant_acme::CertificateIdentifier::try_from(&der).unwrap().to_string();
        state.issued.insert(der.to_vec(), Issued { id, not_before, not_after });
        (certificate.pem(), has)
    }
}

impl Authority for Ca {
    fn name(&self) -> &str {
        &self.name
    }

    fn thumbprint(&self) -> &str {
        THUMBPRINT
    }

    fn order<'a>(&'a self, new: NewOrder<'a>) -> Reply<'a, View> {
        Box::pin(self.stage.fuse.around(async move {
            let (names, profile) = (new.names.to_vec(), new.profile.to_owned());
            let call = Call::Order { names: names.clone(), profile, replaces: new.replaces.map(str::to_owned) };
            let now = self.stage.clock.now();
            self.call(call, |state| {
                let counts = match (&mut state.limits, new.replaces) {
                    (None, _) => false,
                    (Some(limits), replaces) => limits.order(&names, replaces, now)?,
                };
                let number = state.orders.len() + 1;
                let url = format!("https://{}/order/{number}", self.name);
                let bare: BTreeSet<_> = names.iter().map(|name| name.trim_start_matches("*.").to_owned()).collect();
                let status = bare.into_iter().flat_map(|name| {
                    [Kind::Dns01, Kind::Http01]
                        .map(|kind| Challenge::new(name.clone(), kind, format!("token{number}"), THUMBPRINT, false))
                });
                let order =
                    SimOrder { names, status: Status::Pending(status.collect()), chain: None, counts, looks: None };
                let view = self.view(&url, &order);
                state.orders.insert(url, order);
                Ok(view)
            })
        }))
    }

    fn look<'a>(&'a self, url: &'a str) -> Reply<'a, View> {
        Box::pin(async move {
            let now = self.stage.clock.now();
            self.of(Call::Look, url, |order| {
                if let Some((_, found)) = order.looks.take_if(|(until, _)| *until <= now) {
                    order.status = found;
                }
                let view = self.view(url, order);
                // It is done by the next time somebody looks.
                if order.status == Status::Processing {
                    order.status = Status::Valid;
                }
                Ok(view)
            })
        })
    }

    fn ask<'a>(&'a self, url: &'a str, kind: Kind) -> Reply<'a, ()> {
        Box::pin(self.stage.fuse.around(async move {
            let answers: BTreeSet<_> = self.stage.answers.lock().unwrap().values().flatten().cloned().collect();
            let now = self.stage.clock.now();
            self.call(Call::Ask, |state| {
                let State { orders, limits, unproved, looks_for, .. } = state;
                let order = orders.get_mut(url).ok_or_else(|| Problem::new(Class::Order, "no such order"))?;
                let Status::Pending(challenges) = &order.status else { return Ok(()) };
                let of_kind = challenges.iter().filter(|challenge| challenge.kind == kind);
                let proved = |one: &&Challenge| answers.contains(&one.txt) && !unproved.contains(&one.name);
                let failed: Vec<_> = of_kind.filter(|one| !proved(one)).collect();
                if let Some(limits) = limits {
                    failed.iter().for_each(|one| limits.failed(&one.name, now));
                }
                let found = match failed.is_empty() {
                    true => Status::Ready,
                    false => Status::Invalid(Problem::new(Class::Unauthorized, "no such record")),
                };
                match *looks_for {
                    0 => order.status = found,
                    seconds => drop(order.looks.get_or_insert((now + seconds, found))),
                }
                Ok(())
            })
        }))
    }

    fn finalise<'a>(&'a self, url: &'a str, request: &'a [u8]) -> Reply<'a, ()> {
        Box::pin(self.stage.fuse.around(async move {
            self.call(Call::Finalise, |state| {
                let no_order = || Problem::new(Class::Order, "orderNotReady");
                let ready = state.orders.get(url).is_some_and(|order| order.status == Status::Ready);
                let (chain, has) =
                    ready.then(|| self.sign(state, request, self.stage.clock.now())).ok_or_else(no_order)?;
                let order = state.orders.get_mut(url).ok_or_else(no_order)?;
                assert_eq!(has.len(), order.names.len());
                if let Some(limits) = state.limits.as_mut().filter(|_| order.counts) {
                    limits.issued(&order.names, self.stage.clock.now());
                }
                order.chain = Some(chain);
                order.status = Status::Processing;
                Ok(())
            })
        }))
    }

    fn fetch<'a>(&'a self, url: &'a str) -> Reply<'a, Option<String>> {
        Box::pin(async move { self.of(Call::Fetch, url, |order| Ok(order.chain.clone())) })
    }

    fn window<'a>(&'a self, leaf: &'a [u8], now: u64) -> Reply<'a, Option<Window>> {
        Box::pin(async move {
            let issued = self.state.lock().unwrap().issued.get(leaf).cloned();
            let issued = issued.ok_or_else(|| Problem::new(Class::Other, "no such certificate"))?;
            self.call(Call::Window(issued.id.clone()), |state| {
                let Some(again) = state.ari else { return Ok(None) };
                let (start, end) = (state.says)(&issued);
                Ok(Some(Window { start, end, ask_again: now + again }))
            })
        })
    }

    fn revoke<'a>(&'a self, _leaf: &'a [u8], _compromised: bool) -> Reply<'a, ()> {
        Box::pin(async move { self.call(Call::Revoke, |_| Ok(())) })
    }
}
