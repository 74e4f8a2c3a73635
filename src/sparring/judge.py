"""`sparring judge`: players of a run, or a model, answer questions of several turns, and a judge grades or compares the answers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sparring.config import ServerSection
from sparring.console import log, log_file
from sparring.errors import UserError
from sparring.evaluation.judge import FILE, Judge, Judgment, read_judgments
from sparring.evaluation.judge_prompts import VERSION, Question, read_questions
from sparring.evaluation.mt_bench import ANSWERS, answer_questions, compare, grade, read_answers
from sparring.opponent.engines import Sampler
from sparring.players import LOG, EvaluatedPlayer, Results, default_out, is_run, remade_stage, resolve_models, slug
from sparring.policy.load import model_facts
from sparring.report.tables import TableRow, all_scores_table, print_table
from sparring.rundir import PARTIAL, RunDir, StageRecord, digest, write_json
from sparring.stage_names import SCORES

SHORT = 8  # digits of the hash in a folder's name


@dataclass(frozen=True)
class JudgeOptions:
    """The questions, the judge (`judge.model` is its name) and how answers are sampled; max_new_tokens: of an answer."""

    questions: str
    references: str | None
    judge: ServerSection
    max_new_tokens: int
    seed: int
    limit: int | None


def judge(target: str, options: JudgeOptions, wanted: Sequence[str] = (), against: str | None = None, out: Path | None = None) -> Results:
    """Grade the answers of players of the run `target`, or of the model of that name; with `against` compare them with those of another
    player of the run, or another model. Finished stages with equal inputs are kept. Raises UserError."""
    questions = read_questions(options.questions, options.references, options.limit)
    out = out or default_out(target)
    run = RunDir(out)
    with contextlib.closing(Judge(options.judge)) as judging, run.lock(), log_file(out / LOG):
        players = resolve_models(target, wanted, out)
        other = None if against is None else _other(target, against, out)
        judged = [player for player in players if other is None or player.hash != other.hash]
        if not judged:
            what = f"{against} has the same weights as the model that it would be compared with"
            raise UserError(what, where="--against", remedy="name another player or model")
        answers = {player: _answers(run, options, questions, player) for player in [*judged, *([other] if other else [])]}
        return Results.of({one.title: _judged(run, options, questions, judging, one, answers, other) for one in judged}, out)


def _other(target: str, against: str, out: Path) -> EvaluatedPlayer:
    """Another player of the same run; or a model, or the best player of another run, under a unique name."""
    if is_run(target) and not Path(against).exists() and "/" not in against:
        return resolve_models(target, [against], out)[0]
    found = resolve_models(against, ["best"] if is_run(against) else [], out / slug([against]))[0]
    return replace(found, name=f"{slug([Path(against).name])}-{found.hash[:8]}")


def _answers(run: RunDir, options: JudgeOptions, questions: Sequence[Question], player: EvaluatedPlayer) -> StageRecord:
    settings = player.recipe.sampler.with_sampling(max_new_tokens=options.max_new_tokens, top_p=1.0)
    inputs = {
        "questions": _content(questions),
        "file": ANSWERS,  # earlier versions wrote several
        "model": player.hash,
        "chat": player.chat.template,
        "dtype": settings.dtype,
        "engine": settings.sampling.engine_name,
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
    }

    def work(stage: Path) -> dict[str, Any]:
        with Sampler(settings, player.chat, player.folder) as sampler:
            answer_questions(stage, questions, sampler, options.seed, model_facts(player.folder)[0])
        return {"questions": len(questions)}

    log.info(f"{player.title}: answers to {len(questions)} questions")
    return remade_stage(run, f"{player.name}/{_folder(options, questions)}/answers", inputs, work)


def _judged(
    run: RunDir,
    options: JudgeOptions,
    questions: Sequence[Question],
    judging: Judge,
    player: EvaluatedPlayer,
    answers: dict[EvaluatedPlayer, StageRecord],
    other: EvaluatedPlayer | None,
) -> StageRecord:
    ours = read_answers(answers[player].path)

    def work(stage: Path) -> dict[str, Any]:
        if other is None:
            scores, facts = grade(stage, judging, questions, ours, earlier)
        else:
            scores, facts = compare(stage, judging, questions, ours, read_answers(answers[other].path), earlier)
        write_json(stage / SCORES, scores)
        return facts

    inputs: dict[str, Any] = {
        "answers": answers[player].digest,
        "against": answers[other].digest if other else None,
        "references": digest([question.references for question in questions]),
        "judge": options.judge.model,
        "wording": VERSION,
    }
    parts = ["grades" if other is None else f"against-{other.name}", slug([options.judge.model or ""])]
    if any(question.references for question in questions):
        parts.append(f"references-{inputs['references'][:SHORT]}")
    earlier = _earlier(run, player, inputs)
    return remade_stage(run, f"{player.name}/{_folder(options, questions)}/{'-'.join(parts)}", inputs, work)


def _folder(options: JudgeOptions, questions: Sequence[Question]) -> str:
    """The name of the results' folder: the questions' file and a hash of the options, so that other options get another folder."""
    how = digest([_content(questions), options.max_new_tokens, options.seed])
    return f"{slug([Path(options.questions).stem])}-{how[:SHORT]}"


def _content(questions: Sequence[Question]) -> str:
    return digest([[question.id, question.category, question.turns] for question in questions])


def _earlier(run: RunDir, player: EvaluatedPlayer, inputs: dict[str, Any]) -> list[Judgment]:
    """Judgments of this player that the same judge gave earlier for the same wording, under any other options; readable ones last."""
    found = []
    for file in sorted((run.root / player.name).glob(f"*/*/{FILE}")):
        stage = file.parent.relative_to(run.root).as_posix().removesuffix(PARTIAL)
        before = run.inputs_of(stage) or {}
        if all(before.get(key) == inputs[key] for key in ("judge", "wording")):
            found += read_judgments(file)
    return sorted(found, key=lambda judgment: judgment.value is not None)


def print_judged(found: Results, options: JudgeOptions, against: str | None, console: Console) -> None:
    """Print each player's scores, the number of its judgments, and the tokens that the judge used."""
    kind = "Grades from 1 to 10" if against is None else f"Win rate against {against}, a tie counts half"
    rows = list(starmap(TableRow, found.scores.items()))
    print_table(all_scores_table(f"{kind}, by {options.judge.model} (± standard error)", rows), console)
    for title, facts in found.facts.items():
        tokens = f"{facts['judge_prompt_tokens']} prompt and {facts['judge_completion_tokens']} completion tokens of the judge"
        if uncounted := facts["judge_replies_uncounted"]:  # missing counts must not read as a cost of 0
            tokens += f" ({uncounted} of its {facts['judge_replies']} replies came without a count)"
        console.print(Text(f"{title}: {facts['judgments']} judgments, {facts['unreadable']} of them unreadable, {tokens}"))
    console.print(Text(f"Answers, judgments and scores: {found.folder}"))
