//! `python3 -m http.server` under curl.

use harness::{Demo, requires};

#[tokio::test]
async fn a_file_server_serves_through_sleep() {
    if !requires(&["curl", "python3"]) {
        return;
    }
    let demo = Demo::new().await;
    // Exactly what the README says a stranger may type.
    demo.create("site", "python3 -m http.server $PORT").await;
    let listing = demo.curl("site", "/", &[]).await;
    assert_eq!((listing.status, listing.header("sprite-wake")), (200, "cold"));
    assert!(listing.text().contains("Directory listing"), "{}", listing.text());

    // Its folder is where it works; a file put there is served, also after it was ended.
    demo.create("writer", "echo written > page.txt; exec python3 -m http.server $PORT").await;
    assert_eq!(demo.curl("writer", "/page.txt", &[]).await.text(), "written\n");
    for (cold, kind) in [(false, "warm"), (true, "cold")] {
        if cold {
            demo.sleep_cold("writer").await
        } else {
            demo.sleep_warm("writer").await
        }
        for protocol in ["--http1.1", "--http2"] {
            let page = demo.curl("writer", "/page.txt", &[protocol]).await;
            assert_eq!((page.status, page.text().as_str()), (200, "written\n"));
            let wanted = if protocol == "--http1.1" { kind } else { "" };
            assert_eq!(page.header("sprite-wake"), wanted, "{protocol}");
        }
    }
    let part = demo.curl("writer", "/page.txt", &["--head"]).await;
    assert_eq!((part.status, part.header("content-length"), part.body.len()), (200, "8", 0));
}
