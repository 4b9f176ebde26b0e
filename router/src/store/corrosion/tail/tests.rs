use super::*;
use bytes::Bytes;
use serde_json::{Value, json};

const EPOCH: u64 = 7;

fn tail() -> Tail {
    Tail::new("sprite/", EPOCH, "ca8e2327-525e-4690-9b1c-77ddc53ee2ee")
}

fn piece(line: &Value) -> Piece {
    Piece { bytes: Bytes::from(line.to_string()), whole: true }
}

fn row(name: &str, owner: &str, count: u64, body: &str) -> Value {
    json!([format!("sprite/{name}"), owner, count, body])
}

fn at(generation: u64) -> String {
    format!("{{\"generation\":{generation}}}")
}

/// What a line comes to, in short: `a=VALUE@VERSION`, `-a`, `?a`, `end`.
fn take(tail: &mut Tail, line: &Value) -> Result<Vec<String>, Broken> {
    Ok(tail.take(&piece(line))?.into_iter().map(short).collect())
}

fn short(told: Told) -> String {
    let name = |key: &str| key.strip_prefix("sprite/").unwrap().to_owned();
    match told {
        Told::Ask(key) => format!("?{}", name(&key)),
        Told::Event(FeedEvent::Entry(entry) | FeedEvent::Put(entry, _)) => {
            format!("{}={}@{}", name(&entry.key), String::from_utf8_lossy(&entry.value), entry.version)
        }
        Told::Event(FeedEvent::Delete(key, _)) => format!("-{}", name(&key)),
        Told::Event(FeedEvent::SnapshotEnd(_)) => "end".into(),
        Told::Event(event) => panic!("{event:?}"),
    }
}

/// After a snapshot of these rows, at change 4.
fn synced(rows: &[Value]) -> Tail {
    let mut tail = tail();
    take(&mut tail, &json!({ "columns": COLUMNS })).unwrap();
    for cells in rows {
        take(&mut tail, &json!({ "row": [1, cells] })).unwrap();
    }
    take(&mut tail, &json!({ "eoq": { "time": 0.1, "change_id": 4 } })).unwrap();
    tail
}

fn change(kind: &str, id: u64, cells: &Value) -> Value {
    json!({ "change": [kind, 9, cells, id] })
}

#[test]
fn a_snapshot_has_each_key_once_and_what_counts_after_it() {
    let mut tail = tail();
    let rows = [
        (row("a", "host/1", 3, &at(1)), Some("a={\"generation\":1}@3")),
        // Another host had it before, and left its row behind.
        (row("a", "host/0", 2, &at(0)), None),
        (row("b", "host/1", 1, &at(1)), Some("b={\"generation\":1}@1")),
        // It has it now; the row came later.
        (row("b", "host/2", 2, &at(2)), None),
        (row("c", "host/1", 2, "-4"), None),
        (row("d", "host/1", 1, &at(1)), Some("d={\"generation\":1}@1")),
        (row("d", "host/2", 9, "-1"), None),
        (json!(["host/1", "operator", 1, "{}"]), None),
    ];
    for (cells, wanted) in rows {
        let told = take(&mut tail, &json!({ "row": [1, cells] })).unwrap();
        assert_eq!(told.first().map(String::as_str), wanted, "{cells}");
    }
    assert_eq!(tail.last(), None);
    let end = take(&mut tail, &json!({ "eoq": { "time": 0.1, "change_id": 4 } })).unwrap();
    assert_eq!(end, ["end", "b={\"generation\":2}@2", "-d"]);
    assert_eq!((tail.last(), tail.cursor().epoch), (Some(4), EPOCH));
}

#[test]
fn changes_come_one_by_one_or_it_is_doubted() {
    let mut tail = synced(&[row("a", "host/1", 1, &at(1))]);
    let before = tail.cursor();
    assert_eq!(take(&mut tail, &change("insert", 5, &row("b", "host/1", 1, "{}"))).unwrap(), ["b={}@1"]);
    assert!(tail.cursor().version > before.version);
    for id in [5, 4, 7, 0, u64::MAX] {
        assert!(matches!(take(&mut tail, &change("update", id, &row("a", "host/1", 2, "{}"))), Err(Broken::Doubt(_))));
        assert_eq!(tail.last(), Some(5), "what did not fit has not happened");
    }
    for garbage in
        [json!("x"), json!({ "row": [1, row("c", "host/1", 1, "{}")] }), json!({ "notify": ["update", ["x"]] })]
    {
        assert!(matches!(take(&mut tail, &garbage), Err(Broken::Doubt(_))), "{garbage}");
    }
    assert_eq!(
        take(&mut tail, &change("update", 6, &row("a", "host/1", 2, "{}"))).unwrap(),
        ["?a"],
        "its generation fell"
    );
    for over in
        [json!({ "error": "subscription already deleted older changes" }), json!({ "columns": ["name", "host"] })]
    {
        assert!(matches!(take(&mut tail, &over), Err(Broken::Over(_))), "{over}");
    }
}

