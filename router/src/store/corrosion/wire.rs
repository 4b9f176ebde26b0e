//! What Corrosion's HTTP API says, and the statements it is asked. Facts: its published API, version 1.0.

use super::ranks::{Rank, writer};
use crate::store::{KEY_BYTES_MAX, StoreError};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

/// The columns of every statement that reads rows, in their order.
pub(super) const COLUMNS: [&str; 4] = ["name", "owner", "gen", "body"];
/// Longest line that is read whole, bytes: the longest value with each byte escaped as `\u00xx`, and room for the rest.
pub(super) const LINE_BYTES_MAX: usize = 6 * crate::store::VALUE_BYTES_MAX + HEAD_BYTES;
/// Of a longer one so much is read: enough for the longest key.
pub(super) const HEAD_BYTES: usize = 2 * KEY_BYTES_MAX + 128;
/// The row, under this name and without an owner, that tells one history from another.
const EPOCH: &str = "epoch";
/// A body that begins so is bytes in base64: of values that are no text, or would be taken for one of these.
const BYTES: char = '=';
/// A body that begins so says that the row is deleted; the generation it had follows.
const DELETED: char = '-';

/// A line of a subscription, an answer or the updates feed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Event {
    /// What the cells are.
    Columns(Vec<String>),
    /// One row of the answer.
    Row(IgnoredAny, Vec<Value>),
    /// The answer is complete.
    Eoq(End),
    /// A row of the answer is new, another or gone.
    Change(Kind, IgnoredAny, Vec<Value>, u64),
    /// There will be nothing more.
    Error(String),
    /// A row of a table has changed: its primary key.
    Notify(IgnoredAny, Vec<Value>),
}

#[derive(Debug, Deserialize)]
pub(super) struct End {
    /// Where changes go on from; an answer that is no subscription has none.
    pub(super) change_id: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Insert,
    Update,
    Delete,
}

/// The answer to a transaction.
#[derive(Debug, Deserialize)]
pub(super) struct Done {
    pub(super) results: Vec<Outcome>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    Affected { rows_affected: u64 },
    Failed { error: String },
}

/// A refusal.
#[derive(Debug, Deserialize)]
struct Problem {
    error: String,
}

/// One writer's row of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: String,
    /// What it counts for among the rows of its key.
    pub(super) rank: Rank,
    /// `None`: it says that the key is deleted.
    pub(super) value: Option<Vec<u8>>,
}

/// The value's own generation, if it has one.
#[derive(Deserialize)]
struct Generation {
    generation: u64,
}

impl Row {
    /// `None` when the cells name no row. Whatever else is wrong with them is left to whoever reads the value: it
    /// costs this row.
    pub(super) fn new(cells: &[Value]) -> Option<Self> {
        let name = cells.first()?.as_str()?.to_owned();
        let count = cells.get(2).and_then(Value::as_u64).filter(|count| i64::try_from(*count).is_ok()).unwrap_or(0);
        let owner = cells.get(1).and_then(Value::as_str).unwrap_or_default();
        let body = cells.get(3).unwrap_or(&Value::Null);
        let (generation, value) = body.as_str().map_or_else(|| (0, Some(body.to_string().into_bytes())), read);
        Some(Self { name, rank: Rank { generation, count, writer: writer(owner) }, value })
    }

    /// Of a line that is too long, by its beginning; it has a value that nobody takes for one.
    pub(super) fn beheaded(head: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(head);
        // {"row":[1,["NAME",… and {"change":["update",1,["NAME",…
        let texts = text.match_indices("[\"").filter_map(|(at, _)| {
            serde_json::Deserializer::from_str(&text[at + 1..]).into_iter::<String>().next()?.ok()
        });
        let name = { texts }.find(|name| name.contains('/'))?;
        Some(Self { name, rank: Rank::default(), value: Some(b"too long".to_vec()) })
    }
}

fn read(body: &str) -> (u64, Option<Vec<u8>>) {
    if let Some(generation) = body.strip_prefix(DELETED).and_then(|rest| rest.parse().ok()) {
        return (generation, None);
    }
    if let Some(bytes) = body.strip_prefix(BYTES).and_then(|rest| BASE64_STANDARD.decode(rest).ok()) {
        return (0, Some(bytes));
    }
    (generation_in(body), Some(body.as_bytes().to_vec()))
}

fn generation_in(value: &str) -> u64 {
    serde_json::from_str::<Generation>(value).map_or(0, |value| value.generation)
}

