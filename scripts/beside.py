"""One server on core 0 beside one load on core 1, in a network namespace of its own: what the measuring scripts have in
common. What a run says is written as one line of JSON, which ratios.py reads."""

import ctypes
import datetime
import json
import os
import platform
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import typing

import ratios

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MARK = "RINGPORT_BESIDE"  # set in the process that runs inside the namespace
START_SECONDS = 5.0
FIRST_PORT = 7000
LOAD_SECONDS_MAX = 30
WARM_MS = 200
# Where its memory lies makes a server some percent faster or slower for as long as it runs. So none runs long.
ROUNDS_A_START = 2
SLICE_SECONDS = 0.04  # and more with many connections:
SLICE_SECONDS_EACH = 60e-6
SLICE_SECONDS_A_BYTE = 10e-9
SIGNAL_SECONDS = 0.005
CONNECT_MS = 150
CONNECT_SECONDS_EACH = 0.00015
REST_SECONDS = 0.02
REST_TIMES = 25
PR_SET_PDEATHSIG = 1
SHARE = "srv_cpu_pct"  # of a core


class CannotMeasure(Exception):
    pass


def enter_namespace(congestion):
    """Starts this script again in a network namespace of its own, with that congestion control (empty: the machine's)."""
    if MARK not in os.environ:
        if os.geteuid() != 0:
            raise CannotMeasure("a network namespace needs root")
        os.environ[MARK] = "1"
        os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # Ports for connections that come and go by the ten thousand, none of them a server's.
    for setting in (
        "net.ipv4.ip_local_port_range=1024 65535",
        "net.ipv4.tcp_max_tw_buckets=8192",
        f"net.ipv4.ip_local_reserved_ports={FIRST_PORT}-{FIRST_PORT + 999}",
    ):
        subprocess.run(["sysctl", "-qw", setting], check=True)
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    before_all_others()
    if congestion:
        subprocess.run(["sysctl", "-qw", f"net.ipv4.tcp_congestion_control={congestion}"], check=True)
    with open("/proc/sys/net/ipv4/tcp_congestion_control", encoding="ascii") as file:
        return file.read().strip()


def before_all_others():
    """Weighs this session as a whole: with automatic groups (sched(7)) niceness counts only within a session."""
    try:
        os.setsid()
    except OSError:
        pass  # it leads its session already
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write("-15")
    except OSError:
        pass  # the kernel does not group


def leave_when_told_to_end():
    """Has SIGTERM and SIGHUP leave through every `with` and `finally`, as Ctrl-C does, so that no server and no load stays."""

    def leave(number, _):
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, leave)


def on_core(core, command):
    return ["nice", "-n", "-10", "taskset", "-c", str(core), *command]


def ends_with_us():
    """For `preexec_fn` of a server or a load: the kernel ends it with this process, however that ends (prctl(2)). One that is
    stopped would never end otherwise."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def tie():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it has ended before

    return tie


def processes(pid):
    """A process and those that it has started."""
    found = [pid]
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            for child in file.read().split():
                found += processes(int(child))
    except OSError:
        pass
    return found


def cpu_seconds(pid):
    """Processor time of a process with all its threads and children, to the nanosecond (proc(5), schedstat)."""
    total = 0
    for process in processes(pid):
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{task}/schedstat", encoding="ascii") as file:
                    total += int(file.read().split()[0])
        except OSError:
            continue
    return total / 1e9


def busy_seconds():
    """Processor time of the whole machine but for idling."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_for_port(port, server):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        # Listening TCP sockets and bound UDP sockets, proc_net(5).
        for name, state in (("tcp", "0A"), ("udp", "07")):
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                if any(f":{port:04X} " in line and f" {state} " in line for line in file):
                    return
        if server.poll() is not None:
            raise CannotMeasure(f"the server ended with {server.returncode}")
        time.sleep(0.01)
    raise CannotMeasure(f"nothing listens on port {port}")


