#!/usr/bin/env python3
"""A stand-in for the client of Hark's predecessor.

    classic_client.py HOST:PORT

It writes bare messages, reads 1024 bytes at a time, takes the command from the
first 15 bytes and the fields from the rest, without the NULs at the end and
split at commas. Do not teach it anything: it is here to show that the old
client works unchanged.

It reads one command a line from stdin, sends it, and waits for its answer:

    create bob
    connect bob
    send bob hello, there
    list r3$
    wait 2          waits until 2 more texts have come, unless they have already

and prints one line for each message that comes: its command, then its fields.
A text is put together again with the commas that it was split at. The first
`list` message counts as the answer to `list`, since nothing says which is the
last: more than 1009 bytes of names are not for this client.

The exit code is 0 if every command was answered, whatever the answer was.
"""

import socket
import sys

COMMAND_BYTES = 15
BLOCK_BYTES = 1024
PATIENCE_SECONDS = 30

ANSWERS = ("ok", "notok", "error", "list")


class Client:
    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), PATIENCE_SECONDS)
        # Texts that have come and no `wait` has asked for.
        self.texts = 0

    def send(self, command, *fields):
        message = command.encode().ljust(COMMAND_BYTES, b"\0") + ",".join(fields).encode()
        self.socket.sendall(message)

    def receive(self):
        """Prints the next message, and yields its command."""
        block = self.socket.recv(BLOCK_BYTES)
        if not block:
            raise ConnectionError("the server has closed the connection")
        command = block[:COMMAND_BYTES].rstrip(b"\0").decode()
        fields = block[COMMAND_BYTES:].rstrip(b"\0").decode().split(",")
        if command == "string":
            self.texts += 1
        elif command not in ANSWERS:
            raise ConnectionError(f"the server has sent {command!r}, which no old client knows")
        payload = ",".join(fields)
        print(f"{command} {payload}" if payload else command, flush=True)
        return command

    def ask(self, command, *fields):
        """Sends a command and waits for its answer; texts may come before."""
        self.send(command, *fields)
        while self.receive() not in ANSWERS:
            pass

    def wait(self, texts):
        while self.texts < texts:
            self.receive()
        self.texts -= texts

    def run(self, line):
        command, _, rest = line.partition(" ")
        if command == "wait":
            self.wait(int(rest))
        elif command == "send":
            # The text is everything after the recipient.
            self.ask(command, *rest.split(" ", 1))
        else:
            self.ask(command, *rest.split())


def main():
    if len(sys.argv) != 2 or ":" not in sys.argv[1]:
        sys.exit(__doc__)
    try:
        client = Client(sys.argv[1])
        for line in sys.stdin:
            if line.strip():
                client.run(line.rstrip("\n"))
    except (OSError, ValueError) as error:
        sys.exit(f"classic_client.py: {error}")


if __name__ == "__main__":
    main()
