use super::*;
use crate::access::Access;
use crate::domains::row::tests::held;
use crate::names::Suffix;
use crate::route::{HostId, Route, Tenant};
use std::collections::HashMap;

fn route(generation: u64, host: u32) -> Route {
    Route {
        generation: Generation(generation),
        host: HostId(host),
        tenant: Tenant::default(),
        access: Access::Public,
        wake: None,
        ports: [].into(),
        client_certificate: None,
        deleted: false,
    }
}

fn name(text: &str) -> SpriteName {
    SpriteName::parse(text).unwrap()
}

fn regions(others: &[&str]) -> Routes {
    let region = |name: &&str| Region { name: (*name).into(), table: Arc::new(RouteTable::new()) };
    Routes::new(region(&"fra"), others.iter().map(region).collect())
}

/// The table of a region.
fn of<'a>(routes: &'a Routes, region: &str) -> &'a RouteTable {
    &routes.all().find(|known| &*known.name == region).unwrap().table
}

fn host(routes: &Routes, text: &str) -> u32 {
    match routes.lookup(text) {
        Lookup::Found(route) => route.host.0,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn the_highest_generation_counts_whoever_says_it() {
    let routes = regions(&["ams", "lhr"]);
    for (region, generation, at) in [("fra", 2, 1), ("ams", 3, 2), ("lhr", 1, 3)] {
        of(&routes, region).apply_put(&name("a"), route(generation, at));
    }
    assert_eq!(host(&routes, "a"), 2);
    of(&routes, "lhr").apply_put(&name("a"), route(4, 3));
    assert_eq!(host(&routes, "a"), 3);
    of(&routes, "fra").apply_put(&name("a"), route(5, 1));
    assert_eq!(host(&routes, "a"), 1);
    // What one region loses leaves the others' word.
    of(&routes, "fra").apply_remove(&name("a"));
    assert_eq!(host(&routes, "a"), 3);
    let (found, whose) = routes.explain("a");
    assert_eq!((found, &*whose.unwrap().name), (routes.lookup("a"), "lhr"));
    of(&routes, "fra").apply_put(&name("b"), route(1, 1));
    assert_eq!(&*routes.explain("b").1.unwrap().name, "fra");
    assert!(routes.explain("c").1.is_none());
    assert_eq!(routes.len(), 3);
}

#[test]
fn of_equal_generations_the_own_region_counts_then_the_first_by_name() {
    let routes = regions(&["lhr", "ams"]);
    for (region, at) in [("lhr", 3), ("ams", 2)] {
        of(&routes, region).apply_put(&name("a"), route(7, at));
        of(&routes, region).apply_put(&name("b"), route(7, at));
    }
    of(&routes, "fra").apply_put(&name("a"), route(7, 1));
    assert_eq!((host(&routes, "a"), host(&routes, "b")), (1, 2));
    let order: Vec<_> = routes.all().map(|region| &*region.name).collect();
    assert_eq!(order, ["fra", "ams", "lhr"]);
}

#[test]
fn a_tombstone_counts_as_much_as_a_live_row() {
    let routes = regions(&["ams"]);
    of(&routes, "fra").apply_put(&name("a"), route(2, 1));
    let tombstone = Route { deleted: true, ..route(3, 2) };
    of(&routes, "ams").apply_put(&name("a"), tombstone.clone());
    assert_eq!(routes.lookup("a"), Lookup::Found(tombstone));
    of(&routes, "fra").apply_put(&name("a"), route(4, 1));
    assert_eq!(host(&routes, "a"), 1);
}

#[test]
fn a_name_is_unknown_when_every_region_has_been_read() {
    for order in [["fra", "ams", "lhr"], ["lhr", "ams", "fra"], ["ams", "fra", "lhr"]] {
        let routes = regions(&["ams", "lhr"]);
        for region in order {
            assert_eq!(routes.lookup("a"), Lookup::NotReady, "{order:?} before {region}");
            of(&routes, region).followed().mark_synced();
        }
        assert_eq!(routes.lookup("a"), Lookup::Unknown);
    }
    // What one has is found, whatever the others have not said yet.
    let routes = regions(&["ams"]);
    of(&routes, "ams").apply_put(&name("a"), route(1, 2));
    assert_eq!(host(&routes, "a"), 2);
}

/// Random writes of three regions, against what one sentence says of them.
#[test]
fn whatever_three_regions_write_the_rule_holds() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    const NAMES: usize = 6;
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let routes = regions(&["lhr", "ams"]);
        // In the order in which they count.
        let order = ["fra", "ams", "lhr"];
        let mut synced = [false; 3];
        let mut said: HashMap<(usize, usize), Route> = HashMap::new();
        for step in 0..200 {
            let (at, number) = (rng.random_range(0..3), rng.random_range(0..NAMES));
            let (table, sprite) = (of(&routes, order[at]), name(&format!("s{number}")));
            match rng.random_range(0..10) {
                0 => {
                    table.followed().mark_synced();
                    synced[at] = true;
                }
                1 | 2 => {
                    table.apply_remove(&sprite);
                    said.remove(&(at, number));
                }
                _ => {
                    let generation = rng.random_range(1..8);
                    let deleted = rng.random_bool(0.2);
                    // Which write it was stands in the host's number.
                    let new = Route { deleted, ..route(generation, step * 3 + u32::try_from(at).unwrap()) };
                    let before = said.get(&(at, number)).map_or(0, |known| known.generation.0);
                    assert_eq!(table.apply_put(&sprite, new.clone()), generation >= before);
                    if generation >= before {
                        said.insert((at, number), new);
                    }
                }
            }
            for number in 0..NAMES {
                let present = (0..3).filter_map(|at| said.get(&(at, number)).map(|route| (at, route)));
                // The last of equal ones, so that the first region in order is that.
                let best = present.rev().max_by_key(|(_, route)| route.generation);
                let wanted = match best {
                    Some((_, route)) => Lookup::Found(route.clone()),
                    None if synced == [true; 3] => Lookup::Unknown,
                    None => Lookup::NotReady,
                };
                let (found, whose) = routes.explain(&name(&format!("s{number}")));
                assert_eq!(found, wanted, "seed {seed}, step {step}");
                assert_eq!(routes.lookup(&name(&format!("s{number}"))), wanted);
                assert_eq!(whose.map(|region| &*region.name), best.map(|(at, _)| order[at]));
            }
        }
    }
}

