//! Private by default: nobody wakes what he may not see, and learns nothing about it.

use harness::client::{Answer, Client, Version, empty};
use harness::{Demo, admin, until};
use http::{HeaderMap, Method};

/// Makes a private sprite of `guest.py`; its token.
async fn create_private(demo: &Demo, name: &str) -> String {
    let made = demo.admin(&["sprite", "create", name, "--command", &demo.guest_command()]).await;
    assert_eq!(made["access"], "private", "the default: {made}");
    made["token"].as_str().unwrap_or_else(|| panic!("no token in {made}")).to_owned()
}

async fn ask(demo: &Demo, client: &mut Client, name: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = demo.request(Method::GET, name, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send(request.body(empty()).unwrap()).await
}

/// What a stranger sees of `name`, without what differs from request to request.
async fn strangers_view(demo: &Demo, name: &str, path: &str) -> (u16, HeaderMap, String) {
    let mut client = demo.connect(Version::H1, name).await;
    let mut answer = ask(demo, &mut client, name, path, &[]).await;
    let id = answer.header("x-request-id").to_owned();
    assert_eq!(id.len(), 32);
    for varying in ["x-request-id", "date"] {
        answer.headers.remove(varying);
    }
    (answer.status, answer.headers.clone(), answer.text().replace(&id, ""))
}

#[tokio::test]
async fn a_stranger_wakes_nothing_and_cannot_tell_one_state_from_another() {
    let demo = Demo::new().await;
    let token = create_private(&demo, "secret").await;
    let bearer = format!("Bearer {token}");
    demo.admin(&["sprite", "create", "broken", "--command", "exit 1"]).await;
    demo.admin(&["sprite", "create", "destroyed", "--command", "exit 1"]).await;
    demo.admin(&["sprite", "delete", "destroyed"]).await;

    for path in ["/", "/robots.txt", "/favicon.ico", "/.well-known/other"] {
        let asleep = strangers_view(&demo, "secret", path).await;
        assert_eq!((asleep.0, &asleep.1["www-authenticate"]), (401, &"Bearer realm=\"sprite\"".parse().unwrap()));
        assert_eq!(strangers_view(&demo, "broken", path).await, asleep, "{path}");
        assert_eq!(strangers_view(&demo, "destroyed", path).await, asleep, "{path}");
        assert_eq!(strangers_view(&demo, "9999--secret", path).await, asleep, "whatever ports it has: {path}");
    }
    let asleep = strangers_view(&demo, "secret", "/").await;
    assert_eq!(demo.row("secret").await["state"], "asleep");
    assert_eq!(demo.receipts("secret").await.len(), 0, "no stranger has woken it");

    let mut client = demo.connect(Version::H2, "secret").await;
    assert_eq!(ask(&demo, &mut client, "secret", "/", &[("authorization", &bearer)]).await.status, 200);
    assert_eq!(demo.row("secret").await["state"], "running");
    assert_eq!(strangers_view(&demo, "secret", "/").await, asleep, "and it runs now");
    // Who may ask hears more.
    demo.admin(&["sprite", "delete", "secret"]).await;
    let gone = ask(&demo, &mut client, "secret", "/", &[("authorization", &bearer)]).await;
    assert_eq!((gone.status, &gone.json()["code"]), (410, &"gone".into()));
}

#[tokio::test]
async fn a_token_opens_it_and_never_reaches_the_guest() {
    let demo = Demo::new().await;
    let token = create_private(&demo, "tokens").await;
    let bearer = format!("Bearer {token}");
    for version in harness::client::VERSIONS {
        let mut client = demo.connect(version, "tokens").await;
        let head = ask(&demo, &mut client, "tokens", "/head", &[("authorization", &bearer)]).await;
        assert_eq!(head.status, 200, "{head:?}");
        assert!(!head.text().contains(&token), "{}", head.text());
        // An app with an `Authorization` of its own.
        let with = [("sprite-token", token.as_str()), ("authorization", "Bearer the-apps-own")];
        let head = ask(&demo, &mut client, "tokens", "/head", &with).await;
        assert!(head.text().contains("the-apps-own") && !head.text().contains(&token), "{}", head.text());
        for wrong in ["Bearer spt_", "Bearer", "Basic x", &format!("Basic {token}"), &format!("Bearer {token}x")] {
            let refused = ask(&demo, &mut client, "tokens", "/head", &[("authorization", wrong)]).await;
            assert_eq!((refused.status, &refused.json()["code"]), (401, &"unauthorized".into()), "{wrong}");
        }
    }
    let second = demo.admin(&["sprite", "token", "tokens"]).await["token"].as_str().unwrap().to_owned();
    let mut client = demo.connect(Version::H2, "tokens").await;
    for token in [&token, &second] {
        assert_eq!(ask(&demo, &mut client, "tokens", "/", &[("sprite-token", token)]).await.status, 200);
    }
    assert_eq!(demo.admin(&["sprite", "token", "tokens", "--revoke"]).await["revoked"], 2);
    for token in [&token, &second] {
        assert_eq!(ask(&demo, &mut client, "tokens", "/", &[("sprite-token", token)]).await.status, 401);
    }
}

#[tokio::test]
async fn a_share_link_becomes_a_cookie_and_opens_its_sprite_until_it_is_revoked() {
    let demo = Demo::new().await;
    create_private(&demo, "shared").await;
    let url = demo.admin(&["sprite", "share", "shared", "--expires", "1h"]).await["url"].as_str().unwrap().to_owned();
    let (clean, query) = url.split_once('?').unwrap();
    assert!(clean.ends_with(&format!("{}/", demo.authority("shared"))) && query.starts_with("sprite-share="), "{url}");

    let mut client = demo.connect(Version::H2, "shared").await;
    let link = format!("//elsewhere.example/?a=1&{query}&b=2");
    // Only a navigation is exchanged: a script of another site that has the link gets nothing.
    let script = ask(&demo, &mut client, "shared", &link, &[("sec-fetch-mode", "cors")]).await;
    assert_eq!(script.status, 401);
    let exchanged = ask(&demo, &mut client, "shared", &link, &[("sec-fetch-mode", "navigate")]).await;
    assert_eq!(exchanged.status, 302, "{exchanged:?}");
    let whole = format!("https://{}//elsewhere.example/?a=1&b=2", demo.authority("shared"));
    assert_eq!(exchanged.header("location"), whole, "to this host, without the secret");
    assert_eq!(exchanged.header("referrer-policy"), "no-referrer");
    assert_eq!(demo.row("shared").await["state"], "asleep", "the exchange wakes nothing");
    let set = exchanged.header("set-cookie").to_owned();
    assert!(set.starts_with("__Host-sprite-share="), "{set}");
    for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=None", "Partitioned", "Max-Age=3"] {
        assert!(set.contains(attribute), "{attribute} in {set}");
    }

    let cookie = set.split(';').next().unwrap();
    let cookies = format!("mine=1; {cookie}; yours=2");
    let head = ask(&demo, &mut client, "shared", "/head", &[("cookie", &cookies)]).await;
    assert_eq!(head.status, 200, "{head:?}");
    assert!(head.text().contains("mine=1; yours=2") && !head.text().contains("sprite-share"), "{}", head.text());

    // Not for another sprite, not for another port, not after it was changed.
    create_private(&demo, "other").await;
    let mut other = demo.connect(Version::H2, "other").await;
    assert_eq!(ask(&demo, &mut other, "other", "/", &[("cookie", cookie)]).await.status, 401);
    let mut port = demo.connect(Version::H2, "8080--shared").await;
    assert_eq!(ask(&demo, &mut port, "8080--shared", "/", &[("cookie", cookie)]).await.status, 401);
    assert_eq!(ask(&demo, &mut client, "shared", "/", &[("cookie", &cookie[..cookie.len() - 1])]).await.status, 401);

    demo.admin(&["sprite", "share", "shared", "--revoke"]).await;
    assert_eq!(ask(&demo, &mut client, "shared", "/", &[("cookie", cookie)]).await.status, 401, "revoked at once");
    assert_eq!(ask(&demo, &mut client, "shared", &format!("/?{query}"), &[]).await.status, 401);
}

