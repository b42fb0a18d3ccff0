"""A TCP proxy that is a slow link: link.py PORT UPSTREAM-PORT LOG [--mbit 100] [--rtt 20].

All connections share the rate, each direction its own. A chunk arrives when the link has carried it, half a round trip
later; a new connection costs a round trip before its first byte. Slow start and loss are not modelled, so every client
fares a little better than on a real link, most of all one that opens many connections.

LOG gets a JSON object a line: every request with its time on the monotonic clock, its connection and its range, every
end of a connection, and the bytes that went down so far. SIGUSR1 begins it anew.
"""

import argparse
import asyncio
import json
import re
import signal
import time

CHUNK = 16 << 10
# What one connection may have on the way: more than this link's bandwidth times its delay, as TCP's window grows to.
WINDOW = 1 << 20
REQUEST = re.compile(rb"^(GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.[01]\r\n")
RANGE = re.compile(rb"\r\nrange: bytes=(\S+)\r\n", re.IGNORECASE)


class Log:
    """What happened, one line each."""

    def __init__(self, path):
        self.path, self.file, self.down, self.connections = path, None, 0, 0
        self.begin()

    def begin(self):
        """Forgets what was."""
        if self.file:
            self.file.close()
        self.down, self.connections = 0, 0
        self.file = open(self.path, "w", encoding="utf-8", buffering=1)

    def put(self, what, **facts):
        """One line."""
        self.file.write(json.dumps({"at": time.monotonic(), "what": what, **facts, "down": self.down}) + "\n")


class Direction:
    """One way of the link: when it is free again."""

    def __init__(self, rate):
        self.rate, self.free = rate, 0.0

    def carry(self, size, now):
        """When `size` more bytes have left it."""
        self.free = max(now, self.free) + size / self.rate
        return self.free


async def pump(reader, writer, way, delay, begin, seen):
    """Carries one direction of one connection."""
    loop = asyncio.get_running_loop()
    queue, room = asyncio.Queue(), asyncio.Semaphore(WINDOW // CHUNK)

    async def deliver():
        try:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if data is None:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
                room.release()
        finally:
            room.release()  # who waits for room learns that nobody takes it

    delivery = asyncio.create_task(deliver())
    try:
        while not delivery.done():
            await room.acquire()
            if delivery.done():
                break
            data = await reader.read(CHUNK)
            now = max(loop.time(), begin)
            if not data:
                queue.put_nowait((max(now, way.free) + delay, None))
                break
            seen(data)
            queue.put_nowait((way.carry(len(data), now) + delay, data))
        await delivery
    finally:
        delivery.cancel()


class Link:
    """The proxy."""

    def __init__(self, upstream, log, rate, round_trip):
        self.upstream, self.log, self.round_trip = upstream, log, round_trip
        self.up, self.down = Direction(rate), Direction(rate)

    async def accept(self, reader, writer):
        """One connection."""
        log = self.log
        log.connections += 1
        number = log.connections
        log.put("connect", connection=number)
        begin = asyncio.get_running_loop().time() + self.round_trip

        def asked(data):
            if request := REQUEST.match(data):
                part = RANGE.search(data)
                log.put("request", connection=number, method=request[1].decode(), path=request[2].decode(),
                        range=part[1].decode() if part else None)  # fmt: skip

        def answered(data):
            log.down += len(data)

        upstream = None
        try:
            reading, upstream = await asyncio.open_connection("127.0.0.1", self.upstream)
            half = self.round_trip / 2
            await asyncio.gather(
                pump(reader, upstream, self.up, half, begin, asked),
                pump(reading, writer, self.down, half, begin, answered),
            )
        except OSError:
            pass  # one of both went away: so does the other
        finally:
            log.put("close", connection=number)
            writer.close()
            if upstream:
                upstream.close()


async def main():
    words = argparse.ArgumentParser()
    words.add_argument("port", type=int)
    words.add_argument("upstream", type=int)
    words.add_argument("log")
    words.add_argument("--mbit", type=float, default=100)
    words.add_argument("--rtt", type=float, default=20, help="milliseconds")
    given = words.parse_args()
    log = Log(given.log)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, log.begin)
    link = Link(given.upstream, log, given.mbit * 1e6 / 8, given.rtt / 1e3)
    server = await asyncio.start_server(link.accept, "127.0.0.1", given.port, limit=4 * CHUNK)
    await server.serve_forever()


asyncio.run(main())
