"""Functions of the user's own: what they get, what they may return, and everything that they may do wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from asking import ask, made

from sparring.checkers.grades import Checker
from sparring.checkers.make import CheckerSettings, make_checker
from sparring.checkers.pool import Pool
from sparring.errors import UserError

pytestmark = pytest.mark.long

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a checker's file and names its function `f`."""

    def write(code: str) -> str:
        path = tmp_path / "checker.py"
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return f"{path}:f"

    return write


def scores(kind: str, *replies: str, **settings) -> list[float | None]:
    with made(kind, **settings) as checker:
        return [grade.score for grade in checker.grade([ask(*replies)])[0]]


def reasons(kind: str, *replies: str, **settings) -> list[str | None]:
    """Why each reply failed; None for one that did not."""
    with made(kind, **settings) as checker:
        grades = checker.grade([ask(*replies)])[0]
    assert all(grade.score is None and grade.answer is None for grade in grades if grade.failed)
    return [grade.reason if grade.failed else None for grade in grades]


# ---------------------------------------------------------------------------------------------- what it gets


def test_it_is_called_as_trl_calls_it(write: Write, tmp_path: Path) -> None:
    kind = write(f"""
        import json
        def f(prompts, completions, answer, human_reply, row_id, level, **rest):
            with open({str(tmp_path / "got.json")!r}, "w") as file:
                json.dump([prompts, completions, answer, human_reply, row_id, level, rest], file)
            return [1.0, 2.0, 3.0]
    """)
    first = ask("a", "b", answer="7", human="seven", row_id="r1", level=3, other="x")
    second = ask("c", human="eight", row_id="r2", level=4)
    with made(kind) as checker:
        grades = checker.grade([first, second])
    assert [[grade.score for grade in prompt] for prompt in grades] == [[1.0, 2.0], [3.0]]
    got = json.loads((tmp_path / "got.json").read_text())
    assert got == [
        [[{"role": "user", "content": "What is it?"}]] * 3,
        [[{"role": "assistant", "content": text}] for text in "abc"],
        ["7", "7", None],
        ["seven", "seven", "eight"],
        ["r1", "r1", "r2"],
        [3, 3, 4],
        {"other": ["x", "x", None]},
    ]


def test_only_declared_parameters_are_passed(write: Write) -> None:
    assert scores(write("def f(completions): return [len(c[0]['content']) for c in completions]"), "a", "bcd") == [1.0, 3.0]


def test_a_list_of_arguments_is_not_the_replies(write: Write) -> None:
    with pytest.raises(UserError, match="takes"):
        scores(write("def f(*completions): return [1.0 for _ in completions]"), "a")


@pytest.mark.parametrize(("returned", "score"), [("0.5", 0.5), ("{'score': 1, 'acc': 0}", 1.0), ("True", 1.0)])
def test_it_is_called_as_verl_calls_it(write: Write, returned: str, score: float) -> None:
    kind = write(f"""
        def f(data_source, solution_str, ground_truth, extra_info=None):
            assert (solution_str, ground_truth, extra_info["level"]) == ("18", "18", 3)
            return {returned}
    """)
    with made(kind) as checker:
        grades = checker.grade([ask("18", "17", answer="18", level=3), ask("18", human="18", level=3)])
    assert [[grade.score for grade in prompt] for prompt in grades] == [[score, None], [score]]
    assert grades[0][1].failed and "AssertionError" in grades[0][1].reason


def test_an_asynchronous_function(write: Write) -> None:
    assert scores(write("async def f(completions): return [2 for _ in completions]"), "a", "b") == [2.0, 2.0]


def test_many_replies_in_several_processes_keep_their_order(write: Write) -> None:
    kind = write("def f(completions): return [float(c[0]['content']) for c in completions]")
    replies = [str(n) for n in range(300)]
    assert scores(kind, *replies, workers=3) == [float(n) for n in range(300)]


def test_a_huge_reply_and_odd_text_arrive_whole(write: Write) -> None:
    kind = write("def f(completions): return [len(c[0]['content']) for c in completions]")
    assert scores(kind, "x" * 3_000_000, "\ud800 \u2028\n\0", "") == [3_000_000.0, 5.0, 0.0]


def test_neighbours_of_the_file_can_be_imported_and_hide_nothing(write: Write, tmp_path: Path) -> None:
    (tmp_path / "my_rules.py").write_text("VALUE = 4")
    (tmp_path / "json.py").write_text("raise RuntimeError")
    assert scores(write("import json, my_rules\ndef f(completions): return [my_rules.VALUE]"), "a") == [4.0]


