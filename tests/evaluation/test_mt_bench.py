"""Judgments: kept, read, counted, and never paid for twice, whatever the endpoint does. The judge is a server on loopback."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judging import QUESTIONS, JudgeServer, write_questions
from loopback import Fault

from sparring.config import ServerSection
from sparring.errors import UserError
from sparring.evaluation.judge import FILE, Judge, read_judgments
from sparring.evaluation.judge_prompts import read_questions
from sparring.evaluation.mt_bench import compare, grade
from sparring.opponent import endpoints

KEY = "sk-very-secret-0123456789"
ANSWERS = {"1": ["a", "b"], "2": ["2", "4"], "3": ["6", "sure"]}
OTHERS = {"1": ["x", "y"], "2": ["3", "5"], "3": ["7", "no"]}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.02)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    started = JudgeServer()
    yield started
    started.close()


@pytest.fixture
def questions(tmp_path: Path) -> Any:
    return read_questions(str(write_questions(tmp_path)))


def judge(server: JudgeServer, **changes: Any) -> Judge:
    return Judge(ServerSection(**{"urls": (server.url,), "model": "judge", "retries": 2, "timeout_seconds": 5.0, **changes}))


def graded(server: JudgeServer, folder: Path, questions: Any, **changes: Any) -> Any:
    asking = judge(server, **changes)
    try:
        return grade(folder, asking, questions, ANSWERS)
    finally:
        asking.close()


def judgments(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def by_turn(text: str) -> str:
    return "Score: 4" if "second user turn" in text else "Score: 8"


def test_grades_by_turn_and_category(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    server.says = lambda text: "Score: 1" if "1+1?" in text else by_turn(text)
    scores, facts = graded(server, tmp_path, questions)
    assert scores["grade/turn-1"]["value"] == pytest.approx((8 + 1 + 8) / 3) and scores["grade/turn-2"]["value"] == pytest.approx(3)
    assert scores["grade/writing"] == {"value": 6.0, "n": 1, "stderr": None, "higher_is_better": True}
    assert scores["grade/math"]["value"] == pytest.approx(3.5) and scores["grade"]["n"] == 3
    assert scores["grade"]["value"] == pytest.approx((6 + 1 + 6) / 3)
    kept = judgments(tmp_path)
    assert sorted(one["key"] for one in kept) == ["1/1", "1/2", "2/1", "2/2", "3/1", "3/2"]
    assert facts["judgments"] == 6 and facts["unreadable"] == 0 and facts["judge_completion_tokens"] == 30
    assert facts["judge_prompt_tokens"] == sum(len(body["messages"][-1]["content"]) for body in server.bodies)


def test_references_reach_the_judge(server: JudgeServer, tmp_path: Path) -> None:
    references = tmp_path / "references.jsonl"
    references.write_text(json.dumps({"question_id": 2, "choices": [{"turns": ["it is two", "it is four"]}]}) + "\n")
    graded(server, tmp_path, read_questions(str(write_questions(tmp_path)), str(references)))
    texts = [body["messages"][-1]["content"] for body in server.bodies]
    assert sum("it is two" in text for text in texts) == 1 and sum("it is four" in text for text in texts) == 1


def test_bad_replies_are_asked_for_again(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    """A second request shows the first reply and the form; what stays unreadable is kept, counted and left out of the means."""
    server.says = lambda text: "I cannot" if "3+3?" in text or "has not the form" in text else "Score: 6"
    scores, facts = graded(server, tmp_path, questions)
    assert facts["unreadable"] == 2 and facts["judge_replies"] == 4 + 2 * 3
    assert scores["grade"]["n"] == 2 and scores["grade"]["value"] == 6
    assert [one["value"] for one in judgments(tmp_path) if one["key"] == "3/1"] == [None]
    again = [body["messages"] for body in server.bodies if len(body["messages"]) == 4]
    assert again[0][2] == {"role": "assistant", "content": "I cannot"} and "Score: N" in again[0][3]["content"]


@pytest.mark.parametrize("answer", [{"score": 9}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, [], "Score: 9"])
def test_what_has_not_the_form_of_a_chat_completion_is_no_grade(server: JudgeServer, tmp_path: Path, questions: Any, answer: Any) -> None:
    server.sends = lambda text: answer
    with pytest.raises(UserError, match="none of the judge's replies could be read"):
        graded(server, tmp_path, questions)
    assert len(judgments(tmp_path)) == 6 and all("no chat completion" in one["replies"][0] for one in judgments(tmp_path))
    server.sends = None  # mended: they are asked for again
    assert graded(server, tmp_path, questions)[0]["grade"]["value"] == 7


def test_passing_faults(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    """Of two retries the first question needs both, the next two one each."""
    faults = {1: Fault(503, "busy"), 2: Fault(200, "<html>"), 4: Fault(cut=True), 6: Fault(429, "slow down", {"Retry-After": "0"})}
    server.fault = lambda n, body: faults.get(n)
    assert graded(server, tmp_path, questions, concurrency=1)[0]["grade"]["value"] == 7


def test_a_judge_that_refuses(server: JudgeServer, tmp_path: Path, questions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "another"
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(UserError, match=r"--judge \(http.*the server refuses /chat/completions: 401") as caught:
        graded(server, tmp_path, questions, api_key_env="JUDGE_KEY")
    assert KEY not in str(caught.value) and "JUDGE_KEY" in str(caught.value)
    server.key = KEY
    assert graded(server, tmp_path, questions, api_key_env="JUDGE_KEY")[0]["grade"]["value"] == 7
    assert all(KEY not in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_a_judge_that_refuses_one_question(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    """As content filters do: no judgment of that one, and no end of the others. Where nothing was answered before, it is the request."""
    server.fault = lambda n, body: Fault(400, "content filter") if "Sure?" in body["messages"][-1]["content"] else None
    scores, facts = graded(server, tmp_path, questions, concurrency=1)
    assert facts["unreadable"] == 1 and scores["grade"]["n"] == 3 and scores["grade/turn-2"]["n"] == 2
    refused = next(one for one in judgments(tmp_path) if one["key"] == "3/2")
    assert "refuses /chat/completions: 400 content filter" in refused["replies"][0]
    (tmp_path / FILE).unlink()
    server.fault = lambda n, body: Fault(400, "max_tokens is not supported")
    with pytest.raises(UserError, match="400 max_tokens is not supported"):
        graded(server, tmp_path, questions)


def test_a_judge_that_will_not_have_a_setting(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    """As models that reason: neither max_tokens nor a temperature. Many requests are under way when the first one is refused."""

    def fault(n: int, body: dict[str, Any]) -> Fault | None:
        if "max_tokens" in body:
            return Fault(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return Fault(400, "Unsupported value: 'temperature' does not support 0.") if "temperature" in body else None

    server.fault = fault
    scores, facts = graded(server, tmp_path, questions)
    assert scores["grade"]["value"] == 7 and facts["judge_replies"] == 6
    assert "max_completion_tokens" in server.bodies[-1] and not {"max_tokens", "temperature"} & server.bodies[-1].keys()


def test_a_server_that_shows_the_key(server: JudgeServer, tmp_path: Path, questions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a grade, in what is no grade, and across the place where a long message is cut."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.says = lambda text: f"You are {KEY}.\nScore: 7"
    graded(server, tmp_path, questions, api_key_env="JUDGE_KEY")
    server.sends = lambda text: {"headers": {"authorization": f"Bearer {KEY}"}}
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError):
        graded(server, tmp_path / "other", questions, api_key_env="JUDGE_KEY")
    kept = [file.read_text() for file in tmp_path.rglob("*.jsonl") if file.name == FILE]
    assert len(kept) == 2 and all(KEY not in text and "***" in text for text in kept)
    server.fault = lambda n, body: Fault(400, "x" * (endpoints.SHOWN - 8) + KEY)
    with pytest.raises(UserError) as caught:
        graded(server, tmp_path / "other", questions, api_key_env="JUDGE_KEY")
    assert KEY[:4] not in str(caught.value)


def test_half_a_character(server: JudgeServer, tmp_path: Path) -> None:
    """A lone surrogate can be written in JSON, and nowhere else."""
    row = {"question_id": "\ud83d", "category": "\ude00", "turns": ["Say \ud83d."], "reference": ["\udfff"]}
    questions = read_questions(str(write_questions(tmp_path, [row])))
    server.says = lambda text: "Score: 6" if "has not the form" in text else "Fine \ud83d"
    asking = judge(server)
    try:
        scores, _ = grade(tmp_path, asking, questions, {questions[0].id: ["so"]})
    finally:
        asking.close()
    assert scores["grade"]["value"] == 6 and judgments(tmp_path)[0]["replies"] == ["Fine �", "Score: 6"]


def test_tokens_that_the_endpoint_does_not_count(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    parts = [{"type": "text", "text": "Score: "}, {"type": "text", "text": "7"}]
    server.sends = lambda text: {"choices": [{"message": {"content": parts}}], "usage": {"prompt_tokens": 3}}
    _, facts = graded(server, tmp_path, questions)
    assert facts["judge_replies_uncounted"] == 6 and facts["judge_prompt_tokens"] == 18 and facts["judge_completion_tokens"] == 0


def test_what_an_earlier_attempt_has_cost_is_counted(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    server.says = lambda text: "?"
    with pytest.raises(UserError, match="none of the judge's replies could be read"):
        graded(server, tmp_path, questions)
    server.says = by_turn
    _, facts = graded(server, tmp_path, questions)
    assert facts["judge_replies"] == 6 * 3 + 6 == len(server.bodies) and facts["judge_completion_tokens"] == 5 * len(server.bodies)


def test_other_answers_are_judged_anew(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    """The file of judgments goes by what was asked and not by the question's name; earlier ones of the same are taken over."""
    graded(server, tmp_path, questions)
    asking, asked = judge(server), len(server.bodies)
    try:
        grade(tmp_path, asking, questions, {**ANSWERS, "2": ["two", "4"]})
        assert len(server.bodies) - asked == 2  # the second turn's words hold the first one's answer
        (tmp_path / "new").mkdir()
        grade(tmp_path / "new", asking, questions[1:], ANSWERS, read_judgments(tmp_path / FILE))
    finally:
        asking.close()
    assert len(server.bodies) - asked == 2 and {one["key"] for one in judgments(tmp_path / "new")} == {"2/1", "2/2", "3/1", "3/2"}


