#!/usr/bin/env python3
"""A VMM for tests: its API is the published one (v1), its guest a web server in this process.

fake_vmm.py --api-sock PATH --id NAME

Every request is checked against the API's description: path, method, fields, types, what
must be there, and whether it comes before or after the boot; what does not fit is 400 with a
fault_message. Each is appended to requests.log in the working directory, one JSON array a
line: [pid, method, path, body, status]. The guest listens where "guest=IP:PORT" on its
command line says, while the machine runs; it answers how often it was asked, which is all
its memory. A root disk that cannot be opened, or is not the one a snapshot knew, is 400.
"""

import http.server
import json
import os
import re
import socketserver
import sys
import threading

OPTIONS = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert set(OPTIONS) == {"--api-sock", "--id"}, OPTIONS
assert re.fullmatch(r"[A-Za-z0-9-]{1,64}", OPTIONS["--id"]), OPTIONS
BOOLEAN, NUMBER, TEXT = (bool,), (int,), (str,)
# Path: fields with their types, those that must be there, and when it is allowed.
REQUESTS = {
    ("PUT", "/machine-config"): (
        {"vcpu_count": NUMBER, "mem_size_mib": NUMBER, "smt": BOOLEAN, "track_dirty_pages": BOOLEAN},
        {"vcpu_count", "mem_size_mib"}, "before"),
    ("PUT", "/boot-source"): (
        {"kernel_image_path": TEXT, "boot_args": TEXT, "initrd_path": TEXT}, {"kernel_image_path"}, "before"),
    ("PUT", "/drives/rootfs"): (
        {"drive_id": TEXT, "path_on_host": TEXT, "is_root_device": BOOLEAN, "is_read_only": BOOLEAN, "cache_type": TEXT},
        {"drive_id", "is_root_device", "path_on_host", "is_read_only"}, "before"),
    ("PUT", "/network-interfaces/eth0"): (
        {"iface_id": TEXT, "host_dev_name": TEXT, "guest_mac": TEXT}, {"iface_id", "host_dev_name"}, "before"),
    ("PUT", "/actions"): ({"action_type": TEXT}, {"action_type"}, "before"),
    ("PATCH", "/vm"): ({"state": TEXT}, {"state"}, "after"),
    ("PUT", "/snapshot/create"): (
        {"snapshot_type": TEXT, "snapshot_path": TEXT, "mem_file_path": TEXT},
        {"snapshot_path", "mem_file_path"}, "paused"),
    ("PUT", "/snapshot/load"): (
        {"snapshot_path": TEXT, "mem_backend": (dict,), "resume_vm": BOOLEAN}, {"snapshot_path", "mem_backend"}, "fresh"),
}
lock = threading.Lock()


class Wrong(Exception):
    """What the API says no to."""


class Machine:
    def __init__(self):
        self.state, self.parts, self.asked, self.listener = "Not started", {}, 0, None

    def listen(self):
        ip, port = re.search(r"guest=([\d.]+):(\d+)", self.parts["/boot-source"]["boot_args"]).groups()
        self.listener = Listener((ip, int(port)), Guest)
        threading.Thread(target=self.listener.serve_forever, args=(0.01,), daemon=True).start()

    def deafen(self):
        self.listener.shutdown()
        self.listener.server_close()
        self.listener = None


class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """An HTTP server that asks no DNS server for its name."""

    daemon_threads = allow_reuse_address = True


machine = Machine()


