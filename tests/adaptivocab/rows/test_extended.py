from __future__ import annotations

import pytest
import torch

from tests.conftest import SHAPES, random_inputs, tiny
from tests.counting import Peak
from trimtab.adaptivocab.rows.extended import NewRows, base_head, extended, extended_head
from trimtab.errors import TrimtabError

FEW = ["tiny-llama", "tiny-qwen3", "tiny-gemma2"]  # tied, untied, tied and capped
SIZE = 320
COUNT = 5
CHANGED = [7, 100]

every = pytest.mark.parametrize("name", SHAPES)
few = pytest.mark.parametrize("name", FEW)
either = pytest.mark.parametrize("output", [False, True])


def rows_for(model) -> NewRows:
    generator = torch.Generator().manual_seed(1)

    def draw(count: int, weight: torch.Tensor) -> torch.Tensor:
        return 0.02 * torch.randn(count, weight.shape[1], generator=generator)

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    changed = torch.tensor(CHANGED)
    return NewRows(draw(COUNT, embedding), draw(COUNT, head), changed, draw(len(CHANGED), head))


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def state(model) -> tuple:
    """Return all that a ``with`` must leave alone."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return (
        [(name, id(part), part.requires_grad) for name, part in model.named_parameters()],
        {name: part.clone() for name, part in model.state_dict().items()},
        model.config.to_dict(),
        (embedding.num_embeddings, head.out_features, embedding.weight is head.weight),
    )


def assert_same(before: tuple, after: tuple) -> None:
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    assert all(torch.equal(part, after[1][name]) for name, part in before[1].items())
    assert before[2:] == after[2:]


@pytest.mark.parametrize(
    ("value", "reason"), [(0, "nothing but zeros"), (torch.nan, "NaN or infinite values")]
)
def test_rows_that_are_not_finite_are_the_models_fault_where_its_weights_are(value, reason):
    model = tiny("tiny-llama").model
    rows = rows_for(model)
    rows.head[1, 2] = torch.nan
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(value)
    message = f"for n-grams are not finite: model.embed_tokens.weight holds {reason}, so the check"
    with pytest.raises(TrimtabError, match=message), extended(model, rows, output=True):
        pass


@every
@either
def test_a_model_gets_everything_back(name, output):
    model = tiny(name).model
    tied = model.config.tie_word_embeddings
    before, ids = state(model), random_inputs(1, 9)
    expected = logits(model, ids)
    with extended(model, rows_for(model), output=output):
        inside = state(model)
        assert not model.get_input_embeddings().weight.requires_grad
        logits(model, ids)
    assert inside[3][:2] == (SIZE + COUNT, SIZE + COUNT * output)
    assert inside[2]["vocab_size"] == SIZE + COUNT * output
    assert not inside[3][2]
    assert not inside[2]["tie_word_embeddings"]
    assert_same(before, state(model))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert torch.equal(logits(model, ids), expected)


def test_shapes_with_tied_and_with_untied_heads_are_among_them():
    assert {tiny(name).model.config.tie_word_embeddings for name in SHAPES} == {True, False}


@few
@either
def test_it_gets_everything_back_after_an_exception_too(name, output):
    model = tiny(name).model
    before = state(model)
    with pytest.raises(KeyError), extended(model, rows_for(model), output=output):
        raise KeyError
    assert_same(before, state(model))


@few
def test_rows_that_do_not_fit_change_nothing(name):
    model = tiny(name).model
    before, rows = state(model), rows_for(model)
    narrow = NewRows(rows.input, rows.head[:, :3], rows.changed, rows.changed_head)
    with pytest.raises(RuntimeError), extended(model, narrow, output=True):
        pass
    assert_same(before, state(model))


@every
def test_without_output_the_logits_of_base_text_are_the_bases_bit_for_bit(name):
    model = tiny(name).model
    ids = random_inputs(2, 20)
    expected = logits(model, ids)
    with extended(model, rows_for(model), output=False):
        assert torch.equal(logits(model, ids), expected)
        new = logits(model, torch.cat([ids, torch.full((2, 1), SIZE + 3)], 1))
    assert new.shape[-1] == SIZE
    torch.testing.assert_close(new[:, :-1], expected)


@every
def test_with_output_only_the_changed_logits_of_base_text_change(name):
    model = tiny(name).model
    ids = random_inputs(2, 20)
    expected = logits(model, ids)
    with extended(model, rows_for(model), output=True):
        found = logits(model, ids)
    assert found.shape[-1] == SIZE + COUNT
    same = torch.ones(SIZE, dtype=torch.bool)
    same[CHANGED] = False
    torch.testing.assert_close(found[..., :SIZE][..., same], expected[..., same])
    assert ((found[..., CHANGED] - expected[..., CHANGED]).abs() > 1e-4).any(1).all()


@every
def test_base_head_predicts_base_tokens_as_the_base_does(name):
    model = tiny(name).model
    ids, own = random_inputs(2, 20), model.get_output_embeddings().weight
    expected = logits(model, ids)
    with extended(model, rows_for(model), output=True):
        outside = state(model)
        with base_head(model, own):
            assert torch.equal(logits(model, ids), expected)
            assert model.config.vocab_size == SIZE
        assert_same(outside, state(model))
        with pytest.raises(KeyError), base_head(model, own):
            raise KeyError
        assert_same(outside, state(model))


@every
def test_rows_equal_to_a_tokens_behave_as_it(name):
    """Read and predicted: as the token wherever it stands, and as likely as it."""
    model = tiny(name).model
    ids = random_inputs(1, 20)
    token = int(ids[0, 8])
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    none = torch.empty(0, dtype=torch.int64)
    copies = NewRows(embedding[token][None], head[token][None], none, head[:0])
    with extended(model, copies, output=True):
        expected = logits(model, ids)
        found = logits(model, ids.where(ids != token, SIZE))
    assert torch.equal(found, expected)
    torch.testing.assert_close(found[..., SIZE], found[..., token])


@every
def test_generation_takes_ngrams_in_and_puts_them_out(name):
    """The n-gram is twice as likely as the token that the base would choose."""
    model = tiny(name).model
    ids = random_inputs(1, 9)
    best = logits(model, ids)[0, -1]
    chosen = int(best.argmax())
    assert best[chosen] > 0
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    none = torch.empty(0, dtype=torch.int64)
    rows = NewRows(embedding[:1], 2 * head[chosen][None], none, head[:0])
    with extended(model, rows, output=True):
        mask = torch.ones_like(ids)
        found = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
        again = logits(model, found[:, :-1])[0, 8:].argmax(-1)
    assert found[0, 9] == SIZE
    assert found[0, 9:].tolist() == again.tolist()


def test_the_extended_head_is_a_copy_in_the_heads_precision():
    model = tiny("tiny-llama").model
    weight, rows = model.get_output_embeddings().weight, rows_for(model)
    before = weight.clone()
    found = extended_head(weight.bfloat16(), rows)
    assert found.dtype == torch.bfloat16
    found = extended_head(weight, rows)
    assert torch.equal(found[SIZE:], rows.head)
    assert torch.equal(found[CHANGED], rows.changed_head)
    assert torch.equal(weight, before)


@either
@few
def test_extending_takes_the_new_embedding_and_the_new_head_and_no_more(name, output):
    model = tiny(name).model
    rows, before = rows_for(model), [*model.parameters()]
    held = [*before, *rows.to_tensors().values()]
    with Peak(held) as peak, extended(model, rows, output=output):
        made = [part for part in model.parameters() if not any(part is one for one in before)]
    # Beside the matrices, the truth values of a check of the rows.
    assert 0 <= peak.most - sum(part.nbytes for part in made) < rows.input.nbytes


def test_rows_are_saved_by_name():
    rows = rows_for(tiny("tiny-llama").model)
    assert rows.to_tensors().keys() == {"input", "head", "changed", "changed_head"}
    assert NewRows(**rows.to_tensors()) == rows