# ---------------------------------------------------------------------------------------------- what it returns


def test_no_score_is_no_failure(write: Write) -> None:
    with made(write("def f(completions): return [None, True, False, 0.25]")) as checker:
        grades = checker.grade([ask("a", "b", "c", "d")])[0]
    assert [grade.score for grade in grades] == [None, 1.0, 0.0, 0.25]
    assert not any(grade.failed for grade in grades) and grades[0].reason == "no score given"


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("[float('nan')] * n", "returned nan, which is not a score"),
        ("[float('inf')] * n", "returned inf, which is not a score"),
        ("['1.0'] * n", "returned str '1.0' instead of a number or None"),
        ("[[1]] * n", r"returned list \[1\] instead of a number or None"),
        ("[10 ** 400] * n", "instead of a number or None"),
        ("[1.0] * (n + 1)", r"returned \d scores for \d replies"),
        ("[]", r"returned 0 scores for \d replies"),
        ("1.0", "returned float 1.0 instead of a list of scores"),
        ("'ab'", "returned str 'ab' instead of a list of scores"),
        ("None", "returned NoneType None instead of a list of scores"),
        ("{1.0, 0.5} if n == 2 else {1.0}", r"returned set \{.*\} instead of a list of scores"),
        ("frozenset(range(n))", r"returned frozenset .* instead of a list of scores"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("exit(3)", "raised SystemExit: 3"),
        ("bytearray(1 << 40)", "raised MemoryError"),
    ],
)
def test_what_is_no_score_is_named(write: Write, returned: str, reason: str) -> None:
    found = reasons(write(f"def f(completions):\n    n = len(completions)\n    return {returned}"), "a", "b")
    assert len(found) == 2
    for why in found:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(why)


def test_a_file_that_cannot_be_loaded_a_second_time_says_why(write: Write, tmp_path: Path) -> None:
    """Its process has ended, and the file needs something that is gone."""
    kind = write(f"""
        import os
        open({str(tmp_path / "needed")!r})
        def f(completions):
            os.remove({str(tmp_path / "needed")!r})
            os._exit(3)
    """)
    (tmp_path / "needed").touch()
    (reason, other) = reasons(kind, "a", "b")
    for why in (reason, other):
        assert why is not None and why.startswith("could not be loaded again: line 3: FileNotFoundError: ") and "{" not in why


def test_an_error_whose_text_cannot_be_read(write: Write) -> None:
    kind = write("""
        class Odd(Exception):
            def __str__(self): raise ValueError
        def f(completions): raise Odd
    """)
    assert reasons(kind, "a") == ["raised Odd"]


def test_the_file_is_compiled_as_by_python_itself(write: Write) -> None:
    """Annotations are evaluated, as dataclasses, pydantic and the like expect where the file does not ask for something else."""
    kind = write("""
        class Row:
            score: float
        def f(completions: list): return [Row.__annotations__["score"](1) for _ in completions]
    """)
    assert scores(kind, "a") == [1.0]


def test_arrays_are_lists(write: Write) -> None:
    assert scores(write("import numpy\ndef f(completions): return numpy.array([0.5, 1])"), "a", "b") == [0.5, 1.0]


# ---------------------------------------------------------------------------------------------- what it does

