#!/usr/bin/env python3
"""A gRPC client without generated code: what there is to call it asks the
server by reflection.

    grpc_client.py HOST:PORT SCENARIO [CA]

With the file of an authority it speaks TLS.
The exit code is 0 if the scenario went as it says. Scenarios that wait for the
test to do something say so in a line, such as `watching`.
"""

import queue
import sys
import time

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PATIENCE_SECONDS = 30


class Service:
    """The calls of a service as methods: chat.Send(to="bob", text="hello")."""

    def __init__(self, channel, pool, name):
        self.pool = pool
        for method in pool.FindServiceByName(name).methods:
            setattr(self, method.name, self.call(channel, name, method))

    def call(self, channel, service, method):
        request = message_factory.GetMessageClass(method.input_type)
        reply = message_factory.GetMessageClass(method.output_type)
        sort = "{}_{}".format(
            "stream" if method.client_streaming else "unary",
            "stream" if method.server_streaming else "unary",
        )
        # Streams have no deadline of their own, but for those that a test gives.
        timeout = None if method.server_streaming else PATIENCE_SECONDS
        invoke = getattr(channel, sort)(
            f"/{service}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        if method.client_streaming:
            return lambda requests: invoke(request(**fields) for fields in requests)
        return lambda timeout=timeout, **fields: invoke(request(**fields), timeout=timeout)


class Server:
    def __init__(self, address, authority=None):
        if authority:
            with open(authority, "rb") as file:
                credentials = grpc.ssl_channel_credentials(file.read())
            self.channel = grpc.secure_channel(address, credentials)
        else:
            self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    def service(self, name):
        return Service(self.channel, self.pool, name)

    @property
    def chat(self):
        return self.service("hark.v1.Chat")


class Session:
    """One BiDiChat: `say` puts requests, iterating takes replies."""

    def __init__(self, chat):
        self.requests = queue.Queue()
        self.replies = chat.BiDiChat(iter(self.requests.get, None))

    def say(self, id, **command):
        self.requests.put({"id": id, **command})

    def next(self):
        reply = next(self.replies)
        kind = reply.WhichOneof("reply")
        return reply.id, kind, getattr(reply, kind)

    def ask(self, id, **command):
        self.say(id, **command)
        replied, kind, reply = self.next()
        assert replied == id, (replied, kind, reply)
        return kind, reply

    def end(self):
        self.requests.put(None)
        rest = list(self.replies)
        assert not rest, rest


def refused(status, code, call, **fields):
    """Expects a refusal, by its status and by the word in its trailing metadata."""
    try:
        reply = call(**fields)
        rest = list(reply) if hasattr(reply, "__next__") else reply
    except grpc.RpcError as error:
        word = dict(error.trailing_metadata()).get("hark-code")
        assert (error.code(), word) == (status, code), error
        return error
    raise AssertionError(f"{fields} got {rest}")


def ended(status, stream):
    """Expects that a stream ends by this status."""
    try:
        rest = list(stream)
    except grpc.RpcError as error:
        assert error.code() == status, error
        return
    raise AssertionError(f"it ended well, after {rest}")


def event(reply):
    kind = reply.WhichOneof("event")
    return kind, getattr(reply, kind)


def reflection(server):
    """All services, and what they take."""
    services = set(server.database.get_services())
    expected = {
        "hark.v1.Chat",
        "hark.v1.LogWatcher",
        "helloworld.Chat",
        "grpc.health.v1.Health",
    }
    assert expected <= services, services
    send = server.pool.FindMessageTypeByName("hark.v1.SendRequest")
    assert [field.name for field in send.fields] == ["to", "text", "login", "idempotency"]


def calls(server):
    """Accounts and sends by calls of their own, and how they are refused."""
    chat, code = server.chat, grpc.StatusCode
    chat.Create(user="bob")
    chat.Create(user="eve", password="secret")
    refused(code.ALREADY_EXISTS, "exists", chat.Create, user="bob")
    refused(code.INVALID_ARGUMENT, "bad-name", chat.Create, user="b b")
    refused(code.INVALID_ARGUMENT, "bad-password", chat.Create, user="max", password="a,b")
    chat.Send(to="bob", text="hello, bob")
    chat.Send(to="bob", text="from eve", login={"user": "eve", "password": "secret"})
    refused(code.NOT_FOUND, "no-such-user", chat.Send, to="nobody", text="x")
    refused(code.INVALID_ARGUMENT, "too-large", chat.Send, to="bob", text="x" * (64 * 1024 - 255))
    for _ in range(2):
        chat.Send(to="bob", text="once", idempotency={"session": "python", "id": 7})
    refused(
        code.PERMISSION_DENIED, "denied", chat.Send,
        to="bob", text="x", login={"user": "eve", "password": "guess"},
    )
    refused(code.INVALID_ARGUMENT, "bad-pattern", chat.List, pattern="(")
    chat.Password(user="bob", new="mine")
    refused(code.PERMISSION_DENIED, "denied", chat.Password, user="bob", old="guess", new="x")
    for _ in range(4):
        refused(code.PERMISSION_DENIED, "denied", chat.Delete, user="bob", password="guess")
    limited = refused(code.RESOURCE_EXHAUSTED, "rate-limited", chat.Delete, user="bob", password="guess")
    wait = int(dict(limited.trailing_metadata())["hark-retry-after-s"])
    assert 0 < wait <= 10, wait
    assert chat.Delete(user="eve", password="secret").existed
    assert not chat.Delete(user="eve", password="secret").existed


def receive(server):
    """Connect and Ack: what is not acknowledged comes again."""
    chat = server.chat
    chat.Create(user="bob")
    for text in ("one", "two", "three"):
        chat.Send(to="bob", text=text)
    seen = []
    for queued in (3, 2):
        stream = chat.Connect(user="bob")
        kind, connected = event(next(stream))
        assert (kind, connected.queued) == ("connected", queued), connected
        messages = [event(next(stream))[1] for _ in range(queued)]
        assert [message.text for message in messages] == ["one", "two", "three"][-queued:]
        seen.append([message.sequence for message in messages])
        chat.Ack(receipt=connected.receipt, sequence=messages[0].sequence)
        stream.cancel()
    assert seen[1] == seen[0][1:] and seen[0] == sorted(seen[0]), seen
    former = chat.Connect(user="bob")
    assert event(next(former))[1].queued == 1
    assert event(next(former))[1].text == "three"
    latter = chat.Connect(user="bob")
    next(latter)
    kind, bye = event(next(former))
    assert (kind, bye.reason) == ("bye", "taken-over"), bye
    assert event(next(latter))[1].text == "three"
    chat.Delete(user="bob")
    kind, bye = event(next(latter))
    assert (kind, bye.reason) == ("bye", "deleted"), bye
    assert not list(latter)


def session(server):
    """A whole session over BiDiChat, and its sends repeated on the next."""
    bidi = Session(server.chat)
    kind, opened = bidi.ask(100, hello={"version": 1, "session": "python"})
    assert (kind, opened.version) == ("hello", 1), opened
    assert bidi.ask(101, create={"user": "bob"})[0] == "ok"
    kind, refusal = bidi.ask(102, create={"user": "bob"})
    assert (kind, refusal.code) == ("not_ok", "exists"), refusal
    assert bidi.ask(103, login={"user": "bob"})[0] == "ok"
    for id in range(1000, 2000):
        bidi.say(id, send={"to": "bob", "text": str(id)})
    for id in range(1000, 2000):
        replied, kind, reply = bidi.next()
        assert (replied, kind) == (id, "ok"), reply
    # Lost before it was read, for all that the server knows.
    bidi.replies.cancel()

    bidi = Session(server.chat)
    assert bidi.ask(100, hello={"version": 1, "session": "python"})[0] == "hello"
    assert bidi.ask(1999, send={"to": "bob", "text": "1999"})[0] == "ok"
    kind, connected = bidi.ask(2000, connect={"user": "bob"})
    assert (kind, connected.queued) == ("connected", 1000), connected
    for id in range(1000, 2000):
        replied, kind, message = bidi.next()
        assert (replied, kind, message.text, message.sender) == (0, "message", str(id), "bob"), message
        bidi.say(0, ack=message.sequence)
    bidi.say(2001, list={})
    assert bidi.next()[:2] == (2001, "names")
    replied, kind, listed = bidi.next()
    assert (replied, kind, listed.count) == (2001, "listed", 1), listed
    former, bidi = bidi, Session(server.chat)
    assert bidi.ask(1, hello={"version": 1, "session": "python"})[0] == "hello"
    ended(grpc.StatusCode.ABORTED, former.replies)
    kind, connected = bidi.ask(2, connect={"user": "bob"})
    assert (kind, connected.queued) == ("connected", 0), connected
    assert bidi.ask(3, disconnect={})[0] == "ok"
    bidi.say(4, ping={})
    assert bidi.next()[:2] == (4, "ok")
    bidi.end()


def pages(server):
    """A list of the 3000 users that the test has made, cut at 2500."""
    replies = list(server.chat.List())
    assert len(replies) > 2, len(replies)
    names = [name for reply in replies for name in reply.names]
    assert len(names) == 2500 and names == sorted(names), len(names)
    assert [reply.truncated for reply in replies] == [False] * (len(replies) - 1) + [True]
    some = [name for reply in server.chat.List(pattern="^00.7") for name in reply.names]
    assert len(some) == 10, some
    assert not list(server.chat.List(pattern="nobody"))


def deadlines(server):
    """A call ends at its deadline, and a cancelled one frees what it holds."""
    chat = server.chat
    chat.Create(user="bob")
    ended(grpc.StatusCode.DEADLINE_EXCEEDED, chat.Connect(user="bob", timeout=0.3))
    stream = chat.Connect(user="bob")
    receipt = event(next(stream))[1].receipt
    # Deep in a drain, with most of the window unread.
    for number in range(400):
        chat.Send(to="bob", text=str(number))
    last = event(next(stream))[1].sequence
    stream.cancel()
    ended(grpc.StatusCode.CANCELLED, stream)
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        # It is taken for as long as the stream is there.
        try:
            chat.Ack(receipt=receipt, sequence=last)
        except grpc.RpcError as error:
            assert dict(error.trailing_metadata())["hark-code"] == "bad-request", error
            break
        assert time.monotonic() < until, "the stream is still there"
    again = chat.Connect(user="bob")
    assert event(next(again))[1].queued in (399, 400)
    for _ in range(256):
        assert event(next(again))[0] == "message"


def logs(server):
    """The log as it happens, without the password that was wrong."""
    chat = server.chat
    chat.Create(user="bob", password="secret")
    stream = server.service("hark.v1.LogWatcher").WatchLogs(
        level=3, target_prefix="hark_server::chat", limit=1
    )
    # It begins with the headers; what happens from then on comes.
    stream.initial_metadata()
    refused(grpc.StatusCode.PERMISSION_DENIED, "denied", chat.Delete, user="bob", password="guess")
    (reply,) = stream
    kind, log = event(reply)
    assert (kind, log.level) == ("log", 3) and log.target.startswith("hark_server::chat"), log
    assert "wrong password" in log.message and log.time_ms > 0, log
    assert "guess" not in str(log) and "secret" not in str(log), log


def health(server):
    """Serving, until the test stops the server."""
    stub = health_pb2_grpc.HealthStub(server.channel)
    status = health_pb2.HealthCheckResponse
    for service, expected in (("", status.SERVING), ("hark.v1.Chat", status.SERVING),
                              ("hark.v1.LogWatcher", status.NOT_SERVING)):
        checked = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert checked.status == expected, (service, checked)
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="absent"))
        raise AssertionError("there is no such service")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == status.SERVING
    print("watching", flush=True)
    assert next(watch).status == status.NOT_SERVING


def old(server):
    """The service of Hark's predecessor."""
    chat = server.service("helloworld.Chat")
    for line in ("create bob", "send bob hello there", "send bob again"):
        answer = chat.try_command(command=line)
        assert not answer.message.startswith("Refused") and not answer.name, answer
    assert chat.try_command(command="create bob").message.startswith("Refused: ")
    connected = chat.try_command(command="connect bob")
    assert (connected.message, connected.name) == ("Connection successful for user bob", "bob")
    assert chat.listen(name="bob").message == "Message: hello there\n\nMessage: again\n\n"
    assert chat.listen(name="bob").message == ""
    assert chat.listen().message == ""


SCENARIOS = (reflection, calls, receive, session, pages, deadlines, logs, health, old)


def main():
    scenarios = {scenario.__name__: scenario for scenario in SCENARIOS}
    if len(sys.argv) not in (3, 4) or sys.argv[2] not in scenarios:
        sys.exit(f"{__doc__}\nScenarios: {', '.join(scenarios)}")
    scenarios[sys.argv[2]](Server(sys.argv[1], *sys.argv[3:]))


if __name__ == "__main__":
    main()
