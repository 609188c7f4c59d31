#!/usr/bin/env python3
"""A day of an administrator, with nothing but the Debian package in a clean root.

Installs the package in a Debian root, runs it under a supervisor that speaks sd_notify,
and does what docs/OPERATING.md describes: configure, make users, watch metrics, find the
runaway client, suspend it, back up, upgrade, restore, move to a cluster, drain, remove,
purge. Needs root, and `debootstrap` unless --root names a Debian root, which is copied.

    tests/package.py --package target/package/hark_0.1.0-1_amd64.deb [--root FOLDER]
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
TIMEOUT_S = 60
STORE = "/var/lib/hark/store"



def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


PORT, METRICS_PORT = free_port(), free_port()

# What the administrator writes.
CONFIGURATION = f"""\
store = "{STORE}"
listen = ["127.0.0.1:{PORT}", "unix:/run/hark/harkd.sock"]
metrics = "127.0.0.1:{METRICS_PORT}"
require-password = true
registration = "closed"
admin = ["ann"]
max-age = "90d"
min-free-bytes = 1000000
"""

# The sandbox of the unit may be this open at most, of 100 (systemd-analyze security).
EXPOSURE_MAX = 20


def step(text):
    print(f"--- {text}", flush=True)


def run(*command, check=True, env=None, **options):
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.STDOUT)
    done = subprocess.run(command, text=True, timeout=600, env=env, **options)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def wait_until(what, condition):
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            sys.exit(f"timeout: {what}")
        time.sleep(0.05)


class Root:
    """A Debian root in which commands run."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def path(self, path):
        return self.folder / path.lstrip("/")

    def run(self, *command, user=None, env=None, **options):
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}
        environment |= {"DEBIAN_FRONTEND": "noninteractive", "HARK_SERVER": f"127.0.0.1:{PORT}"} | (env or {})
        switch = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        return run("chroot", self.folder, *switch, *command, env=environment, **options)

    def admin(self, *command):
        """Runs harkd admin, and returns what it prints as JSON lines."""
        printed = self.run("harkd", "admin", "--json", *command, user="hark", stderr=sys.stderr)
        return [json.loads(line) for line in printed.splitlines()]

    def hark(self, *command, password="secret", check=True):
        env = {"HARK_PASSWORD": password, "HARK_STATE_DIR": "/tmp/hark-state"}
        return self.run("hark", *command, env=env, check=check)

    def ids(self, user):
        line = next(line for line in self.path("/etc/passwd").read_text().splitlines() if line.startswith(user + ":"))
        return tuple(int(part) for part in line.split(":")[2:4])


def make_folders(root):
    """Makes the folders of the unit, as systemd does before each start."""
    for folder in ["/run/hark", "/var/lib/hark"]:
        root.path(folder).mkdir(parents=True, exist_ok=True)
        os.chown(root.path(folder), *root.ids("hark"))
        os.chmod(root.path(folder), 0o700)


class Supervisor:
    """Runs harkd as its unit does, and takes its notifications."""

    def __init__(self, root, *arguments):
        self.root, self.arguments = root, arguments
        self.states, self.log = [], ""
        make_folders(root)
        path = root.path("/run/hark/notify")
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        os.chown(path, *root.ids("hark"))
        command = ["chroot", root.folder, "setpriv", "--reuid=hark", "--regid=hark", "--clear-groups"]
        command += ["--no-new-privs", "--bounding-set=-all", "/usr/bin/harkd", *arguments]
        env = {"NOTIFY_SOCKET": "/run/hark/notify", "WATCHDOG_USEC": "2000000", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        self.threads = [threading.Thread(target=self.listen, daemon=True), threading.Thread(target=self.read, daemon=True)]
        for thread in self.threads:
            thread.start()

    def listen(self):
        while True:
            self.states += self.socket.recv(65536).decode().splitlines()

    def read(self):
        for line in self.process.stderr:
            self.log += line

    def wait_for(self, state):
        wait_until(f"{state} of harkd\n{self.log}", lambda: self.is_in(state))

    def is_in(self, state):
        if self.process.poll() is not None:
            sys.exit(f"harkd has ended with {self.process.returncode}\n{self.log}")
        return any(each.startswith(state) for each in self.states)

    def wait(self):
        code = self.process.wait(TIMEOUT_S)
        if code != 0:
            sys.exit(f"harkd ended with {code}\n{self.log}")
        if "STOPPING=1" not in self.states:
            sys.exit(f"harkd did not report its end: {self.states}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.wait()

    def __enter__(self):
        self.wait_for("READY=1")
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()


def expect(is_so, what):
    if not is_so:
        sys.exit(f"not so: {what}")


def prepare(root, source):
    if source:
        run("cp", "-a", f"{source}/.", root.folder)
    else:
        step("make a clean Debian root")
        run("debootstrap", "--variant=minbase", SUITE, root.folder, MIRROR)
    shutil.copy("/etc/resolv.conf", root.path("/etc/resolv.conf"))
    # Nothing is started in a root.
    policy = root.path("/usr/sbin/policy-rc.d")
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    for device, numbers in [("null", (1, 3)), ("urandom", (1, 9)), ("random", (1, 8))]:
        path = root.path(f"/dev/{device}")
        if not path.exists():
            os.mknod(path, 0o20666, os.makedev(*numbers))


def install(root, package):
    step("install")
    shutil.copy(package, root.path("/tmp/hark.deb"))
    root.run("apt-get", "update", "-qq")
    root.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "/tmp/hark.deb")
    root.run("harkd", "--check")
    expect("valid" in root.run("harkd", "--check"), "the default configuration is valid")
    pages = root.path("/usr/share/man")
    for page in ["harkd", "harkd-admin", "harkd-admin-top", "hark", "hark-admin"]:
        found = run("man", "-M", pages, "-w", page).strip()
        text = run("man", "-M", pages, "-E", "UTF-8", page, env={**os.environ, "MANPAGER": "cat", "MANWIDTH": "80"})
        expect(found and "NAME" in text, f"the page {page}")
    completions = {
        "bash": "/usr/share/bash-completion/completions/{}",
        "zsh": "/usr/share/zsh/vendor-completions/_{}",
        "fish": "/usr/share/fish/vendor_completions.d/{}.fish",
    }
    root.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "zsh", "fish")
    for shell, place in completions.items():
        for program in ["harkd", "hark"]:
            root.run(shell, "-n", place.format(program))
    check_unit(root)


