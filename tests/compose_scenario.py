#!/usr/bin/env python3
"""One walk through the gateway as its users see it, from outside, over real sockets.

    python3 tests/compose_scenario.py --url http://127.0.0.1:8080 --admin-key KEY [--nodes 3] [--stop-node CMD]

Runs against anything that answers at the URL: one node, or many behind a load balancer that knows no sticky sessions.
With --nodes 2 or more, it insists that a client, its peer and its siblings are on different nodes. CMD stops one node,
whichever it likes, with SIGTERM, and returns when the node is gone. Needs `pip install websockets`.
tests/compose.sh runs all of it on docker-compose.yml.
"""
import argparse
import asyncio
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from urllib.parse import quote, urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

MIB = 1024 * 1024
RUN = secrets.token_hex(4)
# Events about one connection. They are not kept, so a sibling that wakes does not get another one's.
PASSING = ("ready", "gap", "broker.", "node.")
PIPES = []
ARGS = None


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def ok(what):
    print(f"ok    {what}", flush=True)


def title(what):
    print(f"\n{what}", flush=True)


async def until(condition, what, seconds=10.0):
    """Waits for `condition`, by its own clock: there is no sleep here that hopes to be long enough."""
    deadline = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < deadline, f"not within {seconds:g} s: {what() if callable(what) else what}")
        await asyncio.sleep(0.01)


# ---------------------------------------------------------------- HTTP

class Refused(Exception):
    def __init__(self, status, headers, body):
        super().__init__(f"HTTP {status}: {body[:300]!r}")
        self.status, self.headers = status, headers


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


async def http(method, path, body=None, bearer=None):
    def run():
        request = urllib.request.Request(ARGS.url + path, method=method)
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if bearer:
            request.add_header("Authorization", f"Bearer {bearer}")
        try:
            with OPENER.open(request, data, timeout=15) as response:
                raw = response.read()
                return json.loads(raw) if raw else None
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.headers, error.read()) from None
    return await asyncio.to_thread(run)


# ---------------------------------------------------------------- the two sockets

async def open_socket(path, ticket, query="", **options):
    url = "ws" + ARGS.url.removeprefix("http") + path + query
    headers = {"Authorization": f"Bearer {ticket}"} if ticket else {}
    return await connect(url, additional_headers=headers, compression=None, ping_interval=None, max_size=None,
                         open_timeout=15, proxy=None, **options)


class Pipe:
    """A client socket, and the account of it: each frame that came, and each one that an agent meant for it."""

    async def open(self, pair, ticket_in_query=False):
        path = f"/v1/pairs/{pair['pair']}/client"
        check(urlsplit(pair["client"]["url"]).path == path, f"client.url is {pair['client']['url']}")
        ticket = pair["client"]["ticket"]
        self.frames, self.expected, self.sent, self.code, self.reason = [], [], 0, None, None
        self.ws = await (open_socket(path, None, f"?ticket={quote(ticket)}") if ticket_in_query else open_socket(path, ticket))
        PIPES.append(self)
        self.name = f"pipe {len(PIPES)} of {pair['pair']} in {pair['room']}"
        self.reader = asyncio.create_task(self.read())
        return self

    async def read(self):
        try:
            async for frame in self.ws:
                self.frames.append(frame)
        except ConnectionClosed:
            pass
        self.code, self.reason = self.ws.close_code, self.ws.close_reason

    async def say(self, frame, *to):
        """Sends one frame, and enters it in the account of those who are to get it."""
        await self.ws.send(frame)
        self.sent += 1
        for pipe in to:
            pipe.expected.append(frame)

    async def settled(self):
        await until(lambda: len(self.frames) >= len(self.expected),
                    lambda: f"{self.name} has {len(self.frames)} of {len(self.expected)} frames, closed {self.code} {self.reason!r}")
        self.balance()

    def balance(self):
        """Type and bytes of every frame: str is a text frame, bytes a binary one."""
        if self.frames != self.expected:
            first = next((i for i, (a, b) in enumerate(zip(self.frames, self.expected)) if a != b),
                         min(len(self.frames), len(self.expected)))
            raise AssertionError(f"{self.name}: {len(self.frames)} frames came, {len(self.expected)} were sent to it; they differ "
                                 f"from frame {first} on: {self.frames[first:first + 1]} instead of {self.expected[first:first + 1]}")

    async def closed(self, code, seconds=10.0):
        await until(lambda: self.code is not None, f"{self.name} closes with {code}", seconds)
        check(self.code == code, f"{self.name} closed {self.code} {self.reason!r} instead of {code}")


