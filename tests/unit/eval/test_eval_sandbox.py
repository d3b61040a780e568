"""Generated programs, hostile ones among them, reach nothing and end in time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cpt.errors import ConfigError
from megatron_cpt.eval import sandbox
from megatron_cpt.eval.sandbox import Limits, Outcome, require_confinement, run_program, run_programs, why_not_confined

QUICK = Limits(wall_s=5.0, cpu_s=2)
confined_only = pytest.mark.skipif(why_not_confined() is not None, reason=f"no namespaces here: {why_not_confined()}")


def run(source: str, limits: Limits = QUICK) -> Outcome:
    outcome = run_program(textwrap.dedent(source), confined=True, limits=limits)
    print(outcome)
    return outcome


@pytest.mark.parametrize("confined", [pytest.param(True, marks=confined_only), False])
@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def double(n):\n    return 2 * n\nassert double(2) == 4", "passed"),
        ("assert 1 == 2", "failed"),
        ("def f(:", "failed"),
        ("import sys; sys.exit(0)", "failed"),  # before the tests: a zero alone is no pass
        ("import os; os._exit(0)", "failed"),
        ("x = '''never closed", "failed"),
        ("while True: pass", "timeout"),
        ("import time; time.sleep(90)", "timeout"),
        ("while True: print('x' * 1000)", "output"),
        ("print('é' * 10, '漢字')", "passed"),
        ("import json, re, math, heapq, itertools, collections, typing, datetime, random, string, functools", "passed"),
    ],
)
def test_a_program_passes_only_by_coming_to_its_end(source: str, status: str, confined: bool) -> None:
    outcome = run_program(source, confined=confined, limits=replace(QUICK, wall_s=1.5 if status == "timeout" else 30.0, cpu_s=10))
    assert outcome.status == status, outcome
    assert outcome.seconds < 30  # far less than the program that sleeps, also on a busy machine


@confined_only
@pytest.mark.parametrize(
    "hostile",
    [
        "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)",
        "import socket; s = socket.socket(); s.settimeout(1); s.connect(('192.0.2.1', 80))",
        "import socket; socket.getaddrinfo('example.com', 80)",
        "open({home!r}).read()",
        "open({home!r}, 'a').write('x')",
        "open({run!r}, 'a').write('x')",
        "open({run!r}).read()",
        "open('/usr/written', 'w')",
        "import sys; open(sys.base_prefix + '/written', 'w')",
        "open('/etc/passwd').read()",
        "import os; os.listdir('/proc/1')",
        "open('/etc/hostname').read()",
        "import os; os.setuid(0)",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",  # a user namespace, in which it would be root
        "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/', b'', 32 | 4096, b'') == 0",  # writable again
        "import os; os.mknod('/sandbox/device', 0o20666, os.makedev(1, 1))",
        "import os; assert len(os.environ) > 6 or 'SECRET' in os.environ",
        "import os\nfor fd in range(3, 64):\n    try: os.fstat(fd); break\n    except OSError: pass\nelse: raise SystemExit(1)",
        "x = bytearray(2 << 30)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20)); f.flush()",
        "for n in range(100): open(f'part{{n}}', 'wb').write(b'x' * (1 << 20))",
        "for n in range(100000): open(f'{{n}}', 'w').close()",
        "files = [open('a', 'w') for n in range(100)]",
        "import threading\nfor n in range(100): threading.Thread(target=__import__('time').sleep, args=(9,), daemon=True).start()",
        "import os\nfor n in range(100):\n    if os.fork() == 0: __import__('time').sleep(20)",
    ],
)
def test_nothing_is_reached_and_nothing_is_taken_beyond_the_limits(
    hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: int
) -> None:
    monkeypatch.setenv("SECRET", "token")
    home, mine = Path.home() / ".sandbox-test", tmp_path / "eval.json"
    home.write_text("mine")
    mine.write_text("mine")
    try:
        outcome = run(hostile.format(home=str(home), run=str(mine), port=listener))
        assert outcome.status in ("failed", "timeout")
        assert (home.read_text(), mine.read_text()) == ("mine", "mine")
        assert not Path("/usr/written").exists()
        assert not Path(sys.base_prefix, "written").exists()
    finally:
        home.unlink()


@pytest.fixture(scope="module")
def listener() -> int:
    import socket  # noqa: PLC0415

    server = socket.create_server(("127.0.0.1", 0))
    globals()["_kept"] = server
    return int(server.getsockname()[1])


@confined_only
def test_a_fork_bomb_ends_with_its_time_and_leaves_no_process() -> None:
    name = f"bomb{os.getpid()}"
    began = time.monotonic()
    outcome = run(
        f"""
        import os, signal, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        marker = {name!r}
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError:
                pass
        """,
        replace(QUICK, wall_s=2.0, cpu_s=60),
    )
    assert outcome.status == "timeout"
    assert time.monotonic() - began < 10
    time.sleep(0.3)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"/sandbox/program.py" in _read(path)]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@confined_only
def test_killing_its_parent_does_not_free_a_program() -> None:
    """Its parent is the first process of its own namespace, which the kernel protects from signals from inside."""
    outcome = run("import os, signal\ntry:\n    os.kill(os.getppid(), 9)\nexcept PermissionError:\n    pass\nos.kill(-1, 0)")
    assert outcome.status in ("passed", "failed")
    assert outcome.seconds < 4
    assert run("assert True").status == "passed"


@confined_only
def test_a_program_that_forks_within_its_limits_is_run() -> None:
    assert run("import os\nfor _ in range(3):\n    if os.fork() == 0: os._exit(0)\n    os.wait()").status == "passed"


@confined_only
def test_its_folder_is_empty_and_vanishes() -> None:
    assert run("import os\nassert os.listdir('.') == ['program.py'], os.listdir('.')\nopen('left', 'w').write('x')").status == "passed"
    assert run("import os\nassert not os.path.exists('left')").status == "passed"


@confined_only
def test_an_ordinary_user_is_shut_in_as_well(tmp_path: Path) -> None:
    """Root maps two ids and an ordinary user his own: the other half of this test runs wherever the suite runs as a user."""
    if os.geteuid() != 0 or not Path("/usr/bin/setpriv").exists() or not Path("/usr/bin/python3").exists():
        assert run("import os; assert os.getuid() == 65534").status == "passed"
        return
    child, scratch = Path("/tmp") / f"sandbox-child-{os.getpid()}.py", Path("/tmp") / f"sandbox-scratch-{os.getpid()}"
    child.write_text(sandbox.CHILD.read_text())
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)
    source = "import os\nassert os.getuid() == 65534\nassert not os.path.exists('/home')\nassert not os.path.exists('/tmp')\nprint('done')"
    import json  # noqa: PLC0415
    from dataclasses import asdict  # noqa: PLC0415

    request = {"program": source, "limits": asdict(QUICK), "confined": True, "scratch": str(scratch)}
    try:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-I", "-S", str(child)]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=30)
    finally:
        child.unlink()
        scratch.rmdir()
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_without_namespaces_programs_are_refused_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "why_not_confined", lambda: "unshare: Operation not permitted")
    with pytest.raises(ConfigError, match="run_code_unconfined=true"):
        require_confinement(unconfined=False)
    assert require_confinement(unconfined=True) is False


def test_outcomes_keep_the_order_of_their_programs() -> None:
    sources = [f"import time; time.sleep({seconds}); assert {right}" for seconds, right in ((0.3, True), (0, False), (0.1, True))]
    outcomes = run_programs(sources, confined=why_not_confined() is None, limits=QUICK, workers=3)
    assert [outcome.status for outcome in outcomes] == ["passed", "failed", "passed"]
