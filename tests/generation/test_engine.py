"""The engine on tiny models: it generates what transformers does, whatever else runs."""

from __future__ import annotations

import random

import pytest
import torch

from tests.generation.models import (
    TOKENIZER,
    VARIANTS,
    Recorder,
    engine_for,
    forcing,
    model_of,
    prompts_of,
    stock,
)
from tests.models.contract import assert_equal
from trimtab.errors import TrimtabError
from trimtab.generation import Engine, Finish, Sampling
from trimtab.models.sources import DType

PROMPTS = prompts_of(5, 21, 1, 33, 16, 8)
PAGE = 4096


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_text_is_what_transformers_generates(variant):
    model = model_of(variant)
    expected = [stock(model, prompt, 16) for prompt in PROMPTS]
    recorder = Recorder()
    with engine_for(model) as engine:
        found = engine.generate(PROMPTS, max_new_tokens=16, logits_processors=recorder)
    assert [one.tokens for one in found] == expected
    for index, (prompt, tokens) in enumerate(zip(PROMPTS, expected, strict=True)):
        ids = torch.tensor([prompt + tokens[:-1]])
        forced = model(ids).logits[0, len(prompt) - 1 :]
        bound = 1e-4 * forced.abs().max()
        assert (recorder.of(index) - forced).abs().max() < bound
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)


@pytest.mark.parametrize("layout", ["slot", "mega"])
@pytest.mark.parametrize("variant", ["llama", "gemma2", "opt"])
def test_a_greedy_result_does_not_depend_on_the_batch(variant, layout):
    model, shuffle = model_of(variant), random.Random(0).sample
    with engine_for(model, slots=4, layout=layout, batch_invariant=True) as engine:
        alone = []
        for prompt in PROMPTS:
            recorder = Recorder()
            (one,) = engine.generate([prompt], max_new_tokens=12, logits_processors=recorder)
            alone.append((one.tokens, recorder.of(0)))
        for _ in range(2):
            order = shuffle(range(len(PROMPTS)), len(PROMPTS))
            recorder = Recorder()
            prompts = [PROMPTS[index] for index in order]
            found = engine.generate(prompts, max_new_tokens=12, logits_processors=recorder)
            for place, index in enumerate(order):
                assert found[place].tokens == alone[index][0]
                assert torch.equal(recorder.of(place), alone[index][1])


@pytest.mark.parametrize(
    ("batch_invariant", "passes"),
    [
        # The end of the first prompt and the second one fit into one pass.
        (False, [8, 8, 4 + 3, 8, 1, 7]),
        (True, [8, 8, 4, 3, 8, 1, 7]),
    ],
)
def test_shapes_and_addresses_of_the_steps(batch_invariant, passes):
    """Decode steps are all alike."""
    model = model_of()
    decoded, prefilled = set(), []

    def look(module, positional, inputs):
        shape = tuple(inputs["input_ids"].shape)
        if inputs["input_ids"].shape[0] == 3:
            tensors = inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"]
            decoded.add((shape, id(inputs["step"]), *(one.data_ptr() for one in tensors)))
        else:
            prefilled.append(shape[1])

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    with engine_for(model, batch_invariant=batch_invariant) as engine:
        engine.generate(prompts_of(20, 3, 9), max_new_tokens=[4, 9, 6])
        engine.generate(prompts_of(7), max_new_tokens=4)
    handle.remove()
    assert len(decoded) == 1
    assert prefilled == passes


def test_a_freed_slot_takes_the_next_prompt_at_once():
    model = model_of()
    with engine_for(model, slots=2, prefill_chunk=64) as engine:
        engine.generate(prompts_of(4, 4, 4, 4), max_new_tokens=[3, 9, 3, 3])
        # The second text takes 8 steps after its prompt; the others fit into the same steps. The
        # first two prompts are prefilled together.
        assert engine.stats.decode_steps == 8
        assert engine.stats.prefill_steps == 3


def test_a_text_ends_with_a_stop_token():
    model = model_of()
    free = stock(model, PROMPTS[0], 16)
    end = free[5]
    model.generation_config.eos_token_id = [end, 300]
    with engine_for(model) as engine:
        (found,) = engine.generate(PROMPTS[:1], max_new_tokens=16)
    assert found.tokens == stock(model, PROMPTS[0], 16) == free[: free.index(end) + 1]
    assert found.finish is Finish.stop
    assert found.text == TOKENIZER.decode(found.tokens[:-1], skip_special_tokens=True)