class CommandFailed(Exception):
    def __init__(self, method, error):
        super().__init__(f"{method}: {error}")
        self.code = error.get("code")


class Sibling:
    async def open(self, pair, cursor=None):
        path = f"/v1/pairs/{pair['pair']}/sibling"
        check(urlsplit(pair["sibling"]["url"]).path == path, f"sibling.url is {pair['sibling']['url']}")
        self.pair, self.events, self.waiting, self.last_id = pair["pair"], [], {}, 0
        self.code, self.reason = None, None
        query = f"?cursor={quote(cursor)}" if cursor else ""
        self.ws = await open_socket(path, pair["sibling"]["ticket"], query, subprotocols=["siblings.v1.json"])
        self.reader = asyncio.create_task(self.read())
        await until(lambda: self.events or self.code, "a sibling's first event")
        check(self.events and self.events[0]["type"] == "ready", f"the first frame is not ready: {self.events[:1]}, closed {self.code} {self.reason!r}")
        self.ready = self.events[0]["data"]
        check(self.ready["pair"] == self.pair and self.ready["protocol"] == 1, f"ready says {self.ready}")
        self.node = self.ready["node"]
        return self

    async def read(self):
        try:
            async for frame in self.ws:
                message = json.loads(frame)
                if message.get("method") == "event":
                    self.events.append(message["params"])
                else:
                    self.waiting.pop(message["id"]).set_result(message)
        except ConnectionClosed:
            pass
        self.code, self.reason = self.ws.close_code, self.ws.close_reason
        for future in self.waiting.values():
            future.cancel()

    async def call(self, method, key=None, **params):
        self.last_id += 1
        number = self.last_id
        future = self.waiting[number] = asyncio.get_running_loop().create_future()
        if key:
            params["key"] = key
        await self.ws.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))
        return result_of(method, await asyncio.wait_for(future, 15))

    def kept(self):
        return [event for event in self.events if not event["type"].startswith(PASSING)]

    async def event(self, kind, key=None, seconds=10.0, **data):
        """The first event of this kind, of this cause, with this data."""
        def found():
            return next((e for e in self.events if e["type"] == kind
                         and (key is None or key in json.dumps(e.get("cause")))
                         and all(e["data"].get(k) == v for k, v in data.items())), None)
        await until(found, lambda: f"event {kind}, cause {key}, with {data}; there are "
                    f"{[(e['type'], e['data'], e.get('cause')) for e in self.events[-6:]]}", seconds)
        return found()

    async def close(self):
        await self.ws.close()
        await self.reader


def result_of(method, message):
    if "error" in message:
        raise CommandFailed(method, message["error"])
    return message["result"]


async def new_pair(room, form):
    pair = await http("POST", "/v1/pairs", {"room": room, "format": form}, ARGS.admin_key)
    check(pair["room"] == room and pair["format"] == form, f"asked for {room} in {form}, got {pair}")
    return pair


async def over_http(pair, method, key=None, **params):
    if key:
        params["key"] = key
    message = await http("POST", f"/v1/pairs/{pair['pair']}/commands",
                         {"jsonrpc": "2.0", "id": "over-http", "method": method, "params": params}, pair["sibling"]["ticket"])
    check(message["id"] == "over-http", f"the id came back as {message}")
    return result_of(method, message)


