//! Where the program under test is.

use std::path::PathBuf;

/// The `edge-proxy` to test: `EDGE_PROXY_BIN`, or the one beside this test's own profile.
///
/// # Panics
/// When there is none; the message says what to run. A test never builds it: two
/// builds at once would wait for each other.
#[must_use]
pub fn edge_proxy() -> PathBuf {
    if let Some(named) = std::env::var_os("EDGE_PROXY_BIN") {
        let path = PathBuf::from(named);
        assert!(path.is_file(), "EDGE_PROXY_BIN names {}, which is no file", path.display());
        return path;
    }
    beside_the_test("edge-proxy")
}

/// A program of this workspace, built in the same profile as the running test.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn beside_the_test(name: &str) -> PathBuf {
    // target/PROFILE/deps/e2e-HASH → target/PROFILE/NAME
    let test = std::env::current_exe().expect("a running program has a path");
    let path = test.ancestors().nth(2).expect("tests are two folders deep").join(name);
    assert!(
        path.is_file(),
        "\n\n  {name} is not built: {} does not exist.\n  Run: cargo build -p {name}\n",
        path.display()
    );
    path
}
