#!/usr/bin/env python3
"""Measures `ringport serve files` beside nginx with sendfile, and says which sends more bytes in a second of processor time.

    scripts/measure_files.py --rounds 6 --markdown bench-out/files.md
    scripts/measure_files.py --analyse bench-out/files-*.jsonl

Both serve the same two files, of 1 MiB to wrk and of 1 GiB to curl: the servers on core 0, the loads on core 1, in a network
namespace of their own. In a round every server has its load, and they take turns of 40 ms, in an order that changes; a curl
has turns until it has fetched the file once. The files lie in memory (/dev/shm), or on disk and then in the page cache; they
are removed afterwards. nginx gets a configuration of its own in a folder of its own: one worker, sendfile, no log,
connections that are kept. nginx and wrk are installed when they are missing (Debian). Needs root, 1.5 GiB of free space, and
a quiet machine. The exit code is 0 whatever the verdicts are, and 1 only if nothing could be measured. Six rounds take about
60 seconds.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import beside  # noqa: E402 (beside this file, wherever that is called from)
import measure  # noqa: E402
import ratios  # noqa: E402
from beside import CannotMeasure  # noqa: E402

NGINX, TWIN = "nginx", measure.TWIN
SIZES = {"1 MiB": ("small", 1 << 20), "1 GiB": ("large", 1 << 30)}
SPACE = (1 << 30) + (512 << 20)
WRK_SECONDS_MAX = 120
WRK_START_SECONDS = 0.3
CONNECTIONS = 8
CURL_START_SECONDS = 0.01
CURL_MS_MAX = 10_000

CONFIGURATION = """
user root; daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; keepalive_timeout 60s; keepalive_requests 10000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    server {{ listen 127.0.0.1:PORT; root {files}; }}
}}
"""

# wrk prints rounded numbers; this prints the bytes.
COUNT_BYTES = """done = function(summary)
    local errors = summary.errors
    local lost = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("bytes=%d requests=%d lost=%d\\n", summary.bytes, summary.requests, lost))