class Agent:
    """A pair with its client socket and one sibling: on another node than the client socket, where there is another."""

    async def open(self, room, form="text", avoid=(), attempts=40):
        rejected = []
        while True:
            self.pair = await new_pair(room, form)
            self.sibling = await Sibling().open(self.pair)
            self.pipe = await Pipe().open(self.pair)
            opened = (await self.sibling.event("client.opened", epoch=1))["data"]
            check(opened["room"] == room and opened["format"] == form, f"client.opened says {opened}")
            self.node = opened["node"]
            if self.node not in avoid or ARGS.nodes < 2:
                break
            rejected.append(self)
            check(len(rejected) < attempts, f"{attempts} client sockets in a row on {self.node}: does the load balancer spread?")
            self = Agent()
        self.sibling = await elsewhere(self.pair, self.sibling, {self.node})
        for other in rejected:  # held until now, so that the load balancer looked further
            await http("DELETE", f"/v1/pairs/{other.pair['pair']}", bearer=ARGS.admin_key)
            await other.pipe.closed(3510)
        return self


async def elsewhere(pair, sibling, avoid, cursor=None, attempts=40):
    """Opens siblings until one is on a node that is not to be avoided; the first was opened already."""
    opened = [sibling] if sibling else []
    while not opened or (opened[-1].node in avoid and ARGS.nodes > 1):
        check(len(opened) < attempts, f"{attempts} siblings in a row on {avoid}: does the load balancer spread?")
        opened.append(await Sibling().open(pair, cursor))
    for other in opened[:-1]:
        await other.close()
    return opened[-1]


# ---------------------------------------------------------------- (a) a media file

def media_file():
    """At least 10 MiB: a moving picture with sound where there is ffmpeg, noise elsewhere."""
    if shutil.which("ffmpeg"):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "media.ts")
            made = subprocess.run(
                ["ffmpeg", "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=size=640x360:rate=25",
                 "-f", "lavfi", "-i", "sine=frequency=440", "-t", "14", "-c:v", "mpeg2video", "-b:v", "4M", "-c:a", "mp2",
                 "-muxrate", "8M", "-f", "mpegts", path], check=False)
            if made.returncode == 0 and os.path.getsize(path) >= 10 * MIB:
                with open(path, "rb") as file:
                    return file.read(), "MPEG-TS by ffmpeg"
    return os.urandom(12 * MIB), "random bytes"


async def media(data, origin):
    room, chunk, pace = f"t-{RUN}-media", 87 * 188, 5 * MIB  # bytes per frame; bytes per second
    sender = await Agent().open(room, "binary")
    receiver = await Agent().open(room, "binary", avoid={sender.node})
    ok(f"(a) sender on {sender.node}, sibling on {sender.sibling.node}; receiver on {receiver.node}, sibling on {receiver.sibling.node}")
    # Room for a busy machine: this is about the bytes, not about who is slow.
    await receiver.sibling.call("client.set", key="a-queue", queue_bytes=8 * MIB)
    await receiver.sibling.event("client.changed", "a-queue")

    slowest, streaming = 0.0, True

    async def command_beside():
        nonlocal slowest
        while streaming:
            before = time.monotonic()
            await receiver.sibling.call("client.ping")
            slowest = max(slowest, time.monotonic() - before)
            await asyncio.sleep(0.1)
    beside = asyncio.create_task(command_beside())

    started, count = time.monotonic(), 0
    for at in range(0, len(data), chunk):
        await sender.pipe.say(data[at:at + chunk], receiver.pipe)
        count += 1
        ahead = at / pace - (time.monotonic() - started)
        if ahead > 0:
            await asyncio.sleep(ahead)
    await receiver.pipe.settled()
    seconds, streaming = time.monotonic() - started, False
    await beside
    digest = hashlib.sha256(data).hexdigest()
    arrived = hashlib.sha256(b"".join(receiver.pipe.frames)).hexdigest()
    check(digest == arrived, f"SHA-256 sent {digest}, received {arrived}")
    ok(f"(a) {len(data)} bytes ({origin}) in {count} binary frames, {seconds:.1f} s; SHA-256 equal at both ends: {digest}")
    check(slowest < 2, f"client.ping took {slowest:.2f} s beside the stream")
    ok(f"(a) client.ping beside the stream: slowest reply {slowest * 1000:.0f} ms")

    await sender.pipe.ws.close(1000)
    await sender.sibling.event("client.closed", epoch=1, code=1000, by="client", clean=True,
                               frames_in=count, bytes_in=len(data), frames_out=0, bytes_out=0)
    await receiver.pipe.ws.close(1000)
    await receiver.sibling.event("client.closed", epoch=1, by="client", frames_in=0, frames_out=count, bytes_out=len(data))
    ok("(a) client.closed counts the same frames and bytes on both sides")


