//! A write whose answer may be lost on its way.

use crate::store::{Engine, StoreError};

/// Writes (`Some`) or deletes (`None`) a row, as [`Engine::compare_and_set`] does. A write that the
/// store did not answer is looked for: when the row is there as it was to be, it was written.
///
/// Returns the version of the change; of a deletion that had to be looked for, that of what it ended.
///
/// # Errors
/// [`StoreError`] of the write.
pub(crate) async fn publish(
    store: &dyn Engine,
    key: &str,
    value: Option<&[u8]>,
    expected: Option<u64>,
) -> Result<u64, StoreError> {
    match store.compare_and_set(key, expected, value).await {
        Err(StoreError::Uncertain(detail)) => match (store.get(key).await, value) {
            (Ok(None), None) => Ok(expected.unwrap_or(0)),
            (Ok(Some(entry)), Some(value)) if entry.value == value && Some(entry.version) != expected => {
                Ok(entry.version)
            }
            _ => Err(StoreError::Uncertain(detail)),
        },
        done => done,
    }
}
