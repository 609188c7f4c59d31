"""A client of the WebSocket framing by Python's `websockets`: websocket_client.py ADDRESS.

Creates the user `python`, sends a message to alice, and prints the first message that it
receives.
"""

import sys

from websockets.sync.client import connect


def request(number, command, payload=""):
    """Returns a message: an id, a command of 15 bytes, and fields."""
    return number.to_bytes(4, "big") + command.encode().ljust(15, b"\0") + payload.encode()


def read(socket):
    """Returns the next message: its id, its command and its fields."""
    message = socket.recv(timeout=50)
    return int.from_bytes(message[:4], "big"), message[4:19].rstrip(b"\0").decode(), message[19:].decode()


def main():
    with connect(f"ws://{sys.argv[1]}/v1/ws", subprotocols=["hark.v1"], proxy=None) as socket:
        assert socket.subprotocol == "hark.v1"
        socket.send(request(1, "create", "python"))
        assert read(socket)[:2] == (1, "ok")
        socket.send(request(2, "connect", "python"))
        assert read(socket) == (2, "ok", "0")
        socket.send(request(3, "send", "alice,hello from Python"))
        assert read(socket)[:2] == (3, "ok")
        socket.ping().wait(50)
        number, command, payload = read(socket)
        assert (number, command) == (0, "string")
        sequence, sender, _time, text = payload.split(",", 3)
        socket.send(request(0, "ack", sequence))
        socket.send(request(4, "ping"))
        assert read(socket)[:2] == (4, "ok")
        print(f"{sender}: {text}")


main()