def test_text_is_handed_out_up_to_a_stop_string():
    model, calls = model_of(), []
    text = "né 😀 STOP and on"
    with engine_for(model) as engine:
        (found,) = engine.generate(
            ["Hello"],
            max_new_tokens=len(text.encode()),
            stop=["STOP", "absent"],
            on_token=lambda *call: calls.append(call),
            logits_processors=forcing(text),
        )
    assert found.text == "né 😀 "
    assert found.finish is Finish.stop_string
    assert found.prompt_tokens == 5
    assert found.tokens == TOKENIZER("né 😀 STOP")["input_ids"]
    assert calls[: len("né 😀 ".encode())] == [
        (0, token, delta)
        for token, delta in zip(
            found.tokens, ["n", "", "é", " ", "", "", "", "😀", " "], strict=False
        )
    ]
    assert [call[1] for call in calls] == found.tokens
    assert "".join(call[2] for call in calls) == found.text


def test_text_held_back_for_a_stop_string_comes_at_the_end():
    model, deltas = model_of(), []
    with engine_for(model) as engine:
        (found,) = engine.generate(
            ["x"],
            max_new_tokens=4,
            stop=["cde"],
            on_token=lambda index, token, delta: deltas.append(delta),
            logits_processors=forcing("abcd"),
        )
    assert deltas == ["a", "b", "", "cd"]
    assert (found.text, found.finish) == ("abcd", Finish.length)


def test_completions_say_when_their_tokens_came():
    model = model_of()
    with engine_for(model) as engine:
        found = engine.generate(PROMPTS, max_new_tokens=[1, 2, 3, 4, 5, 6])
    for count, one in enumerate(found, 1):
        assert len(one.tokens) == len(one.times) == one.steps == count
        assert one.times == sorted(one.times)
        assert one.preemptions == 0


def budget_for(rows: int) -> int:
    """Return the bytes of this many page rows of the tiny Llama, each with room for 32 tokens."""
    return rows * 6 * PAGE


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)], ids=str)
def test_a_small_budget_changes_nothing_but_the_order(sampling):
    model = model_of()
    prompts = prompts_of(20, 30, 10, 25, 40)

    def run(budget: int | None) -> tuple[Engine, list, list]:
        calls: list[tuple[int, int, str]] = []
        with engine_for(model, slots=4, budget=budget) as engine:
            found = engine.generate(
                prompts,
                max_new_tokens=30,
                sampling=sampling,
                on_token=lambda *call: calls.append(call),
            )
            assert engine.kv.stats().live == 0
            assert budget is None or engine.kv.stats().peak_committed <= budget
        return engine, found, calls

    _, expected, _ = run(None)
    engine, found, calls = run(budget_for(4))
    assert [(one.tokens, one.text) for one in found] == [(one.tokens, one.text) for one in expected]
    assert engine.stats.preemptions == sum(one.preemptions for one in found) > 0
    assert engine.stats.recomputed > engine.stats.diverged == 0
    assert found[0].preemptions == 0
    for index, one in enumerate(found):
        mine = [call[1:] for call in calls if call[0] == index]
        assert [token for token, _ in mine] == one.tokens
        assert "".join(delta for _, delta in mine) == one.text
        assert one.times == sorted(one.times)


def test_a_text_ends_where_its_memory_does():
    model = model_of()
    with engine_for(model, budget=budget_for(2)) as engine:
        assert engine.capacity == 64
        found = engine.generate(prompts_of(60, 40, 63), max_new_tokens=100)
    assert [len(one.tokens) for one in found] == [4, 24, 1]
    assert all(one.finish is Finish.capacity for one in found)
    with engine_for(model, max_len=24) as engine:
        found = engine.generate(prompts_of(20, 20), max_new_tokens=[100, 4])
    assert [len(one.tokens) for one in found] == [4, 4]
    assert [one.finish for one in found] == [Finish.capacity, Finish.length]


class Interruption(BaseException):
    """Stands in for Ctrl-C."""


