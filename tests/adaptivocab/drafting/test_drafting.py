from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import LogitsProcessorList, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import trimtab.adaptivocab.drafting.drafter as drafts_module
from tests.conftest import SHAPES, random_inputs, tiny
from trimtab.adaptivocab.drafting import NGramCandidates, drafting
from trimtab.adaptivocab.drafting.drafter import Drafts
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.evaluation.generation import Replay
from trimtab.models.random import byte_tokenizer

BASE = 320
PROMPT = 12


def prompts(count: int = 3) -> list[torch.Tensor]:
    return list(random_inputs(count, PROMPT)[:, None])


def generate(model, ids, **options):
    options = {"do_sample": False, "max_new_tokens": 24} | options
    mask = options.pop("attention_mask", torch.ones_like(ids))
    return model.generate(ids, attention_mask=mask, **options)


def learned(*texts: list[int]) -> Drafts:
    """Return drafts that know these texts, and twins of them in which every fifth token differs.

    What they propose is then sometimes right and sometimes wrong.
    """
    twins = [[t if n % 5 else (t + 1) % 256 for n, t in enumerate(text)] for text in texts]
    known = [*texts, *twins]
    pieces = {
        tuple(text[n : n + size])
        for text in known
        for size in (2, 3)
        for n in range(len(text) - size + 1)
    }
    return Drafts.count(NGrams(BASE, tuple(sorted(pieces))), known)


def drafts_for(model, **options) -> Drafts:
    """Return drafts of what the model makes of the prompts."""
    return learned(*(generate(model, ids, **options)[0].tolist() for ids in prompts()))


def certain(*chain: int) -> Drafts:
    """Return drafts that always propose the rest of the chain behind any token of it."""
    guesses = {(before,): (after, 1.0) for before, after in itertools.pairwise(chain)}
    return Drafts(guesses, context=1, threshold=0.5, longest=len(chain))


def same_with_drafts(model, drafts: Drafts, ids, **options):
    """Check that greedy search returns the same tokens with drafts; return its counter."""
    plain = generate(model, ids, **options)
    with drafting(model, drafts) as counter:
        drafted = generate(model, ids, **options)
    assert torch.equal(plain, drafted)
    return counter


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_search_returns_the_same_tokens_in_fewer_steps(name):
    model = tiny(name).model
    counters = []
    for options in ({}, {"no_repeat_ngram_size": 2}):  # some would repeat one token for ever
        drafts = drafts_for(model, **options)
        counters += [same_with_drafts(model, drafts, ids, **options) for ids in prompts()]
    steps, generated, proposed, accepted = (
        sum(getattr(counter, key) for counter in counters)
        for key in ("steps", "generated", "proposed", "accepted")
    )
    assert 0 < accepted < proposed
    assert steps + accepted == generated
    assert steps < 0.7 * generated
    assert not any(counter.undrafted for counter in counters)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_new_tokens": 5},
        {"min_new_tokens": 20, "eos_token_id": list(range(0, 256, 2))},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [10, 11, 12]},
    ],
    ids=str,
)
def test_options_of_generate_hold(options):
    model = tiny("tiny-phi3").model
    drafts = drafts_for(model, **options)
    counters = [same_with_drafts(model, drafts, ids, **options) for ids in prompts()]
    assert all(counter.drafted == 1 for counter in counters)
    tokens = options.get("max_new_tokens", 24)
    assert all(counter.proposed <= (tokens - 1) * counter.steps for counter in counters)
    assert bool(sum(counter.accepted for counter in counters)) == (tokens > 1)


def test_an_end_of_text_within_a_draft_ends_the_text():
    model = tiny("tiny-phi3").model
    ids = prompts()[0]
    continuation = generate(model, ids)[0, PROMPT:].tolist()
    drafts = learned(ids[0].tolist() + continuation)
    for end in range(1, 8):
        counter = same_with_drafts(model, drafts, ids, eos_token_id=continuation[end])
        assert counter.generated == continuation.index(continuation[end]) + 1


@pytest.mark.parametrize("kind", ["bos", "eos", "pad"])
def test_special_tokens_are_never_proposed(kind):
    model = tiny().model
    ids = prompts()[0]
    special = getattr(model.generation_config, f"{kind}_token_id")
    with drafting(model, certain(ids[0, -1].item(), special)) as counter:
        generate(model, ids, max_new_tokens=3)
    assert counter.proposed == 0
    with drafting(model, certain(ids[0, -1].item(), 255)) as counter:
        generate(model, ids, max_new_tokens=3)
    assert counter.proposed > 0


