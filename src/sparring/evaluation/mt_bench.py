"""Multi-turn conversations with a judge: answers by the recipe's engine, grades of single answers, and pairwise comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Message
from sparring.errors import UserError
from sparring.evaluation.judge import FILE as JUDGMENTS
from sparring.evaluation.judge import Judge, JudgeTask, Judgment
from sparring.evaluation.judge_prompts import COMPARE_FORM, GRADE_FORM, Question, comparing, grading, read_grade, read_verdict
from sparring.evaluation.metrics import Score, mean_score
from sparring.opponent.engines import Sampler
from sparring.opponent.protocol import Prompt, Stream
from sparring.rundir import read_json, write_json

ANSWERS = "answers.json"
Answers = Mapping[str, Sequence[str]]  # question id -> the answer to each of its turns
QuestionTurn = tuple[Question, int]
# order of a comparison -> what the verdict "A", "B" or "tie" is worth to the player: its answers are A first, then B
ORDERS = {"first": {"A": 1.0, "B": 0.0, "tie": 0.5}, "second": {"A": 0.0, "B": 1.0, "tie": 0.5}}


# -- answers


def answer_questions(stage: Path, questions: Sequence[Question], sampler: Sampler, seed: int, context: int | None) -> None:
    """Write the answers to all turns of all questions, after each turn of a category; those that are already written are kept."""
    answers = read_answers(stage)
    categories = list(dict.fromkeys(question.category for question in questions))
    for turn in range(max(len(question.turns) for question in questions)):
        for category in categories:
            asked = [q for q in questions if q.category == category and len(answers.get(q.id, ())) == turn < len(q.turns)]
            if asked:
                log.info(f"answers: {category}, turn {turn + 1}")
                for question, answer in zip(asked, _answer(asked, answers, turn, sampler, seed, context), strict=True):
                    answers.setdefault(question.id, []).append(answer)
                write_json(stage / ANSWERS, answers)


def read_answers(stage: Path) -> dict[str, list[str]]:
    """The answers that are already written, by question."""
    return read_json(stage / ANSWERS) if (stage / ANSWERS).exists() else {}


def _answer(asked: Sequence[Question], before: Answers, turn: int, sampler: Sampler, seed: int, context: int | None) -> list[str]:
    prompts = [_prompt(question, before.get(question.id, ()), turn, sampler.chat) for question in asked]
    limit = sampler.settings.sampling.max_new_tokens
    for prompt in prompts:
        if context is not None and len(prompt.token_ids) + limit > context:
            what = f"{len(prompt.token_ids)} prompt tokens and {limit} new ones exceed the model's context of {context}"
            raise UserError(f"question {prompt.row_id}: {what}", where="--max-new-tokens", remedy="give less")
    replies = sampler.engine(asked[0].temperature).sample(prompts, Stream(seed, turn))
    return [sampler.chat.decode(reply.token_ids) for reply in replies]


def _prompt(question: Question, before: Sequence[str], turn: int, chat: Chat) -> Prompt:
    turns: list[Message] = []
    for asked, answer in zip(question.turns, before, strict=False):
        turns += [Message(role="user", content=asked), Message(role="assistant", content=answer)]
    turns.append(Message(role="user", content=question.turns[turn]))
    return Prompt(question.id, turn, chat.prompt_ids(turns, f"question {question.id}"))


# -- grades and comparisons


def grade(
    stage: Path, judge: Judge, questions: Sequence[Question], answers: Answers, earlier: Sequence[Judgment] = ()
) -> tuple[dict[str, Score], dict[str, Any]]:
    """(scores, facts) of the judge's grades, 1 to 10, of every answer; `earlier` judgments of the same answers are reused."""
    turns = _turns(questions)
    tasks = [JudgeTask(f"{q.id}/{n + 1}", grading(q.turns, answers[q.id], q.references, n), read_grade, GRADE_FORM) for q, n in turns]
    judged = judge.judge(stage, tasks, "grades", earlier)
    return _scores("grade", {turn: one.value for turn, one in zip(turns, judged, strict=True) if one.value is not None}), _facts(judged)


def compare(
    stage: Path, judge: Judge, questions: Sequence[Question], answers: Answers, others: Answers, earlier: Sequence[Judgment] = ()
) -> tuple[dict[str, Score], dict[str, Any]]:
    """(scores, facts): how often `answers` win against `others`, a tie counting half.

    Every pair is judged in both orders, and a verdict that changes with the order counts as a tie (arXiv 2306.05685, section 3.4).
    """
    turns, tasks = _turns(questions), []
    for q, n in turns:
        sides = answers[q.id], others[q.id]
        for order, (a, b) in zip(ORDERS, (sides, sides[::-1]), strict=True):
            tasks.append(JudgeTask(f"{q.id}/{n + 1}/{order}", comparing(q.turns, a, b, q.references, n), read_verdict, COMPARE_FORM))
    judged = judge.judge(stage, tasks, "comparisons", earlier)
    worth = [ORDERS[one.key.rpartition("/")[2]].get(one.value) for one in judged]
    pairs = {turn: pair for turn, *pair in zip(turns, worth[::2], worth[1::2], strict=True) if None not in pair}
    outcomes = {turn: first if first == second and first is not None else 0.5 for turn, (first, second) in pairs.items()}
    scores = _scores("win_rate", outcomes)
    same = {turn: float(first == second) for turn, (first, second) in pairs.items()}
    for name, values in {"ties": {turn: float(one == 0.5) for turn, one in outcomes.items()}, "same_in_both_orders": same}.items():
        scores[name] = mean_score(list(_of_questions(values).values()))
    return scores, _facts(judged)


def _turns(questions: Sequence[Question]) -> list[QuestionTurn]:
    return [(question, turn) for question in questions for turn in range(len(question.turns))]


def _scores(name: str, values: Mapping[QuestionTurn, float]) -> dict[str, Score]:
    """The mean over questions, by turn and by category. Raises UserError if there is no value."""
    if not values:
        what = "none of the judge's replies could be read"
        raise UserError(what, where="--judge-model", remedy=f"they are in {JUDGMENTS}; the same command asks again")
    means = _of_questions(values)
    parts = {name: list(means.values())}
    for number in sorted({turn for _, turn in values}):
        parts[f"{name}/turn-{number + 1}"] = [value for (_, turn), value in values.items() if turn == number]
    for category in dict.fromkeys(question.category for question in means):
        parts[f"{name}/{category}"] = [mean for question, mean in means.items() if question.category == category]
    return {part: mean_score(found, True) for part, found in parts.items()}


def _of_questions(values: Mapping[QuestionTurn, float]) -> dict[Question, float]:
    """question -> the mean of its turns, which are one sample, because they are not independent."""
    turns: dict[Question, list[float]] = {}
    for (question, _), value in values.items():
        turns.setdefault(question, []).append(value)
    return {question: sum(own) / len(own) for question, own in turns.items()}


def _facts(judged: Sequence[Judgment]) -> dict[str, Any]:
    return {
        "judgments": len(judged),
        "unreadable": sum(judgment.value is None for judgment in judged),
        "judge_replies": sum(len(judgment.replies) for judgment in judged),
        "judge_replies_uncounted": sum(judgment.uncounted for judgment in judged),
        "judge_prompt_tokens": sum(judgment.prompt_tokens for judgment in judged),
        "judge_completion_tokens": sum(judgment.completion_tokens for judgment in judged),
    }
