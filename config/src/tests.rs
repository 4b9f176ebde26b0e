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

#[test]
fn what_the_example_shows_in_comments_may_be_written() {
    // `# key = value` and `# [[table]]`; prose has neither form.
    let optional = EXAMPLE.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| {
        line.starts_with("[[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains([' ', '"']))
    });
    let optional: Vec<_> = optional.collect();
    assert!(optional.len() >= 6, "{optional:?}");
    for left_out in ["address", "command"] {
        let text: String = optional
            .iter()
            .filter(|line| !line.starts_with(left_out))
            .map(|line| match line.split(' ').next() {
                Some("seen_at") => format!("[acme]\n{line}\n"),
                Some("socket") => format!("[admin]\n{line}\n"),
                Some("endpoint") => format!("[fleet]\n{line}\n"),
                Some("serve") => format!("[store.embedded]\n{line}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config = Config::parse(&text, "f").unwrap();
        assert_eq!((config.sprites.len(), config.admin.socket.is_some()), (1, true));
        assert_eq!(Config::parse(&config.to_toml(), "f").unwrap(), config);
    }
}

#[test]
fn the_region_the_example_shows_may_be_written() {
    let region: String =
        EXAMPLE.lines().filter_map(|line| line.strip_prefix("#   ")).map(|line| format!("{line}\n")).collect();
    let own = "[fleet]\nname = \"e\"\n[store.embedded]\nserve = \"127.0.0.1:1\"\n";
    assert_eq!(Config::parse(&format!("{own}{region}"), "f").unwrap().regions[0].name, "ams");
}

#[test]
fn the_caret_finds_the_key_however_it_was_written() {
    assert_eq!(wrong("hold.timeout = \"2m\"\n").0, "f.toml:1:6");
    assert_eq!(wrong("# a\nhold = { per_sprite = 1, timeout = \"2m\" }\n").0, "f.toml:2:26");
    // Not the key but its section, when the key was left out.
    assert_eq!(wrong("workers = 1\n").0, "f.toml:1:1");
    assert_eq!(wrong("\n[tls]\nkey = \"k\"\n").0, "f.toml:2:2");
    let shown = Config::parse("[hold]\n\tflights = 0\n", "f.toml").unwrap_err().to_string();
    assert!(shown.contains("     | \t^"), "{shown}");
}

#[test]
fn the_sprite_that_is_wrong_is_the_one_shown() {
    let first = "[[sprite]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nports = [80]\ndomains = [\"a.example\"]\n";
    for (second, place, says) in [
        ("name = \"b\"\ncommand = \"c\"\nports = [0]", "f.toml:9:1", "sprite.ports: at most 16"),
        ("name = \"A\"\ncommand = \"c\"", "f.toml:7:1", "twice"),
        ("name = \"b\"\ncommand = \"c\"\ndomains = [\"A.example\"]", "f.toml:9:1", "twice"),
        ("name = \"b\"\ncommand = \"c\"\ndomains = [\"-a.example\"]", "f.toml:9:1", "no domain name"),
        ("name = \"b\"", "f.toml:7:1", "an address or a command"),
        ("name = \"b\"\ncommand = \"c\"\nmemory_mib = 3", "f.toml:9:1", "sprite.memory_mib: 4 to 1048576"),
        ("name = \"b\"\naddress = \"127.0.0.1:1\"\nmemory_mib = 64", "f.toml:9:1", "for a command"),
    ] {
        let (at, message) = wrong(&format!("{first}[[sprite]]\n{second}\n"));
        assert_eq!(at, place, "{second}");
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn every_value_out_of_its_bounds_is_named() {
    for (section, line) in [
        ("listen", "https = []"),
        ("listen", "workers = 1025"),
        ("names", "suffixes = []"),
        ("names", "suffixes = [\"-a.dev\"]"),
        ("domains", "resolvers = [\"192.0.2.53:0\"]"),
        ("domains", "cname = \"edge\u{e9}\""),
        ("domains", "reserved = [\"a..b\"]"),
        ("tls", "certificate = \"c\""),
        ("tls", "handshake_timeout = \"0s\""),
        ("tls", "default_name = \"-a\""),
        ("tls", "ticket_period = \"9s\""),
        ("tls", "ticket_period = \"25h\""),
        ("backhaul", "inner_mtu = 1279"),
        ("fleet", "operators = [\"short\"]"),
        ("fleet", "region = \"A\""),
        ("hold", "timeout = \"0s\""),
        ("hold", "per_sprite = 0"),
        ("hold", "per_client = 0"),
        ("hold", "per_process = 0"),
        ("hold", "flights = 0"),
        ("host", "idle_timeout = \"99ms\""),
        ("host", "port_wait = \"0s\""),
        ("host", "start_slots = 0"),
        ("host", "first_port = 1023"),
        ("host", "last_port = 1024"),
        ("host", "log_bytes = 4095"),
        ("drivers.qemu", "program = \"\""),
        ("drivers.qemu", "memory_dir = \"here\""),
        ("drivers.qemu", "boot_wait = \"19s\""),
        ("drivers.qemu", "boot_wait = \"0s\""),
        ("drivers.docker", "socket = \"\""),
        ("drivers.docker", "timeout = \"0s\""),
        ("drivers.firecracker", "program = \"\""),
        ("drivers.firecracker", "timeout = \"0s\""),
        ("drivers.firecracker", "snapshot_timeout = \"0s\""),
        ("drivers.http", "wake_timeout = \"21s\""),
        ("drivers.http", "sleep_timeout = \"0s\""),
        ("ledger", "segment_bytes = 65535"),
        ("ledger", "keep_bytes = 4194303"),
        ("webhook", "url = \"http://example.com/\""),
        ("webhook", "url = \"ftp://127.0.0.1/\""),
        ("webhook", "secret_file = \"s\""),
        ("webhook", "events = [\"started\"]"),
        ("webhook", "timeout = \"61s\""),
        ("webhook", "retry_min = \"999ms\""),
        ("webhook", "retry_max = \"6m\""),
        ("limits", "connections = 0"),
        ("limits", "header_read_timeout = \"0s\""),
        ("limits", "http1_buffer_bytes = 8191"),
        ("limits", "http2_streams = 0"),
        ("limits", "http2_stream_window_bytes = 65534"),
        ("limits", "http2_connection_window_bytes = 2147483648"),
        ("limits", "http2_send_buffer_bytes = 0"),
        ("limits", "http2_header_list_bytes = 0"),
        ("limits", "http2_ping_interval = \"0s\""),
        ("limits", "http2_ping_timeout = \"0s\""),
    ] {
        let (place, message) = wrong(&format!("[{section}]\n{line}\n"));
        let (key, _) = line.split_once(" = ").unwrap();
        assert_eq!(place, "f.toml:2:1", "{line}");
        assert!(message.starts_with(&format!("{section}.{key}: ")), "{line}: {message}");
    }
    for url in ["https://example.com/hook", "http://localhost/", "http://127.0.0.1:1/", "http://[::1]:1/x"] {
        Config::parse(&format!("[webhook]\nurl = \"{url}\"\nsecret_file = \"s\"\n"), "f").unwrap();
    }
    // Long enough to overflow a clock.
    assert!(wrong("[host]\nwarm_for = \"400days\"\n").1.contains("365days"));
}

#[test]
fn a_cgroup_is_auto_none_or_a_path() {
    let set = |value: &str| Config::parse(&format!("[drivers.process]\ncgroup = {value:?}\n"), "f.toml");
    for value in ["auto", "none", "/sys/fs/cgroup/sprites"] {
        let config = set(value).unwrap();
        assert_eq!(Config::parse(&config.to_toml(), "f").unwrap(), config);
    }
    assert_eq!(set("/a").unwrap().drivers.process.cgroup, Cgroup::At("/a".into()));
    let refused = set("a").unwrap_err().to_string();
    assert!(refused.contains("absolute path of a cgroup") && refused.contains("f.toml:2:"), "{refused}");
}
