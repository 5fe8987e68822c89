#!/usr/bin/python3
"""Queries that a rollout, a drain or a killed server loses: `benches/rollout.py BINARY [ROLLOUTS]`.

A client asks the address of a Service. Network namespaces stand for the pods; nftables rules like those of kube-proxy
send each flow to one of them, and conntrack keeps it there. A controller does what kubelet, EndpointSlice controller and
kube-proxy do: it probes /ready every second, starts a new pod before it ends an old one, takes an ending pod out of the
rules at once, and clears its conntrack entries only when the pod is no longer serving. Probe, lame duck and grace period
are those of deploy/kustomize/base.

The client sends 1,000 queries a second from new ports and 200 from one port. A query without a reply within two seconds
is lost; the client does not retry. Needs root, iproute2, nftables, conntrack and python3-yaml.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import yaml

SERVICE = "10.96.0.10"
# Time in which a change reaches kube-proxy's rules.
SYNC = 1.0
# Interval at which the kubelet looks for containers that ended.
RELIST = 1.0
NEW_PORTS, ONE_PORT = 1000, 200
PATIENCE = 2.0

os.chdir(os.path.join(os.path.dirname(__file__), ".."))
binary = os.path.abspath(sys.argv[1])
rollouts = int(sys.argv[2]) if len(sys.argv) > 2 else 10
work = tempfile.mkdtemp()
prefix = f"cs{os.getpid()}"
node, client = f"{prefix}n", f"{prefix}c"


def run(*words, data=None, check=True):
    return subprocess.run(words, input=data, text=True, check=check, capture_output=True).stdout


def within(name, *words, **options):
    return run("ip", "netns", "exec", name, *words, **options)


documents = list(yaml.safe_load_all(open("deploy/kustomize/base/callsign.yaml")))
pod_spec = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]
container = pod_spec["containers"][0]
probe = container["readinessProbe"]
grace = pod_spec["terminationGracePeriodSeconds"]
flags = [word for word in container["args"][1:] if word.startswith("--lame-duck")]


class Pod:
    """A pod: a namespace with a server, and what the cluster knows about it."""

    def __init__(self, number):
        self.name, self.address = f"{prefix}p{number}", f"10.244.1.{number}"
        self.saved = os.path.join(work, self.name)
        self.ready = self.serving = False
        self.ending = False
        self.failures = 0
        run("ip", "netns", "add", self.name)
        inside, outside = f"{prefix}i{number}", f"{prefix}o{number}"
        run("ip", "link", "add", inside, "netns", self.name, "type", "veth", "peer", "name", outside, "netns", node)
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        run("ip", "-n", self.name, "addr", "add", f"{self.address}/32", "dev", inside)
        run("ip", "-n", self.name, "link", "set", inside, "up")
        run("ip", "-n", self.name, "route", "add", "169.254.1.1", "dev", inside)
        run("ip", "-n", self.name, "route", "add", "default", "via", "169.254.1.1", "dev", inside)
        run("ip", "-n", node, "addr", "add", "169.254.1.1/32", "dev", outside)
        run("ip", "-n", node, "link", "set", outside, "up")
        run("ip", "-n", node, "route", "add", f"{self.address}/32", "dev", outside)
        self.start()

    def start(self):
        log = open(os.path.join(work, "log"), "a")
        words = ["ip", "netns", "exec", self.name, binary, "serve", "--manifests", "deploy/demo", "--upstream", "none",
                 "--listen", "0.0.0.0:53", "--rate-limit", "0", "--allow-from", "0.0.0.0/0", *flags]
        self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def answers(self):
        # The kubelet probes from the node.
        timeout = str(probe.get("timeoutSeconds", 1))
        words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", timeout]
        return within(node, *words, f"http://{self.address}:8080/ready", check=False) == "200"

    def remove(self):
        run("ip", "netns", "del", self.name, check=False)


class Cluster:
    def __init__(self):
        self.pods, self.number, self.lock, self.over = [], 0, threading.RLock(), False
        self.programmed, self.longest = None, 0.0
        threading.Thread(target=self.every, args=(probe["periodSeconds"], self.look), daemon=True).start()
        threading.Thread(target=self.every, args=(0.1, self.sync), daemon=True).start()
        threading.Thread(target=self.every, args=(RELIST, self.restart), daemon=True).start()

    def every(self, interval, action):
        while not self.over:
            action()
            time.sleep(interval)

    def add(self):
        self.number += 1
        pod = Pod(self.number)
        with self.lock:
            self.pods.append(pod)
        return pod

    def look(self):
        """Probes all pods, as kubelets do."""
        for pod in list(self.pods):
            if pod.answers():
                pod.failures, pod.ready = 0, True
            else:
                pod.failures += 1
                if pod.failures >= probe.get("failureThreshold", 3):
                    pod.ready = False

    def restart(self):
        """Starts containers again that ended without being told to."""
        for pod in list(self.pods):
            if not pod.ending and pod.process.poll() is not None:
                pod.ready = False
                pod.start()

    def sync(self):
        """Programs the endpoints, as kube-proxy does: a second after they changed."""
        with self.lock:
            alive = [pod for pod in self.pods if pod.process.poll() is None or not pod.ending]
            ready = [pod for pod in alive if pod.ready and not pod.ending]
            serving = [pod for pod in alive if pod.ready]
            wanted = [pod.address for pod in ready or serving], [pod.address for pod in serving]
        if wanted == self.programmed:
            return
        time.sleep(SYNC)
        targets, serving = wanted
        rules = ["table ip proxy {"]
        for index, target in enumerate(targets):
            for protocol in ("udp", "tcp"):
                rules.append(f" chain {protocol}{index} {{ meta l4proto {protocol} dnat to {target}:53; }}")
        jumps = "".join(
            f"  ip daddr {SERVICE} {protocol} dport 53 numgen random mod {len(targets)} vmap {{ "
            + ", ".join(f"{index} : goto {protocol}{index}" for index in range(len(targets))) + " }\n"
            for protocol in ("udp", "tcp") if targets)
        rules.append(f" chain pre {{ type nat hook prerouting priority -100;\n{jumps} }}\n}}")
        within(node, "nft", "-f", "-", data="table ip proxy\ndelete table ip proxy\n" + "\n".join(rules) + "\n")
        gone = [pod.address for pod in self.pods if pod.address not in serving]
        before = self.programmed[1] if self.programmed else []
        for address in set(before) | set(gone):
            if address not in serving:
                # Only of endpoints that are no longer serving.
                within(node, "conntrack", "-D", "-p", "udp", "--orig-dst", SERVICE, "--reply-src", address, check=False)
        self.programmed = wanted

    def wait(self, condition, limit=30):
        until = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < until, "the cluster did not get there"
            time.sleep(0.05)

    def new_is_ready(self, pod):
        self.wait(lambda: self.programmed and pod.address in self.programmed[0])

    def end(self, pod):
        """Deletes a pod: SIGTERM, and SIGKILL after its grace period."""
        pod.ending = True
        pod.process.send_signal(signal.SIGTERM)

        def finish():
            started = time.monotonic()
            try:
                pod.process.wait(timeout=grace)
            except subprocess.TimeoutExpired:
                print("a pod outlived its grace period", file=sys.stderr)
                pod.process.kill()
                pod.process.wait()
            self.longest = max(self.longest, time.monotonic() - started)
            time.sleep(3 * SYNC)
            with self.lock:
                self.pods.remove(pod)
            pod.remove()

        threading.Thread(target=finish).start()

    def rollout(self):
        """maxSurge 1, maxUnavailable 0."""
        for old in [pod for pod in self.pods if not pod.ending]:
            self.new_is_ready(self.add())
            self.end(old)

    def settle(self):
        self.wait(lambda: not any(pod.ending for pod in self.pods), limit=2 * grace)


CLIENT = r'''
import select, socket, struct, sys, time
service, new_ports, one_port, patience = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
question = b"".join(bytes([len(l)]) + l for l in b"api.web.svc.cluster.local".split(b".")) + b"\0\0\1\0\1"
query = lambda id: struct.pack(">HHHHHH", id, 0x100, 1, 0, 0, 0) + question
poll = select.epoll()
poll.register(sys.stdin, select.EPOLLIN)
fixed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fixed.connect((service, 53)); fixed.setblocking(False)
poll.register(fixed, select.EPOLLIN)
waiting, by_id, slow = {}, {}, 0.0
sent, lost = [0, 0], [0, 0]
ticks, started, number, over = 0, time.monotonic(), 0, False
lost_at = []
while not over or waiting or by_id:
    now = time.monotonic()
    while not over and ticks < (now - started) * new_ports:
        ticks += 1
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setblocking(False)
        s.connect((service, 53))
        sent[0] += 1
        try:
            s.send(query(ticks & 0xffff))
            poll.register(s, select.EPOLLIN)
            waiting[s.fileno()] = (s, now)
        except OSError:
            lost[0] += 1
        if ticks * one_port // new_ports > number:
            number += 1
            sent[1] += 1
            try:
                fixed.send(query(number & 0xffff))
            except OSError:
                # An ICMP error of an earlier query is reported once.
                try: fixed.send(query(number & 0xffff))
                except OSError: pass
            by_id[number & 0xffff] = now
    for fd, _ in poll.poll(0.001):
        if fd == sys.stdin.fileno():
            over = True
            poll.unregister(sys.stdin)
        elif fd == fixed.fileno():
            while True:
                try: reply = fixed.recv(512)
                except BlockingIOError: break
                except OSError: continue
                since = by_id.pop(int.from_bytes(reply[:2], "big"), None)
                if since: slow = max(slow, time.monotonic() - since)
        else:
            s, since = waiting.pop(fd)
            try:
                reply = s.recv(512)
                assert reply[3] & 15 == 0 and reply[7] == 1, reply
                slow = max(slow, time.monotonic() - since)
            except OSError:
                lost[0] += 1
            s.close()
    now = time.monotonic()
    for fd, (s, since) in list(waiting.items()):
        if now - since < patience: break
        del waiting[fd]; s.close(); lost[0] += 1; lost_at.append(since)
    for id, since in list(by_id.items()):
        if now - since < patience: break
        del by_id[id]; lost[1] += 1; lost_at.append(since)
print(*sent, *lost, f"{slow * 1000:.1f}", f"{max(lost_at) - min(lost_at) if lost_at else 0:.2f}")
'''


def measure(case, action):
    program = [sys.executable, "-c", CLIENT, SERVICE, str(NEW_PORTS), str(ONE_PORT), str(PATIENCE)]
    process = subprocess.Popen(["ip", "netns", "exec", client, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    action()
    time.sleep(1)
    output, _ = process.communicate("\n")
    new, one, lost_new, lost_one, slowest, span = map(float, output.split())
    print(f"{case:34} {new + one:9.0f} {lost_new:9.0f} {lost_one:9.0f} {slowest:9.1f} {span:7.2f}", flush=True)
    return lost_new + lost_one


def main():
    for name in (node, client):
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    within(node, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.netfilter.nf_conntrack_udp_timeout=30",
           "net.netfilter.nf_conntrack_udp_timeout_stream=120", check=False)
    peer = ["peer", "name", f"{prefix}co", "netns", node]
    run("ip", "link", "add", f"{prefix}ci", "netns", client, "type", "veth", *peer)
    run("ip", "-n", client, "addr", "add", "10.244.0.2/24", "dev", f"{prefix}ci")
    run("ip", "-n", client, "link", "set", f"{prefix}ci", "up")
    run("ip", "-n", client, "route", "add", "default", "via", "10.244.0.1")
    run("ip", "-n", node, "addr", "add", "10.244.0.1/24", "dev", f"{prefix}co")
    run("ip", "-n", node, "link", "set", f"{prefix}co", "up")
    cluster = Cluster()
    try:
        for pod in [cluster.add(), cluster.add()]:
            cluster.new_is_ready(pod)
        print(f"{'':34} {'queries':>9} {'lost, new':>9} {'lost, one':>9} {'slowest':>9} {'lost for':>7}")
        print(f"{'':34} {'':>9} {'ports':>9} {'port':>9} {'ms':>9} {'s':>7}")
        failed = []

        def all_rollouts():
            for _ in range(rollouts):
                cluster.rollout()
            cluster.settle()

        def drain():
            # An eviction ends the pod at once; its replacement starts then. The PodDisruptionBudget allows one.
            old = next(pod for pod in cluster.pods if not pod.ending)
            cluster.end(old)
            cluster.new_is_ready(cluster.add())
            cluster.settle()

        def kill():
            victim = next(pod for pod in cluster.pods if not pod.ending)
            victim.process.kill()
            time.sleep(6)

        for case, action in ((f"{rollouts} rollouts", all_rollouts), ("drain of a node", drain)):
            if measure(case, action):
                failed.append(case)
        print(f"{'longest end of a pod':34} {cluster.longest:9.1f} s")
        measure("SIGKILL of one of two", kill)
        if failed:
            sys.exit(f"queries lost: {', '.join(failed)}")
    finally:
        cluster.over = True
        for pod in list(cluster.pods):
            pod.process.kill()
            pod.process.wait()
            pod.remove()
        for name in (node, client):
            run("ip", "netns", "del", name, check=False)
        shutil.rmtree(work, ignore_errors=True)


main()
