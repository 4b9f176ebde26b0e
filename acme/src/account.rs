//! The account at each CA: made once for the whole fleet, its credentials sealed in a row.

use crate::ca::client::{Client, External, Http};
use crate::ca::{Authority, Class, Problem};
use crate::rows::{Rows, RowsError};
use crate::seal::{SealError, Sealer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Where accounts are.
pub const ACCOUNT_PREFIX: &str = "acct/";

/// A row `acct/CA`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRow {
    /// The CA's directory, by which an account is told from one at another CA of that name.
    pub directory: String,
    /// Counts the account's keys.
    pub generation: u64,
    /// The thumbprint of the present key (RFC 7638): what every PoP answers HTTP-01 with.
    pub thumbprint: String,
    /// Base64 of the sealed credentials.
    pub sealed: String,
    /// The key that is to take the place of the present one; the CA may know it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextKey>,
}

/// In an account's row: the key that is to be its next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextKey {
    /// Its thumbprint.
    pub thumbprint: String,
    /// Base64 of the credentials with it, sealed for the next generation of the row.
    pub sealed: String,
}

/// A CA, as it is configured.
pub struct Ca {
    /// Its name with us.
    pub name: String,
    /// The URL of its directory.
    pub directory: String,
    /// Who is written to about certificates: `mailto:` URLs.
    pub contact: Vec<String>,
    /// What binds an account to a customer, if the CA asks for that.
    pub external: Option<External>,
    /// The way to it.
    pub http: Http,
}

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The CA.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The table.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// The credentials.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// The key of an account's row.
#[must_use]
pub fn account_key(ca: &str) -> String {
    format!("{ACCOUNT_PREFIX}{ca}")
}

/// The account's row, if there is one at this CA.
///
/// # Errors
/// [`RowsError`].
pub async fn find(ca: &Ca, rows: &dyn Rows) -> Result<Option<(AccountRow, u64)>, RowsError> {
    let found = rows.get(&account_key(&ca.name)).await?;
    let read = |row: crate::rows::Row| Some((serde_json::from_slice::<AccountRow>(&row.value).ok()?, row.version));
    Ok(found.and_then(read))
}

/// Opens the account at `ca`, registering one if the fleet has none there.
///
/// # Errors
/// [`AccountError`].
///
/// # Cancel safety
/// An account that was registered meanwhile is lost; nothing is owed by it.
pub async fn open(ca: &Ca, rows: &dyn Rows, sealer: &Sealer) -> Result<Client, AccountError> {
    let key = account_key(&ca.name);
    let found = find(ca, rows).await?;
    if let Some((row, _)) = found.as_ref().filter(|(row, _)| row.directory == ca.directory) {
        return Ok(Client::open(&ca.name, &credentials(&key, row, sealer)?, ca.http.clone()).await?);
    }
    // One at another directory stays in force until this one is written.
    let version = match &found {
        Some((_, version)) => Some(*version),
        None => rows.get(&key).await?.map(|row| row.version),
    };
    let generation = found.map_or(1, |(row, _)| row.generation + 1);
    let registered =
        Client::register(&ca.name, &ca.directory, &ca.contact, ca.external.as_ref(), ca.http.clone()).await?;
    let (client, credentials) = registered;
    let sealed = STANDARD.encode(sealer.seal(&key, generation, &credentials)?);
    let thumbprint = client.thumbprint().to_owned();
    let row = AccountRow { directory: ca.directory.clone(), generation, thumbprint, sealed, next: None };
    let value = serde_json::to_vec(&row).map_err(|error| Problem::new(Class::Other, error.to_string()))?;
    match rows.compare_and_set(&key, version, Some(&value)).await {
        Ok(_) => Ok(client),
        // Another PoP was first, and its account is the fleet's.
        Err(RowsError::Conflict) => match find(ca, rows).await? {
            Some((row, _)) => {
                Ok(Client::open(&ca.name, &self::credentials(&key, &row, sealer)?, ca.http.clone()).await?)
            }
            None => Err(RowsError::Conflict.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Begins to change the account's key: writes the next one into the row, unless there is one. The CA is told by
/// [`finish_roll_over`].
///
/// # Errors
/// [`AccountError`]; there is no account at this CA.
///
/// # Cancel safety
/// The next key may be written; call either again.
pub async fn begin_roll_over(ca: &Ca, rows: &dyn Rows, sealer: &Sealer) -> Result<(), AccountError> {
    let key = account_key(&ca.name);
    let (row, version) = present(ca, rows).await?;
    if row.next.is_some() {
        return Ok(());
    }
    let (next, thumbprint) = Client::next_key(&credentials(&key, &row, sealer)?)?;
    let sealed = STANDARD.encode(sealer.seal(&key, row.generation + 1, &next)?);
    write(&key, version, &AccountRow { next: Some(NextKey { thumbprint, sealed }), ..row }, rows).await
}

/// Sees to it that the next key of the account's row is the account's, and writes that down; the row after that. Whoever
/// finds a next key in the row may do it, and two at once do it once: the row says the key before the CA knows it, and the
/// CA says which one it takes.
///
/// # Errors
/// [`AccountError`]. The next key stays in the row.
///
/// # Cancel safety
/// Call it again.
pub async fn finish_roll_over(ca: &Ca, rows: &dyn Rows, sealer: &Sealer) -> Result<AccountRow, AccountError> {
    let key = account_key(&ca.name);
    let (row, version) = present(ca, rows).await?;
    let Some(next) = row.next.clone() else { return Ok(row) };
    let generation = row.generation + 1;
    let new = opened(&key, generation, &next.sealed, sealer)?;
    if !Client::knows(&new, ca.http.clone()).await? {
        let changed = Client::change_key(&credentials(&key, &row, sealer)?, &new, &ca.http).await;
        // Its reply was lost, or another PoP was faster.
        if let Err(problem) = changed
            && !Client::knows(&new, ca.http.clone()).await?
        {
            return Err(problem.into());
        }
    }
    let row = AccountRow { generation, thumbprint: next.thumbprint, sealed: next.sealed, next: None, ..row };
    match write(&key, version, &row, rows).await {
        Ok(()) => Ok(row),
        Err(AccountError::Rows(RowsError::Conflict)) => Ok(present(ca, rows).await?.0),
        Err(error) => Err(error),
    }
}

async fn present(ca: &Ca, rows: &dyn Rows) -> Result<(AccountRow, u64), AccountError> {
    let found = find(ca, rows).await?.filter(|(row, _)| row.directory == ca.directory);
    let none = || Problem::new(Class::Account, format!("there is no account at {} yet", ca.name));
    Ok(found.ok_or_else(none)?)
}

async fn write(key: &str, version: u64, row: &AccountRow, rows: &dyn Rows) -> Result<(), AccountError> {
    let value = serde_json::to_vec(row).map_err(|error| Problem::new(Class::Other, error.to_string()))?;
    rows.compare_and_set(key, Some(version), Some(&value)).await?;
    Ok(())
}

fn credentials(key: &str, row: &AccountRow, sealer: &Sealer) -> Result<Zeroizing<Vec<u8>>, SealError> {
    opened(key, row.generation, &row.sealed, sealer)
}

fn opened(key: &str, generation: u64, sealed: &str, sealer: &Sealer) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let sealed = STANDARD.decode(sealed).map_err(|_| SealError::Forged(key.into()))?;
    sealer.open(key, generation, &sealed)
}
