//! wake.md, test 11: what scanners, crawlers, link previews and monitors ask for all day
//! (`strangers.txt`) wakes no private sprite, costs a public one no more than its budget, and
//! for names that do not exist reaches no owner.

use harness::client::{VERSIONS, Version, empty};
use harness::{Answer, Client, Demo, processes};
use http::Method;
use std::collections::BTreeMap;

const STRANGERS: &str = include_str!("strangers.txt");
/// `hold.wasted_wakes_per_hour`, the default: wakes of one network that found nothing.
const WASTED: usize = 20;
/// Names that nobody has, each on a connection of its own.
const NAMES: usize = 400;
/// By how much the edge may have grown after them (chosen: far above an allocator's noise, and
/// far below what a certificate or a log line for each name would take).
const GROWTH: u64 = 12 << 20;

struct Stranger {
    method: Method,
    path: &'static str,
    lines: Vec<(&'static str, &'static str)>,
}

fn strangers() -> Vec<Stranger> {
    let lines = STRANGERS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let all: Vec<_> = lines
        .map(|line| {
            let mut parts = line.splitn(3, " | ").map(|part| part.trim().trim_end_matches(" |"));
            let (method, path) = parts.next().unwrap().split_once(' ').unwrap();
            let mut headers = vec![("user-agent", parts.next().unwrap())];
            let further = parts.next().unwrap_or("").split("; ").filter(|line| !line.is_empty());
            headers.extend(further.map(|line| line.split_once(": ").unwrap()));
            Stranger { method: Method::from_bytes(method.as_bytes()).unwrap(), path, lines: headers }
        })
        .collect();
    assert!(all.len() >= 60, "{}", all.len());
    all
}

impl Stranger {
    async fn asks(&self, demo: &Demo, client: &mut Client, name: &str) -> Answer {
        // As it stands, but for braces, which no `http::Uri` takes.
        let path: String = self.path.chars().filter(|c| !matches!(c, '{' | '}')).collect();
        let mut request = demo.request(self.method.clone(), name, &path);
        for (name, value) in &self.lines {
            request = request.header(*name, *value);
        }
        client.send(request.body(empty()).unwrap()).await
    }
}

#[tokio::test]
async fn a_private_sprite_sleeps_through_all_of_it() {
    let demo = Demo::new().await;
    demo.admin(&["sprite", "create", "closed", "--command", &demo.guest_command()]).await;
    for version in VERSIONS {
        for stranger in strangers() {
            let mut client = demo.connect(version, "closed").await;
            let answer = stranger.asks(&demo, &mut client, "closed").await;
            let what = format!("{version:?} {} {}: {answer:?}", stranger.method, stranger.path);
            assert!(matches!(answer.status, 401 | 501), "{what}");
        }
    }
    let row = demo.row("closed").await;
    assert_eq!((&row["state"], &row["run"]), (&"asleep".into(), &0.into()), "{row}");
    assert_eq!(demo.receipts("closed").await.len(), 0);
    assert_eq!(ledger(&demo).await, 0);
}

/// All that is known of sprites, but how long it has been so.
async fn sprites(demo: &Demo) -> Vec<serde_json::Value> {
    let mut rows = demo.admin(&["sprite", "list"]).await.as_array().expect("an array").clone();
    for row in &mut rows {
        row.as_object_mut().expect("an object").remove("since_ms");
    }
    rows
}

/// Runs the ledger knows of.
async fn ledger(demo: &Demo) -> usize {
    demo.admin(&["ledger"]).await.as_array().expect("an array").len()
}

