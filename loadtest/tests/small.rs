//! Measurements, small: that they come to their end and measured what they say. No time is judged.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// What one measurement says, as JSON.
fn measured(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .output()
        .expect("loadtest is built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}: {said}", output.status);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_table_is_measured_beside_a_writer() {
    let report = measured(&["table", "--routes", "2000", "--updates", "500", "--seconds", "1"]);
    assert_eq!(report["routes"], 2_000);
    assert!(report["updates_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["beside_writer"]["p99_ms"].as_f64().unwrap() > 0.0);
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").unwrap_or_default();
    let installed = Path::new(&home).join(".cache/edge-proxy-test-tools/venv/bin").join(program);
    let there = installed.is_file() || std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    assert!(there || std::env::var_os("EDGE_PROXY_BIN").is_none(), "tests/run installs {program}");
    there
}

/// Each write is seen by the other end, in order; the measurement fails when one is not.
fn each_write_is_seen(engine: &str) {
    let report = measured(&["propagation", "--engine", engine, "--puts", "30", "--pause-ms", "1", "--rows", "100"]);
    assert_eq!(report["puts"], 30);
    let of = |what: &str| report[what]["p50_ms"].as_f64().expect("a figure");
    assert!(of("visible") > 0.0 && of("acknowledged") > 0.0);
}

#[test]
fn each_write_to_an_embedded_store_is_seen() {
    each_write_is_seen("embedded");
}

#[test]
fn each_write_to_nats_is_seen_by_another_process() {
    if is_there("nats-server") {
        each_write_is_seen("nats");
    }
}

#[test]
fn each_write_to_etcd_is_seen_by_another_process() {
    if is_there("etcd") {
        each_write_is_seen("etcd");
    }
}

#[test]
fn the_dns_is_asked_and_answers() {
    let edge = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("edge-proxy");
    if !edge.is_file() && std::env::var_os("EDGE_PROXY_BIN").is_none() {
        eprintln!("{} is not built", edge.display());
        return;
    }
    let report = measured(&["dns", "--seconds", "1", "--networks", "200", "--limit", "1000000"]);
    assert!(report["answers"].as_u64().unwrap() > 100 && report["cut"] == 0);
    assert!(report["answers_per_processor_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn each_handshake_is_a_full_one_and_is_counted() {
    let edge = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("edge-proxy");
    if !edge.is_file() && std::env::var_os("EDGE_PROXY_BIN").is_none() {
        eprintln!("{} is not built", edge.display());
        return;
    }
    let report = measured(&["handshakes", "--alone", "--rounds", "2", "--handshakes", "10"]);
    assert_eq!((&report["handshakes"], &report["programs"][0]["name"]), (&20.into(), &"edge".into()));
    assert!(report["programs"][0]["least_us"].as_f64().unwrap() > 0.0);
}

#[test]
fn an_edge_with_routes_of_its_last_run_answers_after_a_start() {
    let edge = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("edge-proxy");
    if !edge.is_file() && std::env::var_os("EDGE_PROXY_BIN").is_none() {
        eprintln!("{} is not built", edge.display());
        return;
    }
    let report = measured(&["cold-start", "--routes", "3000", "--private", "--starts", "1"]);
    assert!(report["routes"].as_u64().unwrap() >= 3_000);
}
