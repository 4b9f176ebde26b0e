//! Rules of the house that no compiler holds: the import arrows, the path of a request in
//! ARCHITECTURE.md, the list of tests, the size of files, nothing left unfinished.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the workspace").to_owned()
}

/// Every Rust file of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<_> = ["config", "router", "backhaul", "wakeup", "acme", "edge-proxy", "loadtest", "tests"]
        .map(|f| root().join(f))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    assert!(files.len() > 60);
    files
}

#[test]
fn imports_go_one_way() {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".into()])
        .exec()
        .unwrap();
    let ours: BTreeSet<_> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let imports: BTreeMap<_, BTreeSet<_>> = metadata
        .packages
        .iter()
        .map(|package| {
            let of = package.dependencies.iter().map(|dependency| dependency.name.clone());
            (package.name.to_string(), of.filter(|name| ours.contains(name)).collect())
        })
        .collect();
    let allowed = [
        ("config", &[][..]),
        ("router", &["config"]),
        ("backhaul", &["config", "router"]),
        ("wakeup", &["config", "router", "backhaul"]),
        ("acme", &["config"]),
        ("edge-proxy", &["config", "router", "backhaul", "wakeup", "acme"]),
        ("loadtest", &["acme", "backhaul", "config", "router"]),
        ("tests", &["config", "router", "backhaul", "wakeup", "acme", "edge-proxy"]),
    ];
    assert_eq!(ours.len(), allowed.len(), "a new crate needs its arrow here and in ARCHITECTURE.md");
    for (name, may) in allowed {
        for import in &imports[name] {
            assert!(may.contains(&import.as_str()), "{name} must not import {import}");
        }
    }
}

#[test]
fn the_path_of_a_request_names_files_that_exist() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut named = 0;
    for block in text.split("```").skip(1).step_by(2) {
        for file in block.split_whitespace().filter(|word| word.ends_with(".rs") && word.contains('/')) {
            assert!(root().join(file).is_file(), "ARCHITECTURE.md names {file}, which does not exist");
            named += 1;
        }
    }
    assert!(named >= 10);
}

#[test]
fn each_test_of_the_list_has_a_file_that_says_so() {
    let heads: String = sources()
        .iter()
        .flat_map(|path| std::fs::read_to_string(path).unwrap().lines().take(3).map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.starts_with("//!"))
        .collect();
    // Of the list at the end of wake.md.
    for number in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
        let found = [':', ',', '.'].iter().any(|end| heads.contains(&format!("wake.md, test {number}{end}")));
        assert!(found, "no file says that it is test {number}");
    }
    for half in ["by wall", "by instructions"] {
        assert!(heads.contains(&format!("wake.md, test 15, {half}")), "no file is test 15 {half}");
    }
}

#[test]
fn nothing_is_left_unfinished_and_no_file_is_too_long_to_hold_in_mind() {
    // Written apart, so that this file does not find itself.
    let marks = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("FIX", "ME"), concat!("#[ign", "ore")];
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} has {mark}", path.display());
        }
        assert!(text.lines().count() <= 800, "{} is longer than 800 lines", path.display());
        let first = text.lines().next().unwrap_or("");
        let in_module_of_tests = path.ends_with("tests.rs");
        assert!(first.starts_with("//!") || in_module_of_tests, "{} does not say what it is for", path.display());
    }
}
