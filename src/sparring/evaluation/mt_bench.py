"""Multi-turn conversations with a judge: answers by the recipe's engine, grades of single answers, and pairwise comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Message
from sparring.errors import UserError
from sparring.evaluation.judge import FILE as JUDGMENTS
from sparring.evaluation.judge import Judge, JudgeTask, Judgment
from sparring.evaluation.judge_prompts import COMPARE_FORM, GRADE_FORM, comparing, grading, read_grade, read_verdict
from sparring.evaluation.metrics import Score, mean_score
from sparring.evaluation.questions import Question
from sparring.opponent.engines import Sampler
from sparring.opponent.protocol import Prompt, Stream
from sparring.rundir import read_json, write_json

Answers = Mapping[str, Sequence[str]]  # question id -> the answer to each of its turns
ORDERS = ("first", "second")  # position of the player in a comparison


# -- answers


def answer_questions(stage: Path, questions: Sequence[Question], sampler: Sampler, seed: int, context: int | None) -> None:
    """Write the answers to all turns of all questions, a file per turn and category; finished files are kept."""
    categories = list(dict.fromkeys(question.category for question in questions))
    for turn in range(max(len(question.turns) for question in questions)):
        for category in categories:
            asked = [question for question in questions if question.category == category and turn < len(question.turns)]
            file = _answers_file(stage, turn, category)
            if asked and not file.exists():
                log.info(f"answers: {category}, turn {turn + 1}")
                write_json(file, _answer(stage, asked, turn, sampler, seed, context))


def read_answers(stage: Path, questions: Sequence[Question]) -> dict[str, list[str]]:
    """The answers that are already written."""
    asked = {(question.category, turn) for question in questions for turn in range(len(question.turns))}
    files = {(category, turn): _answers_file(stage, turn, category) for category, turn in asked}
    read = {key: read_json(file) for key, file in files.items() if file.exists()}
    return {q.id: [read[q.category, turn][q.id] for turn in range(len(q.turns)) if (q.category, turn) in read] for q in questions}


def _answer(stage: Path, asked: Sequence[Question], turn: int, sampler: Sampler, seed: int, context: int | None) -> dict[str, str]:
    before = read_answers(stage, asked)
    prompts = [_prompt(question, before[question.id][:turn], turn, sampler.chat) for question in asked]
    limit = sampler.settings.sampling.max_new_tokens
    for prompt in prompts:
        if context is not None and len(prompt.token_ids) + limit > context:
            what = f"{len(prompt.token_ids)} prompt tokens and {limit} new ones exceed the model's context of {context}"
            raise UserError(f"question {prompt.row_id}: {what}", where="--max-new-tokens", remedy="give less")
    replies = sampler.engine(asked[0].temperature).sample(prompts, Stream(seed, turn))
    return {question.id: sampler.chat.decode(reply.token_ids) for question, reply in zip(asked, replies, strict=True)}


def _prompt(question: Question, before: Sequence[str], turn: int, chat: Chat) -> Prompt:
    turns: list[Message] = []
    for asked, answer in zip(question.turns, before, strict=False):
        turns += [Message(role="user", content=asked), Message(role="assistant", content=answer)]
    turns.append(Message(role="user", content=question.turns[turn]))
    return Prompt(question.id, turn, chat.prompt_ids(turns, f"question {question.id}"))


def _answers_file(stage: Path, turn: int, category: str) -> Path:
    return stage / f"turn-{turn + 1}-{quote(category, safe='')}.json"


# -- grades


def grade(
    stage: Path, judge: Judge, questions: Sequence[Question], answers: Answers, earlier: Sequence[Judgment] = ()
) -> tuple[dict[str, Score], dict[str, Any]]:
    """(scores, facts) of the judge's grades, 1 to 10, of every answer; `earlier` judgments of the same answers are reused."""
    tasks = [
        JudgeTask(f"{q.id}/{turn + 1}", grading(q.turns, answers[q.id], q.references, turn), read_grade, GRADE_FORM)
        for q in questions
        for turn in range(len(q.turns))
    ]
    judged = judge.judge(stage, tasks, "grades", earlier)
    value = {judgment.key: judgment.value for judgment in judged}
    return _summed("grade", questions, lambda question, turn: value[f"{question.id}/{turn + 1}"]), _facts(judged)


# -- comparisons