class Bench:
    """Runs, each with a server and a port of its own, and the file that they are written to."""

    def __init__(self, name, congestion):
        folder = os.path.join(ROOT, "bench-out")
        os.makedirs(folder, exist_ok=True)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        self.file = os.path.join(folder, f"{name}-{stamp}.jsonl")
        self.congestion = congestion

    def rounds(self, number, cells, labels):
        """Round, cell and label of every run: all of a round before the next, the labels in another order each time."""
        for round_number in range(number):
            print(f"round {round_number + 1} of {number}: {', '.join(cells)}", file=sys.stderr, flush=True)
            for cell in cells:
                order = list(labels)
                random.Random(f"{ratios.SEED} {round_number} {cell}").shuffle(order)
                for label in order:
                    yield round_number, cell, label

    def run(self, round_number, cell, label, command, load):
        """Starts a server, lets `load(port, pid)` work on it, and keeps what that returns. A failure is kept, too."""
        with Servers({label: command}) as servers:
            self.ask(round_number, cell, label, servers, load)

    def ask(self, round_number, cell, label, servers, load):
        """Lets `load(port, pid)` work on a server that may run already, and keeps what that returns. A failure is kept, too."""
        record = {"cell": cell, "label": label, "round": round_number, "cc": self.congestion}
        try:
            server, port = servers.running(label)
            before, own, begin = busy_seconds(), own_seconds(), time.monotonic()
            served = cpu_seconds(server.pid)
            record |= load(port, server.pid)
            elapsed, served = time.monotonic() - begin, cpu_seconds(server.pid) - served
            # With the loads' own time, which is only known once they have ended.
            others = busy_seconds() - before - served - (own_seconds() - own)
            record["other_pct"] = round(100 * others / elapsed, 1)
            record["whole_cpu_s"] = served
            if not comes_to_rest(server.pid):
                servers.stop(label)  # it would take time from the next one
        except (CannotMeasure, OSError, ValueError, subprocess.SubprocessError) as error:
            record["error"] = str(error)[:200]
            servers.stop(label)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rounds_in_slices(self, number, cell, labels, servers, load, ms):
        for round_number in range(number):
            print(f"round {round_number + 1} of {number}: {cell}", file=sys.stderr, flush=True)
            if round_number % ROUNDS_A_START == 0:
                servers.stop_all()
            self.in_slices(round_number, cell, labels, servers, load, ms)

    def in_slices(self, round_number, cell, labels, servers, load, ms):
        """All servers of a round at the same time, in turns of a few milliseconds: what a machine's speed does in the
        meantime, it does to all of them.

        Each load keeps its connections and is stopped (SIGSTOP) while it is not its turn; a server without a load has
        nothing to do. A server has its load for `ms` in all, or until that ends by itself.
        """
        slices = max(1, round(ms / 1000 / load.slice_seconds))
        source = random.Random(f"{ratios.SEED} {round_number} {cell}")
        labels = source.sample(labels, len(labels))
        records = {label: {"cell": cell, "label": label, "round": round_number, "cc": self.congestion} for label in labels}
        for label in labels:
            try:
                servers.running(label)
            except (CannotMeasure, OSError) as error:
                records[label]["error"] = str(error)[:200]
                servers.stop(label)
        labels = [label for label in labels if "error" not in records[label]]
        loads, spent = {}, {}
        before, own, begin = busy_seconds(), own_seconds(), time.monotonic()
        end = begin + len(labels) * (load.start_seconds + slices * load.slice_seconds)
        try:
            for label in labels:
                server, port = servers.running(label)
                spent[label] = cpu_seconds(server.pid)
                command = load.command(port, server.pid, end - time.monotonic() - load.start_seconds)
                loads[label] = start_load(command)
                time.sleep(load.start_seconds)
                loads[label].send_signal(signal.SIGSTOP)
            shares = take_turns(loads, servers, load, slices, source)
            for label, process in loads.items():
                record = records[label] | said(process, load) | {SHARE: shares[label]}
                spent[label] = cpu_seconds(servers.running(label)[0].pid) - spent[label]
                records[label] = record | costs(record, spent[label])
        finally:
            for process in loads.values():
                end_load(process)
        others = busy_seconds() - before - (own_seconds() - own) - sum(spent.values())
        others_pct = round(100 * others / (time.monotonic() - begin), 1)
        for label in loads:
            if not comes_to_rest(servers.running(label)[0].pid):
                servers.stop(label)  # it would take time from the others
        with open(self.file, "a", encoding="utf-8") as file:
            for record in records.values():
                file.write(json.dumps(record | {"other_pct": others_pct}) + "\n")