BAD = """
    import ctypes, os, signal, time
    def f(completions, **columns):
        return [one(c[0]["content"]) for c in completions]
    def one(text):
        if text == "hang":
            time.sleep(1000)
        if text == "hang in C":
            import re
            re.match("(a+)+$", "a" * 60 + "b")
        if text == "exit":
            os._exit(3)
        if text == "segfault":
            ctypes.string_at(0)
        if text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "close":
            os.closerange(0, 100)
            time.sleep(1000)
        if text == "raise":
            raise ValueError("boom\\x1b\\nsecond line")
        return 1.0
"""


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("hang", "timed out after 1 s"),
        ("hang in C", "timed out after 1 s"),
        ("exit", "its process ended with exit code 3"),
        ("segfault", "its process was killed by signal 11"),
        ("kill", "its process was killed by signal 9"),
        ("close", "its process closed its pipe"),
        ("raise", "raised ValueError: boom\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_only_the_reply_to_blame_is_lost(write: Write, what: str, reason: str) -> None:
    assert reasons(write(BAD), "a", what, "b", timeout_seconds=1.0) == [None, reason, None]


def test_prints_cannot_get_between_the_answers(write: Write) -> None:
    kind = write("""
        import os, sys
        print("at import", '{"ready": false}')
        def f(completions):
            print('{"results": []}', flush=True)
            os.write(1, b'{"results": []}\\n')
            os.write(2, b"x" * 1_000_000)
            os.system("echo from a child")
            return [1.0 for _ in completions]
    """)
    assert scores(kind, "a", "b") == [1.0, 1.0]


def test_the_last_prints_are_shown_with_a_death(write: Write) -> None:
    kind = write("""
        import os
        def f(completions):
            print("y" * 100_000, "\\x1b[31mthe last words", flush=True)
            os._exit(1)
    """)
    (reason,) = reasons(kind, "a")
    assert reason.endswith("the last words") and len(reason) < 500 and "\x1b" not in reason


def test_no_secret_reaches_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "ANYTHING"):
        monkeypatch.setenv(name, "secret")
    kind = write("""
        import os
        from pathlib import Path
        def f(completions):
            assert "secret" not in os.environ.values() and os.environ["OMP_NUM_THREADS"] == "1"
            assert list(Path.home().iterdir()) == []
            os.environ["HF_TOKEN"]
    """)
    assert reasons(kind, "a") == ["raised KeyError: 'HF_TOKEN'"]
    home = os.environ.get("HOME")
    assert scores(write(f"import os\ndef f(completions): return [os.environ['HOME'] == {home!r}]"), "a") == [0.0]


def test_its_input_is_empty(write: Write) -> None:
    assert scores(write("import sys\ndef f(completions): return [len(sys.stdin.read())]"), "a") == [0.0]


