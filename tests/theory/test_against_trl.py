"""Loss and gradient against an implementation that is not ours: DPO of TRL, whose loss is equation 4.7 with one reply per pair.

TRL's own trainer tokenises, collates, runs both models and computes the loss; our side is `spin_loss` over log-probs found in two ways:
one unbatched forward per reply, and our scorer on trees of one prompt and three replies, all in one micro-batch. Both twice: as TRL
runs, with its float32 head (rtol 1e-5); and in float64 with that head replaced (rtol 1e-12).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sparring.data.records import Contest
from sparring.objectives.likelihood import nll_anchor
from sparring.objectives.shared import DuelLogps, SpinLoss
from sparring.objectives.spin import LossName, Spin, spin_loss
from sparring.policy.batches import Branches, branches_of
from sparring.policy.score import Scorer
from sparring.policy.tiny import tiny_config
from sparring.training.tasks import ContestTask

pytest.importorskip("trl", reason="TRL, the independent DPO implementation, is not installed")

from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

TRL_LOSS: dict[LossName, str] = {"logistic": "sigmoid", "hinge": "hinge"}
EOS = 63


class Row(NamedTuple):
    """A prompt, its human reply and two opponent replies, all of different lengths."""

    prompt_ids: list[int]
    real_ids: list[int]
    generated_ids: list[list[int]]


ROWS = [
    Row([5, 9, 11], [3, 8, 2, EOS], [[3, 8, EOS], [40, 41, 42, 43, 44, 45, EOS]]),
    Row([7], [20, EOS], [[21, 22, 23, EOS], [20, 20, EOS]]),
    Row([1, 2, 4, 8, 16, 32], [50, 51, 52, 53, 54, EOS], [[6, EOS], [50, 51, 52, 53, 55, EOS]]),
]


def tiny_llama(seed: int) -> nn.Module:
    """A random Llama of 2 layers whose weights are large enough for replies to differ by several nats."""
    torch.manual_seed(seed)
    config = tiny_config(vocabulary=64, hidden=32)
    config.update({"eos_token_id": EOS, "pad_token_id": 0, "tie_word_embeddings": False, "initializer_range": 0.3})
    return transformers.LlamaForCausalLM(config)


def to_float64(model: nn.Module) -> nn.Module:
    """In place. transformers' own RMSNorm computes in float32 even in a float64 model; torch's does not."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LlamaRMSNorm):
                setattr(parent, name, nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon))
    return model.double()


# --- TRL's side


def word(token_id: int) -> str:
    return f"w{token_id:02d}"


def text(token_ids: list[int]) -> str:
    return "".join(f" {word(i)}" for i in token_ids)


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The word "w17" is token 17, so TRL's tokenisation gives back the ids we chose."""
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(64)}, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=word(0), eos_token=word(EOS))


def preference_rows() -> list[dict[str, str]]:
    """One row per human reply and opponent reply: TRL knows pairs only."""
    return [
        {"prompt": text(row.prompt_ids), "chosen": text(row.real_ids), "rejected": text(generated_ids)}
        for row in ROWS
        for generated_ids in row.generated_ids
    ]


def trl_trainer(
    player: nn.Module, opponent: nn.Module, beta: float, loss: LossName, folder: Path, nll_weight: float | None = None
) -> DPOTrainer:
    """TRL's trainer of this loss, with `nll_weight` that of TRL's likelihood of the chosen replies beside it."""
    weights = {TRL_LOSS[loss]: 1.0} | ({} if nll_weight is None else {"sft": nll_weight})
    arguments = DPOConfig(
        output_dir=str(folder),
        beta=beta,
        loss_type=list(weights),
        loss_weights=list(weights.values()),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    return DPOTrainer(
        model=copy.deepcopy(player),  # TRL patches the models that it is given
        ref_model=copy.deepcopy(opponent),
        args=arguments,
        train_dataset=Dataset.from_list(preference_rows()),
        processing_class=word_tokenizer(),
    )


def trl_batch(trainer: DPOTrainer) -> dict[str, Tensor]:
    """All pairs in one padded batch, after a check that TRL works on our token ids."""
    rows = list(trainer.train_dataset)
    ids = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]
    assert ids == [(row.prompt_ids, row.real_ids, generated_ids) for row in ROWS for generated_ids in row.generated_ids]
    return trainer.data_collator(rows)