class Guest(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            machine.asked += 1
            said = f"asked {machine.asked} times\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


def must(true, what):
    if not true:
        raise Wrong(what)


def disk_of(path):
    must(os.path.isfile(path), f"the drive {path} cannot be opened")
    return os.stat(path).st_ino


def check(method, path, body):
    must((method, path) in REQUESTS, f"Invalid request method and/or path: {method} {path}")
    fields, needed, when = REQUESTS[method, path]
    must(isinstance(body, dict), "a body")
    for name, value in body.items():
        must(name in fields, f"unknown field `{name}`")
        must(type(value) in fields[name], f"invalid type for `{name}`")
    for name in needed:
        must(name in body, f"missing field `{name}`")
    started = machine.state != "Not started"
    must(when not in ("before", "fresh") or not started, "The requested operation is not supported after starting the microVM.")
    must(when != "fresh" or not machine.parts, "Loading a microVM snapshot not allowed after configuring boot-specific resources.")
    must(when not in ("after", "paused") or started, "The requested operation is not supported before starting the microVM.")
    must(when != "paused" or machine.state == "Paused", "Cannot create a snapshot of a microVM that is not paused.")


def act(method, path, body):
    if (method, path) == ("GET", "/"):
        must(body is None, "no body")
        return 200, {"app_name": "Firecracker", "id": OPTIONS["--id"], "state": machine.state, "vmm_version": "1.9.0"}
    check(method, path, body)
    if path == "/actions":
        must(body["action_type"] == "InstanceStart", "unknown variant")
        must("/boot-source" in machine.parts, "Cannot start microvm without kernel configuration.")
        disk_of(machine.parts["/drives/rootfs"]["path_on_host"])
        machine.listen()
        machine.state = "Running"
    elif path == "/vm":
        must(body["state"] in ("Paused", "Resumed"), "unknown variant")
        wanted = "Paused" if body["state"] == "Paused" else "Running"
        if wanted != machine.state:
            machine.deafen() if wanted == "Paused" else machine.listen()
            machine.state = wanted
    elif path == "/snapshot/create":
        must(body.get("snapshot_type", "Full") == "Full", "unknown variant")
        disk = disk_of(machine.parts["/drives/rootfs"]["path_on_host"])
        with open(body["snapshot_path"], "x", encoding="utf-8") as file:
            json.dump([machine.parts, disk], file)
        with open(body["mem_file_path"], "x", encoding="utf-8") as file:
            file.write(str(machine.asked))
    elif path == "/snapshot/load":
        backend = body["mem_backend"]
        must(set(backend) == {"backend_type", "backend_path"} and backend["backend_type"] == "File", "mem_backend")
        must(os.path.isfile(body["snapshot_path"]), "Failed to open the snapshot backing file")
        with open(body["snapshot_path"], encoding="utf-8") as file:
            parts, disk = json.load(file)
        must(disk_of(parts["/drives/rootfs"]["path_on_host"]) == disk, "another disk")
        with open(backend["backend_path"], encoding="utf-8") as file:
            machine.asked = int(file.read())
        machine.parts, machine.state = parts, "Paused"
        if body.get("resume_vm"):
            machine.listen()
            machine.state = "Running"
    else:
        name = {"/drives/rootfs": "drive_id", "/network-interfaces/eth0": "iface_id"}.get(path)
        must(name is None or path.endswith("/" + body[name]), "the id in the path and in the body")
        must(path != "/machine-config" or 1 <= body["vcpu_count"] <= 32, "The vCPU number is invalid!")
        must(body.get("cache_type", "Unsafe") in ("Unsafe", "Writeback"), "unknown variant")
        must(not body.get("kernel_image_path") or os.path.isfile(body["kernel_image_path"]), "The kernel file cannot be opened")
        machine.parts[path] = body
    return 204, None


class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave at once: whoever has read all of it may hang up.
    wbufsize = -1

    def respond(self):
        text = self.rfile.read(int(self.headers.get("content-length", 0)))
        body = None
        with lock:
            try:
                body = json.loads(text) if text else None
                status, said = act(self.command, self.path, body)
            except (Wrong, ValueError) as error:
                status, said = 400, {"fault_message": str(error)}
            with open("requests.log", "a", encoding="utf-8") as log:
                print(json.dumps([os.getpid(), self.command, self.path, body, status]), file=log, flush=True)
        said = b"" if said is None else json.dumps(said).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_PUT = do_PATCH = respond

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


print("the VMM begins", flush=True)
Server(OPTIONS["--api-sock"], Api).serve_forever()
