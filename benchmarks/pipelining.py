"""A client that needs little of the processors: it sends until it is stopped, and pipelines.

    python benchmarks/pipelining.py PORT CONNECTIONS FILE

Each message goes out in one piece together with the next one's MAIL, RCPT and DATA (RFC 2920 section 3.1), where
`smtp-source` waits four times for it. Each connection has a sender of its own. FILE has how many messages were taken
by now, as a native 64-bit integer: a first one has to be there. Any other reply than those to a message that is
taken ends the client.
"""

import mmap
import select
import socket
import struct
import sys

LENGTH = 1024  # bytes of a message
COUNT = struct.Struct("q")


class Connection:
    def __init__(self, port: int, number: int):
        sender, recipient = f"sender{number}@example.org", f"list{number}@example.com"
        envelope = f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()
        message = f"From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: measured\r\n\r\n".encode()
        message += (b"X" * 62 + b"\r\n") * ((LENGTH - len(message)) // 64)
        self.message_and_envelope = message + b".\r\n" + envelope
        self.heard = b""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.wait_for(b"220")
        self.socket.sendall(b"EHLO client.example.org\r\n")
        self.wait_for(b"250")
        self.socket.sendall(envelope)
        self.wait_for(b"250", b"250", b"354")

    def send(self) -> None:
        self.socket.sendall(self.message_and_envelope)

    def wait_for(self, *codes: bytes) -> None:
        while not self.has_said(*codes):
            pass

    def has_said(self, *codes: bytes) -> bool:
        """Read what is there. Returns whether these replies are whole."""
        read = self.socket.recv(1 << 16)
        self.heard += read
        last_lines = [line[:3] for line in self.heard.splitlines() if line[3:4] == b" "]
        if read and (len(last_lines) < len(codes) or not self.heard.endswith(b"\n")):
            return False
        if tuple(last_lines) != codes:
            raise SystemExit(f"the server said {self.heard!r}")
        self.heard = b""
        return True


def main() -> None:
    port, number, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    connections = [Connection(port, each) for each in range(number)]
    by_descriptor = {connection.socket.fileno(): connection for connection in connections}
    poll = select.epoll()
    for descriptor, connection in by_descriptor.items():
        poll.register(descriptor, select.EPOLLIN)
        connection.send()
    taken = 0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), COUNT.size) as shared:
        while True:
            for descriptor, _ in poll.poll():
                connection = by_descriptor[descriptor]
                if connection.has_said(b"250", b"250", b"250", b"354"):
                    connection.send()
                    taken += 1
            COUNT.pack_into(shared, 0, taken)


if __name__ == "__main__":
    main()
