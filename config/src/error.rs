//! What is wrong with a file: where it is, what stands there, what may stand there.

use std::fmt;
use std::ops::Range;
use toml::de::DeTable;

/// A configuration that was refused.
#[derive(Debug)]
pub enum ConfigError {
    /// The file could not be read.
    Unreadable {
        /// Its path.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, has an unknown key, a value of the wrong kind, or one out of its bounds.
    Wrong {
        /// `FILE:LINE:COLUMN`.
        place: String,
        /// What is wrong.
        message: String,
        /// The line and a caret below the spot.
        excerpt: String,
    },
}

impl ConfigError {
    pub(crate) fn syntax(file: &str, text: &str, error: &toml::de::Error) -> Self {
        Self::at(file, text, error.span().unwrap_or(0..0), error.message())
    }

    /// `key` is dotted, with an index where a table repeats (`sprite[1].ports`).
    pub(crate) fn meaning(file: &str, text: &str, key: &str, message: &str) -> Self {
        let shown: String = key.split('.').map(|part| split_index(part).0).collect::<Vec<_>>().join(".");
        Self::at(file, text, locate(text, key), &format!("{shown}: {message}"))
    }

    fn at(file: &str, text: &str, span: Range<usize>, message: &str) -> Self {
        let start = span.start.min(text.len());
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let number = text[..start].matches('\n').count() + 1;
        let column = text[line_start..start].chars().count() + 1;
        let line = text[line_start..].lines().next().unwrap_or("");
        let on_line = span.end.clamp(start, line_start + line.len());
        let width = text.get(start..on_line).map_or(1, |part| part.chars().count()).max(1);
        // Tabs stay tabs, or the caret would stand beside what it points at.
        let before = text[line_start..start].chars();
        let padding: String = before.map(|char| if char == '\t' { '\t' } else { ' ' }).collect();
        let excerpt = format!("{number:>4} | {line}\n     | {padding}{}", "^".repeat(width));
        Self::Wrong { place: format!("{file}:{number}:{column}"), message: message.trim_end().to_owned(), excerpt }
    }
}

/// Where `key` stands in `text`, however it was written (section, dotted, inline); where
/// the innermost table around it stands when the key itself was left out.
fn locate(text: &str, key: &str) -> Range<usize> {
    let mut span = 0..0;
    let Ok(document) = DeTable::parse(text) else { return span };
    let mut table = document.get_ref();
    for part in key.split('.') {
        let (name, index) = split_index(part);
        let Some((key, value)) = table.get_key_value(name) else { return span };
        span = key.span();
        let value = match index {
            Some(index) => {
                let Some(element) = value.get_ref().get(index) else { return span };
                span = element.span();
                element
            }
            None => value,
        };
        let Some(inner) = value.get_ref().as_table() else { return span };
        table = inner;
    }
    span
}

/// `sprite[1]` is the second of the tables called `sprite`.
fn split_index(part: &str) -> (&str, Option<usize>) {
    match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
        Some((name, index)) => (name, index.parse().ok()),
        None => (part, None),
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, source } => write!(f, "{file}: cannot be read: {source}"),
            Self::Wrong { place, message, excerpt } => write!(f, "{place}: {message}\n{excerpt}"),
        }
    }
}

impl std::error::Error for ConfigError {}