def compare(
    stage: Path, judge: Judge, questions: Sequence[Question], answers: Answers, others: Answers, earlier: Sequence[Judgment] = ()
) -> tuple[dict[str, Score], dict[str, Any]]:
    """(scores, facts): how often `answers` win against `others`, a tie counting half.

    Every pair is judged in both orders, and a verdict that changes with the order counts as a tie (arXiv 2306.05685, section 3.4).
    """
    tasks = [
        JudgeTask(f"{q.id}/{turn + 1}/{order}", _pair(q, answers, others, turn, order), read_verdict, COMPARE_FORM)
        for q in questions
        for turn in range(len(q.turns))
        for order in ORDERS
    ]
    judged = judge.judge(stage, tasks, "comparisons", earlier)
    verdicts = {judgment.key: judgment.value for judgment in judged}
    outcomes = {(q.id, turn): _outcome(verdicts, q, turn) for q in questions for turn in range(len(q.turns))}
    scores = _summed("win_rate", questions, lambda question, turn: outcomes[question.id, turn])
    known = {key: outcome for key, outcome in outcomes.items() if outcome is not None}
    scores["ties"] = _of_questions({key: float(outcome == 0.5) for key, outcome in known.items()})
    scores["same_in_both_orders"] = _of_questions({key: float(len(set(_sides(verdicts, *key))) == 1) for key in known})
    return scores, _facts(judged)


def _pair(question: Question, answers: Answers, others: Answers, turn: int, order: str) -> list[dict[str, str]]:
    sides = answers[question.id], others[question.id]
    first, second = sides if order == ORDERS[0] else sides[::-1]
    return comparing(question.turns, first, second, question.references, turn)


def _sides(verdicts: Mapping[str, str | None], id_: str, turn: int) -> tuple[str | None, str | None]:
    """The winner in each order: "player", "other" or "tie"; None if the judge's reply could not be parsed."""
    winners = ({"A": "player", "B": "other", "tie": "tie"}, {"A": "other", "B": "player", "tie": "tie"})
    found = [names.get(verdicts[f"{id_}/{turn + 1}/{order}"] or "") for names, order in zip(winners, ORDERS, strict=True)]
    return found[0], found[1]


def _outcome(verdicts: Mapping[str, str | None], question: Question, turn: int) -> float | None:
    first, second = _sides(verdicts, question.id, turn)
    if first is None or second is None:
        return None
    return {("player", "player"): 1.0, ("other", "other"): 0.0}.get((first, second), 0.5)


# -- shared


def _summed(name: str, questions: Sequence[Question], value: Callable[[Question, int], float | None]) -> dict[str, Score]:
    """The mean over questions, by turn and by category. The turns of a question are one sample, because they are not independent."""
    values = {question: {turn: value(question, turn) for turn in range(len(question.turns))} for question in questions}
    found = {question: {turn: one for turn, one in turns.items() if one is not None} for question, turns in values.items()}
    if not any(found.values()):
        what = "none of the judge's replies could be read"
        raise UserError(what, where="--judge-model", remedy=f"they are in {JUDGMENTS}; the same command asks again")
    means = {question: sum(turns.values()) / len(turns) for question, turns in found.items() if turns}
    scores = {name: mean_score(list(means.values()), True)}
    for turn in sorted({turn for turns in found.values() for turn in turns}):
        scores[f"{name}/turn-{turn + 1}"] = mean_score([turns[turn] for turns in found.values() if turn in turns], True)
    for category in dict.fromkeys(question.category for question in means):
        scores[f"{name}/{category}"] = mean_score([mean for question, mean in means.items() if question.category == category], True)
    return scores


def _of_questions(values: Mapping[tuple[str, int], float]) -> Score:
    """The mean over questions of the mean of their turns."""
    turns: dict[str, list[float]] = {}
    for (id_, _), value in values.items():
        turns.setdefault(id_, []).append(value)
    return mean_score([sum(own) / len(own) for own in turns.values()])


def _facts(judged: Sequence[Judgment]) -> dict[str, Any]:
    return {
        "judgments": len(judged),
        "unreadable": sum(judgment.value is None for judgment in judged),
        "judge_replies": sum(len(judgment.replies) for judgment in judged),
        "judge_replies_uncounted": sum(judgment.uncounted for judgment in judged),
        "judge_prompt_tokens": sum(judgment.prompt_tokens for judgment in judged),
        "judge_completion_tokens": sum(judgment.completion_tokens for judgment in judged),
    }
