//! The command line of a machine.
//!
//! Nothing of QEMU's defaults is used: what a guest sees depends on its description alone, or
//! its memory would not fit the machine that loads it.

use super::qmp;
use crate::spec::{Disk, DiskFormat, QemuSpec, SpriteSpec};
use config::Accel;
use serde_json::json;
use std::ffi::OsString;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Name of the serial console's socket in a machine's directory.
pub(super) const CONSOLE: &str = "console.sock";
/// The guest's own address in QEMU's user networking.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Where the guest behind `port` is reached: a loopback address of its own, so that the ports it
/// declares are where the owner looks for them whatever other guests declare.
pub(super) const fn address_of(port: u16) -> SocketAddrV4 {
    let [high, low] = port.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(127, 77, high, low), port)
}

/// Arguments of QEMU. A machine that waits for its memory is not begun.
pub(super) fn arguments(
    sprite: &SpriteSpec,
    machine: &QemuSpec,
    accel: Accel,
    outbound: bool,
    address: SocketAddrV4,
    waits_for_memory: bool,
) -> Vec<OsString> {
    let mut arguments = Arguments(Vec::new());
    arguments.flag("-no-user-config");
    arguments.flag("-nodefaults");
    // A guest that restarts itself ends instead: its owner starts it when somebody asks.
    arguments.flag("-no-reboot");
    arguments.option("-display", "none");
    arguments.option("-name", sprite.name.as_str());
    arguments.option("-machine", &machine.machine);
    arguments.option("-accel", accel.as_str());
    arguments.option("-cpu", if accel == Accel::Kvm { "host" } else { "max" });
    arguments.option("-m", machine.memory_mib.to_string());
    arguments.option("-smp", machine.cpus.to_string());
    arguments.option("-qmp", format!("unix:{},server=on,wait=off", qmp::SOCKET));
    arguments.option("-chardev", format!("socket,id=console,path={CONSOLE},server=on,wait=off"));
    arguments.option("-serial", "chardev:console");
    if let Some(kernel) = &machine.kernel {
        arguments.option("-kernel", kernel);
    }
    if let Some(initrd) = &machine.initrd {
        arguments.option("-initrd", initrd);
    }
    if !machine.append.is_empty() {
        arguments.option("-append", &machine.append);
    }
    // A microvm has no PCI bus.
    let bus = if machine.machine.starts_with("microvm") { "device" } else { "pci" };
    for (index, disk) in machine.disks.iter().enumerate() {
        arguments.option("-blockdev", blockdev(index, disk));
        arguments.option("-device", format!("virtio-blk-{bus},drive=disk{index}"));
    }
    let mut network = format!("user,id=net,restrict={}", if outbound { "off" } else { "on" });
    for (from, to) in std::iter::once((address.port(), machine.port)).chain(sprite.ports.iter().map(|&p| (p, p))) {
        let _ = write!(network, ",hostfwd=tcp:{}:{from}-{GUEST}:{to}", address.ip());
    }
    arguments.option("-netdev", network);
    let rom = if bus == "pci" { ",romfile=" } else { "" };
    arguments.option("-device", format!("virtio-net-{bus},netdev=net{rom}"));
    if waits_for_memory {
        arguments.flag("-S");
        arguments.option("-incoming", "defer");
    }
    arguments.0
}

/// As JSON: there a path is a text and needs no escapes of QEMU's own.
fn blockdev(index: usize, disk: &Disk) -> String {
    let format = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let driver = if disk.path.is_file() { "file" } else { "host_device" };
    json!({
        "node-name": format!("disk{index}"),
        "driver": format,
        "read-only": disk.read_only,
        "file": { "driver": driver, "filename": disk.path.to_string_lossy() },
    })
    .to_string()
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::DriverSpec;
    use router::names::SpriteName;

    fn line(machine: &QemuSpec, accel: Accel, waits: bool) -> String {
        let sprite = SpriteSpec::new(SpriteName::parse("box").unwrap(), 1, DriverSpec::Qemu(machine.clone()));
        let sprite = SpriteSpec { ports: vec![5173], ..sprite };
        let arguments = arguments(&sprite, machine, accel, false, address_of(20_501), waits);
        arguments.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ports_are_forwarded_at_an_address_of_its_own_and_nothing_else_goes_through() {
        let machine: QemuSpec =
            serde_json::from_value(json!({ "kernel": "/boot/vmlinuz", "port": 8080, "append": "a b" })).unwrap();
        let line = line(&machine, Accel::Tcg, false);
        let forwarded = "hostfwd=tcp:127.77.80.21:20501-10.0.2.15:8080,hostfwd=tcp:127.77.80.21:5173-10.0.2.15:5173";
        assert!(line.contains(&format!("-netdev user,id=net,restrict=on,{forwarded}")), "{line}");
        assert!(line.contains("-cpu max -m 256 -smp 1"), "{line}");
        assert!(line.contains("-append a b -netdev"), "{line}");
        assert!(!line.contains("-S") && !line.contains("-incoming"), "{line}");
    }

    #[test]
    fn disks_go_by_json_and_a_microvm_has_no_bus() {
        let disks = json!([{ "path": "/dev/null", "format": "qcow2", "read_only": true }]);
        let machine: QemuSpec =
            serde_json::from_value(json!({ "disks": disks, "machine": "microvm,acpi=on" })).unwrap();
        let line = line(&machine, Accel::Kvm, true);
        let device = r#""file":{"driver":"host_device","filename":"/dev/null"},"node-name":"disk0","read-only":true"#;
        assert!(line.contains(device), "{line}");
        assert!(line.contains("virtio-blk-device,drive=disk0") && line.contains("virtio-net-device,netdev=net"));
        assert!(line.contains("-cpu host") && line.ends_with("-S -incoming defer"), "{line}");
    }
}