def test_torch_can_be_imported_under_the_default_limits(write: Write) -> None:
    kind = write("import torch\ndef f(completions): return torch.tensor([0.5, 2.0])")
    assert scores(kind, "a", "b") == [0.5, 2.0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to RLIMIT_DATA")
def test_memory_is_limited(write: Write) -> None:
    kind = write("def f(completions): return [len(bytearray(300 << 20))]")
    assert reasons(kind, "a", memory_mb=200) == ["raised MemoryError"]
    assert scores(kind, "a") == [float(300 << 20)]


@pytest.mark.parametrize("limit", [{"timeout_seconds": 1e12}, {"memory_mb": 10**17}])
def test_limits_that_no_system_has_limit_nothing(limit: dict[str, float], write: Write) -> None:
    assert scores(write("def f(completions): return [1.0]"), "a", **limit) == [1.0]


def test_it_works_in_a_thread(write: Write) -> None:
    """An alarm by signal would not: a hanging reply is lost there too, and is not scored 0."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.extend(reasons(write(BAD), "a", "hang", timeout_seconds=1.0)))
    thread.start()
    thread.join()
    assert found == [None, "timed out after 1 s"]


# ---------------------------------------------------------------------------------------------- its processes


def children_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile, or has ended and waits for its parent to take note
            if "worker.py" in " ".join(child.cmdline()):
                found.append(child)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.05)
    return False


def test_close_leaves_no_process_and_no_folder(write: Write) -> None:
    kind = write("import os\ndef f(completions): print(os.environ['HOME']); return [1.0]")
    checker = make_checker(CheckerSettings(kind, None))
    processes = children_of(os.getpid())
    home = Path(processes[0].environ()["HOME"])
    assert home.is_dir()
    checker.close()
    checker.close()
    assert gone(processes) and not home.exists()


def test_a_process_that_dies_between_two_calls_costs_nothing(write: Write) -> None:
    with made(write("def f(completions): return [len(c[0]['content']) for c in completions]")) as checker:
        (process,) = [child for child in children_of(os.getpid()) if child.ppid() == os.getpid()]
        process.kill()
        assert gone([process])
        assert checker.grade([ask("x" * 1_000_000)])[0][0].score == 1_000_000


def test_close_while_another_thread_grades(write: Write) -> None:
    checker = make_checker(CheckerSettings(write(BAD), None, timeout_seconds=1000, workers=2))
    found: list[bool] = []
    replies = ["a"] * 70 + ["hang"] * 70
    thread = threading.Thread(target=lambda: found.extend(grade.failed for grade in checker.grade([ask(*replies)])[0]))
    thread.start()
    time.sleep(1)
    checker.close()
    thread.join(60)
    assert not thread.is_alive() and len(found) == 140 and all(found[70:])
    assert children_of(os.getpid()) == []


def test_a_process_that_answers_out_of_turn_is_replaced(write: Write) -> None:
    kind = write("""
        import os
        def f(completions):
            if completions[0][0]["content"] == "bad":
                for number in range(3, 30):
                    try:
                        os.write(number, b'[1, "junk"]\\n')
                    except OSError:
                        pass
            return [1.0] * len(completions)
    """)
    assert reasons(kind, "bad", "a") == ["its process sent an invalid answer", None]


def test_a_child_that_the_function_forks_answers_nothing(write: Write) -> None:
    """Its answer would be taken for that of the next call."""
    kind = write("""
        import os, time
        def f(completions):
            if completions[0][0]["content"] == "fork" and os.fork() == 0:
                time.sleep(0.5)
                return [0.25]
            return [1.0]
    """)
    with made(kind) as checker:
        assert checker.grade([ask("fork")])[0][0].score == 1.0
        time.sleep(1)
        assert checker.grade([ask("a")])[0][0].score == 1.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_the_one_that_started_it(write: Write, tmp_path: Path, number: signal.Signals) -> None:
    """In a call that hangs in C, where no thread of the process could run either."""
    code = f"""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from sparring.checkers.grades import GradingRequest
        from sparring.checkers.make import CheckerSettings, make_checker
        checker = make_checker(CheckerSettings({write(BAD)!r}, None, timeout_seconds=1000, workers=2))
        print("made", flush=True)
        checker.grade([GradingRequest("r", (), None, None, {{}}, ("hang in C",))])
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "made\n"
    time.sleep(0.5)
    processes = children_of(parent.pid)
    assert processes
    home = Path(processes[0].environ()["HOME"])
    assert home.is_dir()
    parent.send_signal(number)
    with contextlib.closing(parent.stdout):
        said = parent.communicate(timeout=60)[1]
    assert parent.returncode != 0 and (number != signal.SIGINT or "KeyboardInterrupt" in said)
    assert gone(processes) and not home.exists(), "nor does their folder"


IDLE = """
    import sys
    from sparring.checkers.pool import Pool
    pool = Pool({}, 1.0, 100, 1)
    print(pool._home.path, flush=True)
    sys.stdin.read()
"""


def test_the_folder_of_a_dead_owner_is_removed_by_the_next_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with all of its processes, or before it had any. The folder of an owner that lives is left alone, and so is all else."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    others = [tmp_path / "sparring-checker-home-a-file", tmp_path / "sparring-checkers"]
    others[0].touch()
    others[1].mkdir()
    (tmp_path / "sparring-checker-home-a-link").symlink_to(others[1])
    idle = [sys.executable, "-c", textwrap.dedent(IDLE)]
    dead, alive = (subprocess.Popen(idle, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2))
    homes = {}
    for owner in (dead, alive):
        assert owner.stdout is not None
        homes[owner] = Path(owner.stdout.readline().strip())
    assert all(home.parent == tmp_path and home.is_dir() for home in homes.values())
    dead.kill()
    dead.wait()
    (homes[dead] / "folder").mkdir()
    (homes[dead] / "folder" / "file").touch()
    pool = Pool({}, 1.0, 100, 1)
    assert not homes[dead].exists() and homes[alive].is_dir()
    pool.close()
    alive.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sparring-checker-home-a-file",
        "sparring-checker-home-a-link",
        "sparring-checkers",
    ]
    for owner in (dead, alive):
        for pipe in (owner.stdin, owner.stdout):
            if pipe is not None:
                pipe.close()


def test_two_pools_that_start_at_once_do_not_take_each_others_folder_for_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the creation of a folder and its lock another pool may remove it: then there is a new one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[str] = []
    create = tempfile.mkdtemp

    def create_and_lose(**options: str) -> str:
        made.append(create(**options))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", create_and_lose)
    pool = Pool({}, 1.0, 100, 1)
    assert len(made) == 2 and list(map(str, tmp_path.iterdir())) == made[1:]
    pool.close()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- before its first use


