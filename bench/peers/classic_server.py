"""A small chat server in the classic framing, to measure others against.

Messages are padded with NUL to 1024 bytes in both directions; accounts and
queues are in memory. Usage: python3 classic_server.py PORT
"""

import asyncio
import resource
import sys

BLOCK_BYTES = 1024
COMMAND_BYTES = 15

# A reader that owes so many bytes is written to no more until it has read.
UNREAD_BYTES_MAX = 4 * 1024 * 1024

# Connections that wait to be accepted.
BACKLOG = 4096


class Account:
    """A user: what is queued for it, and the connection that receives."""

    __slots__ = ("queue", "receiver")

    def __init__(self):
        self.queue = []
        self.receiver = None


accounts = {}


def block(command, payload=b""):
    return (command.ljust(COMMAND_BYTES, b"\0") + payload).ljust(BLOCK_BYTES, b"\0")


OK = block(b"ok")
NOT_OK = block(b"notok")


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self):
        self.transport = None
        self.account = None
        self.input = b""

    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(high=UNREAD_BYTES_MAX)

    def connection_lost(self, _error):
        if self.account is not None and self.account.receiver is self:
            self.account.receiver = None

    # What is not written waits in the queue, as for a user who is away.
    def pause_writing(self):
        if self.account is not None and self.account.receiver is self:
            self.account.receiver = None

    def resume_writing(self):
        if self.account is not None:
            self.receive()

    def receive(self):
        account = self.account
        account.receiver = self
        queued, account.queue = account.queue, []
        if queued:
            self.transport.write(b"".join(queued))

    def data_received(self, data):
        data = self.input + data if self.input else data
        whole = len(data) - len(data) % BLOCK_BYTES
        replies = []
        for at in range(0, whole, BLOCK_BYTES):
            command = data[at : at + COMMAND_BYTES].rstrip(b"\0")
            payload = data[at + COMMAND_BYTES : at + BLOCK_BYTES].rstrip(b"\0")
            replies.append(self.carry_out(command, payload))
        self.input = data[whole:]
        if replies:
            self.transport.write(b"".join(replies))
        if self.account is not None and self.account.receiver is None:
            self.receive()

    def carry_out(self, command, payload):
        if command == b"send":
            user, _, text = payload.partition(b",")
            account = accounts.get(user)
            if account is None:
                return NOT_OK
            message = block(b"string", text)
            if account.receiver is not None:
                account.receiver.transport.write(message)
            else:
                account.queue.append(message)
            return OK
        if command == b"create":
            if payload in accounts:
                return NOT_OK
            accounts[payload] = Account()
            return OK
        if command == b"connect":
            account = accounts.get(payload)
            if account is None:
                return NOT_OK
            # The queue follows the answer.
            self.account, account.receiver = account, None
            return OK
        if command == b"list":
            names = b",".join(sorted(name for name in accounts if payload in name))
            return block(b"list", names[: BLOCK_BYTES - COMMAND_BYTES])
        if command == b"delete":
            accounts.pop(payload, None)
            return OK
        return NOT_OK


async def main():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=BACKLOG)
    async with server:
        await server.serve_forever()


asyncio.run(main())
