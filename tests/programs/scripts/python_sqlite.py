import os, sqlite3, threading
d = sqlite3.connect("data.db"); print(d.execute("pragma journal_mode=wal").fetchone())
d.execute("create table t (n integer primary key, text)"); d.commit()
def insert(start):
    c = sqlite3.connect("data.db", timeout=60)
    for n in range(start, start + 50):
        with c: c.execute("insert into t values (?, ?)", (n, "x" * 500))
    c.close()
ts = [threading.Thread(target=insert, args=(k * 50,)) for k in range(4)]
[t.start() for t in ts]; [t.join() for t in ts]
print(d.execute("select count(*), sum(n), sum(length(text)) from t").fetchone())
print(d.execute("pragma integrity_check").fetchone()); d.execute("pragma mmap_size=1000000")
with d: d.execute("delete from t where n % 2")
d.execute("vacuum"); print(d.execute("select count(*) from t").fetchone()); d.close()
print(sorted(os.listdir()) == ["data.db"])