def test_a_stop_string_within_a_draft_ends_the_text():
    model, tokenizer = tiny("tiny-phi3").model, byte_tokenizer()
    ids = prompts()[0]
    continuation = generate(model, ids)[0, PROMPT:].tolist()
    ends = [
        n for n in range(1, 20) if 32 < ord((tokenizer.decode(continuation[n]) + "\0")[0]) < 127
    ]
    assert len(ends) > 3
    drafts = certain(*dict.fromkeys([ids[0, -1].item(), *continuation]))
    accepted = 0
    for end in ends:
        stop = {"stop_strings": tokenizer.decode(continuation[end]), "tokenizer": tokenizer}
        counter = same_with_drafts(model, drafts, ids, **stop)
        assert counter.drafted == 1
        assert counter.generated <= end + 1
        accepted += counter.accepted
    assert accepted


def test_left_padding_of_a_single_text():
    model = tiny().model
    drafts = drafts_for(model)
    ids = prompts()[0]
    pads = torch.full((1, 5), model.generation_config.pad_token_id)
    padded = torch.cat([pads, ids], dim=1)
    mask = (torch.arange(PROMPT + 5)[None] >= 5).long()
    assert same_with_drafts(model, drafts, padded, attention_mask=mask).accepted > 0


class Listener(BaseStreamer):
    def __init__(self):
        self.tokens: list[int] = []
        self.ended = 0

    def put(self, value):
        self.tokens += value.reshape(-1).tolist()

    def end(self):
        self.ended += 1


def test_a_streamer_gets_every_token_once():
    model = tiny().model
    ids = prompts()[0]
    with drafting(model, drafts_for(model)) as counter:
        drafted = generate(model, ids, streamer=(listener := Listener()))
    assert counter.accepted > 0
    assert (listener.tokens, listener.ended) == (drafted[0].tolist(), 1)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2"])
def test_a_cache_is_as_good_as_one_of_plain_generation(name):
    """Both ways round, over a sliding window: each continues what the other began."""
    model = tiny(name).model
    ids = prompts()[0]
    drafts = drafts_for(model, max_new_tokens=48)
    whole = generate(model, ids, max_new_tokens=48)

    def begin():
        return generate(model, ids, return_dict_in_generate=True)

    with drafting(model, drafts) as counter:
        begun = begin()
    assert counter.accepted > 0
    assert torch.equal(begun.sequences, whole[:, : PROMPT + 24])
    assert not any(getattr(one, "record_past", False) for one in begun.past_key_values.layers)
    continued = generate(model, begun.sequences, past_key_values=begun.past_key_values)
    assert torch.equal(continued, whole)
    begun = begin()
    with drafting(model, drafts) as counter:
        continued = generate(model, begun.sequences, past_key_values=begun.past_key_values)
    assert torch.equal(continued, whole)
    assert (counter.undrafted, counter.steps) == (1, 0)


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 3},
        {"num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 2},
        {"cache_implementation": "static", "disable_compile": True},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"stopping_criteria": [Never()]},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_calls_that_cannot_draft_go_on_without_and_are_counted(options):
    model = tiny().model
    ids = random_inputs(options.pop("batch", 1), PROMPT)
    counter = same_with_drafts(model, drafts_for(model), ids, **options)
    assert (counter.calls, counter.undrafted) == (1, 1)
    assert (counter.steps, counter.proposed, counter.generated) == (0, 0, 0)


def test_an_assistant_of_the_callers_own_stays_theirs():
    model, assistant = tiny().model, tiny(seed=1).model
    calls = []
    assistant.register_forward_hook(lambda *_: calls.append(1))
    counter = same_with_drafts(model, drafts_for(model), prompts()[0], assistant_model=assistant)
    assert len(calls) > 2
    assert (counter.undrafted, counter.proposed) == (1, 0)


def test_embeddings_for_a_prompt_go_undrafted():
    model = tiny().model
    embeddings = model.get_input_embeddings()(prompts()[0]).detach()
    options = {"inputs_embeds": embeddings, "max_new_tokens": 9, "do_sample": False}
    plain = model.generate(**options)
    with drafting(model, drafts_for(model)) as counter:
        assert torch.equal(model.generate(**options), plain)
    assert counter.undrafted == 1


