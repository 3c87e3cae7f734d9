"""Rows by split and recover, and the first layers of a model that they are read from."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.adaptivocab.tokenizers import DOCUMENTS, EVERY, base
from tests.conftest import SHAPES, random_inputs, tiny
from trimtab.adaptivocab import AdaptiVocab, Mode, Rows
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.combination import combined, weights
from trimtab.adaptivocab.rows.fit import RowFitter
from trimtab.adaptivocab.rows.layers import outputs_of
from trimtab.adaptivocab.rows.passages import with_start
from trimtab.adaptivocab.rows.recovery import LAYERS, Recovery, SequenceFeatures, split_tokens
from trimtab.adaptivocab.rows.ridge import Ridge
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.corpus import Corpus, Document
from trimtab.errors import MisfitError
from trimtab.models.adapter import adapter_for
from trimtab.models.random import byte_tokenizer
from trimtab.models.shapes import shapes

every = pytest.mark.parametrize("name", SHAPES)
SPELLING = [kind for kind in EVERY if kind != "wordpiece"]  # where strings in a row spell a token


def model_for(kind: str) -> PreTrainedModel:
    """Return a model with random weights whose vocabulary is a tokenizer's."""
    shape = shapes()["tiny-llama"] | {"vocab_size": len(base(kind))}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))


@every
def test_the_first_layers_put_out_the_models_hidden_states_and_nothing_more_runs(name):
    model = tiny(name).model
    ids = random_inputs(2, 9)
    with torch.no_grad():
        wanted = model(input_ids=ids, output_hidden_states=True).hidden_states
    layers = adapter_for(model).decoder_layers(model)
    ran: list[torch.nn.Module] = []
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: ran.append(module))
    hooks = [list(layer._forward_hooks) for layer in layers]
    with torch.no_grad():
        found = outputs_of([layers[0], layers[1]], lambda: model(input_ids=ids))
    assert ran == [layers[0], layers[1]]
    for number, output in enumerate(found, start=1):
        assert torch.equal(output, wanted[number])
    assert [list(layer._forward_hooks) for layer in layers] == hooks


def test_an_error_within_the_layers_is_not_swallowed(tiny_llama):
    layers = adapter_for(tiny_llama.model).decoder_layers(tiny_llama.model)
    with pytest.raises(IndexError):
        outputs_of([layers[0]], lambda: tiny_llama.model(input_ids=torch.tensor([[100_000]])))
    assert not layers[0]._forward_hooks


@given(
    st.integers(2, 40), st.integers(1, 12), st.sampled_from([0.01, 0.5, 20.0]), st.integers(0, 99)
)
@settings(max_examples=40)
def test_the_ridge_is_least_squares_over_rows_and_penalty_together(examples, width, penalty, seed):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(examples, width, generator=draw, dtype=torch.float64) * 3 + 1
    rows = torch.randn(examples, 4, generator=draw, dtype=torch.float64)
    ((_, ridge),) = Ridge.fits(features, rows, [penalty])
    scaled = ((features - features.mean(0)) / features.std(0)).numpy()
    stacked = np.concatenate([scaled / examples**0.5, penalty**0.5 * np.eye(width)])
    wanted = np.concatenate([(rows - rows.mean(0)).numpy() / examples**0.5, np.zeros((width, 4))])
    weight, *_ = np.linalg.lstsq(stacked, wanted, rcond=None)
    expected = scaled @ weight + rows.mean(0).numpy()
    np.testing.assert_allclose(ridge(features).numpy(), expected, rtol=1e-8, atol=1e-8)


def test_a_feature_that_never_changes_says_nothing():
    features = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]], dtype=torch.float64)
    rows = torch.tensor([[2.0], [4.0], [8.0]], dtype=torch.float64)
    ((_, ridge),) = Ridge.fits(features, rows, [1e-9])
    torch.testing.assert_close(ridge(features), rows)


@pytest.mark.parametrize("kind", SPELLING)
def test_halves_spell_their_token_as_evenly_as_any_two_do(kind):
    tokenizer = base(kind)
    special = tokenizer.added_tokens_decoder
    words = {text: token for text, token in tokenizer.get_vocab().items() if token not in special}
    spelling = {token: text for text, token in words.items()}
    found = dict(split_tokens(tokenizer))
    assert len(found) > 20
    assert found.keys() <= spelling.keys()
    for token, string in spelling.items():
        cuts = [
            min(end, len(string) - end)
            for end in range(1, len(string))
            if string[:end] in words and string[end:] in words
        ]
        if token in found:
            first, second = (spelling[half] for half in found[token])
            assert first + second == string
            assert min(len(first), len(second)) == max(cuts)
            assert tokenizer.decode([token]) == tokenizer.decode(list(found[token]))
        else:
            assert not cuts


@pytest.mark.parametrize("kind", SPELLING)
def test_special_tokens_and_names_of_bytes_are_no_words(kind):
    tokenizer = base(kind)
    excluded = set(tokenizer.added_tokens_decoder)
    excluded |= {t for s, t in tokenizer.get_vocab().items() if s.startswith("<0x")}
    for token, halves in split_tokens(tokenizer):
        assert excluded.isdisjoint((token, *halves))


