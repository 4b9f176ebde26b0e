"""An orchestrator for tests: wakes and puts to sleep machines it is asked for, if the request is signed.

orchestrator.py SECRET LOG [PEM]: prints the port it listens on. With PEM (a certificate and its
key) it speaks TLS. A machine is a web server that counts in memory. Each request is appended
to LOG: [path, body, signed, seen before]. The first wake of a machine is answered 503 once, after
it was done, as a proxy in between would.
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time

KEY = base64.b64decode(open(sys.argv[1], encoding="utf-8").read().strip().removeprefix("whsec_"))
LOG = sys.argv[2]
MACHINE = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Page.asked += 1
        said = f"asked {Page.asked} times".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(said))); self.end_headers()
        self.wfile.write(said)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
print(server.server_port, flush=True)
server.serve_forever()
"""
machines, done, lock = {}, {}, threading.Lock()


def signed(headers, body):
    said = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    own = "v1," + base64.b64encode(hmac.new(KEY, said, hashlib.sha256).digest()).decode()
    fresh = abs(time.time() - int(headers["webhook-timestamp"])) < 300
    return fresh and hmac.compare_digest(own, headers["webhook-signature"])


def end(name):
    process, _ = machines.pop(name, (None, None))
    if process:
        process.kill()
        process.wait()


def act(path, asked):
    name = asked["sprite"]
    if path == "/edge/wake" and asked["action"] == "wake":
        if name not in machines:
            # In the folder of the log, by which a test finds who is left.
            process = subprocess.Popen(
                [sys.executable, "-c", MACHINE], cwd=os.path.dirname(LOG),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            machines[name] = process, int(process.stdout.readline())
        process, port = machines[name]
        process.send_signal(signal.SIGCONT)
        return {"address": f"127.0.0.1:{port}"}
    assert path == "/edge/sleep" and asked["action"] == "sleep", (path, asked)
    if asked["depth"] == "cold":
        end(name)
    elif name in machines:
        machines[name][0].send_signal(signal.SIGSTOP)
    return {}


class Orchestrator(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with lock:
            genuine, event = signed(self.headers, body), self.headers["webhook-id"]
            again = event in done
            with open(LOG, "a", encoding="utf-8") as log:
                print(json.dumps([self.path, json.loads(body), genuine, again]), file=log, flush=True)
            status, said = 200, {"detail": "the signature is wrong"}
            if not genuine:
                status = 401
            elif again:
                said = done[event]
            else:
                first = not done
                done[event] = said = act(self.path, json.loads(body))
                status = 503 if first else 200
        said = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Orchestrator)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
with lock:
    for name in list(machines):
        end(name)
    os._exit(0)
