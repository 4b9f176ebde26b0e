//! A sprite that is a container.

use super::Wrong;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest name of a container or an image, bytes (chosen: a registry, a path and a digest).
const NAME_BYTES_MAX: usize = 512;
/// Most arguments, variables or volumes (chosen).
const ITEMS_MAX: usize = 128;
/// Longest of them, bytes (chosen).
const ITEM_BYTES_MAX: usize = 16 * 1024;

/// Exactly one of `container` and `image`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DockerSpec {
    /// A container that somebody made: it is started, paused and stopped, never removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// An image the engine has: a container is made of it, and removed with the sprite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Where it listens, inside.
    pub port: u16,
    /// It is reached by its port published on this host instead of its own address: for
    /// engines without root, whose containers' addresses lead nowhere from here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub publish: bool,
    /// With `image`: what runs, instead of the image's own command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// With `image`: its environment, besides `PORT` and `SPRITE_NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// With `image`: `VOLUME_OR_PATH:PATH_INSIDE[:ro]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// With `image`: a network of the engine, instead of its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// With `image`: its memory, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// With `image`: its share of the processors, thousandths of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
}

impl DockerSpec {
    /// Checks what the types alone cannot say.
    ///
    /// # Errors
    /// The first field that is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        match (&self.container, &self.image) {
            (Some(container), None) => {
                if !is_container_name(container) {
                    return Err(("docker.container", "a container's name or id: letters, digits, '_', '.' and '-'"));
                }
                if self.has_options_of_an_image() {
                    return Err(("docker.container", "what belongs to an image is set when the container is made"));
                }
            }
            (None, Some(image)) => {
                if image.is_empty() || image.len() > NAME_BYTES_MAX || image.contains(char::is_whitespace) {
                    return Err(("docker.image", "an image's name, at most 512 bytes"));
                }
            }
            _ => return Err(("docker.container", "exactly one of container and image")),
        }
        if self.port == 0 {
            return Err(("docker.port", "not 0"));
        }
        let variables = self.environment.iter().map(|(name, value)| name.len() + value.len());
        let items = self.command.iter().chain(&self.volumes).map(String::len).chain(variables);
        if [self.command.len(), self.environment.len(), self.volumes.len()].iter().any(|count| *count > ITEMS_MAX)
            || items.into_iter().any(|bytes| bytes > ITEM_BYTES_MAX)
        {
            return Err(("docker", "at most 128 arguments, variables and volumes each, of 16384 bytes at most"));
        }
        if self.environment.keys().any(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(("docker.environment", "a variable's name is not empty and has no '='"));
        }
        if self.volumes.iter().any(|volume| !volume.contains(':')) {
            return Err(("docker.volumes", "VOLUME_OR_PATH:PATH_INSIDE[:ro]"));
        }
        if self.network.as_ref().is_some_and(|network| network.is_empty() || network.len() > NAME_BYTES_MAX) {
            return Err(("docker.network", "a network's name, at most 512 bytes"));
        }
        // Docker's own smallest, below which it refuses the container.
        if self.memory_mib.is_some_and(|memory| memory < 6) {
            return Err(("docker.memory_mib", "at least 6"));
        }
        if self.cpu_millis.is_some_and(|millis| millis < 10) {
            return Err(("docker.cpu_millis", "at least 10"));
        }
        Ok(())
    }

    fn has_options_of_an_image(&self) -> bool {
        !(self.command.is_empty() && self.environment.is_empty() && self.volumes.is_empty())
            || self.network.is_some()
            || self.memory_mib.is_some()
            || self.cpu_millis.is_some()
    }
}

/// The engine's own rule; nothing of it means anything in the path of a URL.
fn is_container_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | '-'))
}
