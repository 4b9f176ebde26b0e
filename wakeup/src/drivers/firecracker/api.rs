//! The VMM's API over its unix socket, as far as we need it (its published description, v1).

use super::super::DriverError;
use super::super::http_client::{Answer, Call, HttpClient};
use super::files::Snapshot;
use super::vmm::Vmm;
use crate::spec::FirecrackerSpec;
use config::FirecrackerDriver as Settings;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two looks for the socket (chosen: a VMM opens it within milliseconds, and a wake
/// waits for it).
const LOOK: Duration = Duration::from_millis(2);
/// Names inside the VMM.
const DRIVE: &str = "rootfs";
const INTERFACE: &str = "eth0";

/// One VMM's API.
pub(super) struct Api {
    client: HttpClient,
    timeout: Duration,
    snapshot_timeout: Duration,
}

impl Api {
    pub(super) fn new(socket: PathBuf, settings: &Settings) -> Self {
        let client = HttpClient::unix(socket);
        Self { client, timeout: settings.timeout, snapshot_timeout: settings.snapshot_timeout }
    }

    /// Waits until a VMM that was just started answers.
    pub(super) async fn up(&self, vmm: &Vmm) -> Result<(), DriverError> {
        let end = Instant::now() + self.timeout;
        loop {
            let Err(error) = self.state().await else { return Ok(()) };
            if vmm.is_gone() {
                return Err(failed("start", "it ended at once; its output says why".into()));
            }
            if Instant::now() >= end {
                return Err(error);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// "Not started", "Running" or "Paused".
    pub(super) async fn state(&self) -> Result<String, DriverError> {
        let answer = self.ask("describe itself", Method::GET, "/", None, self.timeout).await?;
        match answer.json()["state"].as_str().filter(|_| answer.status == StatusCode::OK) {
            Some(state) => Ok(state.to_owned()),
            None => Err(refused("describe itself", &answer)),
        }
    }

    /// Describes the machine and starts it.
    pub(super) async fn boot(&self, machine: &FirecrackerSpec) -> Result<(), DriverError> {
        let what = "boot it";
        self.put(what, "/machine-config", json!({ "vcpu_count": machine.vcpus, "mem_size_mib": machine.memory_mib }))
            .await?;
        let mut source = json!({ "kernel_image_path": machine.kernel, "boot_args": machine.boot_args });
        if let Some(initrd) = &machine.initrd {
            source["initrd_path"] = json!(initrd);
        }
        self.put(what, "/boot-source", source).await?;
        let drive = json!({
            "drive_id": DRIVE,
            "path_on_host": machine.rootfs,
            "is_root_device": true,
            "is_read_only": false,
            // What the guest has flushed is on the disk, as it believes.
            "cache_type": "Writeback",
        });
        self.put(what, &format!("/drives/{DRIVE}"), drive).await?;
        let mut interface = json!({ "iface_id": INTERFACE, "host_dev_name": machine.tap });
        if let Some(mac) = &machine.mac {
            interface["guest_mac"] = json!(mac);
        }
        self.put(what, &format!("/network-interfaces/{INTERFACE}"), interface).await?;
        self.put(what, "/actions", json!({ "action_type": "InstanceStart" })).await
    }

    /// Fills a VMM that has no machine yet from a snapshot, and lets it run.
    pub(super) async fn load(&self, snapshot: &Snapshot) -> Result<(), DriverError> {
        let body = json!({
            "snapshot_path": snapshot.state,
            "mem_backend": { "backend_type": "File", "backend_path": snapshot.memory },
            "resume_vm": true,
        });
        self.change("load its memory", Method::PUT, "/snapshot/load", body, self.snapshot_timeout).await
    }

    /// Writes a paused machine down.
    pub(super) async fn snapshot(&self, to: &Snapshot) -> Result<(), DriverError> {
        let body = json!({ "snapshot_type": "Full", "snapshot_path": to.state, "mem_file_path": to.memory });
        self.change("write its memory", Method::PUT, "/snapshot/create", body, self.snapshot_timeout).await
    }

    pub(super) async fn pause(&self) -> Result<(), DriverError> {
        self.enter("pause it", "Paused", "Paused").await
    }

    pub(super) async fn resume(&self) -> Result<(), DriverError> {
        self.enter("continue it", "Resumed", "Running").await
    }

    /// That it was so before is no failure.
    async fn enter(&self, what: &'static str, wanted: &str, then: &str) -> Result<(), DriverError> {
        let asked = self.change(what, Method::PATCH, "/vm", json!({ "state": wanted }), self.timeout).await;
        match asked {
            Err(_) if self.state().await.is_ok_and(|state| state == then) => Ok(()),
            asked => asked,
        }
    }

    async fn put(&self, what: &'static str, path: &str, body: Value) -> Result<(), DriverError> {
        self.change(what, Method::PUT, path, body, self.timeout).await
    }

    async fn change(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Value,
        within: Duration,
    ) -> Result<(), DriverError> {
        let answer = self.ask(what, method, path, Some(body), within).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(refused(what, &answer)),
        }
    }

    async fn ask(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<Value>,
        within: Duration,
    ) -> Result<Answer, DriverError> {
        let body = body.map(|body| body.to_string().into());
        let call = Call { method, path, headers: &[], body, within };
        self.client.call(call).await.map_err(|error| failed(what, error.to_string()))
    }
}

fn failed(what: &'static str, reason: String) -> DriverError {
    DriverError::Refused { who: "the VMM", what, reason }
}

fn refused(what: &'static str, answer: &Answer) -> DriverError {
    failed(what, answer.told(&["fault_message"]))
}