fn domain(text: &str) -> DomainName {
    DomainName::parse_any(text).unwrap()
}

fn sprite(text: &str) -> DomainLookup {
    DomainLookup::Sprite(name(text))
}

#[test]
fn a_domain_leads_where_the_first_region_leads_it() {
    let fixed = HashMap::from([(domain("site.localhost"), name("site"))]);
    let own = DomainTable::new(fixed, &[Suffix::parse("sprites.dev").unwrap()], &[]);
    let others = ["lhr", "ams"].map(|name| Region { name: name.into(), table: Arc::new(own.beside()) });
    let domains = DomainRegions::new(Region { name: "fra".into(), table: Arc::new(own) }, others.into());
    let of = |region: &str| &*domains.all().find(|known| &*known.name == region).unwrap().table;
    assert_eq!(domains.lookup("a.example"), DomainLookup::NotReady);
    of("lhr").apply_put(domain("a.example"), held("t", "far"));
    assert_eq!(domains.lookup("A.example"), sprite("far"));
    of("ams").apply_put(domain("a.example"), held("t", "near"));
    assert_eq!(domains.lookup("a.example"), sprite("near"));
    assert!(domains.is_proved(&domain("a.example")));
    // One that is not served in the own region may be in another one.
    let mut suspended = held("t", "own");
    suspended.holder.as_mut().unwrap().suspended_at = Some(1);
    of("fra").apply_put(domain("a.example"), suspended);
    assert_eq!(domains.lookup("a.example"), sprite("near"));
    of("fra").apply_put(domain("a.example"), held("t", "own"));
    assert_eq!(domains.lookup("a.example"), sprite("own"));
    assert_eq!(domains.pick(|_, row| row.sprite().is_some()), [domain("a.example")], "once");
    // A wildcard leads names that no region has by themselves.
    let mut wildcard = held("t", "all");
    wildcard.holder.as_mut().unwrap().claim.wildcard = true;
    of("fra").apply_put(domain("w.example"), wildcard);
    of("lhr").apply_put(domain("one.w.example"), held("t", "one"));
    assert_eq!((domains.lookup("one.w.example"), domains.lookup("two.w.example")), (sprite("one"), sprite("all")));
    assert!(domains.is_wildcard(&domain("w.example")) && !domains.is_wildcard(&domain("a.example")));
    of("fra").apply_remove(&domain("w.example"));
    of("lhr").apply_remove(&domain("one.w.example"));
    // Nobody anywhere takes what the config file says, or a name of ours.
    of("ams").apply_put(domain("site.localhost"), held("t", "thief"));
    assert_eq!(domains.lookup("site.localhost"), sprite("site"));
    assert!(of("ams").is_ours(&domain("a.sprites.dev")) && of("ams").is_ours(&domain("site.localhost")));
    for region in ["lhr", "ams", "fra"] {
        assert_eq!(domains.lookup("b.example"), DomainLookup::NotReady, "{region}");
        of(region).followed().mark_synced();
    }
    assert_eq!(domains.lookup("b.example"), DomainLookup::Unknown);
}

#[test]
fn whoever_watches_the_domains_sees_the_changes_of_every_region() {
    let own = DomainTable::new(HashMap::new(), &[], &[]);
    let other = Arc::new(own.beside());
    let own = Region { name: "fra".into(), table: Arc::new(own) };
    let domains = DomainRegions::new(own, vec![Region { name: "ams".into(), table: Arc::clone(&other) }]);
    let changes = domains.changes();
    other.apply_put(domain("a.example"), held("t", "a"));
    assert!(changes.has_changed().unwrap());
    assert!(!domains.is_alone() && domains.own().is_empty());
}