# ---------------------------------------------------------------- (b) commands in a text room

async def nothing_for(pipe, witness):
    """Whoever else was sent the same frames has them; this pipe has got nothing more."""
    await witness.settled()
    await asyncio.sleep(0.2)
    pipe.balance()


async def text_room():
    room, other_room = f"t-{RUN}-text", f"t-{RUN}-other"
    a = await Agent().open(room)
    b = await Agent().open(room, avoid={a.node})
    w, c = await Agent().open(room), await Agent().open(other_room)
    ok(f"(b) A on {a.node}, its sibling on {a.sibling.node}; B on {b.node}, its sibling on {b.sibling.node}")
    A, B, W, C, command = a.pipe, b.pipe, w.pipe, c.pipe, a.sibling.call

    await A.say("from A", B, W)
    await B.settled()  # else two senders' frames may reach W in either order
    await W.settled()
    await B.say("from B", A, W)
    for pipe in (A, B, W):
        await pipe.settled()
    ok("(b) frames go both ways; nobody gets their own")

    # out, buffer
    result = await command("client.pause", key="b1", direction="out", policy="buffer")
    check(result["position"] == len(A.frames), f"client.pause says {result}, A has {len(A.frames)} frames")
    await a.sibling.event("client.paused", "b1")
    held = [f"held {n}" for n in range(5)]
    for frame in held:
        await B.say(frame, W)
    await nothing_for(A, W)
    A.expected += held
    result = await command("client.resume", key="b2", direction="out")
    check(result["buffered"] == 5 and result["dropped"] == 0, f"client.resume says {result} of 5 held frames")
    await A.settled()
    await a.sibling.event("client.unpaused", "b2")
    ok("(b) pause out/buffer holds what is sent after its reply; resume delivers all 5, in order")

    # out, drop
    await command("client.pause", key="b3", direction="out", policy="drop")
    await a.sibling.event("client.paused", "b3")
    for n in range(4):
        await B.say(f"lost {n}", W)
    await nothing_for(A, W)
    result = await command("client.resume", key="b4", direction="out")
    check(result["dropped"] == 4 and result["buffered"] == 0, f"client.resume says {result} of 4 dropped frames")
    await B.say("after the drop", A, W)
    await A.settled()
    ok("(b) pause out/drop drops 4, says 4, and the next frame arrives")

    # in, buffer and hold
    for policy, key in (("buffer", "b5"), ("hold", "b6")):
        await command("client.pause", key=key, direction="in", policy=policy)
        await a.sibling.event("client.paused", key)
        await B.say(f"B is not paused: {policy}", A, W)
        for n in range(3):
            await A.say(f"{policy} {n}")
        await A.settled()
        await nothing_for(B, W)
        for pipe in (B, W):
            pipe.expected += [f"{policy} {n}" for n in range(3)]
        await command("client.resume", key=key + "r", direction="in")
        await a.sibling.event("client.unpaused", key + "r")
        await B.settled()
        await W.settled()
        ok(f"(b) pause in/{policy} keeps 3 frames of A from the room until resume; A still receives")

    # push and send; with a key once, whichever sibling asks again
    twin = await elsewhere(a.pair, None, {a.sibling.node})
    result = await command("client.push", key="b7", text="pushed")
    again = await twin.call("client.push", key="b7", text="pushed")
    check(again == result, f"the same key had {result}, then {again}")
    A.expected.append("pushed")
    await A.settled()
    check(result["position"] in (len(A.frames) - 1, len(A.frames)), f"client.push says {result}, it was frame {len(A.frames)}")
    sent = await command("client.send", key="b8", text="said by the sibling")
    check("seq" in sent, f"client.send says {sent}")
    for pipe in (B, W):
        pipe.expected.append("said by the sibling")
        await pipe.settled()
    await nothing_for(A, W)
    ok("(b) push reaches A alone, and once though its key came twice; send reaches the others as A's")

    await move_between(a, B, C, W, room, other_room)

    # close
    result = await command("client.close", key="b10", code=4001, reason="done")
    await A.closed(4001)
    check(A.reason == "done", f"A closed with the reason {A.reason!r}")
    await a.sibling.event("client.closed", "b10", code=4001, reason="done", by="sibling", frames_in=A.sent, frames_out=len(A.frames))
    try:
        await command("client.ping")
        raise AssertionError("client.ping was answered without a client socket")
    except CommandFailed as failure:
        check(failure.code == -32017, str(failure))
    await Pipe().open(a.pair, ticket_in_query=True)
    await a.sibling.event("client.opened", epoch=2)
    ok("(b) close 4001 'done': the client saw it, client.closed counts its frames, client.ping gets -32017; the pair takes a new client socket")


