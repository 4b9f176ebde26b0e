//! The rows all PoPs share, as much of a store as certificates need: a table with compare-and-set.
//!
//! Keys: `acct/CA`, `order/ID`, `cert/ID/GENERATION`, `chal/txt/NAME`, `gate/CA`, `lease/SHARD`, `seal/ID`. Secrets in
//! them are sealed ([`crate::seal`]).

use std::pin::Pin;

/// The future of an answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, RowsError>> + Send + 'a>>;

/// One row. `version` is the number of the change that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Vec<u8>,
    /// Number of the change that wrote it.
    pub version: u64,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// Somebody else wrote the row in between. Nothing was written.
    #[error("somebody else has written the row")]
    Conflict,
    /// No answer, or a refusal. Nothing was written.
    #[error("the store did not do it: {0}")]
    Unavailable(String),
    /// A write was sent and nobody knows whether it was done. Read before writing again.
    #[error("the store did not say whether it has written: {0}")]
    Uncertain(String),
}

/// The table. Every call ends in bounded time.
///
/// # Cancel safety
/// Dropping a read does nothing. Dropping a write leaves it uncertain.
pub trait Rows: Send + Sync + 'static {
    /// Reads one row as it is now.
    ///
    /// # Errors
    /// [`RowsError::Unavailable`].
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>>;

    /// Reads every row whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// [`RowsError::Unavailable`].
    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>>;

    /// Writes (`Some`) or deletes (`None`) a row if it is still at version `expected` (`None`: does not exist). Returns
    /// the change's version.
    ///
    /// # Errors
    /// [`RowsError`].
    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64>;
}

/// A table in memory, for tests: what a store does, without one.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Memory(std::sync::Mutex<(u64, std::collections::BTreeMap<String, Row>)>);

#[cfg(test)]
impl Memory {
    /// All rows under a prefix.
    pub(crate) fn all(&self, prefix: &str) -> Vec<Row> {
        let table = self.0.lock().unwrap();
        let from = table.1.range(prefix.to_owned()..).map(|(_, row)| row);
        from.take_while(|row| row.key.starts_with(prefix)).cloned().collect()
    }

    /// What `read` makes of the last row under a prefix.
    pub(crate) fn last<T>(&self, prefix: &str, read: impl FnOnce(&Row) -> T) -> Option<T> {
        let table = self.0.lock().unwrap();
        let (key, row) = table.1.range(..format!("{prefix}\u{10ffff}")).next_back()?;
        key.starts_with(prefix).then(|| read(row))
    }
}

#[cfg(test)]
impl Rows for Memory {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>> {
        let row = self.0.lock().unwrap().1.get(key).cloned();
        Box::pin(async { Ok(row) })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>> {
        let rows = self.all(prefix);
        Box::pin(async { Ok(rows) })
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        let mut table = self.0.lock().unwrap();
        let done = if table.1.get(key).map(|row| row.version) == expected {
            table.0 += 1;
            let version = table.0;
            match value {
                Some(value) => {
                    table.1.insert(key.to_owned(), Row { key: key.to_owned(), value: value.to_vec(), version })
                }
                None => table.1.remove(key),
            };
            Ok(version)
        } else {
            Err(RowsError::Conflict)
        };
        Box::pin(async { done })
    }
}