#[tokio::test]
async fn a_link_ends_when_it_says() {
    let demo = Demo::new().await;
    create_private(&demo, "brief").await;
    let mut client = demo.connect(Version::H1, "brief").await;
    // A busy machine may need more than the two seconds to go in and look.
    let cookie = until("a look before its end", std::time::Duration::from_secs(60), async || {
        let made = demo.admin(&["sprite", "share", "brief", "--expires", "2s"]).await;
        let url = made["url"].as_str().unwrap().to_owned();
        let query = url.split_once('?').unwrap().1;
        let mut client = demo.connect(Version::H1, "brief").await;
        let exchanged = ask(&demo, &mut client, "brief", &format!("/?{query}"), &[]).await;
        let cookie = exchanged.header("set-cookie").split(';').next().unwrap().to_owned();
        (ask(&demo, &mut client, "brief", "/", &[("cookie", &cookie)]).await.status == 200).then_some(cookie)
    })
    .await;
    until("its end", std::time::Duration::from_secs(10), async || {
        let mut client = demo.connect(Version::H1, "brief").await;
        (ask(&demo, &mut client, "brief", "/", &[("cookie", &cookie)]).await.status == 401).then_some(())
    })
    .await;
    // On the connection that has had it verified too.
    assert_eq!(ask(&demo, &mut client, "brief", "/", &[("cookie", &cookie)]).await.status, 401);
    let refused = demo.try_admin(&["sprite", "share", "brief", "--expires", "10years"]).await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("365days"), "{refused:?}");
}

