"""What the network reads: what stands where on a row, what predicts what, and what a mean
divides by.
"""

import copy
from dataclasses import replace

import pytest
import torch

from minialign.data import Batch, Example, collate
from minialign.logps import batch_logps


def test_what_stands_where():
    """Every response token is predicted from the token before it in its own text; nothing else
    is a response token.
    """
    example = Example(4, [1, 2, 3], [[4, 5, 6], [], [7]])
    batch = collate([example])
    rows = batch.rows
    assert batch.index.tolist() == [4] and batch.mask.sum(-1)[:, 0].tolist() == [3, 0, 1]
    assert rows.tokens.shape == (1, 5), "the last token of an answer is never read"
    read = rows.tokens.flatten()[rows.source]
    assert read[0, 0].tolist() == [3, 4, 5] and read[2, 0, 0] == 3
    assert rows.y[0, 0].tolist() == [4, 5, 6] and rows.y[2, 0, 0] == 7
    position = rows.positions.flatten()[rows.source]
    assert position[0, 0].tolist() == [2, 3, 4] and position[2, 0, 0] == 2


def test_counts_are_of_the_whole_batch():
    batch = collate([Example(0, [1], [[1, 2], [3]]), Example(1, [1], [[4], []])])
    assert vars(batch.counts) == {"examples": 2, "answers": 3, "tokens": 3}
    part = batch.part(1, 2)
    assert part.counts == batch.counts and len(part) == 1 and part.index.tolist() == [1]


def test_sharing_reads_every_distinct_token_once_and_no_padding():
    """What makes it never dearer: the same texts for attention, and all else sees each prompt
    once and each answer once.
    """
    examples = [Example(0, [1] * 9, [[2] * 5, [], [3] * 2]), Example(1, [4] * 2, [[5] * 30])]
    rows = collate(examples).rows
    assert rows.tokens.shape == rows.positions.shape == (1, 9 + 4 + 1 + 2 + 29)
    assert rows.texts.shape == (3, 31)
    alone = [
        [1] * 9 + [2] * 4,
        [1] * 9 + [3],
        [4] * 2 + [5] * 29,
    ]  # prompt and answer, less its last token
    for text, expected in zip(rows.texts, alone, strict=True):
        text = text[: len(expected)]
        assert rows.tokens[0, text].tolist() == expected
        assert rows.positions[0, text].tolist() == list(range(len(expected)))


def test_a_part_keeps_its_rows_and_what_a_single_method_needs():
    examples = [
        Example(0, [1, 2], [[3, 4]], rewards=[1.0]),
        Example(1, [5], [[6, 7, 8]], rewards=[2.0]),
    ]
    batch = collate(examples)
    batch = Batch(
        batch.mask, batch.index, rewards=batch.rewards, rows=batch.rows, drift=torch.ones(3)
    )
    part = batch.part(1, 2).to("cpu")
    assert part.rows.tokens.flatten()[part.rows.source[part.mask]].tolist() == [5, 6, 7]
    assert part.rows.y[part.mask].tolist() == [6, 7, 8] and part.rewards.tolist() == [[2.0]]
    assert part.extra["drift"].tolist() == [1, 1, 1]


def test_a_batch_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="bool tensor"):
        Batch(torch.ones(2, 3))


def test_a_short_text_is_filled_up_with_its_own_tokens_and_nobody_sees_them(any_model, examples):
    """No place of the row is read oftener than a text's other places; log-probs and gradients are
    those of texts that are filled up with anything else.
    """
    batch = collate(examples)
    rows = batch.rows
    lengths = [len(e.prompt) + len(answer) - 1 for e in examples for answer in e.answers]
    for text, n in zip(rows.texts, lengths, strict=True):
        assert len(text[:n].unique()) == n and set(text.tolist()) == set(text[:n].tolist())
        often = torch.bincount(text)[text]
        assert often.max() - often.min() <= 1
    results = []
    for fill in None, 0, 5:
        texts = rows.texts.clone()
        if fill is not None:
            for text, n in zip(texts, lengths, strict=True):
                text[n:] = fill
        model = copy.deepcopy(any_model)
        logps = batch_logps(model, replace(batch, rows=replace(rows, texts=texts)))
        (logps * torch.linspace(1, 2, logps.numel()).view(logps.shape)).sum().backward()
        results.append((logps.detach(), {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
