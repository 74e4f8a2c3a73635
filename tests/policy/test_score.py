"""The scorer against plain transformers, over the ways in which models differ: masks, windows, positions, heads, recurrences."""

from __future__ import annotations

import copy
import logging
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from zoo import COMMON, GPT2, NEOX, OPT, VOCABULARY, ZOO

from sparring.errors import UserError
from sparring.policy import head, score, tree_attention
from sparring.policy.batches import Branches
from sparring.policy.head import chunked_logps
from sparring.policy.score import Scorer, score_trees

pytestmark = pytest.mark.long

# One to four replies, lengths from one token on, prompts of one token and of eleven; the longest path is 17 tokens.
TREES = [
    Branches((3, 4, 5, 6, 7), ((8, 9, 10, 11, 1), (12,), (13, 14, 15, 1), (8, 9, 10, 12, 1))),
    Branches((20,), ((21, 1),)),
    Branches((5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), ((30, 31, 32, 33, 34, 35, 1), (40, 1))),
    Branches((9, 8), ((1,), (2,), (40, 41, 42, 43, 44, 45, 46, 47))),
    Branches((33, 34, 35), ((36, 37, 38, 1), (36, 37, 39))),
]


@pytest.fixture(autouse=True)
def _nothing_checked_before() -> None:
    score._checked.clear()


def make(name: str, seed: int = 0) -> PreTrainedModel:
    return of_config(ZOO[name][0](), seed)


def of_config(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Under the plainest attention there is: torch's own ignores soft caps. With biases, which start as 0 and would hide their loss."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


def reference(model: nn.Module, prompt_ids: tuple[int, ...], reply_ids: tuple[int, ...]) -> Tensor:
    """log p(reply | prompt) from the model's own logits: one unbatched, unpadded forward, no code of ours."""
    ids = torch.tensor([prompt_ids + reply_ids])
    logps = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0], dim=-1)
    return sum(logps[len(prompt_ids) - 1 + i, token] for i, token in enumerate(reply_ids))


def references(model: nn.Module, trees: list[Branches]) -> list[list[Tensor]]:
    return [[reference(model, tree.prompt_ids, reply) for reply in tree.replies] for tree in trees]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def flat(logps: list[list[Tensor]]) -> Tensor:
    return torch.stack([logp for row in logps for logp in row])


def weighted(logps: list[list[Tensor]]) -> Tensor:
    """A sum over all replies with unequal weights of both signs, so that no gradient can hide behind another."""
    return sum(logp.double() * (-1) ** i * (1 + i / 7) for i, logp in enumerate(flat(logps)))


def rows_of(scored: Tensor, trees: list[Branches]) -> list[list[Tensor]]:
    return [list(row[: len(tree.replies)]) for row, tree in zip(scored, trees, strict=True)]


def scored_with_gradients(model: PreTrainedModel, layout: str, trees: list[Branches]) -> tuple[Tensor, dict[str, Tensor]]:
    model = copy.deepcopy(model)
    scorer = Scorer(model)
    scorer.layout = layout
    logps = scorer(scorer.collate(trees))
    weighted(rows_of(logps, trees)).backward()
    return logps.detach(), gradients(model)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every parameter's, against its own size."""
    assert found.keys() == expected.keys() and expected
    scale = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # a key bias's exact gradient is 0: all that is left of it is rounding
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm() + torch.finfo(gradient.dtype).eps * scale, name


ALL_LAYOUTS = ("tree", "rows", "plain", "alone")
LAYOUTS = [(name, layout) for name, (_, best) in ZOO.items() for layout in ALL_LAYOUTS[ALL_LAYOUTS.index(best) :]]


# --- values and gradients


# Attention blocks: our trees are so short that none would be cut. The other layouts use the model's own attention, which has none.
QUERIES = {"whole": 512, "cut": 3}
CASES = [(*case, cut) for case in LAYOUTS for cut in (QUERIES if case[1] in ("tree", "rows") else ["whole"])]


@pytest.fixture(params=QUERIES)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "MAX_QUERIES", QUERIES[request.param])


