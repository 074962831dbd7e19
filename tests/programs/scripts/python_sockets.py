import os, select, socket, struct, threading
for family, host in [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]:
    s = socket.create_server((host, 0), family=family)
    def serve():
        c, _ = s.accept()
        with c:
            while data := c.recv(65536): c.sendall(data[::-1])
    t = threading.Thread(target=serve); t.start()
    c = socket.create_connection(s.getsockname()[:2])
    c.sendall(b"hello"); print(c.recv(10))
    blob = os.urandom(2_000_000); got = bytearray()
    w = threading.Thread(target=lambda: (c.sendall(blob), c.shutdown(socket.SHUT_WR))); w.start()
    while data := c.recv(65536): got += data
    print(len(got), sorted(got) == sorted(blob)); t.join(); w.join(); c.close(); s.close()
a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(("127.0.0.1", 0)); a.settimeout(5)
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); b.connect(a.getsockname())
b.send(b"datagram"); data, peer = a.recvfrom(3); print(data, peer == b.getsockname())
try:
    a.settimeout(0.05); a.recv(1)
except socket.timeout: print("timeout")
try:
    socket.create_connection(("127.0.0.1", 1), timeout=5)
except ConnectionRefusedError as e: print(e)
u = socket.socket(socket.AF_UNIX); u.bind("sock"); u.listen()
v = socket.socket(socket.AF_UNIX); v.connect("sock"); w, _ = u.accept()
f = os.open("sock.txt", os.O_CREAT | os.O_RDWR); os.write(f, b"in the file")
socket.send_fds(v, [b"m"], [f]); m, fds, _, _ = socket.recv_fds(w, 10, 1)
print(m, os.pread(fds[0], 100, 0))
print(struct.unpack("3i", w.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == os.getpid())
p, q = socket.socketpair(); poll = select.epoll(); poll.register(p, select.EPOLLIN | select.EPOLLET)
print(poll.poll(0)); q.send(b"x"); print(len(poll.poll(5)), len(poll.poll(0))); q.close(); print(poll.poll(5)[0][1] & select.EPOLLHUP != 0)
print(socket.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4])
