"""The tree as tensors: what is fed, what is predicted from where, who sees whom, and how trees share a micro-batch."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask

from sparring.data.records import Duel
from sparring.policy.batches import Branches, TreeBatch, branches_of, collate, layout_probe_trees, micro_batches

TREE = Branches((7, 8), ((1, 2, 3), (4,), (5, 6)))
OTHER = Branches((9,), ((10, 11), (12, 13)))

token_ids = st.lists(st.integers(0, 99), min_size=1, max_size=6).map(tuple)
branches = st.builds(Branches, token_ids, st.lists(token_ids, min_size=1, max_size=4).map(tuple))


def visible(batch: TreeBatch) -> torch.Tensor:
    """[B, L, L], true where a query looks: for packed trees read off the blocks, the causal mask and the padding for rows."""
    length = batch.input_ids_BL.shape[1]
    if batch.index is None:
        return torch.ones(length, length).tril().bool() & batch.attention_mask.bool()[:, None, :]
    found = torch.zeros(length, length, dtype=torch.int)
    queries, keys = batch.index.queries.index_M.tolist(), batch.index.keys.index_M.tolist()
    for place in batch.index.queries.padding.tolist():
        queries[place] = length
    for place in batch.index.keys.padding.tolist():
        keys[place] = length
    for number in range(len(batch.index.groups)):
        seen_NQK = batch.index.bias(number, None, torch.float32)[:, 0] == 0
        for seen_QK in seen_NQK:
            of_block, of_keys = queries[: len(seen_QK)], keys[: seen_QK.shape[1]]
            del queries[: len(seen_QK)], keys[: seen_QK.shape[1]]
            for query, seen_K in zip(of_block, seen_QK, strict=True):
                for key in [key for key, seen in zip(of_keys, seen_K, strict=True) if seen and query < length]:
                    found[query, key] += 1  # fails where a real query sees padding
    assert not queries and not keys
    return found[None] == 1  # nothing is seen twice


def read_back(batch: TreeBatch) -> list[list[int]]:
    """For every scored token: the tokens that its prediction sees, in order of position, and then the token."""
    length = batch.input_ids_BL.shape[1]
    ids = batch.input_ids_BL.flatten()
    mask_BLL = visible(batch)
    found = []
    for source, target in zip(batch.source_N.tolist(), batch.target_N.tolist(), strict=True):
        row, query = divmod(source, length)
        seen = [row * length + key for key in range(length) if mask_BLL[row, query, key]]
        seen.sort(key=lambda flat: batch.position_ids_BL.flatten()[flat].item())
        assert [batch.position_ids_BL.flatten()[flat].item() for flat in seen] == list(range(len(seen)))
        found.append([*ids[seen].tolist(), target])
    return found


@pytest.mark.parametrize("layout", ["tree", "rows"])
@given(trees=st.lists(branches, min_size=1, max_size=3))
def test_every_reply_token_is_predicted_from_exactly_its_own_prefix(layout, trees) -> None:
    batch = collate(trees, layout)
    expected = [[*tree.prompt_ids, *reply[: i + 1]] for tree in trees for reply in tree.replies for i in range(len(reply))]
    assert read_back(batch) == expected
    columns = max(len(tree.replies) for tree in trees)
    cells = [index * columns + r for index, tree in enumerate(trees) for r, reply in enumerate(tree.replies) for _ in reply]
    assert batch.cell_N.tolist() == cells
    assert batch.tokens == sum(tree.tokens(layout) for tree in trees) == batch.real_BL.sum()
    if layout == "tree":
        assert batch.input_ids_BL.shape == (1, batch.tokens), "no padding"
    else:
        assert batch.input_ids_BL.shape[1] == max(tree.shape(layout)[1] for tree in trees)
        assert batch.input_ids_BL.shape[0] == sum(tree.shape(layout)[0] for tree in trees)


def test_two_packed_trees_by_hand() -> None:
    batch = collate([TREE, OTHER], "tree")
    assert batch.input_ids_BL.tolist() == [[7, 8, 1, 2, 5, 9, 10, 12]]
    assert batch.position_ids_BL.tolist() == [[0, 1, 2, 3, 2, 0, 1, 1]]
    assert batch.source_N.tolist() == [1, 2, 3, 1, 1, 4, 5, 6, 5, 7]
    assert batch.target_N.tolist() == [1, 2, 3, 4, 5, 6, 10, 11, 12, 13]
    assert batch.cell_N.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 4, 4]
    assert batch.index.tree_T.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.index.branch_T.tolist() == [0, 0, 1, 1, 3, 0, 1, 2]
    blocks = [(list(block.keys), block.queries) for group in batch.index.groups for block in group]
    assert sorted(blocks) == [([0, 1, 2, 3], 4), ([0, 1, 4], 1), ([5, 6], 2), ([5, 7], 1)]


@given(trees=st.lists(branches, min_size=1, max_size=4), window=st.sampled_from([None, 1, 2, 5]))
def test_flex_attention_gets_the_rule_of_the_blocks(trees, window) -> None:
    """`block_mask` is a function of places for a compiler; called here for every pair, it must say what the blocks say."""
    index = collate(trees, "tree").index
    length = len(index.tree_T)
    mask = index.block_mask(window).mask_mod
    place = torch.arange(length)
    by_rule = mask(torch.tensor(0), torch.tensor(0), place[:, None], place[None, :])
    distance = index.position_T[:, None] - index.position_T
    expected = visible(collate(trees, "tree"))[0]
    assert torch.equal(by_rule, expected if window is None else expected & (distance < window))


@given(trees=st.lists(branches, min_size=1, max_size=4), size=st.integers(1, 5), window=st.sampled_from([None, 1, 2, 5]))
def test_flex_attention_computes_the_squares_with_something_seen_and_no_others(trees, size, window) -> None:
    with mock.patch("sparring.policy.tree_attention.FLEX_BLOCK", size):
        index = collate(trees, "tree").index
        mask = index.block_mask(window)
    seen = visible(collate(trees, "tree"))[0]
    if window is not None:
        seen &= index.position_T[:, None] - index.position_T < window
    padded = torch.nn.functional.pad(seen, (0, -len(seen) % size) * 2)
    squares = padded.unflatten(0, (-1, size)).unflatten(2, (-1, size))
    assert torch.equal(mask.to_dense()[0, 0].bool(), squares.any(3).any(1))
    full = BlockMask.from_kv_blocks(mask.full_kv_num_blocks, mask.full_kv_indices, BLOCK_SIZE=size).to_dense()[0, 0].bool()
    assert not (full & ~squares.all(3).all(1)).any(), "where the rule is not asked, everything is seen"
    if window is None and size > 1:
        assert torch.equal(full, squares.all(3).all(1))


@given(trees=st.lists(branches, min_size=1, max_size=4), window=st.sampled_from([None, 1, 2, 5]))
def test_no_query_has_an_empty_mask(trees, window) -> None:
    """The softmax of an empty row is NaN, and the gradient of a padding query's NaN is one too."""
    index = collate(trees, "tree").index
    for number in range(len(index.groups)):
        assert (index.bias(number, window, torch.float32) == 0).any(-1).all()