@cache
def plain_forward(name: str) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Log-probs of all replies and their gradients, the same for all layouts."""
    model = make(name)
    expected = references(model, TREES)
    weighted(expected).backward()
    return [[logp.item() for logp in row] for row in expected], gradients(model)


@pytest.mark.parametrize(("name", "layout", "cut"), CASES)
def test_log_probs_and_gradients_are_those_of_a_plain_forward(name: str, layout: str, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "MAX_QUERIES", QUERIES[cut])
    found, gradient = scored_with_gradients(make(name), layout, TREES)
    assert found.dtype == torch.float64 and found.shape == (len(TREES), 4)
    expected, expected_gradient = plain_forward(name)
    for row, tree, logps in zip(found, TREES, expected, strict=True):
        for column, logp in enumerate(logps):
            assert row[column].item() == pytest.approx(logp, rel=1e-5), (tree, column)
        assert (row[len(logps) :] == 0).all(), "a tree with fewer replies"
    assert_same_gradients(gradient, expected_gradient, 1e-5)


def test_in_float64_all_layouts_agree_to_the_last_digits() -> None:
    """The float32 comparison cannot see an error below its rounding; this one can. GPT-2 computes in float64 throughout."""
    model = make("gpt-2").double()
    expected = references(model, TREES)
    weighted(expected).backward()
    for layout in ALL_LAYOUTS:
        found, gradient = scored_with_gradients(model, layout, TREES)
        torch.testing.assert_close(flat(rows_of(found, TREES)), flat(expected).detach(), rtol=1e-13, atol=0)
        assert_same_gradients(gradient, gradients(model), 1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_every_model_computes_in_bfloat16(name: str) -> None:
    """The default of training: values near float32's, and a gradient for every weight that has one there."""
    model = make(name)
    expected, gradient = scored_with_gradients(model, ZOO[name][1], TREES)
    found, rounded = scored_with_gradients(model.bfloat16(), ZOO[name][1], TREES)
    if "expert" not in str(model).lower():  # a rounded router may take another one
        assert (found - expected).abs().mean() < 0.3
    assert rounded.keys() == gradient.keys() and all(each.isfinite().all() for each in rounded.values())


def test_sums_are_taken_in_float64() -> None:
    """4000 tokens of about 3.9 nats: a float32 sum would be off by its spacing, 2e-3, many times over."""
    config = {**COMMON, "max_position_embeddings": 5000, "num_hidden_layers": 1}
    model = of_config(transformers.LlamaConfig(**config))
    reply = tuple(torch.randint(0, VOCABULARY, (4000,)).tolist())
    scorer = Scorer(model)
    with torch.no_grad():
        (found,) = scorer(scorer.collate([Branches((3,), (reply,))])).flatten().tolist()
        logps = model(input_ids=torch.tensor([[3, *reply]])).logits[0, :-1].log_softmax(-1)
    of_tokens = logps.gather(1, torch.tensor(reply)[:, None]).double()
    assert found == pytest.approx(of_tokens.sum().item(), abs=2e-4)
    assert found != of_tokens.float().cumsum(0)[-1].item()


# --- the layout