#[tokio::test]
async fn access_can_be_changed_and_the_list_of_secrets_is_kept_from_everybody() {
    let demo = Demo::new().await;
    let token = create_private(&demo, "changes").await;
    demo.admin(&["sprite", "access", "changes", "public"]).await;
    assert_eq!(demo.get("changes", "/").await.status, 200);
    let refused = demo.try_admin(&["sprite", "share", "changes"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("public"), "{refused:?}");
    let again = demo.admin(&["sprite", "access", "changes", "private"]).await;
    assert_eq!(demo.get("changes", "/").await.status, 401);
    let new = again["token"].as_str().unwrap();
    let mut client = demo.connect(Version::H1, "changes").await;
    assert_eq!(ask(&demo, &mut client, "changes", "/", &[("sprite-token", &token)]).await.status, 401, "forgotten");
    assert_eq!(ask(&demo, &mut client, "changes", "/", &[("sprite-token", new)]).await.status, 200);
    // Neither shown again nor stored: the store has hashes, and is its owner's alone.
    let shown = demo.admin(&["sprite", "show", "changes"]).await.to_string();
    assert!(!shown.contains(new) && shown.contains("private"), "{shown}");
    for entry in std::fs::read_dir(demo.data()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        let bytes = std::fs::read(entry.path()).unwrap();
        let found = bytes.windows(new.len()).any(|window| window == new.as_bytes());
        assert!(!found, "the token is in {:?}", entry.path());
    }
    assert!(!demo.log().contains(new) && !demo.log().contains(&token));
    // A second sprite by the same name leaves the first one's secrets alone.
    let twice = demo.try_admin(&["sprite", "create", "changes", "--command", "true"]).await;
    assert!(!twice.status.success());
    assert_eq!(ask(&demo, &mut client, "changes", "/", &[("sprite-token", new)]).await.status, 200);
}

#[tokio::test]
async fn a_guest_sets_no_cookie_for_its_neighbours_nor_ours() {
    let demo = Demo::new().await;
    demo.create_guest("cookies").await;
    let mut client = demo.connect(Version::H1, "cookies").await;
    let answer = client.get(&demo, "cookies", "/cookies").await;
    let set: Vec<_> = answer.headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
    assert_eq!(set, ["own=1; Path=/", "host=1; Domain=cookies.sprites.localhost"]);
}

#[tokio::test]
async fn with_secret_names_a_name_that_never_was_is_a_private_one() {
    let demo = Demo::start(harness::Options {
        arguments: vec!["--unknown-names".into(), "as-private".into()],
        ..harness::Options::default()
    })
    .await;
    create_private(&demo, "real").await;
    let real = strangers_view(&demo, "real", "/").await;
    assert_eq!(real.0, 401);
    assert_eq!(strangers_view(&demo, "never-was", "/").await, real);
    let mut client = demo.connect(Version::H2, "never-was").await;
    let guess = ask(&demo, &mut client, "never-was", "/", &[("authorization", "Bearer spt_guess")]).await;
    assert_eq!(guess.status, 401);
    assert!(admin::run(&["demo", "--unknown-names", "perhaps"]).await.status.code() == Some(64));
}