#[test]
fn of_several_writers_the_highest_generation_counts_whatever_order_they_come_in() {
    let mut tail = synced(&[row("a", "host/1", 7, &at(1))]);
    // It moved; who had it is cut off and goes on writing.
    let told = take(&mut tail, &change("insert", 5, &row("a", "host/2", 8, &at(2)))).unwrap();
    assert_eq!(told, ["a={\"generation\":2}@8"]);
    assert!(take(&mut tail, &change("update", 6, &row("a", "host/1", 12, &at(1)))).unwrap().is_empty());
    // Its row is taken away: that is no deletion of the sprite.
    assert!(take(&mut tail, &change("delete", 7, &row("a", "host/1", 12, &at(1)))).unwrap().is_empty());
    // The row that counts is gone: somebody else's may be there.
    assert_eq!(take(&mut tail, &change("delete", 8, &row("a", "host/2", 8, &at(2)))).unwrap(), ["?a"]);
    let left = Row::new(row("a", "host/3", 1, &at(1)).as_array().unwrap()).unwrap();
    assert_eq!(short(Told::Event(tail.asked("sprite/a".into(), vec![left]))), "a={\"generation\":1}@1");
    assert_eq!(short(Told::Event(tail.asked("sprite/a".into(), Vec::new()))), "-a");
    // A deletion that was written counts like any row.
    assert_eq!(take(&mut tail, &change("insert", 9, &row("a", "host/3", 2, "-1"))).unwrap(), ["-a"]);
}

#[test]
fn a_row_that_cannot_be_read_costs_itself() {
    let mut tail = synced(&[row("a", "host/1", 1, &at(1))]);
    // Of the same writer: what it was is gone, and what it is, is asked for.
    assert_eq!(take(&mut tail, &change("update", 5, &json!(["sprite/a", "host/1", 2, null]))).unwrap(), ["?a"]);
    let cells = json!(["sprite/a", "host/1", 2, null]);
    let poisoned = Row::new(cells.as_array().unwrap()).unwrap();
    assert_eq!(short(Told::Event(tail.asked("sprite/a".into(), vec![poisoned]))), "a=null@2");
    assert!(take(&mut tail, &change("insert", 6, &json!([7, "host/1", 2, "{}"]))).unwrap().is_empty());
    assert!(take(&mut tail, &change("insert", 7, &json!([]))).unwrap().is_empty());
    let long = |head: &str| Piece { bytes: Bytes::from(head.to_owned()), whole: false };
    let change = r#"{"change":["update",1,["sprite/a","host/2",9,"xxx"#;
    assert!(tail.take(&long(change)).unwrap().is_empty());
    assert_eq!(tail.last(), Some(8), "it was a change all the same");
    assert!(matches!(tail.take(&long("xxxx")), Err(Broken::Doubt(_))));
    // In a snapshot it is told, to be set aside: who is not named would be taken for gone.
    let mut tail = self::tail();
    let told = tail.take(&long(r#"{"row":[1,["sprite/b","host/2",9,"xxx"#)).unwrap();
    assert_eq!(told.into_iter().map(short).collect::<Vec<_>>(), ["b=too long@0"]);
}

#[test]
fn a_hint_counts_when_it_is_news_and_is_looked_at_again_when_nothing_confirms_it() {
    let rows = |name: &str, count, generation| {
        vec![Row::new(row(name, "host/1", count, &at(generation)).as_array().unwrap()).unwrap()]
    };
    assert!(tail().hint(rows("a", 2, 2)).is_none(), "a snapshot is not over");
    let mut tail = synced(&[row("a", "host/1", 1, &at(1))]);
    let cursor = tail.cursor();
    assert!(tail.hint(rows("a", 1, 1)).is_none() && tail.hint(Vec::new()).is_none());
    let Some(FeedEvent::Put(entry, told)) = tail.hint(rows("a", 2, 2)) else { panic!() };
    assert_eq!((entry.version, told), (2, cursor), "the place is the subscription's alone");
    assert!(tail.hint(rows("b", 1, 1)).is_some());
    // The subscription says it too, which is no news; another value under the same number is.
    assert!(take(&mut tail, &change("update", 5, &row("a", "host/1", 2, &at(2)))).unwrap().is_empty());
    assert_eq!(take(&mut tail, &change("update", 6, &row("b", "host/1", 1, "x"))).unwrap(), ["?b"]);
    assert!(tail.hint(rows("b", 2, 2)).is_some() && tail.hint(rows("c", 1, 1)).is_some());
    assert!(tail.beat().is_empty());
    assert!(tail.hint(rows("d", 1, 1)).is_some());
    let mut due = tail.beat();
    due.sort();
    assert_eq!(due, ["sprite/b", "sprite/c"]);
    // Who comes back may have missed a hint.
    assert!(tail.hint(rows("e", 1, 1)).is_some());
    tail.pause();
    let mut due = tail.beat();
    due.sort();
    assert_eq!(due, ["sprite/d", "sprite/e"]);
    assert!(tail.beat().is_empty());
    for number in 0..HINTED_MAX as u64 + 1 {
        let told = tail.hint(rows(&format!("n{number}"), 1, 1));
        assert_eq!(told.is_some(), number < HINTED_MAX as u64, "{number}");
    }
}

#[test]
fn a_hint_of_a_row_that_came_and_went_between_two_rounds_is_taken_back() {
    let mut tail = synced(&[row("a", "host/1", 1, &at(1))]);
    let moved = Row::new(row("a", "host/2", 2, &at(2)).as_array().unwrap()).unwrap();
    assert!(tail.hint(vec![moved]).is_some());
    // All that the subscription has seen is that the old row went and a third one came.
    assert!(take(&mut tail, &change("delete", 5, &row("a", "host/1", 1, &at(1)))).unwrap().is_empty());
    assert!(take(&mut tail, &change("insert", 6, &row("a", "host/3", 1, &at(1)))).unwrap().is_empty());
    assert!(tail.beat().is_empty());
    assert_eq!(tail.beat(), ["sprite/a"]);
}