async def move_between(a, B, C, W, room, other_room):
    """A moves from B's room to C's while both talk without a pause: the reply's position is the seam, to the frame."""
    A, start, replied_at = a.pipe, len(a.pipe.frames), {}
    talking, counts = True, {"B": 0, "C": 0}

    async def talk(name, pipe, *to):
        while talking:
            counts[name] += 1
            await pipe.say(f"{name} {counts[name]}", *to)
            await asyncio.sleep(0.004)
    talkers = [asyncio.create_task(talk("B", B, W)), asyncio.create_task(talk("C", C))]
    await until(lambda: len(A.frames) > start + 20, "A hears B before the move")
    result = await a.sibling.call("client.move", key="b9", room=other_room)
    replied_at.update(counts)
    check(result["from"] == room and result["to"] == other_room, f"client.move says {result}")
    await until(lambda: A.frames[-1].startswith("C ") and counts["C"] > replied_at["C"] + 20, "A hears C after the move")
    talking = False
    await asyncio.gather(*talkers)
    last = f"C {counts['C']}"
    await until(lambda: A.frames[-1] == last, f"A hears {last}")
    await nothing_for(W, W)

    seam = result["position"]
    before, after = A.frames[start:seam], A.frames[seam:]
    check(before == [f"B {n + 1}" for n in range(len(before))], f"before the seam, not B's frames in order: {before[-5:]}")
    first = int(after[0].split()[1])
    check(after == [f"C {n}" for n in range(first, counts["C"] + 1)], f"after the seam at {seam}, not C's frames in order: {after[:5]}")
    check(first <= replied_at["C"] + 1, f"a frame sent after the reply was lost: A hears C from {first}, the reply came at {replied_at['C']}")
    A.expected = list(A.frames)
    moved = await a.sibling.event("client.moved", "b9")
    check(moved["data"]["position"] == seam, f"client.moved says {moved}")
    ok(f"(b) move under two streams: {len(before)} frames of B, then {len(after)} of C, the seam at frame {seam} as the reply says")


# ---------------------------------------------------------------- (d) a sibling sleeps and wakes