@pytest.mark.parametrize("name", ZOO)
def test_choose_layout_finds_the_fastest_that_is_right(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sparring")
    scorer = Scorer(make(name))
    scorer.choose_layout(TREES)
    assert scorer.layout == ZOO[name][1]
    lines = [record.message for record in caplog.records if record.name == "sparring"]
    assert len(lines) == ALL_LAYOUTS.index(scorer.layout)
    assert all(f"does not support the {layout} layout" in line for line, layout in zip(lines, ALL_LAYOUTS, strict=False))
    for tree, row in zip(TREES, score_trees(scorer, TREES, 64), strict=True):
        expected = [reference(scorer.model, tree.prompt_ids, reply).item() for reply in tree.replies]
        assert row == pytest.approx(expected, rel=1e-5)


def test_a_head_that_only_the_model_knows_is_left_to_the_model(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sparring")
    model = make("llama")
    forward = model.forward

    def shifted(*args: object, **options: object) -> object:
        output = forward(*args, **options)
        output.logits = output.logits * torch.linspace(0.5, 2, VOCABULARY)
        return output

    model.forward = shifted
    scorer = Scorer(model)
    scorer.choose_layout(TREES)
    assert scorer.layout == "plain"
    assert [record.message.split(" layout")[0].split()[-1] for record in caplog.records] == ["tree", "rows"]
    row = score_trees(scorer, TREES, 64)[0]
    assert row == pytest.approx([reference(model, TREES[0].prompt_ids, reply).item() for reply in TREES[0].replies], rel=1e-5)


def test_a_window_of_unusual_code_is_noticed_on_the_longest_path() -> None:
    """A model that puts its window into a mask of its own. The check must see the longest path, not only the most tokens."""
    bushy = Branches((3, 4), tuple((token, token + 1, 1) for token in range(10, 30, 2)))
    long_path = Branches(tuple(range(3, 14)), ((30, 1), (31, 1)))
    assert bushy.tokens("tree") > long_path.tokens("tree")
    model = make("llama")
    forward = model.model.forward

    def local(input_ids: Tensor, attention_mask: Tensor | None = None, **options: object) -> object:
        seen = torch.ones(input_ids.shape[1], input_ids.shape[1]).tril().triu(-5)
        return forward(input_ids, attention_mask=seen.log()[None, None], **options)

    model.model.forward = local
    scorer = Scorer(model)
    scorer.choose_layout([bushy])
    assert scorer.layout == "tree"
    scorer.choose_layout([bushy, long_path])
    assert scorer.layout == "rows"


def test_a_recurrence_is_noticed_though_the_longest_path_has_one_token_replies() -> None:
    long_path = Branches(tuple(range(3, 20)), ((30,), (31,)))
    scorer = Scorer(make("mamba-2"))
    scorer.choose_layout([long_path, TREES[0]])
    assert scorer.layout == "rows"


def test_a_model_whose_replies_depend_on_their_neighbours_is_computed_reply_by_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of one length do not show it, and do not need it; ranks that share the weights could not do it."""
    scorer = Scorer(make("phi-3, long"))
    scorer.choose_layout([TREES[4]])
    assert scorer.layout == "tree"
    scorer.choose_layout(TREES)
    assert scorer.layout == "alone"
    monkeypatch.setattr(score, "is_sharded", lambda: True)
    with pytest.raises(UserError, match=r"launcher\.strategy: Phi3ForCausalLM needs a separate forward pass for every reply(.|\n)*use ddp"):
        scorer.choose_layout_on_main(TREES, 0)


def test_attention_that_goes_by_the_place_in_the_row_is_noticed_in_a_row_of_full_length() -> None:
    """As Llama-4's, which it turns up beyond 8,192 places, wherever the tree of a token begins: here beyond 100."""

    def turn_up(_: nn.Module, __: tuple[()], options: dict[str, Tensor]) -> tuple[tuple[()], dict[str, Tensor]]:
        place = torch.arange(options["hidden_states"].shape[1])
        return (), {**options, "hidden_states": options["hidden_states"] * (1 + (place >= 100))[:, None]}

    many = [Branches(tree.prompt_ids, (*tree.replies, (n, n))) for n in range(8) for tree in TREES]
    assert sum(tree.tokens("tree") for tree in many) > 200
    scorer = Scorer(make("llama"))
    scorer.model.model.layers[1].self_attn.register_forward_pre_hook(turn_up, with_kwargs=True)
    for row_tokens, layout in ((60, "tree"), (10_000, "rows")):
        scorer.choose_layout(many, row_tokens)
        assert scorer.layout == layout
        expected = [reference(scorer.model, tree.prompt_ids, reply).item() for tree in many for reply in tree.replies]
        found = [logp for row in score_trees(scorer, many, row_tokens) for logp in row]
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_model_that_looks_ahead_is_refused() -> None:
    bert = {**COMMON, "is_decoder": False, "type_vocab_size": 1}
    with pytest.raises(UserError, match="the log-probs of BertLMHeadModel depend on later tokens"):
        Scorer(of_config(transformers.BertConfig(**bert))).choose_layout(TREES)


def test_soft_caps_hold_also_where_torchs_own_attention_would_ignore_them() -> None:
    torch.manual_seed(0)
    scorer = Scorer(transformers.AutoModelForCausalLM.from_config(ZOO["gemma-2"][0](), attn_implementation="sdpa").eval())
    scorer.choose_layout(TREES)
    assert scorer.layout == "tree"
    expected = references(make("gemma-2"), TREES)
    with torch.no_grad():
        torch.testing.assert_close(flat(rows_of(scorer(scorer.collate(TREES)), TREES)).float(), flat(expected), rtol=1e-5, atol=0)


def test_the_check_is_made_once_for_models_of_a_kind_and_again_for_longer_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Branches] = []
    plain = score.plain_token_logps
    monkeypatch.setattr(score, "plain_token_logps", lambda model, tree: (seen.append(tree), plain(model, tree))[1])
    short, long = TREES[4], TREES[2]
    for name, trees, checked in [
        ("llama", [short], 1),
        ("llama", [short], 1),  # only that the log-probs are finite
        ("llama", [long, short], 2),
        ("llama", [short], 1),
        ("qwen3", [long, short], 2),
        ("mamba-2", [long, short], 2),
        ("mamba-2", [long, short], 1),
        ("llama", [TREES[1], short], 2),  # a shorter path
        ("llama", [TREES[1], short], 1),
    ]:
        seen.clear()
        scorer = Scorer(make(name))
        scorer.choose_layout(trees)
        assert len(seen) == checked and scorer.layout == ZOO[name][1], name
    nans = make("llama")
    nn.init.constant_(nans.lm_head.weight, float("nan"))
    with pytest.raises(UserError, match="log-probs are not finite"):
        Scorer(nans).choose_layout([short])


@pytest.mark.parametrize(("place", "factor"), [(-1, float("nan")), (-1, 1.003), (0, 1.003)])
def test_one_wrong_token_is_enough(place: int, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of some 170 nats in a reply of 40, by a hundredth of a nat; or a NaN in the last tree of several, where it is easily lost."""
    long_reply = Branches((3, 4, 5), (tuple(range(6, 46)), (7, 8)))

    def spoilt(*args: Any) -> Tensor:
        found = chunked_logps(*args)
        found[place] *= factor
        return found

    monkeypatch.setattr(score, "chunked_logps", spoilt)
    scorer = Scorer(make("llama"))
    scorer.choose_layout([long_reply, TREES[0]])
    assert scorer.layout == "plain"


def test_a_router_that_rounding_turns_is_no_wrong_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """One close choice of experts moves a few tokens by more than rounding does; over a reply the layout is right."""
    long_reply = Branches((3, 4, 5), (tuple(range(6, 46)), (7, 8)))

    def turned(*args: Any) -> Tensor:
        found = chunked_logps(*args)
        found[0] *= 1.0015
        return found

    monkeypatch.setattr(score, "chunked_logps", turned)
    scorer = Scorer(make("mixtral"))
    scorer.choose_layout([long_reply, TREES[0]])
    assert scorer.layout == "tree"


def test_a_model_of_nans_is_the_persons_to_mend() -> None:
    model = make("llama")
    nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(UserError, match="log-probs are not finite"):
        Scorer(model).choose_layout([TREES[0]])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")]
)
def test_no_memory_is_not_read_as_a_layout_that_does_not_fit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*_: object) -> None:
        raise error

    scorer = Scorer(make("llama"))
    monkeypatch.setattr(score, "chunked_logps", runs_out)  # the reference fits, the batch does not
    with pytest.raises(type(error)):
        scorer.choose_layout([TREES[0]])


# --- batches, padding, chunks


@pytest.mark.parametrize("name", ["llama", "gpt-2", "mistral, short window", "mamba-2"])
def test_neighbours_and_padding_change_nothing(name: str) -> None:
    scorer = Scorer(make(name))
    scorer.layout = ZOO[name][1]
    with torch.no_grad():
        together = scorer(scorer.collate(TREES))
        for index, tree in enumerate(TREES):
            alone = scorer(scorer.collate([tree]))[0]
            torch.testing.assert_close(alone, together[index, : len(tree.replies)], rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["rows", "plain", "alone"])
def test_the_padding_token_is_never_looked_at(layout: str) -> None:
    scorer = Scorer(make("llama"))
    scorer.layout = layout
    batch = scorer.collate(TREES)
    expected = scorer(batch).detach()
    assert not batch.real_BL.all(), "trees have no padding at all"
    batch.input_ids_BL[~batch.real_BL] = 17
    batch.position_ids_BL[~batch.real_BL] = 40
    assert torch.equal(scorer(batch), expected)


@pytest.mark.parametrize("max_tokens", [1, 30, 10_000])
def test_scores_come_in_the_order_of_the_trees_for_any_budget(max_tokens: int) -> None:
    scorer = Scorer(make("llama"))
    found = score_trees(scorer, TREES, max_tokens)
    assert [len(row) for row in found] == [len(tree.replies) for tree in TREES]
    for row, tree in zip(found, TREES, strict=True):
        assert row == pytest.approx([reference(scorer.model, tree.prompt_ids, reply).item() for reply in tree.replies], rel=1e-5)


def test_head_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("gemma-2")
    whole, whole_gradient = scored_with_gradients(model, "tree", TREES)
    largest = []
    of_chunk = head._chunk_logps
    monkeypatch.setattr(head, "_chunk_logps", lambda model, h, t: (largest.append(len(t)), of_chunk(model, h, t))[1])
    monkeypatch.setattr(score, "HEAD_CHUNK", 7)
    chunked, chunked_gradient = scored_with_gradients(model, "tree", TREES)
    assert max(largest) == 7 and len(largest) > 6
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=0)
    assert_same_gradients(chunked_gradient, whole_gradient, 1e-5)


# --- training: checkpointing and dropout


def layer_forwards(model: nn.Module) -> list[str]:
    """Grows by one with every layer forward that begins."""
    begun: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.register_forward_pre_hook(lambda *_, name=name: begun.append(name))
    return begun


@pytest.mark.parametrize("name", ["llama", "gpt-2", "gpt-neox", "opt", "mamba-2"])
@pytest.mark.usefixtures("blocks")
def test_gradient_checkpointing_is_on_and_changes_nothing(name: str) -> None:
    model = make(name)
    expected, gradient = scored_with_gradients(model, ZOO[name][1], TREES)
    scorer = Scorer(model)
    scorer.layout = ZOO[name][1]
    scorer.use_gradient_checkpointing()
    begun = layer_forwards(model)
    found = scorer(scorer.collate(TREES))
    first, second = begun
    weighted(rows_of(found, TREES)).backward()
    assert begun == [first, second, second, first], "every layer computed again in the backward pass"
    assert torch.equal(found, expected)
    assert_same_gradients(gradients(model), gradient, 1e-6)


WITH_DROPOUT = {
    "gpt-2": lambda: transformers.GPT2Config(**GPT2, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5),
    "opt": lambda: transformers.OPTConfig(**NEOX, **OPT, dropout=0.5, attention_dropout=0.5),  # drops out in the layer itself
    "llama": lambda: transformers.LlamaConfig(**COMMON, attention_dropout=0.5),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_is_off_in_training(name: str, checkpointing: bool) -> None:
    model = of_config(WITH_DROPOUT[name]())
    expected = references(model, TREES)
    weighted(expected).backward()
    expected_gradients = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()

    scorer = Scorer(model)
    if checkpointing:
        scorer.use_gradient_checkpointing()
    found = scorer(scorer.collate(TREES))
    assert torch.equal(found, scorer(scorer.collate(TREES))), "deterministic"
    torch.testing.assert_close(flat(rows_of(found, TREES)).float(), flat(expected), rtol=1e-5, atol=0)
    weighted(rows_of(found, TREES)).backward()
    assert_same_gradients(gradients(model), expected_gradients, 1e-5)


def test_dropout_would_be_seen() -> None:
    """The control of the test above: the same models in training mode do drop out."""
    for config in WITH_DROPOUT.values():
        model = of_config(config()).train()
        assert reference(model, (3, 4, 5), (6, 7, 1)).item() != reference(model, (3, 4, 5), (6, 7, 1)).item()


def test_a_model_without_gradient_checkpointing_is_refused_with_a_remedy() -> None:
    model = make("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match=r"gradient_checkpointing: .*does not support(.|\n)*micro_batch_tokens"):
        Scorer(model).use_gradient_checkpointing()
