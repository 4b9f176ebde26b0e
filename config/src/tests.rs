use super::*;

const EXAMPLE: &str = include_str!("../edge.example.toml");

fn wrong(text: &str) -> (String, String) {
    match Config::parse(text, "f.toml") {
        Err(ConfigError::Wrong { place, message, .. }) => (place, message),
        other => panic!("{other:?}"),
    }
}

/// Every line of the form `key = value`, with its section.
fn keys(text: &str) -> Vec<(String, String)> {
    let (mut section, mut keys) = (String::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            keys.push((section.clone(), key.trim().to_owned()));
        }
    }
    keys
}

#[test]
fn the_example_holds_every_key_and_equals_the_defaults() {
    assert_eq!(Config::parse(EXAMPLE, "edge.example.toml").unwrap(), Config::default());
    assert_eq!(keys(EXAMPLE), keys(&Config::default().to_toml()));
}

#[test]
fn an_empty_file_is_the_default_and_what_is_printed_reads_back() {
    assert_eq!(Config::parse("", "f").unwrap(), Config::default());
    assert_eq!(Config::parse(&Config::default().to_toml(), "f").unwrap(), Config::default());
}

#[test]
fn an_unknown_key_is_refused_in_every_section_with_line_and_column() {
    let lines: Vec<_> = EXAMPLE.lines().collect();
    let sections = lines.iter().enumerate().filter(|(_, line)| line.starts_with('['));
    let mut planted = 0;
    for (at, _) in sections.chain(std::iter::once((0, &""))) {
        let mut mutant = lines.clone();
        let at = if at == 0 { 0 } else { at + 1 };
        mutant.insert(at, "no_such_key = 1");
        let (place, message) = wrong(&mutant.join("\n"));
        assert_eq!(place, format!("f.toml:{}:1", at + 1));
        assert!(message.contains("no_such_key") && message.contains("expected"), "{message}");
        planted += 1;
    }
    assert!(planted > 7);
    assert!(wrong("[[sprite]]\nname = \"a\"\nx = 1\n").1.contains("unknown field `x`"));
}

#[test]
fn a_value_that_means_nothing_is_shown_with_a_caret() {
    assert_eq!(wrong("[hold]\ntimeout = \"2m\"\n").0, "f.toml:2:1");
    assert!(wrong("[hold]\ntimeout = \"soon\"\n").1.contains("no duration"));
    assert!(wrong("[backhaul]\nlink = \"direct\"\n").1.contains("direct-insecure"));
    assert!(wrong("[names]\nsuffixes = [\"a..b\"]\n").1.contains("a..b"));
    assert!(wrong("[[sprite]]\nname = \"a\"\n").1.contains("address or a command"));
    let shown = Config::parse("[hold]\nper_sprite = 9999\n", "f.toml").unwrap_err().to_string();
    assert!(shown.contains("   2 | per_sprite = 9999\n     | ^^^^"), "{shown}");
}