async def sleep_and_wake():
    room, other_room = f"t-{RUN}-sleep", f"t-{RUN}-sleep-2"
    a = await Agent().open(room)
    peer, other = await Agent().open(room), await Agent().open(other_room)
    sleeper = a.sibling
    watch = await elsewhere(a.pair, None, {sleeper.node})
    await watch.call("client.set", key="d0", meta={"n": 0})
    cursor = (await sleeper.event("client.changed", "d0"))["cursor"]
    slept_on = sleeper.node
    await sleeper.close()

    await peer.pipe.say("the pipe needs no sibling", a.pipe)
    await a.pipe.settled()
    await over_http(a.pair, "client.move", key="d1", room=other_room)
    await over_http(a.pair, "client.pause", key="d2", direction="out", policy="buffer")
    await other.pipe.say("while it slept", a.pipe)
    await watch.call("client.resume", key="d3", direction="out")
    await a.pipe.settled()
    await watch.event("client.unpaused", "d3")

    # Waking into the middle of more: there must be no seam between what is replayed and what is live.
    async def more():
        for n in range(1, 61):
            await over_http(a.pair, "client.set", meta={"n": n}) if n % 10 == 0 else await watch.call("client.set", meta={"n": n})
    going_on = asyncio.create_task(more())
    await until(lambda: len(watch.kept()) > 12, "some more events")
    awake = await elsewhere(a.pair, None, {slept_on}, cursor)
    also = await Sibling().open(a.pair, cursor)
    await going_on
    await watch.call("client.set", key="d-last", meta={"n": "last"})
    await watch.event("client.changed", "d-last")
    seen = watch.kept()
    missed = seen[next(i for i, e in enumerate(seen) if e["cursor"] == cursor) + 1:]
    for sibling in (awake, also):
        await sibling.event("client.changed", "d-last")
        check(not any(e["type"] == "gap" for e in sibling.events), "a gap was announced")
        got = sibling.kept()
        check([e["cursor"] for e in got] == [e["cursor"] for e in missed],
              f"woken: {[e['type'] for e in got]}; live: {[e['type'] for e in missed]}")
        check(got == missed, f"differs: {next((g, m) for g, m in zip(got, missed) if g != m) if got != missed else ''}")
    kinds = [e["type"] for e in missed][:3]
    check(kinds == ["client.moved", "client.paused", "client.unpaused"], f"missed {kinds}")
    ok(f"(d) slept on {slept_on}, woke on {awake.node} and {also.node}: {len(missed)} events since the cursor, each once, in order, the same field for field")

    whole = await Sibling().open(a.pair, "start")
    await whole.event("client.changed", "d-last")
    check(whole.kept()[-len(seen):] == seen, "?cursor=start tells another story than the live one")
    ok(f"(d) ?cursor=start tells all {len(whole.kept())} events")
    try:
        foreign = await Sibling().open(peer.pair, cursor)
        raise AssertionError(f"another pair's cursor was taken: {foreign.ready}")
    except (InvalidStatus, AssertionError) as refusal:
        check(isinstance(refusal, InvalidStatus) or "3504" in str(refusal), f"another pair's cursor: {refusal}")
    ok("(d) another pair's cursor is refused")


# ---------------------------------------------------------------- (e) a node is stopped

async def patient(action, told):
    """503 with Retry-After is an answer that a client can live with; it is counted."""
    for _ in range(10):
        try:
            return await action()
        except Refused as refusal:
            status, headers, error = refusal.status, refusal.headers, refusal
        except InvalidStatus as refusal:
            status, headers, error = refusal.response.status_code, refusal.response.headers, refusal
        check(status == 503 and "Retry-After" in headers, f"refused while a node goes: {error}")
        told.append(status)
        await asyncio.sleep(float(headers["Retry-After"]))
    raise AssertionError("ten times 503")