def test_nothing_stays_behind():
    model = tiny().model
    ids = prompts()[0]
    plain = generate(model, ids)
    drafts = drafts_for(model)
    kind, names = type(model), set(vars(model))
    settings_before = copy.deepcopy(model.generation_config.to_dict())
    with pytest.raises(KeyError), drafting(model, drafts) as counter:
        assert isinstance(model, kind)
        assert type(model).__name__ == kind.__name__
        generate(model, ids)
        raise KeyError
    assert type(model) is kind
    assert set(vars(model)) == names
    assert model.generation_config.to_dict() == settings_before
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(generate(model, ids), plain)
    assert len(passes) == 24
    assert counter.calls == 1


def test_the_counter_counts_forward_passes():
    model = tiny().model
    drafts = drafts_for(model)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with drafting(model, drafts) as counter:
        for ids in prompts():
            generate(model, ids)
    assert counter.steps == len(passes) < 72 == counter.generated
    assert (counter.calls, counter.drafted) == (3, 3)


def test_candidates_are_ids_of_the_texts_type_with_the_draft_behind():
    model = tiny().model
    ids = prompts()[0]
    chain = [ids[0, -1].item(), 1, 2, 3]
    seen = []
    original = NGramCandidates.get_candidates

    def spy(self, input_ids, **kwargs):
        seen.append(original(self, input_ids, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch, drafting(model, certain(*chain)):
        patch.setattr(NGramCandidates, "get_candidates", spy)
        generate(model, ids)
    candidates, logits = seen[0]
    assert logits is None
    assert candidates.dtype == torch.int64
    assert candidates.tolist() == [[*ids[0].tolist(), 1, 2, 3]]


# Sampling: all texts of two tokens out of three, against their exact probabilities.

SAMPLING = {"do_sample": True, "top_k": 3, "temperature": 0.7, "max_new_tokens": 2}
SAMPLES = 400


def outcomes(model, ids) -> dict[tuple[int, int], float]:
    def following(text):
        with torch.no_grad():
            scores, tokens = (model(text).logits[0, -1].double() / 0.7).topk(3)
        return zip(tokens.tolist(), scores.softmax(-1).tolist(), strict=True)

    return {
        (first, second): p * q
        for first, p in following(ids)
        for second, q in following(torch.cat([ids, torch.tensor([[first]])], dim=1))
    }


def agreement(model, ids, exact: dict[tuple[int, int], float], drafts: Drafts):
    """Return the p-value of the drafted samples under the exact distribution, and the counter."""
    torch.manual_seed(0)
    with drafting(model, drafts) as counter:
        texts = [generate(model, ids, **SAMPLING)[0, PROMPT:].tolist() for _ in range(SAMPLES)]
    counts = [texts.count(list(outcome)) for outcome in exact]
    assert sum(counts) == SAMPLES
    return chisquare(counts, np.array(list(exact.values())) * SAMPLES).pvalue, counter


def test_sampling_keeps_its_distribution(monkeypatch):
    model = tiny("tiny-phi3").model
    ids = prompts()[0]
    exact = outcomes(model, ids)
    assert min(exact.values()) * SAMPLES > 5
    drafts = certain(ids[0, -1].item(), max(exact, key=exact.__getitem__)[0])
    right, counter = agreement(model, ids, exact, drafts)
    assert right > 1e-3
    assert 0.2 * SAMPLES < counter.accepted < 0.8 * SAMPLES

    def biased(self, input_ids, **kwargs):
        """Say that the draft was drawn from all tokens alike: it is accepted too often."""
        candidates, _ = honest(self, input_ids, **kwargs)
        return candidates, torch.zeros(1, candidates.shape[1] - input_ids.shape[1], BASE)

    honest = NGramCandidates.get_candidates
    monkeypatch.setattr(NGramCandidates, "get_candidates", biased)
    wrong, _ = agreement(model, ids, exact, drafts)
    assert wrong < 1e-9


# Drafts by themselves.

tokens = st.lists(st.integers(0, 2), max_size=14)
pieces = st.lists(st.integers(0, 2), min_size=2, max_size=4).map(tuple)
counted = {
    "ngrams": st.lists(pieces, max_size=5, unique=True),
    "streams": st.lists(tokens, max_size=4),
    "threshold": st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.7]),
    "context": st.integers(1, 4),
    "longest": st.integers(1, 5),
}