@every
@pytest.mark.parametrize("start", [257, None])
def test_features_are_of_each_sequence_by_itself(name, start):
    model = tiny(name).model
    sequences = [(5, 9), (1, 2, 3, 4), (7, 5), (8, 8, 2), (9, 4, 4, 1)]
    features = SequenceFeatures.of(model, sequences, start, "Hidden states")
    embedding = model.get_input_embeddings().weight
    depth = model.config.num_hidden_layers
    tried = [layer for layer in LAYERS if layer <= depth]
    assert len(features.states) == len(tried)
    for number, sequence in enumerate(sequences):
        with torch.no_grad():
            text = with_start(torch.tensor([sequence]), start)
            hidden = model(input_ids=text, output_hidden_states=True).hidden_states
        for place, layer in enumerate(tried):
            if layer < depth:  # after the last one comes the final norm
                torch.testing.assert_close(features.states[place][number], hidden[layer][0, -1])
            found = features.after(place)[number]
            ends = torch.cat([embedding[sequence[0]], embedding[sequence[-1]]])
            torch.testing.assert_close(found[: len(ends)], ends.double())
            torch.testing.assert_close(found[len(ends) :].float(), features.states[place][number])


def composed(model: PreTrainedModel, kind: str) -> tuple[Tensor, Tensor]:
    """Make every split token's row a fixed map of its halves' rows; return the map's two parts."""
    weight = model.get_input_embeddings().weight
    width = weight.shape[1]
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(width, width, generator=draw) / (2 * width) ** 0.5 for _ in range(2)]
    spelling = {token: string for string, token in base(kind).get_vocab().items()}
    with torch.no_grad():
        for token, (first, second) in sorted(
            split_tokens(base(kind)), key=lambda split: len(spelling[split[0]])
        ):
            weight[token] = weight[first] @ maps[0] + weight[second] @ maps[1]
    return maps[0], maps[1]


@pytest.mark.parametrize("start", [0, None])
def test_a_rule_that_a_vocabulary_follows_is_recovered(start, capsys):
    """Halves' rows add up after a map each: new n-grams get the row that the rule gives."""
    model = model_for("gpt2")
    first, second = composed(model, "gpt2")
    weight = model.get_input_embeddings().weight.detach()
    recovery = Recovery.fit(model, base("gpt2"), start)
    assert explained(capsys) > 0.5
    ngrams = [(a, b) for a in range(10, 40) for b in range(300, 320)]
    tokens = torch.tensor(ngrams)
    wanted = weight[tokens[:, 0]] @ first + weight[tokens[:, 1]] @ second
    error = (recovery(ngrams) - wanted).norm() / wanted.norm()
    shares = weights(NGrams(len(weight), tuple(ngrams)), Rows.exponential, head=False)
    papers = combined(weight, NGrams(len(weight), tuple(ngrams)), shares)
    assert error < 0.5 * (papers - wanted).norm() / wanted.norm()
    assert error < 0.6


def explained(capsys: pytest.CaptureFixture[str]) -> float:
    """Return the share of the variance that was said to be recovered."""
    (found,) = re.findall(r"explains (-?\d+)% of the variance", capsys.readouterr().err)
    return int(found) / 100


def test_rows_are_as_long_as_tokens_rows_though_nothing_can_be_learned(capsys):
    """Between random rows there is no rule: a regression alone would predict next to nothing."""
    model = model_for("gpt2")
    recovery = Recovery.fit(model, base("gpt2"), 0)
    assert explained(capsys) < 0.2
    rows = recovery([(first, last) for first in range(10, 40) for last in range(300, 320)])
    wanted = model.get_input_embeddings().weight.detach().norm(dim=1).mean()
    assert 0.8 < rows.norm(dim=1).mean() / wanted < 1.25
    assert (rows / recovery.scale).norm(dim=1).mean() < 0.6 * wanted


def test_a_row_does_not_depend_on_the_other_sequences():
    model = model_for("gpt2")
    recovery = Recovery.fit(model, base("gpt2"), 0)
    sequences = [(5, 9, 11), (300, 301), (7, 5), (8, 8, 2, 100)]
    together = recovery(sequences)
    assert together.dtype == torch.float32
    features = SequenceFeatures.of(model, sequences, 0, "Hidden states").after(recovery.layer)
    torch.testing.assert_close(together, (recovery.scale * recovery.ridge(features)).float())
    for sequence, row in zip(sequences, together, strict=True):
        torch.testing.assert_close(recovery([sequence])[0], row)


def test_the_token_before_a_sequence_is_part_of_the_fit():
    model = model_for("gpt2")
    fits = [Recovery.fit(model, base("gpt2"), start) for start in (0, None)]
    assert not torch.allclose(fits[0].ridge.center, fits[1].ridge.center)


def test_a_vocabulary_of_bytes_has_nothing_to_learn_from(tiny_llama):
    with pytest.raises(MisfitError, match="this vocabulary has 0 of them, expected at least"):
        RowFitter(
            tiny_llama.model, TokenizerExtender(byte_tokenizer()), [], Rows.recovered, output=True
        )


def test_calibration_recovers_the_input_and_takes_the_papers_head():
    model, tokenizer = model_for("gpt2"), base("gpt2")
    documents = [Document(str(number), text[:4000]) for number, text in enumerate(DOCUMENTS)]
    corpus = Corpus("topics", documents, calibration=0.5, validation=0.2)
    method = AdaptiVocab(
        size=30, mode=Mode.full, max_bpb_increase=None, rows=Rows.recovered, tokens=128,
        validation_tokens=128, window=64,
    )  # fmt: skip
    vocabulary = Vocabulary.from_artifact(method.calibrate(model, tokenizer, corpus))
    ngrams, rows = vocabulary.merged, vocabulary.rows
    assert rows is not None
    start = tokenizer.bos_token_id
    expected = Recovery.fit(model, tokenizer, start)(ngrams.tokens)
    torch.testing.assert_close(rows.input, expected)
    head = model.get_output_embeddings().weight.detach()
    papers = combined(head, ngrams, weights(ngrams, Rows.exponential, head=True))
    torch.testing.assert_close(rows.head, papers)
