use super::*;

fn driver(text: &str) -> Result<DriverSpec, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn check(spec: &DriverSpec) -> Result<(), Wrong> {
    match spec {
        DriverSpec::Docker(docker) => docker.check(),
        DriverSpec::Firecracker(firecracker) => firecracker.check(),
        DriverSpec::Http(http) => http.check(),
        DriverSpec::Process { .. } => spec.check_memory(),
        other => panic!("{other:?} has no rules of its own"),
    }
}

fn wrong(text: &str) -> &'static str {
    check(&driver(text).unwrap()).unwrap_err().0
}

#[test]
fn each_driver_reads_back_as_it_was_written() {
    for text in [
        r#"{"process":{"command":"a"}}"#,
        r#"{"process":{"command":"a","memory_mib":64}}"#,
        r#"{"docker":{"container":"web","port":8080}}"#,
        r#"{"docker":{"image":"web:1","port":80,"publish":true,"command":["a","b"],"environment":{"A":"1"},"volumes":["v:/v"],"network":"n","memory_mib":64,"cpu_millis":500}}"#,
        r#"{"firecracker":{"kernel":"/k","boot_args":"a=b","rootfs":"/r","vcpus":2,"memory_mib":256,"tap":"tap0","mac":"06:00:AC:10:00:02","guest_address":"172.16.0.2","port":80}}"#,
        r#"{"http":{"url":"https://machines.example:8443/edge"}}"#,
    ] {
        let spec = driver(text).unwrap();
        assert_eq!(check(&spec), Ok(()), "{text}");
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
    }
}

#[test]
fn an_unknown_or_missing_field_is_refused() {
    assert!(driver(r#"{"docker":{"container":"web","port":1,"ports":2}}"#).unwrap_err().contains("ports"));
    assert!(driver(r#"{"docker":{"container":"web"}}"#).unwrap_err().contains("port"));
    assert!(driver(r#"{"firecracker":{"kernel":"/k"}}"#).unwrap_err().contains("rootfs"));
    assert!(driver(r#"{"http":{"url":"http://a","secret":"s"}}"#).unwrap_err().contains("secret"));
}

#[test]
fn every_field_out_of_its_bounds_is_named() {
    for (field, rest) in [
        ("docker.container", r#""port":1"#),
        ("docker.container", r#""port":1,"container":"a","image":"b""#),
        ("docker.container", r#""port":1,"container":"../images""#),
        ("docker.container", r#""port":1,"container":"a","command":["b"]"#),
        ("docker.image", r#""port":1,"image":"a b""#),
        ("docker.port", r#""port":0,"image":"a""#),
        ("docker.environment", r#""port":1,"image":"a","environment":{"A=B":""}"#),
        ("docker.volumes", r#""port":1,"image":"a","volumes":["/v"]"#),
        ("docker.network", r#""port":1,"image":"a","network":"""#),
        ("docker.memory_mib", r#""port":1,"image":"a","memory_mib":5"#),
        ("docker.cpu_millis", r#""port":1,"image":"a","cpu_millis":9"#),
    ] {
        assert_eq!(wrong(&format!(r#"{{"docker":{{{rest}}}}}"#)), field, "{rest}");
    }
    let machine = r#"{"firecracker":{"kernel":"/k","rootfs":"/r","tap":"t","guest_address":"10.0.0.2","port":80}}"#;
    assert_eq!(check(&driver(machine).unwrap()), Ok(()));
    for (field, from, to) in [
        ("firecracker.kernel", "/k", "k"),
        ("firecracker.rootfs", "/r", "r"),
        ("firecracker.tap", r#""t""#, r#""a-name-of-16-byte""#),
        ("firecracker.guest_address", "10.0.0.2", "0.0.0.0"),
        ("firecracker.port", "80", "0"),
        ("firecracker.port", "80", r#"0,"vcpus":1"#),
        ("firecracker.vcpus", "80", r#"80,"vcpus":33"#),
        ("firecracker.memory_mib", "80", r#"80,"memory_mib":0"#),
        ("firecracker.mac", "80", r#"80,"mac":"06:00""#),
        ("firecracker.initrd", "80", r#"80,"initrd":"i""#),
    ] {
        assert_eq!(wrong(&machine.replacen(from, to, 1)), field, "{to}");
    }
    for mib in [0, 3, 1_048_577] {
        assert_eq!(wrong(&format!(r#"{{"process":{{"command":"a","memory_mib":{mib}}}}}"#)), "memory_mib");
    }
    for url in ["ftp://a", "a.example", "/path", "https://user@a", "https://a/?b=c", ""] {
        assert_eq!(wrong(&format!(r#"{{"http":{{"url":"{url}"}}}}"#)), "http.url");
    }
}
