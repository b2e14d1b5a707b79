"""Many connections at once to an echo server, in a process with descriptors of its own.

usage: crowd.py HOST PORT COUNT

Connects COUNT times and sends a message of eight bytes on each connection, its number. A connection whose message came
back is served, one that ended before is refused, any other waits. Then it obeys lines on standard input, each answered
by one line on standard output:

  wait SECONDS    goes on until nobody waits, at most so long:   served=N refused=N waiting=N
  leave COUNT     closes so many served ones, and goes on until as many of those waiting are served, at most ten
                  seconds:                                       served=N first=SECONDS all=SECONDS

At the end of its input it closes everything and exits with 0. An echo that differs ends it with 1. Where the limit on
descriptors is too low for COUNT it says so and exits with 77.
"""

import errno
import resource
import select
import socket
import struct
import sys
import time

LEAVE_SECONDS = 10.0
# Descriptors besides the connections.
SPARE = 50


class Crowd:
    def __init__(self, address):
        self.address = address
        self.poll = select.epoll()
        self.waiting = {}  # descriptor: (socket, number)
        self.served = []
        self.refused = 0

    def connect(self, number):
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.setblocking(False)
        code = one.connect_ex(self.address)
        if code not in (0, errno.EINPROGRESS):
            self.refused += 1
            return
        self.waiting[one.fileno()] = (one, number)
        self.poll.register(one.fileno(), select.EPOLLOUT)

    def turn(self, seconds):
        for descriptor, events in self.poll.poll(seconds):
            one, number = self.waiting[descriptor]
            try:
                if events & select.EPOLLOUT:
                    # A new connection has room for eight bytes.
                    one.send(struct.pack(">Q", number))
                    self.poll.modify(descriptor, select.EPOLLIN)
                    continue
                echo = one.recv(64)
            except OSError:
                echo = b""
            self.poll.unregister(descriptor)
            del self.waiting[descriptor]
            if echo == struct.pack(">Q", number):
                self.served.append(one)
            elif echo == b"":
                self.refused += 1
                one.close()
            else:
                sys.exit(f"connection {number} got {echo!r}")

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while self.waiting and time.monotonic() < end:
            self.turn(end - time.monotonic())
        return f"served={len(self.served)} refused={self.refused} waiting={len(self.waiting)}"

    def leave(self, count):
        leaving, self.served = self.served[:count], self.served[count:]
        before, wanted = len(self.served), min(count, len(self.waiting))
        for one in leaving:
            one.close()
        begin, first, now = time.monotonic(), None, time.monotonic()
        while len(self.served) - before < wanted and now < begin + LEAVE_SECONDS:
            self.turn(0.1)
            now = time.monotonic()
            if first is None and len(self.served) > before:
                first = now - begin
        first = LEAVE_SECONDS if first is None else first
        return f"served={len(self.served) - before} first={first:.3f} all={now - begin:.3f}"


def main(host, port, count):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < count + SPARE:
        print(f"skipped: a process may have {most} descriptors, {count + SPARE} are needed")
        sys.exit(77)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + SPARE, most))
    crowd = Crowd((host, port))
    for number in range(count):
        crowd.connect(number)
        if number % 64 == 0:
            crowd.turn(0)
    for line in sys.stdin:
        command, argument = line.split()
        answer = crowd.wait(float(argument)) if command == "wait" else crowd.leave(int(argument))
        print(answer, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
