#!/usr/bin/env python3
"""A client by another implementation of TLS than the server's: OpenSSL's, by
way of Python's `ssl`.

    tls_client.py PORT CA

It speaks both framings inside each version of TLS, checks the certificate by
its name and by its address, closes in order and expects that of the server,
and prints a line for each version. The exit code is 0 if all went so.
"""

import socket
import ssl
import struct
import sys

PATIENCE_SECONDS = 30
COMMAND_BYTES = 15
BLOCK_BYTES = 1024


def connect(port, authority, version, host):
    context = ssl.create_default_context(cafile=authority)
    context.minimum_version = context.maximum_version = version
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    return context.wrap_socket(sock, server_hostname=host, suppress_ragged_eofs=False)


def read(stream, count):
    got = b""
    while len(got) < count:
        more = stream.recv(count - len(got))
        assert more, "the server closed the connection"
        got += more
    return got


def command(name, payload):
    return name.encode().ljust(COMMAND_BYTES, b"\0") + payload.encode()


def native(stream):
    message = command("ping", "")
    # In pieces, each a record of its own.
    for byte in struct.pack(">II", len(message) + 4, 7) + message:
        stream.sendall(bytes([byte]))
    length, id = struct.unpack(">II", read(stream, 8))
    assert (id, read(stream, length - 4)) == (7, command("ok", ""))
    # Both sides say that they close; a server that did not would raise here.
    stream.unwrap()


def classic(stream):
    stream.sendall(command("list", ""))
    assert read(stream, BLOCK_BYTES) == command("list", "").ljust(BLOCK_BYTES, b"\0")
    stream.unwrap()


def main():
    port, authority = int(sys.argv[1]), sys.argv[2]
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        done = []
        for framing, host in ((native, "localhost"), (classic, "127.0.0.1")):
            stream = connect(port, authority, version, host)
            name = stream.version()
            framing(stream)
            done.append(framing.__name__)
        print(name, *done)


if __name__ == "__main__":
    main()
