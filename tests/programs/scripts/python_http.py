import http.server, threading, urllib.request, urllib.error, subprocess
class H(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
open("page", "w").write("a page\n" * 10000)
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H); threading.Thread(target=s.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{s.server_port}"
get = lambda p, d=None: urllib.request.urlopen(url + p, d, timeout=20).read()
print(len(get("/page")), len(get("/", b"z" * 500000)))
try: get("/none")
except urllib.error.HTTPError as e: print(e.code)
ok = []
ts = [threading.Thread(target=lambda: ok.append(len(get("/page")))) for _ in range(20)]
[t.start() for t in ts]; [t.join() for t in ts]; print(set(ok), len(ok))
print(subprocess.check_output(["curl", "-sf", url + "/page", url + "/page"]).count(b"\n"))
s.shutdown()