async def node_stops():
    room, agents = f"t-{RUN}-tick", []
    count = {}
    while len(count) < ARGS.nodes or min(count.values()) < 2:
        full = {node for node, n in count.items() if n >= 2}
        agent = await Agent().open(room, avoid=full)
        agents.append(agent)
        count[agent.node] = count.get(agent.node, 0) + 1
    covered = {agent.sibling.node for agent in agents}
    watchers = [(agent, agent.sibling) for agent in agents]
    while len(covered) < ARGS.nodes:
        watchers.append((agents[0], await elsewhere(agents[0].pair, None, covered)))
        covered.add(watchers[-1][1].node)
    listed = json.dumps(await http("GET", "/v1/nodes", bearer=ARGS.admin_key))
    check(all(node in listed for node in covered), f"/v1/nodes says {listed}, sockets are on {covered}")

    ticking = True

    async def tick(number, pipe):
        n = 0
        while ticking and pipe.code is None:
            try:
                await pipe.say(f"{number} {n}")
            except ConnectionClosed:
                break
            n += 1
            await asyncio.sleep(0.05)
        return n
    ticks = [asyncio.create_task(tick(number, agent.pipe)) for number, agent in enumerate(agents)]
    await until(lambda: all(len(agent.pipe.frames) > 20 for agent in agents), "everybody ticks")

    hook = await asyncio.create_subprocess_shell(ARGS.stop_node)
    gone = asyncio.create_task(hook.wait())

    def drained():
        return {s.node for _, s in watchers if any(e["type"] == "node.draining" for e in s.events)}
    await until(drained, "a sibling hears node.draining", 30)
    node = drained().pop()
    on_it = [(agent, s) for agent, s in watchers if s.node == node]
    for _, sibling in on_it:
        told = (await sibling.event("node.draining"))["data"]
        check("deadline" in told and "reconnect_within" in told, f"node.draining says {told}")

    # Meanwhile, whoever is new is served, by the others.
    fresh, refusals = [], []
    while not gone.done() or len(fresh) < 10:
        pair = await patient(lambda: new_pair(f"t-{RUN}-fresh", "text"), refusals)
        sibling = await patient(lambda: Sibling().open(pair), refusals)
        pipe = await patient(lambda: Pipe().open(pair), refusals)
        opened = await sibling.event("client.opened", epoch=1)
        await sibling.call("client.ping")
        fresh += [sibling.node, opened["data"]["node"]]
        await pipe.ws.close()
        await sibling.close()
        await asyncio.sleep(0.1)
    check(gone.result() == 0, f"--stop-node ended with {gone.result()}")
    check(node not in fresh, f"new sockets were opened on {node}, which drains")
    check(drained() == {node}, f"node.draining was heard on {drained()}, one node was stopped")
    ok(f"(e) {node} drains: {len(on_it)} sibling(s) there were told; {len(fresh)} new sockets meanwhile, all elsewhere ({len(refusals)} answers of 503)")

    lost = [agent for agent in agents if agent.node == node]
    survivors = [agent for agent in agents if agent.node != node]
    for agent in lost:
        await agent.pipe.closed(1012)
    for _, sibling in on_it:
        await until(lambda: sibling.code is not None, "a sibling on the draining node is closed")
        check(sibling.code == 1012, f"a sibling on {node} closed {sibling.code} {sibling.reason!r}")
    check(all(s.code is None for _, s in watchers if s.node != node), "a sibling on another node was closed")
    check(all(agent.pipe.code is None for agent in survivors), "a client socket on another node was closed")
    for agent, sibling in watchers:
        if agent in lost and sibling.node != node:
            await sibling.event("client.closed", code=1012, by="gateway", epoch=1)
    ok(f"(e) {len(lost)} client and {len(on_it)} sibling sockets of {node} closed 1012, no other; the siblings elsewhere heard client.closed by gateway")

    for agent, sibling in on_it:
        cursor = (sibling.kept() or sibling.events)[-1]["cursor"]
        woken = await Sibling().open(agent.pair, cursor)
        check(woken.node != node, "woken on the node that is gone")
        check(not {e["cursor"] for e in woken.kept()} & {e["cursor"] for e in sibling.kept()}, "an event came twice")
        agent.sibling = woken if agent.sibling is sibling else agent.sibling
    for agent in lost:
        agent.pipe = await Pipe().open(agent.pair)
        opened = await agent.sibling.event("client.opened", epoch=2)
        check(opened["data"]["node"] != node, "reopened on the node that is gone")
    ticking = False
    sent = await asyncio.gather(*ticks)
    for agent in lost:
        await agent.pipe.say(f"back {agents.index(agent)}")
    for agent in survivors:
        for number, other in enumerate(agents):
            if other is agent:
                continue
            def heard():
                return [frame for frame in agent.pipe.frames if frame.startswith(f"{number} ")]
            if other in lost:
                await until(lambda: f"back {number}" in agent.pipe.frames, f"{agent.pipe.name} hears client {number} again")
                check(heard() == [f"{number} {n}" for n in range(len(heard()))], f"client {number}, on {node}, is heard with a gap")
            else:
                await until(lambda: len(heard()) >= sent[number], f"all {sent[number]} frames of client {number}")
                check(heard() == [f"{number} {n}" for n in range(sent[number])], f"{agent.pipe.name} lost frames of client {number}")
    for pipe in [agent.pipe for agent in agents] + PIPES:
        if "-tick" in pipe.name and not pipe.expected:
            check(all(frame.split()[0] in ("back", *map(str, range(len(agents)))) for frame in pipe.frames), f"{pipe.name}: a frame nobody sent")
            pipe.expected = list(pipe.frames)
    ok(f"(e) between the other nodes not a frame was lost ({sum(sent)} sent); {len(lost)} client socket(s) reopened with epoch 2 and are heard again")

    deadline = time.monotonic() + 30
    while node in json.dumps(await http("GET", "/v1/nodes", bearer=ARGS.admin_key)):
        check(time.monotonic() < deadline, f"/v1/nodes still lists {node} 30 s after it went")
        await asyncio.sleep(0.2)
    ok(f"(e) /v1/nodes does not list {node} any more")


