//! A real CA, by RFC 8555. Everything of `instant-acme` is in this file and in `http.rs` beside it.

pub use super::http::Http;
use super::http::{Noted, noting};
use super::key_change::{Credentials, key_change};
use super::{Authority, Challenge, Class, Kind, NewOrder, Problem, Reply, Status, View, Window};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error,
    ExternalAccountKey, Identifier, NewAccount, Order, OrderStatus, RevocationReason, RevocationRequest,
};
use rustls_pki_types::CertificateDer;
use std::time::Duration;
use zeroize::Zeroizing;

/// Names of one order (Let's Encrypt's profiles allow 25, `classic` 100).
pub const NAMES_MAX: usize = 100;

/// What a CA gave out-of-band to bind an account to a customer (RFC 8555 §7.3.4).
pub struct External {
    /// The key's id.
    pub id: String,
    /// The key.
    pub key: Zeroizing<Vec<u8>>,
}

/// A CA with an account.
pub struct Client {
    name: String,
    account: Account,
    thumbprint: String,
}

impl Client {
    /// Registers a new account; what [`Self::open`] needs comes with it, and is secret.
    ///
    /// # Errors
    /// [`Problem`].
    ///
    /// # Cancel safety
    /// An account that was registered meanwhile is lost; nothing is owed by it.
    pub async fn register(
        name: &str,
        directory: &str,
        contact: &[String],
        external: Option<&External>,
        http: Http,
    ) -> Result<(Self, Zeroizing<Vec<u8>>), Problem> {
        let contact: Vec<_> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let external = external.map(|external| ExternalAccountKey::new(external.id.clone(), &external.key));
        let builder = Account::builder_with_http(Box::new(http));
        let (made, noted) = noting(builder.create(&new, directory.into(), external.as_ref())).await;
        let (account, credentials) = made.map_err(|error| problem(&error, &noted))?;
        let credentials = serde_json::to_vec(&credentials).map(Zeroizing::new);
        let credentials = credentials.map_err(|error| Problem::new(Class::Other, error.to_string()))?;
        Ok((Self::with(name, account), credentials))
    }

    /// With the account of an earlier [`Self::register`].
    ///
    /// # Errors
    /// [`Problem`].
    ///
    /// # Cancel safety
    /// Dropping it does nothing.
    pub async fn open(name: &str, credentials: &[u8], http: Http) -> Result<Self, Problem> {
        // What is wrong with them is not said: they are secret.
        let unreadable = |_| Problem::new(Class::Account, "the account's credentials cannot be read");
        let credentials: AccountCredentials = serde_json::from_slice(credentials).map_err(unreadable)?;
        let builder = Account::builder_with_http(Box::new(http));
        let (opened, noted) = noting(builder.from_credentials(credentials)).await;
        Ok(Self::with(name, opened.map_err(|error| problem(&error, &noted))?))
    }

    fn with(name: &str, account: Account) -> Self {
        let thumbprint = account.key_thumbprint().to_owned();
        Self { name: name.to_owned(), account, thumbprint }
    }

    /// The credentials of an account with a new key in them, and its thumbprint. The CA does not know it yet: write it
    /// down, then [`Self::change_key`].
    ///
    /// # Errors
    /// [`Problem`].
    pub fn next_key(credentials: &[u8]) -> Result<(Zeroizing<Vec<u8>>, String), Problem> {
        let next = Credentials::read(credentials)?.with_new_key()?;
        Ok((next.write()?, next.thumbprint()?))
    }

    /// Puts the key of `next` in the place of the present one. Every handle on the account with the present key fails
    /// from here.
    ///
    /// # Errors
    /// [`Problem`].
    ///
    /// # Cancel safety
    /// It may have been done: [`Self::knows`] says.
    pub async fn change_key(present: &[u8], next: &[u8], http: &Http) -> Result<(), Problem> {
        key_change(&Credentials::read(present)?, &Credentials::read(next)?, http).await
    }

    /// Whether the CA takes the key of these credentials for the account's.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn knows(credentials: &[u8], http: Http) -> Result<bool, Problem> {
        let wanted = Credentials::read(credentials)?;
        let account = Self::open("", credentials, http).await?.account;
        // POST-as-GET of the account (RFC 8555 §7.3): the reply is no order, which does not matter; a key that is not the
        // account's is refused.
        match noting(account.order(wanted.id.clone())).await {
            (Err(Error::Api(_)), noted) if (400..500).contains(&noted.status) && noted.status != 429 => Ok(false),
            (Err(error), noted) if noted.status != 200 => Err(problem(&error, &noted)),
            _ => Ok(true),
        }
    }

    async fn found(&self, url: &str) -> Result<Order, Problem> {
        let (found, noted) = noting(self.account.order(url.to_owned())).await;
        found.map_err(|error| match (noted.status, problem(&error, &noted)) {
            (404, problem) => Problem { class: Class::Order, ..problem },
            (_, problem) => problem,
        })
    }
}

