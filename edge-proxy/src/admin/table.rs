//! Results for people: columns as wide as their widest cell.

use serde_json::Value;

pub(super) fn sprites(value: &Value) -> String {
    columns(value, &["name", "state", "warmth", "run", "generation", "open", "url"])
}

pub(super) fn receipts(value: &Value) -> String {
    columns(value, &["run", "kind", "result", "queued_ms", "starting_ms", "port_wait_ms", "waiters", "reason"])
}

/// Records of the ledger: what is said of each in a sentence of its own comes last.
pub(super) fn ledger(value: &Value) -> String {
    columns(
        value,
        &[
            "seq",
            "at",
            "sprite",
            "run",
            "event",
            "kind",
            "reason",
            "awake_ms",
            "bytes_to_guest",
            "bytes_from_guest",
            "detail",
        ],
    )
}

pub(super) fn domains(value: &Value) -> String {
    columns(value, &["domain", "state", "sprite", "txt_name", "txt_value"])
}

pub(super) fn tickets(value: &Value) -> String {
    columns(value, &["policy", "epoch", "state", "made_at", "opened", "issued_here", "edges"])
}

pub(super) fn certificates(value: &Value) -> String {
    columns(value, &["id", "names", "ca", "generation", "days_left", "served_here", "state"])
}

pub(super) fn asked(value: &Value) -> String {
    columns(value, &["id", "generation"])
}

/// What answers for a name, and each certificate that may.
pub(super) fn certificate(value: &Value) -> String {
    let answers = &value["answers"];
    let answer = match answers["id"].as_str() {
        Some(id) => format!("generation {} of {id} answers here", answers["generation"]),
        None => "nothing answers here".to_owned(),
    };
    let mut text = format!("{}: {answer}: {}\n", cell(&value["asked"]), cell(&value["why"]));
    for one in value["certificates"].as_array().into_iter().flatten() {
        let mut fields = one.clone();
        for part in ["explained", "order"] {
            let inner = fields.as_object_mut().and_then(|fields| fields.remove(part));
            for (name, value) in inner.as_ref().and_then(Value::as_object).into_iter().flatten() {
                fields[if part == "order" { format!("order_{name}") } else { name.clone() }] = value.clone();
            }
        }
        text.push('\n');
        text.push_str(&object(&fields));
    }
    text
}

/// The steps of a domain, and whether it is served.
pub(super) fn steps(value: &Value) -> String {
    let serves = if value["serves"] == true { "is served" } else { "is not served" };
    format!("{} {serves}\n{}", cell(&value["domain"]), columns(&value["steps"], &["step", "done", "detail"]))
}

/// A DNS answer, as `dig` shows one.
pub(super) fn answer(value: &Value) -> String {
    let mut text = format!("{}, {} bytes\n", cell(&value["code"]), value["bytes"]);
    for section in ["answers", "authority", "additional"] {
        let records = value[section].as_array().into_iter().flatten();
        let lines: Vec<_> = records.map(|record| format!("  {}\n", cell(record))).collect();
        if !lines.is_empty() {
            text.push_str(&format!("{section}\n{}", lines.concat()));
        }
    }
    text
}

pub(super) fn sprite(value: &Value) -> String {
    object(value)
}

/// Of key encryption keys.
pub(super) fn keks(value: &Value) -> String {
    let names = |keks: &Value| {
        let keks = keks.as_array().map(Vec::as_slice).unwrap_or_default();
        keks.iter().map(cell).collect::<Vec<_>>().join(", ")
    };
    let pops = value["pops"].as_object().into_iter().flatten();
    let pops: String = pops.map(|(pop, knows)| format!("{pop} knows {}\n", names(knows))).collect();
    columns(&value["data_keys"], &["id", "wrapped_under", "made", "in_use"]) + "\n" + &pops
}

pub(super) fn object(value: &Value) -> String {
    let Some(fields) = value.as_object() else { return format!("{value}\n") };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    fields.iter().map(|(name, value)| format!("{name:width$}  {}\n", cell(value))).collect()
}

fn columns(value: &Value, names: &[&str]) -> String {
    let rows: Vec<Vec<String>> = std::iter::once(names.iter().map(|name| name.to_uppercase()).collect())
        .chain(value.as_array().into_iter().flatten().map(|row| names.iter().map(|name| cell(&row[name])).collect()))
        .collect();
    let width = |at: usize| rows.iter().map(|row: &Vec<String>| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..names.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up_and_nothing_is_a_dash() {
        let value = serde_json::json!([{ "name": "a", "state": "asleep", "warmth": "warm", "run": 1, "generation": 1, "open": 0, "url": "u" },
            { "name": "longer", "state": "running", "warmth": null, "run": 12, "generation": 1, "open": 0, "url": "v" }]);
        let text = super::sprites(&value);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME    STATE    WARMTH  RUN  GENERATION  OPEN  URL");
        assert_eq!(lines[2], "longer  running  -       12   1           0     v");
    }
}