def check_unit(root):
    if not shutil.which("systemd-analyze"):
        print("    skipped: systemd-analyze is missing, so the unit is not verified")
        return
    unit = next(root.folder.glob("**/systemd/system/harkd.service"))
    report = run("systemd-analyze", "verify", "--man=no", f"--root={root.folder}", "harkd.service", check=False)
    # A root with systemd-standalone-sysusers has none of systemd's own units.
    lines = [line for line in report.splitlines() if "harkd.service" in line and "Unit sysinit.target not found" not in line]
    expect(not lines, f"systemd-analyze verify finds nothing: {lines}")
    report = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)
    print("   ", report.strip().splitlines()[-1])


def configure(root):
    step("configure")
    root.path("/etc/hark/harkd.toml").write_text(CONFIGURATION)
    printed = root.run("harkd", "--check")
    expect('max-age = "7776000s"' in printed or 'max-age = "90d"' in printed, "the setting is in effect")
    # The service was started by the installation, if the root had an init.
    make_folders(root)
    root.run("harkd", "user", "add", "ann", user="hark", env={"HARKD_PASSWORD": "secret"})


def metrics():
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def make_users(root):
    step("make users, watch metrics")
    for user in ["bob", "eve"]:
        made = run_as_ann(root, f"create {user}")
        expect(made.startswith("ok"), f"ann creates {user}: {made}")
    root.hark("send", "--as", "ann", "bob", "hello bob")
    printed = root.hark("listen", "--count", "1", "bob")
    expect("hello bob" in printed, printed)
    figures = metrics()
    expect(float(figures["hark_accounts"]) == 3, figures["hark_accounts"])
    expect(float(figures["hark_store_free_bytes"]) > 0, "free space is known")
    expect(root.admin("stats")[0]["state"] == "serving", "it serves")


def run_as_ann(root, line):
    """Runs a line of the chat as ann, for whom the new account gets a password."""
    env = {"HARK_PASSWORD": "secret", "HARK_NEW_PASSWORD": "secret", "HARK_STATE_DIR": "/tmp/hark-state"}
    printed = root.run("hark", env=env, input=f"login ann\n{line}\n", check=False)
    return printed.splitlines()[-1]


@contextlib.contextmanager
def runaway(root):
    """Eve sends as fast as she may."""
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            lines = "login eve\n" + "send ann again\n" * 500
            env = {"HARK_PASSWORD": "secret", "HARK_STATE_DIR": "/tmp/hark-eve"}
            root.run("hark", env=env, input=lines, check=False)
            time.sleep(0.05)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join(TIMEOUT_S)


def stop_runaway(root):
    step("find the runaway client, suspend it")
    with runaway(root):
        wait_until("eve among the top", lambda: [row["user"] for row in root.admin("top", "--seconds=1")][:1] == ["eve"])
        root.admin("throttle", "eve", "--commands=5")
        root.admin("suspend", "eve")
    refused = root.hark("send", "--as", "eve", "ann", "more", check=False)
    expect("suspended" in refused, refused)
    removed = root.admin("purge", "ann", "all")[0]
    expect(removed["messages"] > 0, removed)
    printed = root.hark("admin", "--as", "ann", "--json", "show", "eve")
    expect(json.loads(printed)["suspended"], printed)