impl Authority for Client {
    fn name(&self) -> &str {
        &self.name
    }

    fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    fn order<'a>(&'a self, new: NewOrder<'a>) -> Reply<'a, View> {
        Box::pin(async move {
            let names: Vec<_> = new.names.iter().cloned().map(Identifier::Dns).collect();
            let mut order = instant_acme::NewOrder::new(&names);
            if !new.profile.is_empty() {
                order = order.profile(new.profile);
            }
            if let Some((issuer, serial)) = new.replaces.and_then(|replaces| replaces.split_once('.')) {
                let (authority_key_identifier, serial) = (issuer.into(), serial.into());
                order = order.replaces(CertificateIdentifier { authority_key_identifier, serial });
            }
            let (placed, noted) = noting(self.account.new_order(&order)).await;
            match placed {
                Err(error @ Error::Unsupported(_)) => Err(Problem::new(Class::Rejected, error.to_string())),
                Ok(mut order) => Ok(placed_as(&mut order)),
                // It exists, but the library dislikes something about it: most of all that `replaces` is not echoed.
                Err(Error::Other(_) | Error::Str(_) | Error::Json(_)) if noted.status == 201 => {
                    let url = noted.location.ok_or_else(|| Problem::new(Class::Other, "an order without a URL"))?;
                    Ok(placed_as(&mut self.found(&url).await?))
                }
                Err(error) => Err(problem(&error, &noted)),
            }
        })
    }

    fn look<'a>(&'a self, url: &'a str) -> Reply<'a, View> {
        Box::pin(async move { view(&mut self.found(url).await?, &self.thumbprint).await })
    }

    fn ask<'a>(&'a self, url: &'a str, kind: Kind) -> Reply<'a, ()> {
        Box::pin(async move {
            let mut order = self.found(url).await?;
            let asking = async {
                let mut authorizations = order.authorizations();
                while let Some(authorization) = authorizations.next().await {
                    let mut authorization = authorization?;
                    if authorization.status != AuthorizationStatus::Pending {
                        continue;
                    }
                    let Some(mut challenge) = authorization.challenge(kind_of(kind)) else {
                        return Ok(Some(Problem::new(Class::Rejected, format!("the CA does not offer {kind}"))));
                    };
                    if challenge.status == ChallengeStatus::Pending {
                        challenge.set_ready().await?;
                    }
                }
                Ok(None)
            };
            match noting(asking).await {
                (Ok(None), _) => Ok(()),
                (Ok(Some(refused)), _) => Err(refused),
                (Err(error), noted) => Err(problem(&error, &noted)),
            }
        })
    }

    fn finalise<'a>(&'a self, url: &'a str, request: &'a [u8]) -> Reply<'a, ()> {
        Box::pin(async move {
            let mut order = self.found(url).await?;
            let (done, noted) = noting(order.finalize_csr(request)).await;
            done.map_err(|error| problem(&error, &noted))
        })
    }

    fn fetch<'a>(&'a self, url: &'a str) -> Reply<'a, Option<String>> {
        Box::pin(async move {
            let mut order = self.found(url).await?;
            let (fetched, noted) = noting(order.certificate()).await;
            fetched.map_err(|error| problem(&error, &noted))
        })
    }

    fn window<'a>(&'a self, leaf: &'a [u8], now: u64) -> Reply<'a, Option<Window>> {
        Box::pin(async move {
            let leaf = CertificateDer::from(leaf);
            let id = CertificateIdentifier::try_from(&leaf);
            let id = id.map_err(|error| Problem::new(Class::Other, error.to_string()))?;
            let (told, noted) = noting(self.account.renewal_info(&id)).await;
            match told {
                Ok((info, ask_again)) => {
                    let seconds = |time: time::OffsetDateTime| u64::try_from(time.unix_timestamp()).unwrap_or(0);
                    let window = info.suggested_window;
                    let ask_again = now + ask_again.as_secs();
                    Ok(Some(Window { start: seconds(window.start), end: seconds(window.end), ask_again }))
                }
                Err(Error::Unsupported(_)) => Ok(None),
                Err(error) => Err(problem(&error, &noted)),
            }
        })
    }

    fn revoke<'a>(&'a self, leaf: &'a [u8], compromised: bool) -> Reply<'a, ()> {
        Box::pin(async move {
            let certificate = CertificateDer::from(leaf);
            let reason = if compromised { RevocationReason::KeyCompromise } else { RevocationReason::Superseded };
            let request = RevocationRequest { certificate: &certificate, reason: Some(reason) };
            match noting(self.account.revoke(&request)).await {
                (Ok(()), _) => Ok(()),
                // The reply to an earlier try was lost.
                (Err(Error::Api(api)), _)
                    if api.r#type.as_deref().is_some_and(|kind| kind.ends_with(":alreadyRevoked")) =>
                {
                    Ok(())
                }
                (Err(error), noted) => Err(problem(&error, &noted)),
            }
        })
    }
}

