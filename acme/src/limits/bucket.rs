//! One token bucket, in a row. Sans-io.

use super::Allowance;
use serde::{Deserialize, Serialize};

/// A row `limit/CA/BUCKET`. One that is full says nothing, so its row can be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// When it is full again if nothing is taken, seconds since 1970.
    pub full_at: u64,
    /// Since when it has not been full, seconds since 1970.
    pub since: u64,
    /// What was taken since then.
    pub taken: u64,
}

/// What becomes of a bucket at the present rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// What can be taken at once.
    pub left: u32,
    /// When at least one can be taken, seconds since 1970: now, unless it is empty.
    pub one_at: u64,
    /// When it is full again if nothing is taken, seconds since 1970.
    pub full_at: u64,
    /// When it is empty at the rate at which it was used since it was last full, seconds since 1970; `None`: it is
    /// refilled faster than that.
    pub empty_at: Option<u64>,
}

impl Bucket {
    /// With `count` less in it.
    ///
    /// # Errors
    /// When so many are in it, seconds since 1970.
    pub fn take(self, of: Allowance, count: u32, now: u64) -> Result<Self, u64> {
        let (every, count) = (of.every, u64::from(count.min(of.most)));
        let full_at = self.full_at.max(now) + count * every;
        let latest = now + u64::from(of.most) * every;
        if full_at > latest {
            return Err(now + (full_at - latest));
        }
        Ok(match self.full_at <= now {
            true => Self { full_at, since: now, taken: count },
            false => Self { full_at, taken: self.taken + count, ..self }.forgetting(of, now),
        })
    }

    /// With `count` of what was taken in it again.
    #[must_use]
    pub fn give(self, of: Allowance, count: u32, now: u64) -> Self {
        let count = u64::from(count.min(of.most));
        let full_at = self.full_at.saturating_sub(count * of.every).max(now.min(self.full_at));
        Self { full_at, taken: self.taken.saturating_sub(count), ..self }
    }

    /// What was long ago counts half.
    fn forgetting(self, of: Allowance, now: u64) -> Self {
        let age = now.saturating_sub(self.since);
        if age <= u64::from(of.most) * of.every {
            return self;
        }
        Self { since: now - age / 2, taken: self.taken.div_ceil(2), ..self }
    }

    /// What is in it, and what becomes of it.
    #[must_use]
    pub fn forecast(self, of: Allowance, now: u64) -> Forecast {
        let lacks = self.full_at.saturating_sub(now).div_ceil(of.every.max(1));
        let left = of.most.saturating_sub(u32::try_from(lacks).unwrap_or(u32::MAX));
        let one_at = self.take(of, 1, now).map_or_else(|at| at, |_| now);
        let age = now.saturating_sub(self.since);
        // Used, less what comes back meanwhile, per `age * every` seconds.
        let net = (self.taken * of.every).saturating_sub(age);
        let busy = self.full_at > now && age > 0 && net > 0;
        let empty_at = busy.then(|| now + u64::from(left) * age * of.every / net);
        Forecast { left, one_at, full_at: self.full_at.max(now), empty_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const OF: Allowance = Allowance { most: 10, every: 40 };

    #[test]
    fn what_is_given_back_can_be_taken_again_and_no_more_than_that() {
        let bucket = Bucket::default().take(OF, 4, NOW).unwrap();
        let back = bucket.give(OF, 2, NOW);
        assert_eq!((back.forecast(OF, NOW).left, back.taken), (8, 2));
        let all = back.give(OF, 9, NOW + 1);
        assert_eq!((all.forecast(OF, NOW + 1).left, all.taken), (10, 0));
        assert_eq!(all.take(OF, 10, NOW + 1).unwrap().take(OF, 1, NOW + 1), Err(NOW + 41));
        assert_eq!(Bucket::default().give(OF, 3, NOW), Bucket::default());
    }

    #[test]
    fn as_much_as_fits_is_taken_at_once_and_then_one_each_time() {
        let mut bucket = Bucket::default();
        for _ in 0..10 {
            bucket = bucket.take(OF, 1, NOW).unwrap();
        }
        assert_eq!(bucket.take(OF, 1, NOW), Err(NOW + 40));
        assert_eq!(bucket.take(OF, 3, NOW), Err(NOW + 120));
        assert_eq!(bucket.take(OF, 1, NOW + 39), Err(NOW + 40));
        bucket = bucket.take(OF, 1, NOW + 40).unwrap();
        assert_eq!(bucket.take(OF, 1, NOW + 40), Err(NOW + 80));
        // Full after it was left alone, and not more than full.
        let mut later = bucket;
        for _ in 0..10 {
            later = later.take(OF, 1, NOW + 100_000).unwrap();
        }
        assert!(later.take(OF, 1, NOW + 100_000).is_err());
        // More than it holds is taken from a full one.
        assert!(bucket.take(OF, 11, NOW + 100_000).is_ok());
    }

    #[test]
    fn what_is_taken_in_any_time_is_bounded() {
        let (mut bucket, mut taken, mut now) = (Bucket::default(), Vec::new(), NOW);
        for step in 0..2_000_u64 {
            now += step * 7919 % 61;
            if let Ok(less) = bucket.take(OF, 1, now) {
                bucket = less;
                taken.push(now);
            }
        }
        for (at, from) in taken.iter().enumerate() {
            let mut run = taken[at..].iter().enumerate();
            assert!(run.all(|(count, to)| u64::try_from(count).unwrap() < 10 + (to - from) / 40 + 1));
        }
        assert!(taken.len() > 1_400, "{}", taken.len());
    }

    #[test]
    fn the_forecast_is_what_happens_at_this_rate() {
        let of = Allowance { most: 270, every: 40 };
        let (mut bucket, mut now) = (Bucket::default(), NOW);
        // One in ten seconds: four times as fast as it is refilled.
        for _ in 0..60 {
            bucket = bucket.take(of, 1, now).unwrap();
            now += 10;
        }
        let told = bucket.forecast(of, now);
        assert_eq!((told.left, told.one_at), (225, now));
        let empty_at = told.empty_at.unwrap();
        while let Ok(less) = bucket.take(of, 1, now) {
            bucket = less;
            now += 10;
        }
        assert!(empty_at.abs_diff(now) < 60, "{empty_at} {now}");
        let told = bucket.forecast(of, now);
        assert_eq!(told.left, 0);
        assert!((now..=now + 40).contains(&told.one_at));
        assert_eq!(bucket.take(of, 1, told.one_at).map(drop), Ok(()));
        // Slower than that it never is.
        let (mut bucket, mut now) = (Bucket::default(), NOW);
        for _ in 0..60 {
            bucket = bucket.take(of, 1, now).unwrap();
            now += 39;
        }
        let slow = |bucket: Bucket| bucket.forecast(of, now).empty_at;
        assert!(slow(bucket).is_none_or(|at| at > now + 86_400));
        assert_eq!(Bucket::default().forecast(of, now).empty_at, None);
        assert_eq!(Bucket::default().forecast(of, now).left, 270);
    }
}
