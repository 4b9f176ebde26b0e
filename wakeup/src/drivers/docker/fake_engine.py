"""A container engine for tests: answers as the published Engine API (v1.41 and later) says.

fake_engine.py SOCKET LOG [podman]

Its containers are processes: the command of the container with its environment, and in
IP an address of the loopback network that is the container's own. Pausing is SIGSTOP. Each
request is appended to LOG, one JSON array a line: [method, path, body, status]. A request
the API does not describe is answered 400 and logged with "wrong" at its end. With
"podman", what was done already is a 500, as Podman has it, and a paused container is not
stopped. It ends, with all its containers, when its standard input does.
"""

import http.server
import json
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.parse

SOCKET, LOG = sys.argv[1], sys.argv[2]
PODMAN = "podman" in sys.argv[3:]
IMAGES = {"localhost/web:1"}
CREATE = {"Image": str, "Cmd": list, "Env": list, "Labels": dict, "ExposedPorts": dict, "HostConfig": dict}
HOST = {
    "RestartPolicy": dict, "PortBindings": dict, "Binds": list, "NetworkMode": str, "Memory": int, "NanoCpus": int,
}
lock = threading.RLock()
containers = {}


class Wrong(Exception):
    """The API has no such request."""


class Refused(Exception):
    """Status and message of an answer that is none of success."""


class Container:
    def __init__(self, name, definition):
        self.name, self.definition = name, definition
        self.id = "%064x" % random.getrandbits(256)
        self.ip = "127.%d.%d.%d" % (random.randint(2, 254), random.randint(0, 255), random.randint(1, 254))
        self.process, self.paused, self.code, self.proxies = None, False, 0, []

    def running(self):
        if self.process and self.process.poll() is None:
            return True
        if self.process:
            self.code = self.process.returncode if self.process.returncode >= 0 else 128 - self.process.returncode
            self.paused = False
        return False

    def start(self):
        self.ended()
        environment = dict(variable.split("=", 1) for variable in self.definition["Env"])
        environment.update(PATH=os.environ["PATH"], IP=self.ip)
        command = self.definition.get("Cmd", ["sh", "-c", "exec sleep 1000"])
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # In the folder of the socket, by which a test finds who is left.
        folder = os.path.dirname(SOCKET)
        self.process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, **quiet)
        # Like a userland proxy: it accepts from the start, whoever listens behind it.
        for port in self.definition["HostConfig"].get("PortBindings", {}):
            proxy = socket.create_server(("127.0.0.1", 0))
            self.proxies.append((port, proxy))
            threading.Thread(target=self.forward, args=(proxy, int(port.split("/")[0])), daemon=True).start()

    def forward(self, proxy, port):
        while True:
            try:
                client, _ = proxy.accept()
            except OSError:
                return
            try:
                guest = socket.create_connection((self.ip, port))
            except OSError:
                client.close()
                continue
            for one, other in ((client, guest), (guest, client)):
                threading.Thread(target=pump, args=(one, other), daemon=True).start()

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def ended(self):
        for _, proxy in self.proxies:
            proxy.shutdown(socket.SHUT_RDWR)
            proxy.close()
        self.proxies = []

    def kill(self):
        if self.running():
            self.signal(signal.SIGKILL)
            self.process.wait()
        self.running()
        self.ended()

    def describe(self):
        running = self.running()
        ports = {port: [{"HostIp": "127.0.0.1", "HostPort": str(proxy.getsockname()[1])}] for port, proxy in self.proxies}
        state = "paused" if self.paused else "running" if running else "exited" if self.process else "created"
        host = self.definition["HostConfig"]
        return {
            "Id": self.id,
            "Name": "/" + self.name,
            "State": {"Status": state, "Running": running, "Paused": self.paused, "ExitCode": self.code},
            "Config": {"Labels": self.definition.get("Labels"), "Image": self.definition["Image"]},
            "HostConfig": {"NetworkMode": host.get("NetworkMode", "default")},
            "NetworkSettings": {
                "Ports": ports if running else {},
                "Networks": {"bridge": {"IPAddress": self.ip if running else "", "GlobalIPv6Address": ""}},
            },
        }


def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def must(true, what):
    if not true:
        raise Wrong(what)


def conflict(message, usual=409):
    raise Refused(500 if PODMAN else usual, message)


def fields(value, known, where):
    for name, content in value.items():
        must(name in known, f"{where}.{name} is unknown")
        must(type(content) is known[name], f"{where}.{name} is no {known[name].__name__}")