fn kind_of(kind: Kind) -> ChallengeType {
    match kind {
        Kind::Dns01 => ChallengeType::Dns01,
        Kind::Http01 => ChallengeType::Http01,
        Kind::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// An order that was just placed, without its challenges: were they asked for, the order would be lost with an answer.
fn placed_as(order: &mut Order) -> View {
    let profile = order.state().profile.clone();
    View { url: order.url().to_owned(), status: Status::Pending(Vec::new()), profile }
}

async fn view(order: &mut Order, thumbprint: &str) -> Result<View, Problem> {
    let url = order.url().to_owned();
    let state = order.state();
    let profile = state.profile.clone();
    let status = match state.status {
        OrderStatus::Ready => Status::Ready,
        OrderStatus::Processing => Status::Processing,
        OrderStatus::Valid => Status::Valid,
        OrderStatus::Pending | OrderStatus::Invalid => {
            let failed = state.status == OrderStatus::Invalid;
            let of_order = state.error.as_ref().map(of_api);
            let (looked, noted) = noting(challenges(order, thumbprint)).await;
            let (pending, refused) = looked.map_err(|error| problem(&error, &noted))?;
            match failed {
                false => Status::Pending(pending),
                true => {
                    let unknown = || Problem::new(Class::Other, "the order has failed, and the CA does not say why");
                    Status::Invalid(refused.or(of_order).unwrap_or_else(unknown))
                }
            }
        }
    };
    Ok(View { url, status, profile })
}

/// What is still to be met, and what the CA has refused.
async fn challenges(order: &mut Order, thumbprint: &str) -> Result<(Vec<Challenge>, Option<Problem>), Error> {
    let (mut pending, mut refused) = (Vec::new(), None);
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization?;
        let error = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        refused = refused.or_else(|| error.map(of_api));
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let Identifier::Dns(name) = authorization.identifier().identifier.clone() else { continue };
        for challenge in &authorization.challenges {
            let kind = match challenge.r#type {
                ChallengeType::Dns01 => Kind::Dns01,
                ChallengeType::Http01 => Kind::Http01,
                ChallengeType::TlsAlpn01 => Kind::TlsAlpn01,
                _ => continue,
            };
            let (name, token) = (name.clone(), challenge.token.clone());
            let asked = challenge.status == ChallengeStatus::Processing;
            pending.push(Challenge::new(name, kind, token, thumbprint, asked));
        }
    }
    Ok((pending, refused))
}

fn of_api(api: &instant_acme::Problem) -> Problem {
    let mut detail = api.detail.clone().unwrap_or_default();
    for part in &api.subproblems {
        detail = format!("{detail}; {}", part.detail.as_deref().unwrap_or_default());
    }
    let kind = api.r#type.as_deref().unwrap_or_default();
    // A subproblem says more than its compound.
    let inner = api.subproblems.iter().find_map(|part| part.r#type.as_deref());
    let kind = if kind.ends_with(":compound") { inner.unwrap_or(kind) } else { kind };
    Problem::of_type(kind, api.status.unwrap_or(0), detail)
}

fn problem(error: &Error, noted: &Noted) -> Problem {
    let found = match error {
        Error::Api(api) => {
            let of_api = of_api(api);
            match noted.status {
                429 => Problem { class: Class::RateLimited, ..of_api },
                503 => Problem { class: Class::Unavailable, ..of_api },
                _ => of_api,
            }
        }
        // The library reads the nonce's reply no further than its status.
        error if noted.status == 429 => Problem::new(Class::RateLimited, error.to_string()),
        error if noted.status == 0 => Problem::new(Class::Lost, chain(error)),
        error if noted.status >= 500 => Problem::new(Class::Unavailable, chain(error)),
        error => Problem::new(Class::Other, chain(error)),
    };
    let retry_after = noted.retry_after.filter(|wait| *wait > Duration::ZERO);
    Problem { retry_after, ..found }
}

/// An error with its causes: the library's own text ends before the interesting part.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