#[tokio::test]
async fn names_that_nobody_has_reach_no_owner_and_fill_no_memory() {
    let demo = Demo::new().await;
    let strangers = strangers();
    let before = sprites(&demo).await;
    let mut warm = None;
    for number in 0..NAMES {
        // All kinds of names: hashes, hosts of others, ports.
        let name = match number % 4 {
            0 => format!("{:016x}", (number as u64 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            1 => format!("www-{number}"),
            2 => format!("{}--app-{number}", 1 + number),
            _ => format!("mail{number}"),
        };
        let version = VERSIONS[number / 4 % 2];
        let mut client = demo.connect(version, &name).await;
        let stranger = &strangers[number % strangers.len()];
        let answer = stranger.asks(&demo, &mut client, &name).await;
        assert!(matches!(answer.status, 404 | 501), "{name} {}: {answer:?}", stranger.path);
        if number == NAMES / 4 {
            warm = processes::resident_bytes(demo.pid());
        }
    }
    let grown = processes::resident_bytes(demo.pid()).unwrap().saturating_sub(warm.unwrap());
    println!("{} names later: {:.1} MiB more", NAMES * 3 / 4, grown as f64 / f64::from(1 << 20));
    assert!(grown < GROWTH, "{grown} bytes");
    assert_eq!(sprites(&demo).await, before, "no sprite's state, run or count has changed");
    assert_eq!(ledger(&demo).await, 0, "no owner has started anything");
    for name in ["hello", "counter", "chat", "clock"] {
        assert_eq!(demo.receipts(name).await.len(), 0);
    }
    let named = demo.log().lines().filter(|line| line.contains("www-") || line.contains("--app-")).count();
    assert_eq!(named, 0, "no line of the log for a name: {}", demo.log());
}

#[tokio::test]
async fn a_public_sprite_is_woken_no_more_often_than_a_network_may() {
    let demo = Demo::new().await;
    let python = harness::tools::python(&[]).expect("python3 is installed");
    // Finds nothing for nearly all of them.
    let command = format!("exec {} -m http.server $PORT --bind 127.0.0.1", python.display());
    demo.create("open", &command).await;
    let mut answers = BTreeMap::<(u16, String), usize>::new();
    let mut wasted = 0;
    for stranger in strangers() {
        let mut client = demo.connect(Version::H1, "open").await;
        let answer = stranger.asks(&demo, &mut client, "open").await;
        let woke = !answer.header("sprite-wake").is_empty();
        wasted += usize::from(woke && (400..500).contains(&answer.status));
        *answers.entry((answer.status, answer.header("sprite-wake").to_owned())).or_default() += 1;
        match answer.status {
            429 => assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|s| s > 0), "{answer:?}"),
            status => assert!(!matches!(status, 500 | 502..), "{} {}: {answer:?}", stranger.method, stranger.path),
        }
        if woke {
            demo.lull("open").await;
        }
    }
    println!("{answers:?}");
    assert!(wasted <= WASTED, "{answers:?}");
    assert!(answers.contains_key(&(429, String::new())), "{answers:?}");
    let wakes = demo.receipts("open").await.len();
    assert!(wakes <= strangers().len() / 2, "{wakes} wakes: {answers:?}");
    // Another network pays for its own only.
    let mut client = demo.connect_from([127, 9, 9, 9].into(), Version::H2, "open").await;
    assert_eq!(client.get(&demo, "open", "/").await.status, 200);
}

#[tokio::test]
async fn a_sprite_for_people_sleeps_through_all_of_it_but_what_looks_like_a_person() {
    let demo = Demo::new().await;
    let command = demo.guest_command();
    demo.admin(&["sprite", "create", "people", "--public", "--command", &command, "--wake", "people"]).await;
    for version in VERSIONS {
        for stranger in strangers() {
            let mut client = demo.connect(version, "people").await;
            let answer = stranger.asks(&demo, &mut client, "people").await;
            let what = format!("{version:?} {} {}: {answer:?}", stranger.method, stranger.path);
            assert!(matches!(answer.status, 503 | 501 | 200 | 404) && !answer.text().contains("pid"), "{what}");
        }
    }
    assert_eq!(demo.receipts("people").await.len(), 0);
}
