"""A guest of the end-to-end tests: an HTTP/1.1 server by hand, so that it can do what
no framework lets it do. Usage: guest.py PORT. Threads, one per connection."""
import base64, hashlib, json, os, socket, struct, sys, threading, time

with open("starts", "a") as file:
    file.write(f"{os.getpid()}\n")

released = threading.Event()
counts = {"requests": 0, "sent": 0, "stalled": 0}
lock = threading.Lock()


def count(what, by=1):
    with lock:
        counts[what] += by


class Connection:
    def __init__(self, sock):
        self.sock, self.buffer = sock, b""

    def line(self):
        while b"\r\n" not in self.buffer:
            piece = self.sock.recv(65536)
            if not piece:
                return None
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode("latin-1")

    def lines(self):
        found = []
        while True:
            line = self.line()
            if not line:
                return found
            name, value = line.split(":", 1)
            found.append([name.lower(), value.strip()])

    def take(self, length, use):
        while length:
            if not self.buffer:
                self.buffer = self.sock.recv(1 << 18)
                if not self.buffer:
                    raise ConnectionError("ended within a body")
            piece, self.buffer = self.buffer[:length], self.buffer[length:]
            use(piece)
            length -= len(piece)

    def body(self, headers, use):
        """Reads a request body piece by piece; gives its trailer lines."""
        fields = dict(headers)
        if fields.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size = int(self.line().split(";")[0], 16)
                if size == 0:
                    return self.lines()
                self.take(size, use)
                self.line()
        self.take(int(fields.get("content-length", 0)), use)
        return []

    def some(self, length):
        got = []
        self.take(length, got.append)
        return b"".join(got)

    def send(self, data):
        self.sock.sendall(data if isinstance(data, bytes) else data.encode())

    def answer(self, content, status="200 OK", kind="application/json", extra=""):
        content = content if isinstance(content, bytes) else content.encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n{extra}\r\n"
        self.send(head.encode() + content)

    def chunk(self, data):
        data = data if isinstance(data, bytes) else data.encode()
        self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def serve(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = Connection(sock)
    try:
        while exchange(connection):
            pass
    except OSError:
        pass
    finally:
        sock.close()


def exchange(c):
    """One request; whether the connection goes on."""
    line = c.line()
    if not line:
        return False
    method, target, _ = line.split(" ")
    headers = c.lines()
    path, _, query = target.partition("?")
    count("requests")
    if path == "/expect-refused":  # answers without reading a byte of the body
        c.answer("no", "417 Expectation Failed", extra="Connection: close\r\n")
        return False
    if path == "/expect-accepted":
        c.send("HTTP/1.1 100 Continue\r\n\r\n")
    if path == "/stall":  # reads nothing more, ever
        count("stalled")
        released.wait(600)
        return False
    if path == "/break":  # promises more than it sends, then resets
        c.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nten bytes.")
        time.sleep(0.05)
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    if path == "/vanish":  # ends without a word
        return False
    if path == "/ws":  # a WebSocket that echoes one message, then closes
        key = dict(headers)["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        c.send(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n")
        head = c.some(2)
        length, mask = head[1] & 127, c.some(4)
        c.send(bytes([0x82, length]) + bytes(byte ^ mask[at % 4] for at, byte in enumerate(c.some(length))))
        c.some(6)  # the client's close: empty, masked
        c.send(bytes([0x88, 0]))
        return False
    if path == "/echo":  # each piece goes back as it comes
        c.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        c.body(headers, c.chunk)
        c.send("0\r\n\r\n")
        return True
    digest, seen = hashlib.sha256(), [0]

    def use(piece):
        digest.update(piece)
        seen[0] += len(piece)

    trailers = c.body(headers, use)
    if path == "/head":
        c.answer(json.dumps({"line": line, "headers": headers}))
    elif path in ("/sha", "/expect-accepted"):
        c.answer(json.dumps({"sha256": digest.hexdigest(), "bytes": seen[0], "trailers": trailers}))
    elif path == "/hops":
        hops = "Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n"
        c.answer("hop", kind="text/plain", extra=hops + "Sprite-Wake: forged\r\nX-App: kept\r\n")
    elif path == "/trailers":
        c.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
        c.chunk("first ")
        c.chunk("second")
        c.send("0\r\nX-Sum: 12\r\n\r\n")
    elif path == "/cookies":
        lines = ["own=1; Path=/", "host=1; Domain=cookies.sprites.localhost", "all=1; Domain=.sprites.localhost"]
        lines.append("__Host-sprite-share=forged; Path=/; Secure")
        c.answer("set", extra="".join(f"Set-Cookie: {line}\r\n" for line in lines))
    elif path == "/hsts":  # has a word of its own about HTTPS
        c.answer("kept", extra="Strict-Transport-Security: max-age=7\r\n")
    elif path == "/hints":
        c.send("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        c.answer("hinted", kind="text/plain")
    elif path == "/events":  # the second event comes when somebody asks for /release
        c.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        c.chunk("data: one\n\n")
        released.wait(600)
        c.chunk("data: two\n\n")
        c.send("0\r\n\r\n")
    elif path == "/feed":  # three events, then the end
        c.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            c.chunk(f"data: {number}\n\n")
        c.send("0\r\n\r\n")
    elif path == "/unary":  # the shape of a gRPC answer: one message, and a status in the trailers
        head = "Content-Type: application/grpc+proto\r\nTrailer: grpc-status\r\nTransfer-Encoding: chunked"
        c.send(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n")
        c.chunk(struct.pack(">BI", 0, 32) + digest.digest())
        c.send("0\r\ngrpc-status: 0\r\n\r\n")
    elif path == "/release":
        released.set()
        c.answer("{}")
    elif path == "/bytes":
        length = int(query)
        c.send(f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n")
        block = hashlib.sha256(b"block").digest() * 8192
        while length:
            piece = block[:length]
            c.send(piece)
            length -= len(piece)
    elif path == "/endless":  # counts what the way to the client took
        c.send("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n")
        while True:
            count("sent", c.sock.send(b"x" * 65536))
    elif path == "/counts":
        c.answer(json.dumps(counts))
    elif path == "/slow":  # takes its time before it says a word
        time.sleep(float(query))
        c.answer("at last", kind="text/plain")
    elif path == "/page":
        c.answer("<h1>page</h1>", kind="text/html")
    else:
        c.answer(json.dumps({"pid": os.getpid(), "starts": len(open("starts").readlines())}))
    return True


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(512)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