class Float64Head(nn.Module):
    """Answers TRL's `fused_lm_head=True` call in the model's own precision; TRL's head computes in float32 whatever the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: object) -> FusedCausalLMOutput:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        labels = labels[:, 1:]
        log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        unused = torch.zeros_like(log_probs)
        return FusedCausalLMOutput(
            log_probs=log_probs.masked_fill(labels == -100, 0.0), entropy=unused, mean_logits=unused, is_top1=unused.bool()
        )


# --- our side


def plain_logps(model: nn.Module, prompt_ids: list[int], reply_ids: list[int]) -> Tensor:
    """log p(reply | prompt), a scalar: one unbatched, unpadded forward, summed over the reply's tokens. The reference for any scorer."""
    tokens = torch.tensor([prompt_ids + reply_ids])
    log_probs = model(input_ids=tokens, use_cache=False).logits[0, :-1].log_softmax(-1)
    of_tokens = log_probs.gather(1, tokens[0, 1:, None])[:, 0]
    return of_tokens[len(prompt_ids) - 1 :].sum()


def plain_duels(model: nn.Module) -> DuelLogps:
    """Log-probs [3] and [3, 2] of ROWS."""
    real = [plain_logps(model, row.prompt_ids, row.real_ids) for row in ROWS]
    generated = [torch.stack([plain_logps(model, row.prompt_ids, ids) for ids in row.generated_ids]) for row in ROWS]
    return DuelLogps(torch.stack(real), torch.stack(generated))


def scored_duels(model: nn.Module, layout: str = "tree") -> DuelLogps:
    """The same by our scorer. A faster one is tested by putting it here."""
    scorer = Scorer(model)
    scorer.layout = layout
    trees = [Branches(tuple(row.prompt_ids), tuple(map(tuple, (row.real_ids, *row.generated_ids)))) for row in ROWS]
    logps_DR = scorer(scorer.collate(trees))
    return DuelLogps(logps_DR[:, 0], logps_DR[:, 1:])


SCORERS: dict[str, Callable[[nn.Module], DuelLogps]] = {
    "plain forwards": plain_duels,
    "scorer, tree": scored_duels,
    "scorer, rows": partial(scored_duels, layout="rows"),
}


def our_loss(player: nn.Module, opponent: nn.Module, beta: float, loss: LossName, duels: Callable[[nn.Module], DuelLogps]) -> SpinLoss:
    with torch.no_grad():
        opponent_logps = duels(opponent)
    return spin_loss(duels(player), opponent_logps, torch.ones(3, 2, dtype=torch.bool), beta=beta, loss=loss)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(ours: nn.Module, trls: nn.Module, tolerance: float) -> None:
    """Every parameter's, against the size of that parameter's gradient."""
    expected, found = gradients(trls), gradients(ours)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("loss", list(TRL_LOSS))
