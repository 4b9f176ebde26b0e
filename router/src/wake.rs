//! Who may wake a sprite that does not run, as the table carries it.

use serde::{Deserialize, Serialize};

/// Most path prefixes in the rules of a sprite (`wake.md` §3).
pub const PATHS_MAX: usize = 16;
/// Longest of them, bytes (chosen).
pub const PATH_BYTES_MAX: usize = 256;

/// Most requests held for one sprite (`wake.md` §5).
pub const HELD_MAX: u16 = 1_024;

/// The rules of one sprite.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WakeRules {
    /// Which requests may wake it.
    pub policy: WakePolicy,
    /// Beginnings of paths that may wake it under `people` and `paths`: webhooks.
    pub paths: Vec<String>,
    /// While it sleeps the edge itself answers for `/robots.txt` and `/favicon.ico`.
    pub edge_paths: bool,
    /// What the edge answers itself besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<EdgeAnswer>,
    /// A navigation that would wait for long gets a page that reloads itself.
    pub waiting_page: bool,
    /// Sockets that reconnect by themselves after it fell asleep do not wake it.
    pub damping: bool,
    /// A stream of events that cannot be served now is told to come back, instead of a failure
    /// for which a browser's `EventSource` never would.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retry_event_streams: bool,
    /// Requests held for it, 1 to [`HELD_MAX`]; the edge's figure when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<u16>,
    /// Held requests let go at once when it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_window: Option<u16>,
    /// Requests it can serve at a time, as long as those who waited are let go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u16>,
}

/// Most answers of the edge for one sprite (`wake.md` §3).
pub const ANSWERS_MAX: usize = 16;
/// Longest body of one, bytes (`wake.md` §3).
pub const ANSWER_BYTES_MAX: usize = 4 * 1024;

/// One path that the edge answers itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeAnswer {
    /// A beginning of paths.
    pub path: String,
    /// Only this method; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Only for what calls itself a crawler, a preview or a monitor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub crawlers_only: bool,
    /// In which state of the sprite.
    #[serde(default)]
    pub when: AnswerWhen,
    /// 200 to 599.
    pub status: u16,
    /// At most [`ANSWER_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// Of the body; plain text when left out.
    #[serde(default = "plain_text")]
    pub content_type: String,
    /// An answer in sleep says so: `Sprite-State: dormant`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dormant: bool,
}

/// In which state of a sprite the edge answers for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerWhen {
    /// Only while no running sprite is known.
    #[default]
    Asleep,
    /// Always: its app never sees the request.
    Always,
}

fn plain_text() -> String {
    "text/plain; charset=utf-8".into()
}

impl EdgeAnswer {
    fn is_bounded(&self) -> bool {
        let visible = |text: &str| text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
        self.path.starts_with('/')
            && self.path.len() <= PATH_BYTES_MAX
            && (200..600).contains(&self.status)
            && self.body.len() <= ANSWER_BYTES_MAX
            && self.content_type.len() <= PATH_BYTES_MAX
            && visible(&self.content_type)
            && self.method.as_ref().is_none_or(|method| !method.is_empty() && method.len() <= 16)
    }
}

/// Which requests may wake a sprite. Those that may not are refused; none is refused
/// while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WakePolicy {
    /// All that may ask: callbacks and webhooks must wake.
    #[default]
    Any,
    /// Navigations of people, authenticated requests, and the listed paths.
    People,
    /// Authenticated requests.
    Authenticated,
    /// The listed paths.
    Paths,
    /// None: only its owner wakes it.
    Never,
}

impl Default for WakeRules {
    fn default() -> Self {
        Self {
            policy: WakePolicy::Any,
            paths: Vec::new(),
            edge_paths: true,
            answers: Vec::new(),
            waiting_page: true,
            damping: true,
            retry_event_streams: false,
            held: None,
            release_window: None,
            concurrency: None,
        }
    }
}

impl WakeRules {
    /// Whether its lists are within their bounds.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        let fits = |path: &String| path.starts_with('/') && path.len() <= PATH_BYTES_MAX;
        let at_least_one = [self.held, self.release_window, self.concurrency].into_iter().flatten().all(|n| n > 0);
        self.paths.len() <= PATHS_MAX
            && self.paths.iter().all(fits)
            && self.answers.len() <= ANSWERS_MAX
            && self.answers.iter().all(EdgeAnswer::is_bounded)
            && at_least_one
            && self.held.is_none_or(|held| held <= HELD_MAX)
    }

    /// Whether a path is one of the listed.
    #[must_use]
    pub fn lists(&self, path: &str) -> bool {
        self.paths.iter().any(|prefix| path.starts_with(prefix.as_str()))
    }
}

impl std::str::FromStr for WakePolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "any" => Self::Any,
            "people" => Self::People,
            "authenticated" => Self::Authenticated,
            "paths" => Self::Paths,
            "never" => Self::Never,
            _ => return Err("any, people, authenticated, paths or never"),
        })
    }
}
