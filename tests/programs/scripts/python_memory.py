import mmap, os, resource, time, tempfile, fcntl, errno
m = mmap.mmap(-1, 64 << 20)
for o in range(0, len(m), 4096): m[o] = 1
print(sum(m[o] for o in range(0, len(m), 4096)))
f = open("mapped", "w+b"); f.truncate(10000)
a = mmap.mmap(f.fileno(), 10000); b = mmap.mmap(f.fileno(), 10000)
a[5000:5005] = b"share"; print(b[5000:5005]); a.flush(); f.seek(5000); print(f.read(5))
p = mmap.mmap(f.fileno(), 10000, mmap.MAP_PRIVATE); p[0:1] = b"!"; print(a[0])
if os.fork() == 0: a[0:3] = b"kid"; os._exit(0)
os.wait(); print(b[0:3])
t = time.monotonic(); time.sleep(0.05); print(time.monotonic() - t >= 0.05, time.clock_getres(time.CLOCK_MONOTONIC) <= 0.01)
with tempfile.TemporaryFile(dir=".") as t: t.write(b"deleted"); t.seek(0); print(t.read(), os.fstat(t.fileno()).st_nlink)
fcntl.lockf(f, fcntl.LOCK_EX)
if os.fork() == 0:
    try: fcntl.lockf(open("mapped", "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e: os._exit(0 if e.errno in (errno.EAGAIN, errno.EACCES) else 1)
    os._exit(2)
print("lock", os.wait()[1])
d = bytearray(100 << 20); del d
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 1000, os.sysconf("SC_PAGE_SIZE"))
x = [bytes(1000) for _ in range(100000)]; print(len(x))
