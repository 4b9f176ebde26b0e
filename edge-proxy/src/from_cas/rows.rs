//! The store of the routes, as `acme` knows stores.

use acme::rows::{Answer, Row, Rows, RowsError};
use router::store::{Entry, Store, StoreError};

/// The store.
pub(super) struct StoreRows(pub(super) Store);

fn row(entry: Entry) -> Row {
    Row { key: entry.key, value: entry.value, version: entry.version }
}

fn error(error: StoreError) -> RowsError {
    match error {
        StoreError::Conflict { .. } => RowsError::Conflict,
        StoreError::Uncertain(why) => RowsError::Uncertain(why),
        error => RowsError::Unavailable(error.to_string()),
    }
}

impl Rows for StoreRows {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>> {
        Box::pin(async move { Ok(self.0.get(key).await.map_err(error)?.map(row)) })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>> {
        Box::pin(async move { Ok(self.0.scan(prefix).await.map_err(error)?.into_iter().map(row).collect()) })
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move { self.0.compare_and_set(key, expected, value).await.map_err(error) })
    }
}