@pytest.mark.parametrize("after", [1, 7])
def test_after_an_interruption_all_slots_are_free(after):
    model = model_of()
    count = 0

    def interrupt(index: int, token: int, delta: str) -> None:
        nonlocal count
        count += 1
        if count == after:
            raise Interruption

    with engine_for(model) as engine:
        with pytest.raises(Interruption):
            engine.generate(PROMPTS, max_new_tokens=8, on_token=interrupt)
        assert engine.kv.stats().live == 0
        slots = [engine.kv.acquire() for _ in range(3)]
        for slot in slots:
            engine.kv.release(slot)
        found = engine.generate(PROMPTS, max_new_tokens=8)
    assert [one.tokens for one in found] == [stock(model, prompt, 8) for prompt in PROMPTS]


def test_the_model_belongs_to_the_engine_only_within_the_block():
    model = model_of("gemma2")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor(PROMPTS[:1])
    before, logits = model.config._attn_implementation, model(ids).logits
    engine = engine_for(model)
    for _ in range(2):  # it can be entered again
        with engine:
            engine.generate(PROMPTS[:1], max_new_tokens=2)
            with pytest.raises(TrimtabError, match=r"call engine\.generate"):
                model(ids)
            with pytest.raises(RuntimeError, match="running already"):
                engine.__enter__()
            assert engine.kv.stats().committed > 0
        assert model.config._attn_implementation == before
        assert torch.equal(model(ids).logits, logits)
    assert all(torch.equal(weights[name], one) for name, one in model.state_dict().items())
    with pytest.raises(RuntimeError, match="use it in a `with`"):
        engine.generate(PROMPTS, max_new_tokens=2)


def test_a_failure_within_the_block_is_undone_too():
    model = model_of()
    before = model.config._attn_implementation
    with pytest.raises(Interruption), engine_for(model):
        raise Interruption
    assert model.config._attn_implementation == before


def test_prompts_may_be_texts_and_progress_is_shown(capsys):
    model = model_of()
    with engine_for(model) as engine:
        texts = engine.generate(["Hello", "there"], max_new_tokens=4, progress=True)
        ids = engine.generate(
            [TOKENIZER(text)["input_ids"] for text in ("Hello", "there")], max_new_tokens=4
        )
        assert engine.generate([], max_new_tokens=4) == []
    assert [one.tokens for one in texts] == [one.tokens for one in ids]
    shown = capsys.readouterr()
    assert "Generating" in shown.err
    assert shown.out == ""


def test_text_is_decoded_by_the_output_tokenizer():
    class Shouting(type(TOKENIZER)):
        def decode(self, ids, **settings):
            return super().decode(ids, **settings).upper()

    output = Shouting(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="</s>")
    with engine_for(model_of(), output_tokenizer=output) as engine:
        (found,) = engine.generate(["x"], max_new_tokens=3, logits_processors=forcing("abc"))
    assert found.text == "ABC"


@pytest.mark.parametrize("variant", ["llama", "gemma2", "mistral, window", "gpt2"])
def test_the_logits_of_a_given_text_are_the_models(variant):
    model = model_of(variant)
    prompt, text = prompts_of(19, 23)
    expected = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
    with engine_for(model, slots=2) as engine:
        found = engine.logits(prompt, text)
        assert_equal(found, expected)
        assert_equal(engine.logits(prompt, text[:1]), expected[:1])
        assert engine.kv.stats().live == 0
        for one, other in (([], text), (prompt, []), (prompt * 6, text)):
            with pytest.raises(TrimtabError, match="129 at most"):
                engine.logits(one, other)
        # The longest that fits: the last of 129 tokens is not an input.
        assert len(engine.logits([1], [2] * 128)) == 128


def test_a_text_is_the_same_beside_any_number_of_others():
    model, prompts = model_of("llama", DType.bfloat16), prompts_of(*range(3, 37))
    with engine_for(model, slots=1) as engine:
        alone = [one.tokens for one in engine.generate(prompts, max_new_tokens=12)]
    with engine_for(model, slots=len(prompts)) as engine:
        together = [one.tokens for one in engine.generate(prompts, max_new_tokens=12)]
        assert engine.decode_step.startswith("C++")
    assert together == alone