@given(trees=st.lists(branches, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_gathering_and_its_gradient_are_torchs_own(trees, seed) -> None:
    index = collate(trees, "tree").index
    torch.manual_seed(seed)
    values = torch.randn(len(index.tree_T), 3, dtype=torch.float64, requires_grad=True)
    for gather in (index.queries, index.keys):
        real = torch.ones(len(gather.index_M), dtype=torch.bool).index_fill_(0, gather.padding, False)
        weights = torch.randn(len(real), 3, dtype=torch.float64) * real[:, None]
        (found,) = torch.autograd.grad((gather.take(values) * weights).sum(), values)
        (expected,) = torch.autograd.grad((values[gather.index_M[real]] * weights[real]).sum(), values)
        torch.testing.assert_close(found, expected)
    assert torch.equal(index.queries.put_back(index.queries.take(values)), values)
    assert torch.autograd.gradcheck(lambda x: index.queries.put_back(index.queries.take(x) ** 2), values)
    places = torch.randn(len(index.queries.index_M), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(index.queries.put_back, places), "padding gets no gradient"


def test_identical_replies_are_not_computed() -> None:
    duel = Duel("a", 0, (7, 8), (1, 2), ((1, 2), (3, 4, 5), (1, 2)))
    assert branches_of(duel) == Branches((7, 8), ((1, 2), (3, 4, 5)))


shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30)), min_size=1, max_size=20)


@given(shapes=shapes, max_tokens=st.integers(1, 120))
def test_micro_batches_hold_every_item_once_within_the_budget(shapes, max_tokens) -> None:
    groups = list(micro_batches(range(len(shapes)), shapes.__getitem__, max_tokens, "rows"))
    assert sorted(item for group in groups for item in group) == list(range(len(shapes)))
    for group in groups:
        padded = sum(shapes[item][0] for item in group) * max(shapes[item][1] for item in group)
        assert padded <= max_tokens or len(group) == 1


@given(trees=st.lists(branches, min_size=1, max_size=6), max_tokens=st.integers(1, 60), layout=st.sampled_from(["tree", "rows"]))
def test_the_budget_bounds_the_tensor(trees, max_tokens, layout) -> None:
    for group in micro_batches(range(len(trees)), lambda index: trees[index].shape(layout), max_tokens, layout):
        assert collate([trees[index] for index in group], layout).input_ids_BL.numel() <= max_tokens or len(group) == 1


def test_equal_items_fall_into_equal_groups() -> None:
    """The opponent pass and training must cut a step's duels alike."""
    lengths = [5, 3, 5, 9, 3]
    assert list(micro_batches(range(5), lambda i: (1, lengths[i]), 10, "rows")) == [[1, 4], [0, 2], [3]]
    assert list(micro_batches(range(5), lambda i: (1, lengths[i]), 11, "tree")) == [[1, 4, 0], [2], [3]]


def test_the_hardest_trees_have_the_longest_path_the_longest_second_branch_and_the_shortest_path() -> None:
    many_replies = Branches((1,), ((1, 2, 3, 4),) * 5)
    long_path = Branches(tuple(range(12)), ((1,), (2,)))
    assert many_replies.tokens("tree") > long_path.tokens("tree")
    assert layout_probe_trees([TREE, many_replies, OTHER, long_path]) == [long_path, many_replies, TREE]
    assert layout_probe_trees([OTHER, OTHER]) == [OTHER], "one tree can be all of them"


@pytest.mark.parametrize("empty", [((), ((1,),)), ((1,), ((2,), ())), ((1,), ())])
def test_an_empty_prompt_or_reply_is_no_tree(empty: tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]) -> None:
    """Its first token would be predicted from the tree before."""
    with pytest.raises(AssertionError, match="empty"):
        Branches(*empty)