def reference(ids, ngrams, streams, threshold, context, longest) -> list[int]:
    """Return what `Drafts.propose` must, the slow way: from the texts, at every token anew."""

    def is_piece(end: list[int], token: int) -> bool:
        for start in range(len(end)):
            for one in ngrams:
                part = tuple(end[start:])
                if one[: len(part) + 1] == (*part, token) and len(part) < len(one):
                    return True
                if part == one and token in {other[0] for other in ngrams}:
                    return True
        return False

    def best(text: list[int]) -> tuple[float, int, int]:
        found = []
        for size in range(1, min(context, len(text)) + 1):
            end = text[-size:]
            behind = [
                stream[n + size]
                for stream in streams
                for n in range(len(stream) - size)
                if stream[n : n + size] == end
            ]
            for token in set(behind):
                probability = np.float32(behind.count(token) / (len(behind) + 1))
                if is_piece(end, token) and probability >= np.float32(threshold):
                    found.append((float(probability), -size, -token))
        return max(found, default=(0.0, 0, 0))

    draft: list[int] = []
    accepted = 1.0
    while len(draft) < longest:
        probability, _, token = best([*ids, *draft])
        accepted *= probability
        if not accepted or accepted < float(np.float32(threshold)):
            break
        draft.append(-token)
    return draft


@settings(max_examples=200, deadline=None)
@given(ids=tokens, **counted)
def test_propose_agrees_with_a_slow_reference(ids, ngrams, streams, **limits):
    drafts = Drafts.count(NGrams(4, tuple(ngrams)), streams, **limits)
    assert drafts.propose(ids) == reference(ids, ngrams, streams, **limits)


@settings(max_examples=50, deadline=None)
@given(**counted)
def test_tensors_hold_everything(ngrams, streams, **limits):
    drafts = Drafts.count(NGrams(4, tuple(ngrams)), streams, **limits)
    tensors = drafts.to_tensors()
    assert {str(one.dtype) for one in tensors.values()} == {"torch.int32", "torch.float32"}
    assert Drafts.from_tensors(tensors) == drafts


def test_drafts_reach_over_n_grams_while_they_are_likely():
    ngrams = NGrams(10, ((1, 2), (3, 4, 5)))
    text = [1, 2, 3, 4, 5, 9]
    assert Drafts.count(ngrams, [text] * 9).propose([7, 1]) == [2, 3, 4, 5]
    assert Drafts.count(ngrams, [text] * 9, longest=2).propose([7, 1]) == [2, 3]
    assert Drafts.count(ngrams, [text] * 9, threshold=0.85).propose([7, 1]) == [2]
    assert Drafts.count(ngrams, [text] * 9).propose([7]) == []
    tied = NGrams(10, ((1, 2), (1, 3), (1, 4)))
    assert Drafts.count(tied, [[1, 3], [1, 2], [1, 4]]).propose([1]) == [2]


def test_rare_contexts_of_long_texts_are_left_out(monkeypatch):
    ngrams = NGrams(10, ((1, 2), (3, 4)))
    streams = [[1, 2]] * 5 + [[3, 4]]
    assert set(Drafts.count(ngrams, streams).guesses) == {(1,), (3,)}
    monkeypatch.setattr(drafts_module, "CONTEXTS", 6)
    assert set(Drafts.count(ngrams, streams).guesses) == {(1,)}


def test_steps_are_those_of_a_generation_of_the_text():
    model = tiny().model
    words = random_inputs(12, 3).tolist()
    choice = random_inputs(90).tolist()
    text = [token for n in choice for token in words[n % 12]]
    drafts = learned(text[150:])
    with drafting(model, drafts) as counter:
        replay = LogitsProcessorList([Replay(0, text)])
        ids = torch.tensor([text[:1]])
        output = generate(model, ids, max_new_tokens=149, logits_processor=replay)
    assert output[0].tolist() == text[:150]
    assert counter.steps == drafts.steps(text[:150]) - 1  # the prompt took none
    assert counter.steps < 110
    assert counter.accepted < counter.proposed
    assert drafts.steps([]) == 0