def test_what_a_judge_needs(server: JudgeServer, tmp_path: Path, questions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = KEY
    with pytest.raises(UserError, match=r"401.*\n.*name the variable of its key with --key-env"):
        graded(server, tmp_path, questions)
    server.close()
    with pytest.raises(UserError, match="--concurrency, --timeout-seconds, --retries"):
        graded(server, tmp_path, questions, retries=0)
    monkeypatch.setattr("sparring.errors.is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"--judge: .*httpx2, which is not installed\n.*pip install 'sparring\[server\]'"):
        judge(server)


def test_a_missing_key(server: JudgeServer) -> None:
    with pytest.raises(UserError, match="--key-env: the environment variable NO_SUCH_KEY is not set"):
        judge(server, api_key_env="NO_SUCH_KEY")


def test_a_judge_that_stalls(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    """What was judged before is kept, and only the rest is asked for afterwards."""
    server.fault = lambda n, body: Fault(seconds=1.0) if "Sure?" in body["messages"][-1]["content"] else None
    with pytest.raises(UserError, match=r"no answer within 0.2 s.*\n.*the run resumes"):
        graded(server, tmp_path, questions, timeout_seconds=0.2, retries=1, concurrency=1)
    before = {one["key"] for one in judgments(tmp_path)}
    assert before and "3/2" not in before
    asked = len(server.bodies)
    server.fault = lambda n, body: None
    scores, _ = graded(server, tmp_path, questions)
    assert scores["grade"]["n"] == 3 and len(server.bodies) - asked == 6 - len(before)


def test_a_line_that_a_kill_cut_short(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    graded(server, tmp_path, questions)
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join(lines[:2]) + lines[2][:20])
    asked = len(server.bodies)
    assert graded(server, tmp_path, questions)[1]["judgments"] == 6
    assert len(server.bodies) - asked == 4 and len(judgments(tmp_path)) == 6


def test_concurrency_is_bounded(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    meeting = threading.Barrier(2)

    def says(text: str) -> str:
        meeting.wait(5)  # two at once, no more and no fewer: six of them pass in pairs
        time.sleep(0.02)
        return "Score: 7"

    server.says = says
    graded(server, tmp_path, questions, concurrency=2)
    assert server.busiest == 2


def compared(server: JudgeServer, folder: Path, questions: Any) -> Any:
    asking = judge(server)
    try:
        return compare(folder, asking, questions, ANSWERS, OTHERS)
    finally:
        asking.close()


def side_of(text: str, answers: dict[str, list[str]]) -> str:
    """Which side shows these answers."""
    a = re.search(r"assistant A, turn 1\n(.*)\n", text)[1]
    return "A" if a in {turns[0] for turns in answers.values()} else "B"


def test_a_player_that_always_wins(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    server.says = lambda text: f"Verdict: {side_of(text, ANSWERS)}"
    scores, facts = compared(server, tmp_path, questions)
    assert scores["win_rate"]["value"] == 1 and scores["same_in_both_orders"]["value"] == 1 and scores["ties"]["value"] == 0
    assert facts["judgments"] == 12 and len({one["key"] for one in judgments(tmp_path)}) == 12


def test_a_judge_that_goes_by_the_order_finds_ties(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    server.says = lambda text: "Verdict: A"
    scores, _ = compared(server, tmp_path, questions)
    assert scores["win_rate"]["value"] == 0.5 and scores["ties"]["value"] == 1 and scores["same_in_both_orders"]["value"] == 0


def test_wins_losses_and_ties(server: JudgeServer, tmp_path: Path, questions: Any) -> None:
    """Question 1 is won, of question 2 the first turn is lost and the second a tie, question 3 cannot be read."""

    def says(text: str) -> str:
        if "3+3?" in text or "has not the form" in text:
            return "?"
        mine, other = side_of(text, ANSWERS), side_of(text, OTHERS)
        if "Say a." in text:
            return f"Verdict: {mine}"
        return "Verdict: tie" if "second user turn" in text else f"Verdict: {other}"

    server.says = says
    scores, facts = compared(server, tmp_path, questions)
    assert scores["win_rate/writing"]["value"] == 1 and scores["win_rate/math"]["value"] == 0.25
    assert scores["win_rate"] == {"value": 0.625, "n": 2, "stderr": pytest.approx(0.375), "higher_is_better": True}
    assert scores["ties"]["value"] == 0.25 and facts["unreadable"] == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "--questions"),
        ([{"question_id": 1, "category": "turn-1", "turns": ["a"]}], "a category cannot be called 'turn-1': the scores of turns have"),
        ([{"question_id": 1, "turns": []}], "this is not a question: it needs an id"),
        ([{"turns": ["a"]}], "this is not a question"),
        ([{"question_id": 1, "turns": "a"}], "this is not a question"),
        ([QUESTIONS[0], QUESTIONS[0]], "two questions have the id '1'"),
    ],
)
def test_no_questions(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(str(write_questions(tmp_path, rows)))


def test_questions_of_the_hub_shape_and_limits(tmp_path: Path) -> None:
    rows = [{"prompt_id": n, "category": "ab"[n % 2], "prompt": ["x", "y"], "reference": ["X", "Y"] if n else []} for n in range(5)]
    found = read_questions(str(write_questions(tmp_path, rows)), limit=2)
    assert [question.id for question in found] == ["0", "1", "2", "3"]
    assert found[0].references == () and found[1].references == ("X", "Y") and found[1].turns == ("x", "y")


def test_references_of_other_questions(tmp_path: Path) -> None:
    references = tmp_path / "references.jsonl"
    references.write_text(json.dumps({"question_id": 9, "choices": [{"turns": ["z"]}]}) + "\n")
    with pytest.raises(UserError, match="none of its 1 ids is the id of a question"):
        read_questions(str(write_questions(tmp_path)), str(references))
