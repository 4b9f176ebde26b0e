//! What is wrong with a file: where it is, what stands there, what may stand there.

use std::fmt;

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

    /// `key` is dotted (`hold.per_sprite`); the last part is looked for in its section.
    pub(crate) fn meaning(file: &str, text: &str, key: &'static str, message: String) -> Self {
        let span = locate(text, key).unwrap_or(0..0);
        Self::at(file, text, span, &format!("{key}: {message}"))
    }

    fn at(file: &str, text: &str, span: std::ops::Range<usize>, message: &str) -> Self {
        let start = span.start.min(text.len());
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let number = text[..start].matches('\n').count() + 1;
        let column = text[line_start..start].chars().count() + 1;
        let line = text[line_start..].lines().next().unwrap_or("");
        let on_line = span.end.clamp(start, line_start + line.len());
        let width = text.get(start..on_line).map_or(1, |part| part.chars().count()).max(1);
        let excerpt = format!("{number:>4} | {line}\n     | {}{}", " ".repeat(column - 1), "^".repeat(width));
        Self::Wrong { place: format!("{file}:{number}:{column}"), message: message.trim_end().to_owned(), excerpt }
    }
}

/// Where `section.key` is assigned.
fn locate(text: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let (section, key) = key.rsplit_once('.').unwrap_or(("", key));
    let (mut current, mut offset) = (String::new(), 0);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed.starts_with('[') {
            current = trimmed.trim_matches(['[', ']']).trim().to_owned();
        } else if let Some((name, _)) = trimmed.split_once('=')
            && current == section
            && name.trim() == key
        {
            let indent = line.len() - line.trim_start().len();
            return Some(offset + indent..offset + indent + trimmed.len());
        }
        offset += line.len();
    }
    None
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