def repackaged(package, version, folder):
    """Returns the package with another version."""
    unpacked, result = folder / "unpacked", folder / f"hark_{version}.deb"
    run("dpkg-deb", "-R", package, unpacked)
    control = unpacked / "DEBIAN/control"
    control.write_text(re.sub("^Version:.*$", f"Version: {version}", control.read_text(), flags=re.M))
    run("dpkg-deb", "--root-owner-group", "-b", unpacked, result)
    return result


def upgrade(root, package, folder):
    step("upgrade")
    shutil.copy(repackaged(package, "99.0-1", folder), root.path("/tmp/newer.deb"))
    before = root.path("/etc/hark/harkd.toml").read_text()
    root.run("apt-get", "install", "-y", "-qq", "/tmp/newer.deb")
    expect("99.0-1" in root.run("dpkg-query", "-W", "hark"), "the new version is installed")
    expect(root.path("/etc/hark/harkd.toml").read_text() == before, "the configuration is kept")


def restore(root):
    step("restore")
    os.rename(root.path(STORE), root.path(STORE + ".old"))
    root.run("harkd", "restore", "/var/lib/hark/backups/monday", STORE, user="hark")


@contextlib.contextmanager
def cluster(folder):
    """A NATS server with JetStream."""
    server = next(iter(pathlib.Path(".venv/bin").glob("nats-server")), None) or shutil.which("nats-server")
    expect(server, "nats-server is in .venv (./test packages) or in PATH")
    port = free_port()
    log = open(folder / "nats.log", "w")
    command = [server, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder / "nats"]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until("nats-server", lambda: "Server is ready" in (folder / "nats.log").read_text())
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()


def move_to_cluster(root, folder):
    step("move to a cluster, drain")
    lines = root.run("harkd", "export", STORE, user="hark", stderr=sys.stderr)
    with cluster(folder) as store:
        print("   ", root.run("harkd", "--store", store, "import", input=lines).strip().splitlines()[-1])
        configuration = root.path("/etc/hark/harkd.toml")
        kept = [line for line in CONFIGURATION.splitlines() if not line.startswith(("store", "max-age", "min-free"))]
        configuration.write_text("\n".join([f'store = "{store}"', *kept, ""]))
        root.run("harkd", "--check")
        with Supervisor(root) as harkd:
            printed = root.hark("listen", "--count", "1", "bob")
            expect("for later" in printed, printed)
            harkd.stop()
    configuration.write_text(CONFIGURATION)


def remove(root):
    step("remove, purge")
    root.run("apt-get", "remove", "-y", "-qq", "hark")
    expect(not root.path("/usr/bin/harkd").exists(), "the program is gone")
    expect(root.path("/etc/hark/harkd.toml").exists(), "the configuration is kept")
    expect(root.path(STORE).exists(), "the store is kept")
    root.run("apt-get", "purge", "-y", "-qq", "hark")
    expect(not root.path("/etc/hark/harkd.toml").exists(), "the configuration is gone")
    expect(not root.path("/var/lib/hark").exists(), "the store is gone")


def day(root, package, folder):
    install(root, package)
    configure(root)
    step("start under a supervisor")
    with Supervisor(root) as harkd:
        harkd.wait_for("STATUS=")
        harkd.wait_for("WATCHDOG=1")
        make_users(root)
        stop_runaway(root)
        root.hark("send", "--as", "ann", "bob", "for later")
        step("reload, back up")
        harkd.process.send_signal(signal.SIGHUP)
        harkd.wait_for("RELOADING=1")
        root.admin("backup", "--to", "/var/lib/hark/backups/monday")
        expect(root.admin("check")[0]["damaged"] == [], "nothing is damaged")
        upgrade(root, package, folder)
        root.admin("drain")
        harkd.wait()
    with Supervisor(root) as harkd:
        expect(root.admin("show", "eve")[0]["suspended"], "the suspension lasts")
        expect(root.admin("show", "bob")[0]["waiting"] == 1, "the message waits")
        harkd.stop()
    restore(root)
    with Supervisor(root) as harkd:
        expect(root.admin("show", "bob")[0]["waiting"] == 1, "the message is in the backup")
        root.admin("resume", "eve")
        root.admin("throttle", "eve", "--reset")
        harkd.stop()
    move_to_cluster(root, folder)
    remove(root)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", required=True, type=pathlib.Path)
    parser.add_argument("--root", help="a Debian root that is copied, instead of a new one")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("tests/package.py changes roots: run it as root")
    with tempfile.TemporaryDirectory(prefix="hark-package-") as folder:
        folder = pathlib.Path(folder)
        root = Root(folder / "root")
        root.folder.mkdir()
        prepare(root, arguments.root)
        day(root, arguments.package.resolve(), folder)
    print("passed")


main()
