import queue, threading, concurrent.futures as cf
total, lock = 0, threading.Lock()
def add():
    global total
    for _ in range(1000):
        with lock:
            total += 1
threads = [threading.Thread(target=add) for _ in range(16)]
[t.start() for t in threads]; [t.join() for t in threads]
print("total", total)
q = queue.Queue(maxsize=2)
def produce():
    for n in range(100): q.put(n)
    q.put(None)
threading.Thread(target=produce).start()
print("queue", sum(iter(q.get, None)))
with cf.ThreadPoolExecutor(8) as pool:
    print("pool", sum(pool.map(lambda n: n * n, range(100))))
event = threading.Event()
print("timeout", event.wait(0.05))
threading.Timer(0.02, event.set).start()
print("set", event.wait(20))
barrier = threading.Barrier(4)
done = []
def meet(): barrier.wait(); done.append(1)
ts = [threading.Thread(target=meet) for _ in range(4)]
[t.start() for t in ts]; [t.join() for t in ts]
print("barrier", len(done))