@pytest.mark.parametrize("duels", SCORERS.values(), ids=SCORERS)
def test_loss_and_gradient_as_trl_runs(duels: Callable[[nn.Module], DuelLogps], loss: LossName, beta: float, tmp_path: Path) -> None:
    player, opponent = tiny_llama(0), tiny_llama(1)
    trainer = trl_trainer(player, opponent, beta, loss, tmp_path)
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, trl_batch(trainer))
    theirs.backward()

    ours = our_loss(player, opponent, beta, loss, duels)
    ours.loss_D.mean().backward()
    assert ours.loss_D.mean().item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradients(player, trainer.model, 1e-5)

    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logged["rewards/margins"] == pytest.approx(beta * ours.margin_D.mean().item(), rel=1e-5)
    assert logged["rewards/accuracies"] == pytest.approx(ours.accuracy_D.mean().item(), rel=1e-6)
    assert logged["rewards/chosen"] == pytest.approx(ours.reward_real_D.mean().item(), rel=1e-5)
    assert logged["rewards/rejected"] == pytest.approx(ours.reward_generated_DK.mean().item(), rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("loss", list(TRL_LOSS))
@pytest.mark.parametrize("duels", SCORERS.values(), ids=SCORERS)
def test_loss_and_gradient_in_float64(duels: Callable[[nn.Module], DuelLogps], loss: LossName, beta: float, tmp_path: Path) -> None:
    player, opponent = tiny_llama(0), tiny_llama(1)
    trainer = trl_trainer(player, opponent, beta, loss, tmp_path)
    player, opponent = to_float64(player), to_float64(opponent)
    theirs_player = copy.deepcopy(player)
    trainer.ref_model = Float64Head(opponent)
    theirs = trainer.compute_loss(Float64Head(theirs_player), trl_batch(trainer))
    theirs.backward()
    assert theirs.dtype == torch.float64

    ours = our_loss(player, opponent, beta, loss, duels).loss_D.mean()
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert_same_gradients(player, theirs_player, 1e-12)


# --- likelihood of the winner beside the duel (iterative RPO)


class Anchored(NamedTuple):
    """Of the six pairs of ROWS, one reply each: our logistic loss, our anchor, and the length of the human reply."""

    loss_D: Tensor
    nll_D: Tensor
    tokens_D: Tensor


def anchored_pairs(player: nn.Module, opponent: nn.Module, beta: float) -> Anchored:
    def pairs(model: nn.Module) -> DuelLogps:
        duels = scored_duels(model)
        return DuelLogps(duels.real_D.repeat_interleave(2), duels.generated_DK.reshape(6, 1))

    with torch.no_grad():
        of_opponent = pairs(opponent)
    of_player = pairs(player)
    tokens_D = torch.tensor([len(row.real_ids) for row in ROWS for _ in row.generated_ids])
    loss_D = spin_loss(of_player, of_opponent, torch.ones(6, 1, dtype=torch.bool), beta=beta).loss_D
    return Anchored(loss_D, nll_anchor(of_player.real_D, tokens_D), tokens_D)


@pytest.mark.parametrize("weight", [0.2, 1.0])
def test_trls_dpo_with_likelihood_is_ours_pair_by_pair(weight: float, tmp_path: Path) -> None:
    """In a batch of one pair TRL's likelihood is per token of its chosen reply, as our anchor is. The mean over pairs is then ours."""
    player, opponent = tiny_llama(0), tiny_llama(1)
    trainer = trl_trainer(player, opponent, 0.5, "logistic", tmp_path, nll_weight=weight)
    trainer.model.train()
    trl_batch(trainer)  # for its check of the token ids
    theirs = [trainer.compute_loss(trainer.model, trainer.data_collator([row])) / 6 for row in trainer.train_dataset]
    torch.stack(theirs).sum().backward()

    ours = anchored_pairs(player, opponent, 0.5)
    total = (ours.loss_D + weight * ours.nll_D).mean()
    total.backward()
    assert total.item() == pytest.approx(torch.stack(theirs).sum().item(), rel=1e-5)
    assert_same_gradients(player, trainer.model, 1e-5)


@pytest.mark.parametrize("one_each", [True, False], ids=["contests of one pair", "contests of two pairs"])
def test_trls_dpo_with_likelihood_is_that_of_contests(one_each: bool, tmp_path: Path) -> None:
    """As a game with a verified or majority target trains: by its task, on trees of one winner and one or two losers in one micro-batch."""
    player, opponent = tiny_llama(0), tiny_llama(1)
    trainer = trl_trainer(player, opponent, 0.5, "logistic", tmp_path, nll_weight=0.7)
    trainer.model.train()
    trl_batch(trainer)  # for its check of the token ids
    theirs = torch.stack([trainer.compute_loss(trainer.model, trainer.data_collator([row])) / 6 for row in trainer.train_dataset]).sum()
    theirs.backward()

    lots = [(row, lot) for row in ROWS for lot in ([[ids] for ids in row.generated_ids] if one_each else [row.generated_ids])]
    contests = [
        Contest(
            str(n), 0, tuple(row.prompt_ids), (tuple(row.real_ids),), tuple(map(tuple, lot)), tuple((0, j) for j in range(len(lot))), 1.0
        )
        for n, (row, lot) in enumerate(lots)
    ]
    of_player, of_opponent = (Scorer(model) for model in (player, opponent))
    of_player.layout = of_opponent.layout = "tree"
    trees = [branches_of(contest) for contest in contests]
    with torch.no_grad():
        scored = of_opponent(of_opponent.collate(trees)).tolist()
    stored = {contest.duel_id: row[: len(tree.replies)] for contest, tree, row in zip(contests, trees, scored, strict=True)}
    task = ContestTask(contests, stored, Spin(loss="logistic", beta=0.5, nll_weight=0.7))
    indices = range(len(contests))
    total = task.losses(indices, of_player(of_player.collate(trees))).loss_D.sum() * task.loss_scale(indices)
    total.backward()
    assert total.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradients(player, trainer.model, 1e-5)


@pytest.mark.parametrize("weight", [0.2, 1.0])
def test_trl_weighs_the_likelihood_in_a_batch_by_length(weight: float, tmp_path: Path) -> None:
    """Over a batch it takes the mean over all tokens of the chosen replies: our anchor of each, weighed by its length."""
    player, opponent = tiny_llama(0), tiny_llama(1)
    trainer = trl_trainer(player, opponent, 0.5, "logistic", tmp_path, nll_weight=weight)
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, trl_batch(trainer))
    theirs.backward()

    ours = anchored_pairs(player, opponent, 0.5)
    total = ours.loss_D.mean() + weight * (ours.tokens_D * ours.nll_D).sum() / ours.tokens_D.sum()
    total.backward()
    assert total.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradients(player, trainer.model, 1e-5)
    mean_of_replies = (ours.loss_D + weight * ours.nll_D).mean().item()
    assert abs(mean_of_replies - theirs.item()) > 0.01 * weight  # the two means do differ on these rows
