import asyncio
async def handle(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper()); await writer.drain()
    writer.close()
async def client(port, n):
    r, w = await asyncio.open_connection("127.0.0.1", port)
    for i in range(20):
        w.write(b"line %d %d\n" % (n, i)); assert await r.readline() == b"LINE %d %d\n" % (n, i)
    w.close(); await w.wait_closed(); return n
async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(sum(await asyncio.gather(*(client(port, n) for n in range(50)))))
    p = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print(await p.communicate(b"a subprocess"), p.returncode)
    try: await asyncio.wait_for(asyncio.sleep(60), 0.05)
    except asyncio.TimeoutError: print("timeout")
    print(await asyncio.to_thread(lambda: "thread"))
    server.close()
asyncio.run(main())
