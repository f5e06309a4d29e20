"""A server of files on loopback, by ranges, and of a STAC API; a process of its own, since GDAL holds Python's lock
while it waits for an answer.

`/x` is the file x; `/status/403/x` answers 403; `/flaky/x` answers 503 once, then as `/x`; `/cut/x` breaks off in the
middle of each answer; `/torn/x` is the first half of x; `/api` is the root of an API whose search returns items.json.
"""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(sys.argv[1])
refused: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.lstrip("/").split("?")[0]
        kind, _, name = path.partition("/")
        name = name if kind in ("status", "flaky", "cut", "torn") else path
        if kind == "status":
            self.answer(int(name.split("/")[0]))
        elif kind == "flaky" and self.path not in refused:
            refused.add(self.path)
            self.answer(503)
        elif self.path == "/api":
            address = f"http://{self.headers['Host']}/api"
            links = [{"rel": "search", "href": f"{address}/search", "type": "application/geo+json", "method": "POST"}]
            links += [{"rel": rel, "href": address, "type": "application/json"} for rel in ("root", "self")]
            conforms = [f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search")]
            root = {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "an API", "links": links}
            self.answer(200, json.dumps(root | {"conformsTo": conforms}).encode())
        elif not (ROOT / name).is_file():
            self.answer(404)
        else:
            body = (ROOT / name).read_bytes()
            self.answer(200, body[: len(body) // 2] if kind == "torn" else body, cut=kind == "cut")

    def do_POST(self) -> None:
        (ROOT / "asked.json").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, (ROOT / "items.json").read_bytes())

    def answer(self, status: int, body: bytes = b"", cut: bool = False) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, size = 0, len(body)
        if status == 200 and wanted:
            status, start = 206, int(wanted[1])
            body = body[start : int(wanted[2] or size) + 1]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{size}")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.close_connection = cut
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