/// A value as the table has it; `generation` is that of what a deletion ends.
fn body(value: Option<&[u8]>, generation: u64) -> String {
    match value {
        None => format!("{DELETED}{generation}"),
        Some(value) => match std::str::from_utf8(value) {
            Ok(text) if !text.is_empty() && !text.starts_with([BYTES, DELETED]) && !text.contains('\0') => text.into(),
            _ => format!("{BYTES}{}", BASE64_STANDARD.encode(value)),
        },
    }
}

/// Parses one line.
///
/// # Errors
/// [`StoreError::Nonsense`].
pub(super) fn event(line: &[u8]) -> Result<Event, StoreError> {
    serde_json::from_slice(line).map_err(|error| StoreError::Nonsense(error.to_string()))
}

/// What a refusal says, for people.
pub(super) fn problem(answer: &[u8]) -> String {
    let said = serde_json::from_slice::<Done>(answer).ok().and_then(|done| done.failure());
    let said = said.or_else(|| serde_json::from_slice(answer).ok().map(|Problem { error }| error));
    let mut said = said.unwrap_or_else(|| String::from_utf8_lossy(answer).trim().into());
    if said.contains("no such table") {
        said.push_str("; docs/stores.md has the table's schema, which its agents must know");
    }
    said.chars().take(400).collect()
}

impl Done {
    pub(super) fn failure(&self) -> Option<String> {
        self.results.iter().find_map(|one| match one {
            Outcome::Failed { error } => Some(error.clone()),
            Outcome::Affected { .. } => None,
        })
    }

    /// Rows the first statement has written.
    pub(super) fn written(&self) -> Option<u64> {
        match self.results.first()? {
            Outcome::Affected { rows_affected } => Some(*rows_affected),
            Outcome::Failed { .. } => None,
        }
    }
}

/// The statements, on one table.
pub(super) struct Sql {
    columns: String,
    pub(super) table: String,
}

impl Sql {
    /// `table` as the configuration has checked it.
    pub(super) fn new(table: &str) -> Self {
        Self { columns: COLUMNS.join(", "), table: table.into() }
    }

    /// Every row under a prefix. The same text for all who ask for it: the agent keeps one subscription for each text.
    pub(super) fn under(&self, prefix: &str) -> Value {
        let Self { columns, table } = self;
        let from = prefix.replace('\'', "''");
        // The prefix ends in ASCII, so there is always a next one.
        let mut end = from.clone().into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let end = String::from_utf8_lossy(&end);
        json!(format!("SELECT {columns} FROM {table} WHERE name >= '{from}' AND name < '{end}'"))
    }

    /// The rows of one key.
    pub(super) fn of(&self, key: &str) -> Value {
        let Self { columns, table } = self;
        json!([format!("SELECT {columns} FROM {table} WHERE name = ?1"), [key]])
    }

    pub(super) fn epoch(&self) -> Value {
        self.of(EPOCH)
    }

    /// Gives the table its epoch if it has none. Of two that meet, the larger text stays: it begins with less the
    /// later it was made, so that an agent that knew nothing yet cannot end the history of the others.
    pub(super) fn begin(&self, now: u64, random: u64) -> Value {
        let table = &self.table;
        let epoch = format!("{:016x}-{random:016x}", u64::MAX - now);
        let sql = format!("INSERT INTO {table} (name, owner, gen, body) VALUES (?1, '', 0, ?2) ON CONFLICT DO NOTHING");
        json!([[sql, [EPOCH, epoch]]])
    }

