//! What the scanners people judge a server by say of it.

use harness::{Demo, Options, tools};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::Command;

/// Where `sslyze` is: on `PATH`, or where `tests/run` put it.
fn sslyze() -> Option<PathBuf> {
    let installed = std::env::var_os("HOME")
        .map(|home| PathBuf::from(home).join(".cache/edge-proxy-test-tools/sslyze/bin/sslyze"))
        .filter(|path| path.is_file());
    installed.or_else(|| tools::find("sslyze"))
}

async fn demo() -> Demo {
    // They come without a name too.
    let config = "[tls]\ndefault_name = \"hello.sprites.localhost\"\n";
    Demo::start(Options { config: Some(config.into()), ..Options::default() }).await
}

#[tokio::test]
async fn sslyze_finds_nothing_but_modern_tls() {
    let Some(sslyze) = sslyze() else {
        assert!(!tools::missing("sslyze"));
        return;
    };
    let demo = demo().await;
    let report = demo.data().join("sslyze.json");
    let mut scan = Command::new(sslyze);
    scan.arg("--json_out").arg(&report).arg("--certinfo_ca_file").arg(demo.ca());
    scan.args(["--mozilla_config", "disable"]);
    scan.args(
        "--sslv2 --sslv3 --tlsv1 --tlsv1_1 --tlsv1_2 --tlsv1_3 --compression --openssl_ccs --fallback".split(' '),
    );
    scan.args("--heartbleed --robot --reneg --ems --early_data --certinfo".split(' '));
    scan.args(["--sni", &demo.host("hello"), &demo.https.to_string()]);
    let output = scan.stdin(Stdio::null()).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect(&said)).unwrap();
    let scan = &report["server_scan_results"][0]["scan_result"];
    let result = |name: &str| {
        assert_eq!(scan[name]["status"], "COMPLETED", "{name}: {said}");
        &scan[name]["result"]
    };
    let suites = |name: &str| result(name)["accepted_cipher_suites"].as_array().unwrap().clone();
    for old in ["ssl_2_0_cipher_suites", "ssl_3_0_cipher_suites", "tls_1_0_cipher_suites", "tls_1_1_cipher_suites"] {
        assert!(suites(old).is_empty(), "{old}: {said}");
    }
    for new in ["tls_1_2_cipher_suites", "tls_1_3_cipher_suites"] {
        let names: Vec<_> = suites(new).iter().map(|suite| suite["cipher_suite"]["name"].to_string()).collect();
        let modern = |name: &String| (name.contains("_GCM_") || name.contains("CHACHA20")) && !name.contains("TLS_RSA");
        assert!(names.len() == 3 && names.iter().all(modern), "{names:?}");
    }
    assert_eq!(result("tls_compression")["supports_compression"], false);
    assert_eq!(result("openssl_ccs_injection")["is_vulnerable_to_ccs_injection"], false);
    assert_eq!(result("heartbleed")["is_vulnerable_to_heartbleed"], false);
    assert_eq!(result("robot")["robot_result"], "NOT_VULNERABLE_RSA_NOT_SUPPORTED");
    assert_eq!(result("tls_fallback_scsv")["supports_fallback_scsv"], true);
    assert_eq!(result("tls_extended_master_secret")["supports_ems_extension"], true);
    assert_eq!(result("session_renegotiation")["is_vulnerable_to_client_renegotiation_dos"], false);
    assert_eq!(result("tls_1_3_early_data")["supports_early_data"], false);
    let deployment = &result("certificate_info")["certificate_deployments"][0];
    assert_eq!(deployment["received_chain_has_valid_order"], true, "{said}");
    let trusted = deployment["path_validation_results"].as_array().unwrap();
    assert!(trusted.iter().any(|store| store["was_validation_successful"] == true), "{said}");
}

#[tokio::test]
async fn testssl_finds_nothing_above_its_lowest_severity_but_the_private_ca() {
    if std::env::var_os("EDGE_PROXY_TEST_FULL").is_none_or(|full| full != "1") {
        // It takes two minutes.
        return println!("tests/run --full runs it");
    }
    if !tools::requires(&["testssl", "hexdump"]) {
        return;
    }
    let demo = demo().await;
    let report = demo.data().join("testssl.json");
    let mut scan = Command::new("testssl");
    scan.args(["--quiet", "--color", "0", "--warnings", "batch", "--ip", "127.0.0.1"]);
    scan.arg("--jsonfile").arg(&report).arg("--add-ca").arg(demo.ca());
    scan.arg(format!("{}:{}", demo.host("hello"), demo.https.port()));
    let output = scan.stdin(Stdio::null()).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings: Value = serde_json::from_slice(&std::fs::read(&report).expect(&said)).unwrap();
    let findings = findings.as_array().unwrap();
    assert!(findings.len() > 50, "{said}");
    let is_bad = |finding: &&Value| {
        let (id, severity) = (finding["id"].as_str().unwrap(), finding["severity"].as_str().unwrap());
        let is_private = id.starts_with("cert_") || id.starts_with("overall_grade");
        // The headers are its sprite's; WARN is what this scanner could not do.
        !matches!(severity, "OK" | "INFO" | "LOW" | "DEBUG" | "WARN") && !is_private && id != "security_headers"
    };
    let bad: Vec<_> = findings.iter().filter(is_bad).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