end
"""


def main():
    return beside.report_on("measure_files", parse_arguments(), run_all, report)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    beside.common_options(parser)
    add("--sizes", default="1 MiB,1 GiB", help="only these of the two files (default: both)")
    add("--ms", type=int, default=600, help="milliseconds in which the small file is fetched from each server in a round (default: %(default)s)")
    add("--servers", default="", help="only these of nginx, ringport-uring, ringport-uring-2 (the control), ringport-epoll")
    add("--folder", default="", help="where the files are made for the time of the measurement (default: /dev/shm if it has room)")
    return parser.parse_args()


def run_all(options):
    """Measures, and returns the name of the file with the results."""
    if not os.access(options.binary, os.X_OK):
        raise CannotMeasure(f"{options.binary} is missing: cargo build --release")
    for program, package in (("nginx", "nginx-light"), ("wrk", "wrk"), ("curl", "curl")):
        install(program, package)
    congestion = beside.enter_namespace(options.cc)
    with tempfile.TemporaryDirectory(prefix="ringport-files-", dir=folder_with_room(options.folder)) as folder:
        files = os.path.join(folder, "files")
        os.mkdir(files)
        for name, length in SIZES.values():
            make_file(os.path.join(files, name), length)
        script = os.path.join(folder, "bytes.lua")
        with open(script, "w", encoding="ascii") as file:
            file.write(COUNT_BYTES)
        started = commands(options, folder, files)
        loads = {"1 MiB": (wrk_load(script), options.ms), "1 GiB": (curl_load(), CURL_MS_MAX)}
        bench = beside.Bench("files", congestion)
        for size in (size for size in SIZES if size in options.sizes.split(",")):
            load, ms = loads[size]
            with beside.Servers(started) as servers:
                bench.rounds_in_slices(options.rounds, size, list(started), servers, load, ms)
    return [bench.file]


def install(program, package):
    if shutil.which(program) or os.path.exists(f"/usr/sbin/{program}"):
        return
    # As part of a package nginx would be started at once, on port 80.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["apt-get", "install", "--yes", package], ["apt-get", "update"], ["apt-get", "install", "--yes", package]):
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 0 and command[1] == "install":
            return
    raise CannotMeasure(f"{program} is missing, and {package} cannot be installed")


def folder_with_room(wanted):
    for folder in [wanted] if wanted else ["/dev/shm", tempfile.gettempdir()]:
        if os.path.isdir(folder) and shutil.disk_usage(folder).free >= SPACE and memory_available() >= SPACE:
            return folder
    raise CannotMeasure(f"there is no folder with {SPACE >> 20} MiB of free space, or not as much memory for its cache")


def memory_available():
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))


def make_file(path, length):
    """Bytes that differ, all of them in the page cache."""
    block = os.urandom(1 << 20)
    with open(path, "wb") as file:
        for _ in range(length >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def commands(options, folder, files):
    """How each server is started. nginx wants its port in a file."""
    path = os.path.join(folder, "nginx.conf")
    with open(path + ".in", "w", encoding="ascii") as file:
        file.write(CONFIGURATION.format(folder=folder, files=files))
    # Its worker ends with it only if it is told to end.
    start = f"sed s/PORT/$0/ {path}.in > {path} && exec setpriv --pdeathsig TERM nginx -p {folder} -c {path}"
    serve = [os.path.abspath(options.binary), "serve", "files", files, "--listen", "127.0.0.1:{port}", "--log", "error", "--engine"]
    servers = {
        NGINX: ["env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", start, "{port}"],
        measure.URING: [*serve, "io_uring"],
        measure.URING + TWIN: [*serve, "io_uring"],
        measure.EPOLL: [*serve, "epoll"],
    }
    wanted = options.servers.split(",") if options.servers else list(servers)
    return {label: start for label, start in servers.items() if label in wanted}


def url(port, size):
    return f"http://127.0.0.1:{port}/{SIZES[size][0]}"


def wrk_load(script):
    """Fetches the small file again and again."""
    words = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{WRK_SECONDS_MAX}s", "--timeout", f"{WRK_SECONDS_MAX}s", "-s", script]
    return beside.Load(lambda port, *_: [*words, url(port, "1 MiB")], wrk_said, WRK_START_SECONDS, signal.SIGINT)


def wrk_said(text):
    found = re.search(r"bytes=(\d+) requests=(\d+) lost=(\d+)", text)
    if not found or int(found[3]) or int(found[2]) == 0:
        raise ValueError(f"wrk got wrong answers: {text.strip()[-150:]}")
    return {"bytes": int(found[1])}


def curl_load():
    """Fetches the large file once."""
    words = ["curl", "-sf", "-o", "/dev/null", "-w", "%{size_download}\\n"]
    return beside.Load(lambda port, *_: [*words, url(port, "1 GiB")], curl_said, CURL_START_SECONDS)


def curl_said(text):
    if text.strip() != str(SIZES["1 GiB"][1]):
        raise ValueError(f"curl got {text.strip()} bytes")
    return {"bytes": int(text)}


def report(runs):
    parts = [beside.heading(runs)]
    sizes = [size for size in SIZES if size in runs.cells]
    labels = [label for label in (NGINX, measure.URING, measure.EPOLL) if any(label in runs.cells[size] for size in sizes)]
    rows = []
    for size in sizes:
        medians = [runs.median(size, label, ratios.CPU_A_GB) for label in labels]
        rows.append([size, *(f"{1 / value:.2f}" if value else "–" for value in medians)])
    parts.append("### Gigabytes a second of server processor time, medians\n\n" + measure.table(["file", *labels], rows))
    rows = []
    for size in sizes:
        noise = ratios.control(runs, size, measure.URING, measure.URING + TWIN, ratios.CPU_A_GB)
        for label in labels[1:] if NGINX in labels else []:
            ratio = ratios.paired(runs, size, label, NGINX, ratios.CPU_A_GB)
            answer = measure.verdict(ratios.within(ratio, 1.0, noise))
            rows.append([size, label, measure.shown(ratio), f"{noise.upper:.3f}" if noise else "–", answer])
    header = ["file", "server", "its CPU time a byte / nginx's", "control", "as fast as nginx"]
    parts.append(
        f"### Against nginx\n\n{measure.table(header, rows)}\n\nMedian of paired rounds and its 95 % upper bound. *control*: the same bound "
        f"between two identical servers. *as fast*: bound ≤ control; no verdict on fewer than {ratios.FEWEST_ROUNDS} rounds. "
        f"1 MiB: wrk, {CONNECTIONS} kept connections; 1 GiB: curl, one."
    )
    parts.append(measure.failures(runs))
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    sys.exit(main())