    /// Writes this writer's row of a key, if no row of the key is newer than what was seen, and takes the others' rows
    /// of it away. `seen` is the highest count of the key's rows; the new row's is one more.
    pub(super) fn write(&self, key: &str, owner: &str, seen: u64, value: Option<&[u8]>, generation: u64) -> Value {
        let table = &self.table;
        let put = format!(
            "INSERT INTO {table} (name, owner, gen, body) SELECT ?1, ?2, ?3, ?4 \
             WHERE (SELECT COALESCE(MAX(gen), 0) FROM {table} WHERE name = ?1) = ?5 \
             ON CONFLICT (name, owner) DO UPDATE SET gen = excluded.gen, body = excluded.body \
             WHERE excluded.gen > {table}.gen"
        );
        let clean = format!(
            "DELETE FROM {table} WHERE name = ?1 AND owner <> ?2 AND gen < ?3 \
             AND EXISTS (SELECT 1 FROM {table} WHERE name = ?1 AND owner = ?2 AND gen = ?3)"
        );
        let count = seen + 1;
        json!([[put, [key, owner, count, body(value, generation), seen]], [clean, [key, owner, count]]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: Value) -> Option<Row> {
        Row::new(cells.as_array().unwrap())
    }

    #[test]
    fn the_published_lines_are_understood() {
        let parse = |line: &str| event(line.as_bytes());
        assert!(matches!(parse(r#"{"columns":["name","host"]}"#), Ok(Event::Columns(names)) if names.len() == 2));
        assert!(matches!(parse(r#"{"row":[1,["a","w",1,"x"]]}"#), Ok(Event::Row(_, cells)) if cells.len() == 4));
        let eoq = parse(r#"{"eoq":{"time":4.808e-6,"change_id":7}}"#);
        assert!(matches!(eoq, Ok(Event::Eoq(End { change_id: Some(7) }))));
        assert!(matches!(parse(r#"{"eoq":{"time":1.0}}"#), Ok(Event::Eoq(End { change_id: None }))));
        for (word, wanted) in [("insert", Kind::Insert), ("update", Kind::Update), ("delete", Kind::Delete)] {
            let change = parse(&format!(r#"{{"change":["{word}",4,["a","w",1,"x"],3]}}"#));
            assert!(matches!(change, Ok(Event::Change(kind, _, _, 3)) if kind == wanted), "{word}");
        }
        assert!(matches!(parse(r#"{"error":"gone"}"#), Ok(Event::Error(why)) if why == "gone"));
        assert!(matches!(parse(r#"{"notify":["update",["a","w"]]}"#), Ok(Event::Notify(_, key)) if key[0] == "a"));
        for wrong in ["", "{}", "{\"row\":[1]}", "[]", "{\"news\":1}", "{\"change\":[\"moved\",1,[],1]}", "\u{0}"] {
            assert!(matches!(parse(wrong), Err(StoreError::Nonsense(_))), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_with_cells_costs_that_row() {
        let value = |cells: Value| row(cells).unwrap().value.unwrap();
        assert_eq!(value(json!(["sprite/a", "o", 1, "{}"])), b"{}");
        // No text, too few, too many: a value that nobody takes for a route.
        for wrong in [json!(["sprite/a", "o", 1, null]), json!(["sprite/a"]), json!(["sprite/a", 7, "x", [1, 2]])] {
            let read = row(wrong.clone()).unwrap();
            assert_eq!((read.name.as_str(), read.rank.generation), ("sprite/a", 0), "{wrong}");
            assert!(serde_json::from_slice::<Generation>(&read.value.unwrap()).is_err(), "{wrong}");
        }
        for (count, read_as) in [(json!(-1), 0), (json!(u64::MAX), 0), (json!(1.5), 0), (json!(9), 9)] {
            assert_eq!(row(json!(["sprite/a", "o", count, "{}"])).unwrap().rank.count, read_as);
        }
        assert!(row(json!([])).is_none() && row(json!([1, "o", 1, "{}"])).is_none());
    }

    #[test]
    fn of_a_line_that_is_too_long_the_name_is_known() {
        for head in [
            r#"{"row":[12,["sprite/a","host/x",7,"{\"a\":[\"b"#,
            r#"{"change":["update",12,["sprite/a","host/x",7,"xxxx"#,
            r#"{"change":["update",12,["sprite/a","host/x",7,"[\"domain/b"#,
        ] {
            assert_eq!(Row::beheaded(head.as_bytes()).map(|row| row.name).as_deref(), Some("sprite/a"), "{head}");
        }
        assert!(Row::beheaded(b"xxxxxxxxx").is_none() && Row::beheaded(&[0xff; 64]).is_none());
    }

    #[test]
    fn every_value_survives_the_table() {
        let values: [&[u8]; 7] = [b"{\"generation\":3}", b"", b"-1", b"=", b"\0\xff\n", b"\xc3\xa9", b"a\0b"];
        for value in values {
            let text = body(Some(value), 9);
            assert!(!text.contains('\0'));
            let (generation, back) = read(&text);
            assert_eq!(back.as_deref(), Some(value), "{text}");
            assert_eq!(generation, if value.starts_with(b"{") { 3 } else { 0 });
        }
        assert_eq!(read(&body(None, 9)), (9, None));
    }

    #[test]
    fn a_refusal_is_told_and_a_missing_table_explained() {
        let of_a_write = br#"{"results":[{"error":"no such table: routes"}],"time":0.0,"version":null,"actor_id":"a"}"#;
        let said = problem(of_a_write);
        assert!(said.starts_with("no such table: routes") && said.contains("docs/stores.md"), "{said}");
        assert_eq!(
            problem(br#"{"error":"could not find subscription with id x"}"#),
            "could not find subscription with id x"
        );
        assert_eq!(problem(b"max concurrency limit reached\n"), "max concurrency limit reached");
        assert!(problem(&[b'x'; 100_000]).len() <= 400);
    }
}
