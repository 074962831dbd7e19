import multiprocessing as mp
from multiprocessing import shared_memory
def square(n): return n * n
def add(value, lock):
    for _ in range(200):
        with lock: value.value += 1
def shared(name): shared_memory.SharedMemory(name).buf[0] = 42
if __name__ == "__main__":
    for method in ["fork", "spawn"]:
        c = mp.get_context(method)
        with c.Pool(4) as pool: print(method, sum(pool.map(square, range(200))))
        v, l = c.Value("i", 0, lock=False), c.Lock()
        ps = [c.Process(target=add, args=(v, l)) for _ in range(4)]
        [p.start() for p in ps]; [p.join() for p in ps]; print(v.value)
    q = mp.get_context("fork").Queue()
    p = mp.get_context("fork").Process(target=q.put, args=("queued",)); p.start(); print(q.get(timeout=20)); p.join()
    m = shared_memory.SharedMemory(create=True, size=4096)
    p = mp.get_context("fork").Process(target=shared, args=(m.name,)); p.start(); p.join(); print(m.buf[0], p.exitcode)
    m.close(); m.unlink()