def create(query, body):
    name = re.fullmatch(r"name=([a-zA-Z0-9][a-zA-Z0-9_.-]+)", query)
    must(name and isinstance(body, dict), "create: name and a body")
    fields(body, CREATE, "body")
    fields(body["HostConfig"], HOST, "HostConfig")
    must(all(isinstance(text, str) for text in body["Env"] + body.get("Cmd", []) + list(body["Labels"].values())), "texts")
    for port, bindings in body["HostConfig"].get("PortBindings", {}).items():
        must(re.fullmatch(r"\d+/tcp", port) and port in body["ExposedPorts"], "an exposed port")
        must([set(binding) for binding in bindings] == [{"HostIp", "HostPort"}], "HostIp and HostPort")
    if body["Image"] not in IMAGES:
        raise Refused(404, f"No such image: {body['Image']}")
    if name[1] in containers:
        raise Refused(409, "Conflict. The container name is already in use")
    containers[name[1]] = Container(name[1], body)
    return 201, {"Id": containers[name[1]].id, "Warnings": []}


def listed(query):
    query = urllib.parse.parse_qs(query, strict_parsing=True)
    must(set(query) == {"all", "filters"} and query["all"] == ["true"], "list: all and filters")
    filters = json.loads(query["filters"][0])
    must(set(filters) == {"label", "status"}, "filters: label and status")
    described = [container.describe() for container in containers.values()]
    return 200, [
        {"Id": one["Id"], "Names": [one["Name"]], "State": one["State"]["Status"], "Labels": one["Config"]["Labels"]}
        for one in described
        if one["State"]["Status"] in filters["status"]
        and all(label in one["Config"]["Labels"] for label in filters["label"])
    ]


def find(name):
    for container in containers.values():
        if name in (container.name, container.id):
            return container
    raise Refused(404, f"No such container: {name}")


def act(container, action, query, body):
    must(body is None, "no body")
    running = container.running()
    if action == "start":
        must(query == "", "start: no query")
        if container.paused:
            conflict("cannot start a paused container, try unpause instead")
        if running:
            return 304, None
        container.start()
    elif action in ("pause", "unpause"):
        must(query == "", "no query")
        if not running:
            conflict("the container is not running")
        if container.paused == (action == "pause"):
            conflict("it is so already")
        container.signal(signal.SIGSTOP if action == "pause" else signal.SIGCONT)
        container.paused = action == "pause"
    elif action == "stop":
        grace = re.fullmatch(r"t=(\d+)", query)
        must(grace, "stop: t, in seconds")
        if container.paused:
            raise Refused(500, "refusing to stop a paused container")
        if not running:
            return 304, None
        container.signal(signal.SIGTERM)
        try:
            container.process.wait(int(grace[1]))
        except subprocess.TimeoutExpired:
            pass
        container.kill()
    else:
        raise Wrong(action)
    return 204, None


def wait(name, query):
    must(query == "condition=not-running", "wait: a condition")
    with lock:
        container = find(name)
        process = container.process if container.running() else None
    if process:
        process.wait()
    with lock:
        container.running()
        return 200, {"StatusCode": container.code}


def answer(method, path, query, body):
    parts = re.sub(r"^/v1\.\d+", "", path).strip("/").split("/")
    must(parts[0] == "containers", "containers only")
    if method == "POST" and parts[1:] == ["create"]:
        with lock:
            return create(query, body)
    if method == "GET" and parts[1:] == ["json"]:
        with lock:
            return listed(query)
    must(len(parts) in (2, 3), "a container")
    if method == "POST" and parts[2:] == ["wait"]:
        must(body is None, "no body")
        return wait(parts[1], query)
    with lock:
        container = find(parts[1])
        if method == "GET" and parts[2:] == ["json"]:
            return 200, container.describe()
        if method == "DELETE" and len(parts) == 2:
            must(query == "force=true&v=true", "remove: force and v")
            container.kill()
            del containers[container.name]
            return 204, None
        must(method == "POST" and len(parts) == 3, "no such request")
        return act(container, parts[2], query, body)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave at once: whoever has read all of it may hang up.
    wbufsize = -1

    def respond(self):
        length = int(self.headers.get("content-length", 0))
        text = self.rfile.read(length)
        path, _, query = self.path.partition("?")
        body, wrong = None, []
        try:
            must(self.headers.get("host"), "a host")
            if length:
                must(self.headers.get("content-type") == "application/json", "JSON")
                body = json.loads(text)
            status, said = answer(self.command, path, query, body)
        except Refused as refused:
            status, said = refused.args[0], {"message": refused.args[1]}
        except (Wrong, KeyError, ValueError, TypeError) as error:
            status, said, wrong = 400, {"message": repr(error)}, ["wrong"]
        with lock, open(LOG, "a", encoding="utf-8") as log:
            print(json.dumps([self.command, self.path, body, status] + wrong), file=log, flush=True)
        said = b"" if said is None else json.dumps(said).encode()
        self.send_response(status)
        if status not in (204, 304):
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = do_DELETE = respond

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


threading.Thread(target=Server(SOCKET, Handler).serve_forever, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
with lock:
    for container in containers.values():
        container.kill()
    os._exit(0)