# ---------------------------------------------------------------- all of it

async def main():
    title(f"{ARGS.url}, {ARGS.nodes} node(s), run {RUN}")
    data, origin = await asyncio.to_thread(media_file)
    title("(a) a media file through a client socket, and (b) beside it commands in a text room")
    await asyncio.gather(media(data, origin), text_room())
    title("(d) a sibling sleeps and wakes")
    await sleep_and_wake()
    if ARGS.stop_node:
        title("(e) a node is stopped")
        await node_stops()
    title("(c) the account of every client socket")
    await asyncio.sleep(0.5)
    for pipe in PIPES:
        pipe.balance()
    total = sum(len(pipe.frames) for pipe in PIPES)
    ok(f"(c) {len(PIPES)} client sockets received {total} frames: each one was sent by an agent, none is missing, none is extra")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--admin-key", default=os.environ.get("SIBLING_ADMIN_KEY"), help="or SIBLING_ADMIN_KEY")
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes there are behind the URL")
    parser.add_argument("--stop-node", metavar="CMD", help="stops one node; needs --nodes 2 or more")
    parser.add_argument("--seconds", type=float, default=240, help="at most")
    ARGS = parser.parse_args()
    ARGS.url = ARGS.url.rstrip("/")
    if not ARGS.admin_key:
        parser.error("--admin-key or SIBLING_ADMIN_KEY is needed")
    if ARGS.stop_node and ARGS.nodes < 2:
        parser.error("--stop-node needs --nodes 2 or more")
    try:
        asyncio.run(asyncio.wait_for(main(), ARGS.seconds))
    except (AssertionError, CommandFailed, Refused, InvalidStatus, TimeoutError, asyncio.TimeoutError, OSError) as failure:
        print(f"FAIL  {type(failure).__name__}: {failure}", flush=True)
        sys.exit(1)
    print("\npassed", flush=True)