def start_load(command):
    return subprocess.Popen(on_core(1, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ends_with_us())


def take_turns(loads, servers, load, slices, source):
    """Has each load run for so many slices, in an order that changes. Returns how much of a core each server used in its own."""
    turns = list(loads)
    used, elapsed = dict.fromkeys(turns, 0.0), dict.fromkeys(turns, 1e-9)
    for _ in range(slices):
        turns = [label for label in turns if loads[label].poll() is None]
        source.shuffle(turns)
        for label in turns:
            pid = servers.running(label)[0].pid
            before, begin = cpu_seconds(pid), time.monotonic()
            loads[label].send_signal(signal.SIGCONT)
            time.sleep(load.slice_seconds)
            loads[label].send_signal(signal.SIGSTOP)
            used[label] += cpu_seconds(pid) - before
            elapsed[label] += time.monotonic() - begin
    return {label: 100 * used[label] / elapsed[label] for label in loads}


def costs(record, spent):
    """What a server spent, in all and for one of what it did."""
    counted = (("requests", ratios.CPU, 1e6), ("bytes", ratios.CPU_A_GB, 1e9))
    each = {field: unit * spent / record[count] for count, field, unit in counted if record.get(count)}
    return {"whole_cpu_s": spent, **each}


class Load(typing.NamedTuple):
    """What a server has to do while it is measured."""

    command: typing.Callable  # of port, process and seconds: a program that ends after these and prints what it saw
    # Of what it printed: the fields of a record, or ValueError if it is worthless. With `requests` or `bytes`, the server's
    # time for one of them is added.
    said: typing.Callable
    start_seconds: float  # it has its connections after that
    end_signal: int = 0  # makes it end and print; 0 if it ends by itself
    exit_codes: tuple = (0,)  # with which it has measured something
    slice_seconds: float = SLICE_SECONDS


def said(process, load):
    """Has a load end, and returns what it has measured, or what went wrong."""
    process.send_signal(signal.SIGCONT)
    if load.end_signal:
        time.sleep(SIGNAL_SECONDS)  # until its first thread runs: any of them may be told of a signal for the process
        process.send_signal(load.end_signal)
    try:
        out, errors = process.communicate(timeout=LOAD_SECONDS_MAX)
        if process.returncode not in load.exit_codes:
            return {"error": errors.strip()[:200] or f"the load ended with {process.returncode}"}
        return load.said(out)
    except subprocess.TimeoutExpired:
        end_load(process)
        return {"error": "the load did not end"}
    except (ValueError, KeyError, IndexError) as error:
        return {"error": str(error)[:200]}


def end_load(process):
    """Ends a load at once, also one that is stopped."""
    with process:
        process.kill()


class Servers:
    """Servers on core 0, each started when it is first asked for and ended with this."""

    count = 0

    def __init__(self, commands):
        self.commands = commands
        self.started = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop_all()

    def stop_all(self):
        for label in list(self.started):
            self.stop(label)

    def running(self, label):
        """The process and the port of a server."""
        if label not in self.started:
            Servers.count += 1
            port = FIRST_PORT + Servers.count % 900  # what is left of the last server cannot refuse the bind
            command = self.commands[label]
            words = command if isinstance(command, list) else shlex.split(command)
            words = [word.replace("{port}", str(port)) for word in words]
            nothing = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            server = subprocess.Popen(on_core(0, words), **nothing, preexec_fn=ends_with_us())
            self.started[label] = server, port
            wait_for_port(port, server)
        return self.started[label]

    def stop(self, label):
        server, _ = self.started.pop(label, (None, None))
        if server is None:
            return
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=2)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def comes_to_rest(pid):
    """Waits until a server has done what its last load left to do, which is closing its connections. False if that does not end."""
    before = cpu_seconds(pid)
    for _ in range(REST_TIMES):
        time.sleep(REST_SECONDS)
        now = cpu_seconds(pid)
        if now - before < REST_SECONDS / 10:
            return True
        before = now
    return False


