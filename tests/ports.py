"""Ports on loopback for the servers that tests start."""

import random
import socket

PORTS = range(20_000, 30_000)  # below those that the system and Ray give to whoever asks for any


def free_port():
    """A port that nobody listens on: at random, as another process of tests may look for one."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
