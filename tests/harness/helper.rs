//! A program a test needs beside ours: it says in its first line that it serves, and ends
//! when its standard input does.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running one. Dropped, it ends by itself with all it has started.
pub struct Helper {
    child: Child,
    /// Its first line.
    pub ready: String,
}

impl Helper {
    /// Starts a Python program with `arguments`, and waits for its first line.
    ///
    /// # Panics
    /// When there is no Python, or it ends without a line.
    pub async fn python(program: &str, arguments: &[&Path]) -> Self {
        let python = crate::tools::python(&[]).expect("python3 is installed");
        let mut command = Command::new(python);
        command.arg("-c").arg(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let mut out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            out.read_line(&mut line).map(|_| line)
        });
        let line = line.await.expect("it reads only").expect("a pipe of ours");
        assert!(line.ends_with('\n'), "it ended before it served: {line:?}");
        Self { child, ready: line.trim_end().into() }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