def own_seconds():
    """Processor time of this process and of all its children that have ended: the loads."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def output_of(command, seconds):
    """What a load prints. It runs on core 1 and is ended after that time."""
    done = subprocess.run(on_core(1, command), capture_output=True, text=True, timeout=seconds, preexec_fn=ends_with_us())
    if done.returncode != 0:
        raise CannotMeasure(f"{command[0]} failed: {done.stderr.strip()[:150] or done.returncode}")
    return done.stdout


def heading(runs):
    """When, where and how often was measured, and what was dropped."""
    rounds = {number for cell in runs.cells.values() for label in cell.values() for number in label}
    return (
        f"{datetime.date.today()}, Linux {platform.release()}, {os.cpu_count()} cores, {', '.join(sorted(runs.congestion))}, "
        f"{len(rounds)} rounds, {runs.total} runs; {runs.noisy} dropped because other work used more than "
        f"{ratios.NOISE_PCT:.0f} % of a core, {sum(map(len, runs.failed.values()))} failed."
    )


def report_on(name, options, measure_all, report):
    """The whole of a script: measures (or not), reads the results, reports. Returns the exit code.

    `measure_all` returns the names of the files that it has written.
    """
    ratios.NOISE_PCT = options.noise
    leave_when_told_to_end()
    try:
        if not options.analyse and (os.cpu_count() or 1) < 2:
            raise CannotMeasure("the server and the load need a core each")
        runs = ratios.Runs.read(options.analyse or measure_all(options))
        if not runs.usable():
            raise CannotMeasure(f"none of {runs.total} runs can be used ({runs.noisy} noisy, {len(runs.failed)} failed)")
    except (CannotMeasure, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    write(report(runs), options.markdown)
    return 0


def common_options(parser, binary=True):
    add = parser.add_argument
    add("--rounds", type=int, default=6, help=f"interleaved rounds; at least {ratios.FEWEST_ROUNDS} for a verdict (default: 6)")
    add("--cc", default="reno", help="TCP congestion control; the machine's with an empty value (default: reno)")
    if binary:
        add("--binary", default=os.path.join(ROOT, "target", "release", "ringport"), help="the ringport to be measured")
    add("--noise", type=float, default=ratios.NOISE_PCT, metavar="PCT", help="drop runs during which other work used more than this much of a core (default: %(default)s)")
    add("--markdown", default="", metavar="FILE", help="write the report there, too")
    add("--analyse", nargs="+", default=[], metavar="FILE", help="measure nothing, report on these results")


def lab_options(parser):
    parser.add_argument("--lab", default="/tmp/lab", help="where the lab is built, or will be (default: /tmp/lab)")
    parser.add_argument("--lab-source", default=os.path.join(ROOT, "..", "shared", "lab"))
    parser.add_argument("--ms", type=int, default=500, help="length of one run (default: 500)")
    parser.add_argument("--warm", type=int, default=WARM_MS, help=f"milliseconds of load before it (default: {WARM_MS})")


def prepare_lab(lab, source):
    """Copies and builds the lab, unless that was done before."""
    if os.access(os.path.join(lab, "target", "release", "loadgen"), os.X_OK):
        return
    if not os.path.isdir(source):
        raise CannotMeasure(f"no lab is built in {lab}, and {source} does not exist")
    shutil.copytree(source, lab, dirs_exist_ok=True)
    for command in (["cargo", "build", "--release"], ["make", "-C", "c"]):
        environment = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}
        if subprocess.run(command, cwd=lab, env=environment, stdout=sys.stderr).returncode != 0:
            raise CannotMeasure(f"{' '.join(command)} failed in {lab}")


def lab_servers(lab):
    """The lab's servers, by the names that they have in reports, without the port and what they serve."""
    release, own = os.path.join(lab, "target", "release"), os.path.join(lab, "c", "bin")
    limit = [os.path.join(release, "srv-limit")]
    found = {
        "limit": limit,
        "limit-inc": [*limit, "--inc=1", "--bufsz=65536", "--nbufs=8"],
        "limit-poll": [*limit, "--recv=poll", "--direct=0"],
        "epoll-c": [os.path.join(own, "epoll_et")],
        "libuv": [os.path.join(own, "libuv_echo")],
        "asio": [os.path.join(own, "asio_echo")],
    }
    for name in ("tokio", "mio", "monoio", "compio", "glommio", "tokio-uring", "smol"):
        found[name] = [os.path.join(release, f"srv-{name}")]
    return found


def loadgen_command(options, port, pid, words, ms):
    """One run of the lab's load generator, which measures the server itself."""
    program = os.path.join(options.lab, "target", "release", "loadgen")
    return [program, f"--port={port}", f"--pid={pid}", f"--ms={ms}", f"--warm={options.warm}", *words]


def loadgen_said(text):
    lines = text.strip().splitlines()
    if not lines:
        raise ValueError("the load generator says nothing")
    return {name: value for name, value in json.loads(lines[-1]).items() if name not in ("label", "cell")}


def lab_load(options, words, connections, size):
    """The lab's load generator as a load in slices. It needs a while for each connection, and a slice is long enough for
    some ten messages on each: the first of them finds nothing in the caches."""

    def command(port, pid, seconds):
        return loadgen_command(options, port, pid, words, round(1000 * seconds))

    slice_seconds = max(SLICE_SECONDS, connections * (SLICE_SECONDS_EACH + size * SLICE_SECONDS_A_BYTE))
    start_seconds = (options.warm + CONNECT_MS) / 1000 + CONNECT_SECONDS_EACH * connections
    return Load(command, loadgen_said, start_seconds, slice_seconds=slice_seconds)


def loadgen(options, port, pid, words):
    return loadgen_said(output_of(loadgen_command(options, port, pid, words, options.ms), LOAD_SECONDS_MAX))


def write(text, markdown):
    print(text)
    if markdown:
        os.makedirs(os.path.dirname(os.path.abspath(markdown)), exist_ok=True)
        with open(markdown, "w", encoding="utf-8") as file:
            file.write(text)
