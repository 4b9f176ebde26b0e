//! Another KEK, or another data key: while all that is sealed stays as it is.

use super::{DATA_KEYS_MAX, DataKeyRow, SEAL_PREFIX, SealError, Sealer, in_hex, parts};
use crate::rows::Rows;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What the store says of a data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKey {
    /// Its id, as in its row's key.
    pub id: String,
    /// Of which KEK it is wrapped.
    pub kek: String,
    /// When it was made, seconds since 1970; 0 for the first.
    pub made: u64,
    /// It is the one that is sealed under now.
    pub in_use: bool,
}

impl Sealer {
    /// All data keys, as the store has them.
    ///
    /// # Errors
    /// [`SealError::Rows`]; [`SealError::Forged`] for a row that is none.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn data_keys(&self, rows: &dyn Rows) -> Result<Vec<DataKey>, SealError> {
        let in_use = self.keys.load().last().map(|key| in_hex(key.id));
        let read = |row: crate::rows::Row| {
            let (read, wrapped) = DataKeyRow::read(&row).ok_or_else(|| SealError::Forged(row.key.clone()))?;
            let parts = parts(&wrapped).ok_or_else(|| SealError::Forged(row.key.clone()))?;
            let id = row.key.trim_start_matches(SEAL_PREFIX).to_owned();
            Ok(DataKey { in_use: in_use.as_ref() == Some(&id), id, kek: in_hex(parts.id), made: read.made })
        };
        rows.scan(SEAL_PREFIX).await?.into_iter().map(read).collect()
    }

    /// Makes another data key; after the next [`Self::reload`] what is sealed is sealed under it. `now` in seconds since
    /// 1970. What was sealed before stays under the key of then, which stays.
    ///
    /// # Errors
    /// [`SealError::TooMany`], [`SealError::Rows`].
    pub async fn another(&self, rows: &dyn Rows, now: u64) -> Result<(), SealError> {
        let keys = self.data_keys(rows).await?;
        if keys.len() >= DATA_KEYS_MAX {
            return Err(SealError::TooMany);
        }
        // The newest, whatever the clock of this machine says.
        let now = keys.iter().map(|key| key.made + 1).fold(now, u64::max);
        let id = super::random::<8>().map_err(|_| SealError::Library)?;
        self.make(u64::from_be_bytes(*id), now, rows).await
    }

    /// Wraps every data key under the present KEK; how many were not. After that the old KEK may go.
    ///
    /// # Errors
    /// [`SealError::UnknownKey`] for one that no known KEK opens: nothing is lost, and it stays as it is.
    ///
    /// # Cancel safety
    /// What is wrapped stays so; call it again.
    pub async fn rewrap(&self, rows: &dyn Rows) -> Result<usize, SealError> {
        let kek = self.kek.keys.first().ok_or(SealError::Library)?;
        let mut wrapped_anew = 0;
        for row in rows.scan(SEAL_PREFIX).await? {
            let unknown = || SealError::UnknownKey(row.key.clone());
            let (DataKeyRow { made, .. }, wrapped) = DataKeyRow::read(&row).ok_or_else(unknown)?;
            if parts(&wrapped).is_some_and(|parts| parts.id == kek.id) {
                continue;
            }
            let bytes = self.kek.open(&row.key, 0, &wrapped).map_err(|_| unknown())?;
            let wrapped = STANDARD.encode(self.kek.seal(&row.key, 0, &bytes)?);
            let value = DataKeyRow { wrapped, made }.encode()?;
            rows.compare_and_set(&row.key, Some(row.version), Some(&value)).await?;
            wrapped_anew += 1;
        }
        Ok(wrapped_anew)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{kek, line};
    use super::*;
    use crate::rows::Memory;

    #[tokio::test]
    async fn a_new_kek_wraps_the_data_keys_and_what_was_sealed_still_opens() {
        let (dir, rows) = (tempfile::tempdir().unwrap(), Memory::default());
        let old = Sealer::load(&kek(dir.path(), "old", &line(1)), &rows).await.unwrap();
        let sealed = old.seal("acct/ca", 1, b"credentials").unwrap();
        let both = Sealer::load(&kek(dir.path(), "both", &(line(2) + &line(1))), &rows).await.unwrap();
        assert_eq!(both.rewrap(&rows).await.unwrap(), 1);
        assert_eq!(both.rewrap(&rows).await.unwrap(), 0);
        let new = Sealer::load(&kek(dir.path(), "new", &line(2)), &rows).await.unwrap();
        assert_eq!(new.open("acct/ca", 1, &sealed).unwrap().as_slice(), b"credentials");
        assert!(Sealer::load(&kek(dir.path(), "old", &line(1)), &rows).await.is_err());
    }

    #[tokio::test]
    async fn whoever_does_not_know_the_new_kek_goes_on_with_the_keys_it_has() {
        let (dir, rows) = (tempfile::tempdir().unwrap(), Memory::default());
        let late = Sealer::load(&kek(dir.path(), "old", &line(1)), &rows).await.unwrap();
        let sealed = late.seal("acct/ca", 1, b"credentials").unwrap();
        let both = Sealer::load(&kek(dir.path(), "both", &(line(2) + &line(1))), &rows).await.unwrap();
        both.rewrap(&rows).await.unwrap();
        both.another(&rows, 1_800_000_000).await.unwrap();
        assert_eq!(late.reload(&rows).await.unwrap().closed, 2);
        assert_eq!(late.open("acct/ca", 1, &sealed).unwrap().as_slice(), b"credentials");
        assert!(!late.is_superseded(&late.seal("x", 1, b"x").unwrap()));
        assert_eq!(both.reload(&rows).await.unwrap().closed, 0);
        let next = both.seal("x", 1, b"x").unwrap();
        assert!(both.is_superseded(&sealed) && !both.is_superseded(&next));
        assert!(!late.is_superseded(&next), "it knows nothing of it");
        // A clock that is behind makes no older key.
        both.another(&rows, 1).await.unwrap();
        both.reload(&rows).await.unwrap();
        let newest = both.data_keys(&rows).await.unwrap().into_iter().max_by_key(|key| key.made).unwrap();
        assert!(newest.in_use && newest.made == 1_800_000_001, "{newest:?}");
        for _ in 3..DATA_KEYS_MAX {
            both.another(&rows, 1).await.unwrap();
        }
        assert!(matches!(both.another(&rows, 1).await, Err(SealError::TooMany)));
    }

    #[tokio::test]
    async fn another_data_key_is_used_from_then_on_also_after_a_change_of_the_kek() {
        let (dir, rows) = (tempfile::tempdir().unwrap(), Memory::default());
        let pop = Sealer::load(&kek(dir.path(), "old", &line(1)), &rows).await.unwrap();
        let far = Sealer::load(&kek(dir.path(), "old", &line(1)), &rows).await.unwrap();
        let before = pop.seal("cert/x/1", 1, b"before").unwrap();
        pop.another(&rows, 1_800_000_000).await.unwrap();
        pop.reload(&rows).await.unwrap();
        let after = pop.seal("cert/x/2", 2, b"after").unwrap();
        assert_ne!(parts(&before).unwrap().id, parts(&after).unwrap().id);
        assert!(matches!(far.open("cert/x/2", 2, &after), Err(SealError::UnknownKey(_))));
        let both = Sealer::load(&kek(dir.path(), "both", &(line(2) + &line(1))), &rows).await.unwrap();
        assert_eq!(both.rewrap(&rows).await.unwrap(), 2);
        let new = Sealer::load(&kek(dir.path(), "new", &line(2)), &rows).await.unwrap();
        assert_eq!(new.open("cert/x/1", 1, &before).unwrap().as_slice(), b"before");
        assert_eq!(new.open("cert/x/2", 2, &after).unwrap().as_slice(), b"after");
        let again = new.seal("cert/x/3", 3, b"again").unwrap();
        assert_eq!(parts(&again).unwrap().id, parts(&after).unwrap().id, "whichever row was written last");
        let keys = new.data_keys(&rows).await.unwrap();
        let in_use: Vec<_> = keys.iter().filter(|key| key.in_use).map(|key| key.id.clone()).collect();
        assert_eq!(in_use, [in_hex(parts(&after).unwrap().id)]);
        let kek_id = &kek(dir.path(), "new", &line(2)).ids()[0];
        assert!(keys.len() == 2 && keys.iter().all(|key| key.kek == *kek_id), "{keys:?}");
    }
}
