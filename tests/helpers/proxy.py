"""A proxy between a client and a server that cuts its connections after some bytes."""

import contextlib
import socket
import threading


class Proxy:
    """Forwards connections to ``127.0.0.1:port`` from its own port.

    Attributes:
      port: its own port.
      left: number of bytes after which every connection is cut, or None for never; counted over
        all connections, in both directions.
      cuts: number of times that they were cut.
    """

    def __init__(self, where):
        """Take the server's port, or the path of its socket."""
        self._where, self.left, self.cuts = where, None, 0
        self._open, self._lock = set(), threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int) -> None:
        """Cut all connections after that many bytes, once."""
        with self._lock:
            self.left = count

    def close(self) -> None:
        """Stop, and cut the connections."""
        self._listener.close()
        self._cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = self._connect()
                except OSError:
                    client.close()
                    continue
                self._open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _connect(self):
        if isinstance(self._where, int):
            return socket.create_connection(("127.0.0.1", self._where))
        found = socket.socket(socket.AF_UNIX)
        found.connect(str(self._where))
        return found

    def _forward(self, source, target) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                with self._lock:
                    over = self.left is not None and len(data) > self.left
                    if over:  # the last bytes are lost
                        data, self.left = data[: self.left], None
                    elif self.left is not None:
                        self.left -= len(data)
                target.sendall(data)
                if over:
                    self.cuts += 1
                    self._cut()
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
            self._open.discard(one)

    def _cut(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxied(where):
    """Context of a proxy to a port or a socket."""
    found = Proxy(where)
    try:
        yield found
    finally:
        found.close()
