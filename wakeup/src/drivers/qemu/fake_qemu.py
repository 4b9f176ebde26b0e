#!/usr/bin/env python3
"""A QEMU for the tests of its driver: speaks QMP, serves HTTP, and does as the files beside it say.

  silent      the guest never answers        dies       it ends before it is asked, with a word
  fail-save   a migration fails              fail-load  an incoming one does
  version     what it calls itself
"""
import json
import os
import re
import socket
import sys
import threading

arguments = " ".join(sys.argv[1:])
with open("begun.log", "a") as log:
    log.write(f"{os.getpid()} {'waits' if '-incoming' in arguments else 'boots'}\n")
if os.path.exists("dies"):
    sys.exit("fake-qemu: the machine is on fire")

version = open("version").read() if os.path.exists("version") else "1"
status = "inmigrate" if "-incoming" in arguments else "running"
memory = f"booted by {os.getpid()}"
migration = None
given = None
runs = threading.Event()
if status == "running":
    runs.set()


def serve(address):
    listener = socket.create_server(address)
    while True:
        connection, _ = listener.accept()

        def answer(connection=connection):
            connection.recv(4096)
            runs.wait()
            connection.sendall(f"HTTP/1.0 200 OK\r\n\r\n{memory}".encode())
            connection.close()

        # As QEMU's network, it accepts whatever the guest is at.
        if not os.path.exists("silent"):
            threading.Thread(target=answer, daemon=True).start()


for ip, port in re.findall(r"hostfwd=tcp:([\d.]+):(\d+)-", arguments):
    threading.Thread(target=serve, args=((ip, int(port)),), daemon=True).start()


def unix(name):
    if os.path.exists(name):
        os.unlink(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(8)
    return listener


console = unix("console.sock")
control = unix("qmp.sock")


def execute(command, asked):
    global status, migration, memory, given
    if command == "stop":
        status = "paused"
        runs.clear()
    elif command == "cont":
        status = "running"
        runs.set()
    elif command == "query-status":
        return {"status": status}
    elif command == "query-migrate":
        return migration
    elif command == "migrate":
        with os.fdopen(given, "w") as pipe:
            pipe.write(memory)
        failed = os.path.exists("fail-save")
        migration = {"status": "failed", "error-desc": "no room"} if failed else {"status": "completed"}
        status = "paused" if failed else "postmigrate"
    elif command == "migrate-incoming":
        with os.fdopen(given) as pipe:
            memory = pipe.read()
        if os.path.exists("fail-load") or not memory.startswith("booted by "):
            print("fake-qemu: load of migration failed", file=sys.stderr, flush=True)
            os._exit(1)
        status = "paused"
    elif command == "quit":
        os._exit(0)
    return {}


while True:
    connection, _ = control.accept()
    connection.sendall(json.dumps({"QMP": {"version": {"package": version}}}).encode() + b"\r\n")
    while True:
        try:
            text, descriptors, _, _ = socket.recv_fds(connection, 65536, 1)
        except OSError:
            break
        if not text:
            break
        message = json.loads(text)
        given = descriptors[0] if descriptors else given
        answer = {"return": execute(message["execute"], message.get("arguments")), "id": message["id"]}
        event = json.dumps({"event": "STOP"}).encode() + b"\r\n"
        try:
            connection.sendall(event + json.dumps(answer).encode() + b"\r\n")
        except OSError:
            break
