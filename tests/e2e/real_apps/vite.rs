//! A Vite dev server with hot reload, under Chromium.

use harness::chromium::Chromium;
use harness::guest::shell;
use harness::{Demo, requires, tools, until, within};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The last line that runs on Debian 12's own node 18.
const VITE: &str = "6.4.6";
const PAGE: &str = r#"<!doctype html><title>app</title><p id="app"></p><script type="module" src="/main.js"></script>"#;
const MAIN: &str = "import { text } from './text.js'
const show = (text) => { document.querySelector('#app').textContent = text }
show(text)
if (import.meta.hot) import.meta.hot.accept('./text.js', (module) => show(module.text))
";
const STEP_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_vite_dev_server_reloads_hot_in_chromium_through_sleep() {
    if !requires(&["node", "npm", "chromium"]) {
        return;
    }
    let _quiet = tools::quiet().await;
    let Some(modules) = installed().await else {
        let _ = tools::missing("the npm package vite");
        return;
    };
    // Under the folder of its modules, where node looks for them.
    let app = tempfile::Builder::new().prefix("app-").tempdir_in(&modules).unwrap();
    let write =
        |text: &str| std::fs::write(app.path().join("text.js"), format!("export const text = '{text}'\n")).unwrap();
    std::fs::write(app.path().join("index.html"), PAGE).unwrap();
    std::fs::write(app.path().join("main.js"), MAIN).unwrap();
    write("one");
    let demo = Demo::new().await;
    let vite = modules.join("node_modules/vite/bin/vite.js");
    let command =
        format!("cd {} && exec node {} --host 127.0.0.1 --strictPort --port $PORT", shell(app.path()), shell(&vite));
    demo.create("dev", &command).await;

    let mut browser = Chromium::start().await;
    browser.navigate(&demo.url("dev", "/")).await;
    shows(&mut browser, "one", &|| ()).await;

    // The text changes and the page is not loaded again: that is hot reload, over a WebSocket.
    browser.evaluate("window.loaded = 'once'").await;
    shows(&mut browser, "two", &|| write("two")).await;
    assert_eq!(browser.evaluate("window.loaded").await, "once");

    slept(&demo, "warm").await;
    reloads(&mut browser).await;
    shows(&mut browser, "two", &|| ()).await;
    browser.evaluate("window.loaded = 'twice'").await;
    shows(&mut browser, "three", &|| write("three")).await;
    assert_eq!(browser.evaluate("window.loaded").await, "twice");

    slept(&demo, "cold").await;
    reloads(&mut browser).await;
    shows(&mut browser, "three", &|| ()).await;
    browser.close().await;
}

/// Loads the page again, or sees that it did so itself: Vite's own script reloads when its
/// server was away.
async fn reloads(browser: &mut Chromium) {
    browser.evaluate("location.reload()").await;
    until("another page", STEP_LIMIT, async || {
        (browser.evaluate("document.readyState + window.loaded").await == "completeundefined").then_some(())
    })
    .await;
}

/// Puts it to sleep, and waits for the receipt that it was woken again: an open page asks
/// for its server every second, so nobody may ever see it asleep.
async fn slept(demo: &Demo, kind: &str) {
    let wakes = async || demo.receipts("dev").await.iter().filter(|receipt| receipt["kind"] == kind).count();
    let before = wakes().await;
    let depth: &[&str] = if kind == "cold" { &["--cold"] } else { &[] };
    demo.admin(&[&["sprite", "sleep", "dev"], depth].concat()).await;
    assert_eq!(demo.get("dev", "/").await.status, 200);
    until("the wake after the sleep", STEP_LIMIT, async || (wakes().await > before).then_some(())).await;
}

/// Waits until the page shows `text`; `change` is done again and again, because the
/// page's WebSocket may not be open yet when it is done first.
async fn shows(browser: &mut Chromium, text: &str, change: &dyn Fn()) {
    let mut looks = 0;
    until(&format!("the page to show {text:?}"), STEP_LIMIT, async || {
        if looks % 40 == 0 {
            change();
        }
        looks += 1;
        let shown = browser.evaluate("document.querySelector('#app')?.textContent").await;
        (shown == text).then_some(())
    })
    .await;
}

/// The folder with vite in it; installed once per target folder.
async fn installed() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("vite-{VITE}"));
    if folder.join("node_modules/vite/bin/vite.js").is_file() {
        return Some(folder);
    }
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("package.json"), "{\"private\": true}\n").unwrap();
    let mut npm = tokio::process::Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--loglevel=error", &format!("vite@{VITE}")]);
    npm.current_dir(&folder).kill_on_drop(true);
    let output = within("npm install vite", Duration::from_secs(180), npm.output()).await.unwrap();
    if !output.status.success() {
        eprintln!("npm: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(folder)
}