def refused(kind: str, **settings) -> str:
    with pytest.raises(UserError) as caught:
        make_checker(CheckerSettings(kind, None, **settings))
    assert caught.value.where == "target.checker"
    assert children_of(os.getpid()) == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def g(completions): ...", "has no function 'f'"),
        ("f = 3", "f in {path} is not a function but of type int"),
        ("def f(prompt, response): ...", "takes (prompt, response)"),
        ("def f(prompts, completions, /): ...", "takes (prompts, completions, /)"),
        ("def f(prompt, response): ...", "compute_score(data_source, solution_str, ground_truth, extra_info)"),
        ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\n\n1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("def f(:", "line 1: SyntaxError: invalid syntax"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os\nprint('so long', flush=True)\nos._exit(5)", "its process ended with exit code 5; it printed: so long"),
        ("print('see here')\nraise ValueError", "it printed: see here"),
    ],
)
def test_what_cannot_be_loaded(write: Write, code: str, message: str) -> None:
    kind = write(code)
    assert message.format(path=kind.removesuffix(":f")) in refused(kind)


def test_a_name_that_is_nearly_right(write: Write) -> None:
    assert "did you mean reward_length?" in refused(write("def reward_length(completions): ...")[:-1] + "reward_lenght")


def test_an_import_that_never_ends(write: Write) -> None:
    said = refused(write("while True: pass"), timeout_seconds=0.5)
    assert "timed out after 3 s" in said
    assert "loading may take 6 times target.timeout_seconds, which is 0.5: raise it in the recipe, or import less" in said


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to RLIMIT_DATA")
@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(300 << 20)",
        "import os\nprint('OpenBLAS error: Memory allocation still failed after 10 retries', flush=True)\nos._exit(1)",
        "import os, sys\nprint(\"'std::bad_alloc'\", file=sys.stderr, flush=True)\nos.abort()",
        "raise OSError(12, 'Cannot allocate memory')",
    ],
)
def test_an_import_that_needs_more_memory(write: Write, code: str) -> None:
    """As Python, OpenBLAS, the C++ library and the system say it."""
    said = refused(write(f"{code}\ndef f(completions): ..."), memory_mb=200)
    assert "a process may use target.memory_mb, which is 200: raise it in the recipe" in said


def test_another_failure_of_an_import_advises_no_limit(write: Write) -> None:
    assert "->" not in refused(write("raise ValueError('the weather')"))


@pytest.mark.parametrize("kind", ["no/such/file.py:f", "https://example.com/f.py:f", ":", "x:"])
def test_files_that_are_not_there(kind: str) -> None:
    assert "does not exist" in refused(kind)


def test_the_home_folder_may_be_short(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("def f(completions): return [1.0 for _ in completions]")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scores("~/checker.py:f", "a") == [1.0]


def test_only_python_files_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("def f(completions): ...")
    assert "is not a Python file" in refused(f"{tmp_path}/f.txt:f")


def test_nothing_of_the_file_runs_in_this_process(write: Write) -> None:
    with made(write("import sys\nsys.ran_here = True\ndef f(completions): return [1.0]")):
        assert not hasattr(sys, "ran_here")


def test_the_fingerprint_follows_the_file(write: Write) -> None:
    def fingerprint(code: str, pattern: str | None = None) -> dict:
        with made(write(code), pattern) as checker:
            return checker.fingerprint

    first = fingerprint("def f(completions): return [1.0]")
    assert first == fingerprint("def f(completions): return [1.0]")
    assert first != fingerprint("def f(completions): return [2.0]")
    assert first != fingerprint("def f(completions): return [1.0]", ".+")
    assert first["kind"] == "own" and first["function"] == "f" and len(first["sha256"]) == 64


def test_every_process_has_the_text_that_was_hashed(write: Write) -> None:
    """The file is edited while the run goes on, and then a process has to be started anew."""
    kind = write("import os\ndef f(completions): return [1.0 if c[0]['content'] != 'exit' else os._exit(1) for c in completions]")

    def graded(checker: Checker, reply: str) -> float | None:
        return checker.grade([ask(reply)])[0][0].score

    with made(kind) as checker:
        write("def f(completions): return [9.0]")
        assert [graded(checker, reply) for reply in ("a", "exit", "a")] == [1.0, None, 1.0]


def test_answers_by_the_pattern(write: Write) -> None:
    kind = write("def f(completions): return [1.0] * len(completions)")
    with made(kind, r"#### (\d+)") as checker:
        assert checker.reads_answers and checker.expected(ask(answer="18")) is None
        assert [grade.answer for grade in checker.grade([ask("#### 18", "18")])[0]] == ["18", None]
    with made(kind) as checker:
        assert not checker.reads_answers and checker.grade([ask("#### 18")])[0][0].answer is None
