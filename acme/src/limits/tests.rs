use super::*;
use crate::rows::{Answer, Memory, Row};
use std::sync::Arc;

const NOW: u64 = 1_800_000_000;

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

fn limiter() -> Limiter {
    Limiter::new([("first".to_owned(), Limits::LETS_ENCRYPT), ("free".to_owned(), Limits::NONE)])
}

async fn times(limiter: &Limiter, rows: &Memory, about: About<'_>, most: usize) -> (usize, Option<Held>) {
    for time in 0..most {
        if let Some(held) = limiter.take(rows, "first", about, NOW).await.unwrap() {
            return (time, Some(held));
        }
    }
    (most, None)
}

#[test]
fn limits_are_a_tenth_below_lets_encrypts_and_go_by_the_directory() {
    let of = |most, every| Some(Allowance { most, every });
    let ours = Limits::LETS_ENCRYPT;
    assert_eq!((ours.orders, ours.domain, ours.set), (of(270, 40), of(45, 13_440), of(4, 151_200)));
    assert_eq!((ours.proofs, ours.failures), (of(4, 900), of(1037, 95_982)));
    let by = Limits::of_directory;
    assert_eq!(by("https://acme-v02.api.letsencrypt.org/directory"), Limits::LETS_ENCRYPT);
    assert_eq!(by("https://ACME-staging-v02.api.letsencrypt.org:443/directory"), Limits::LETS_ENCRYPT);
    for other in ["https://ca.example/letsencrypt.org", "https://notletsencrypt.org/dir", "https://ca.example", ""] {
        assert_eq!(by(other), Limits::NONE, "{other}");
    }
}

#[tokio::test]
async fn each_bucket_holds_what_it_is_for_and_says_which_it_is() {
    let (limiter, rows) = (limiter(), Memory::default());
    let shop = names(&["shop.example"]);
    // Placing takes of the account's orders alone.
    let (count, held) = times(&limiter, &rows, About::Order(&shop), 1000).await;
    let orders = Held { bucket: "limit/first/orders".into(), until: NOW + 40, shared: true };
    assert_eq!((count, held), (270, Some(orders)));
    // Four of a set, whatever the order of its names.
    let (count, held) = times(&limiter, &rows, About::Issue(&names(&["a.shop.example", "B.shop.example"])), 9).await;
    let held = held.unwrap();
    assert!(held.bucket.starts_with("limit/first/set.") && !held.shared, "{held:?}");
    assert_eq!((count, held.until), (4, NOW + 151_200));
    let turned = names(&["b.shop.example", "a.shop.example"]);
    assert_eq!(times(&limiter, &rows, About::Issue(&turned), 9).await.0, 0);
    // 45 of a domain, of which four are gone.
    for number in 0..41 {
        let one = names(&[&format!("{number}.shop.example")]);
        assert_eq!(times(&limiter, &rows, About::Issue(&one), 1).await.0, 1, "{number}");
    }
    let more = names(&["other.example", "more.shop.example"]);
    let (_, held) = times(&limiter, &rows, About::Issue(&more), 1).await;
    assert_eq!(held.unwrap().bucket, "limit/first/domain.shop.example");
    // Nothing was taken from the one for what the other did not have.
    assert!(rows.get("limit/first/domain.other.example").await.unwrap().is_none());
    // Proofs, two at once for a wildcard and its name.
    let (count, held) = times(&limiter, &rows, About::Prove(&names(&["s.test", "s.test"])), 9).await;
    assert_eq!((count, held.unwrap().bucket.as_str()), (2, "limit/first/proofs.s.test"));
    assert_eq!(times(&limiter, &rows, About::Prove(&shop), 9).await.0, 4);
    // Others have none.
    for ca in ["free", "unknown"] {
        for _ in 0..400 {
            assert_eq!(limiter.take(&rows, ca, About::Order(&shop), NOW).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn an_order_is_not_placed_that_could_not_be_issued() {
    let (limiter, rows) = (limiter(), Memory::default());
    let shop = names(&["shop.example"]);
    assert_eq!(times(&limiter, &rows, About::Issue(&shop), 9).await.0, 4);
    let (count, held) = times(&limiter, &rows, About::Order(&shop), 9).await;
    assert_eq!(count, 0);
    assert!(held.unwrap().bucket.starts_with("limit/first/set."));
    assert!(rows.get("limit/first/orders").await.unwrap().is_none());
}

/// A table that answers a moment later, so that others write in between.
#[derive(Default)]
struct Slow(Memory);

impl Rows for Slow {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>> {
        Box::pin(async move {
            let row = self.0.get(key).await;
            tokio::task::yield_now().await;
            row
        })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>> {
        self.0.scan(prefix)
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.0.compare_and_set(key, expected, value).await
        })
    }
}

#[tokio::test]
async fn many_that_take_at_once_take_no_more_than_there_is() {
    let rows = Arc::new(Slow::default());
    let fleet: Vec<_> = (0..3).map(|_| Arc::new(limiter())).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..900 {
        let (rows, limiter) = (Arc::clone(&rows), Arc::clone(&fleet[at % 3]));
        tasks.spawn(async move {
            let names = names(&[&format!("{at}.example")]);
            limiter.take(&*rows, "first", About::Order(&names), NOW).await.unwrap().is_none()
        });
    }
    let taken = tasks.join_all().await.into_iter().filter(|taken| *taken).count();
    assert_eq!(taken, 270);
}

#[tokio::test]
async fn a_forecast_names_the_bucket_and_the_time() {
    let (limiter, rows) = (limiter(), Memory::default());
    let mut now = NOW;
    for number in 0..100 {
        let one = names(&[&format!("{number}.example")]);
        limiter.take(&rows, "first", About::Order(&one), now).await.unwrap();
        now += 10;
    }
    let told = limiter.forecast(&rows, now).await.unwrap();
    assert_eq!(told.len(), 1);
    let (bucket, forecast) = &told[0];
    assert_eq!((bucket.as_str(), forecast.left), ("limit/first/orders", 195));
    assert!(forecast.empty_at.unwrap().abs_diff(now + 195 * 40 / 3) < 60, "{forecast:?}");
    assert_eq!(limiter.forecast(&rows, now + 86_400).await.unwrap(), []);
}
