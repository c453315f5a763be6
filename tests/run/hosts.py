"""Two hosts on one machine: network namespaces joined by a cable, where the machine allows them."""

import contextlib
import shutil
import subprocess
import time

import pytest


def allowed(*kinds):
    """Skip the test where namespaces of these kinds are not allowed, ``unshare``'s options."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip", "mount"))):
        pytest.skip("needs util-linux and iproute2: unshare, nsenter, mount, ip")
    tried = subprocess.run(["unshare", "-r", *kinds, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"namespaces are not allowed here: {tried.stderr.strip()}")


@contextlib.contextmanager
def held(*command):
    """Start a command that makes namespaces; what starts others within them, until the end."""
    wait = ["sh", "-c", "echo there; exec cat"]
    holder = subprocess.Popen(
        [*command, *wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "there\n"
        yield ["nsenter", "-t", str(holder.pid), "-U", "--preserve-credentials"]
    finally:
        holder.communicate()


@contextlib.contextmanager
def two_hosts():
    """Two hosts 10.77.0.1 and 10.77.0.2; what starts a command on each, and what cuts the cable.

    Each is named by its address, by which processes find each other without a name server.
    """
    allowed("-n", "-u")
    with contextlib.ExitStack() as stack:
        user = stack.enter_context(held("unshare", "-rnu"))
        first = [*user, "-n", "-u"]
        other = stack.enter_context(held(*user, "unshare", "-nu"))
        second = [*other, "-n", "-u"]

        def tell(host, text):
            subprocess.run([*host, "sh", "-ec", text], check=True)

        tell(first, f"ip link add cable type veth peer name cable netns {second[2]}")
        for host, address in ((first, "10.77.0.1"), (second, "10.77.0.2")):
            tell(host, f"echo {address} > /proc/sys/kernel/hostname")
            tell(host, f"ip link set lo up; ip addr add {address}/24 dev cable")
            tell(host, "ip link set cable up")
        time.sleep(0.1)
        yield first, second, lambda: tell(second, "ip link set cable down")
