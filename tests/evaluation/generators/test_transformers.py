import copy
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tests.conftest import tiny
from trimtab.evaluation.cache_memory import CacheKind
from trimtab.evaluation.generators import EngineGenerator, Generator, TransformersGenerator
from trimtab.evaluation.generators.generator import ForcedContinuations
from trimtab.evaluation.generators.transformers import transformers_cache
from trimtab.evaluation.serving import requests_of
from trimtab.evaluation.timing import Timing
from trimtab.evaluation.workload import Prompt
from trimtab.generation import Engine
from trimtab.generation.transformers import set_aside

PROMPT = Prompt("d", "a prompt of text", " and what follows")
TOKEN_BYTES = 3 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, float32


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-qwen3", "tiny-gpt2"])
def test_teacher_forcing_feeds_the_model_exactly_the_given_text(name):
    loaded = tiny(name)
    model, tokenizer = loaded.model, loaded.tokenizer
    fed = []
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: fed.extend(inputs[0][0].tolist())
    )
    timing = TransformersGenerator(model, tokenizer).teacher_forced(PROMPT)
    handle.remove()
    # The last token is handed out and never fed.
    assert tokenizer.decode(fed) == (PROMPT.text + PROMPT.continuation)[:-1]
    assert (timing.prompt_tokens, timing.new_tokens, sum(timing.step_tokens)) == (16, 17, 17)
    assert (timing.prompt_size, timing.size) == (16, 17)


@pytest.mark.parametrize("size", [1, 5])
def test_a_text_is_scored_after_its_context(tiny_llama, size):
    model, ids = tiny_llama.model, tiny_llama.tokenizer(PROMPT.text)["input_ids"]
    context, text = ids[:-size], ids[-size:]
    found = TransformersGenerator(model, tiny_llama.tokenizer).logits(context, text)
    torch.testing.assert_close(found, model(torch.tensor([ids])).logits[0, -size - 1 : -1])


def test_the_times_of_a_teacher_forced_text_add_up(tiny_llama):
    generator = TransformersGenerator(tiny_llama.model, tiny_llama.tokenizer)
    timing = generator.teacher_forced(PROMPT)
    assert len(timing.gaps) == timing.new_tokens - 1
    assert timing.first > 0
    assert min(timing.gaps) > 0
    assert timing.first + sum(timing.gaps) <= timing.total


def test_a_prompt_that_begins_with_the_start_token_gets_no_second(tiny_llama):
    model, tokenizer = tiny_llama.model, copy.deepcopy(tiny_llama.tokenizer)
    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    chat = Prompt("d", start + PROMPT.text, PROMPT.continuation)
    assert len(requests_of([chat], tokenizer, tokenizer)[0].prompt) == 17
    memory = transformers_cache(model, tokenizer, chat, 2, CacheKind.dynamic)
    assert memory.live == (17 + 2 - 1) * TOKEN_BYTES

    def require_one(generator: Generator) -> None:
        assert generator.teacher_forced(chat).prompt_tokens == 17
        assert generator.greedy(chat, 4) == generator.greedy(PROMPT, 4)

    require_one(TransformersGenerator(model, tokenizer))
    with Engine(model, tokenizer, slots=1, max_len=64) as running:
        require_one(EngineGenerator(running, model, tokenizer, tokenizer))


@pytest.mark.parametrize("engine", [False, True])
def test_a_text_that_holds_stop_tokens_is_timed_to_its_end(tiny_llama, engine):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    model.generation_config.eos_token_id = [*tokenizer(" \nand")["input_ids"], -1]
    generator = TransformersGenerator(model, tokenizer)
    if not engine:
        timing = generator.teacher_forced(PROMPT)
        memory = transformers_cache(model, tokenizer, PROMPT, 17, CacheKind.dynamic)
        assert memory.live == timing.live_bytes == (16 + 17 - 1) * TOKEN_BYTES
        chosen = generator.greedy(PROMPT, 17)
        assert len(tokenizer(chosen)["input_ids"]) <= 17
        assert not set(chosen) & set(" \nand")
    else:
        with Engine(model, tokenizer, slots=1, max_len=64) as running:
            timing = EngineGenerator(running, model, tokenizer, tokenizer).teacher_forced(PROMPT)
    assert sum(timing.step_tokens) == timing.new_tokens == 17
    assert len(timing.gaps) == 16


def test_every_row_goes_on_as_given_and_after_the_longest_anything_may_come():
    forced, scores = ForcedContinuations(2, [[5, 6], [7]], torch.device("cpu")), torch.rand(2, 9)
    for length, tokens in ((2, [5, 7]), (3, [6, 7])):
        chosen = forced(torch.zeros(2, length, dtype=torch.int64), scores.clone())
        assert chosen.argmax(-1).tolist() == tokens
    after = forced(torch.zeros(2, 4, dtype=torch.int64), scores.clone())
    assert torch.equal(after, scores)


def test_a_step_takes_the_time_between_two_calls_and_a_token_its_share():
    timing = Timing(0.5, [0.2, 0.9], [2, 1, 3], 1.7, 4, 6, 4, 6, 0, 0, 0)
    assert timing.steps == 3
    assert timing.token_times == pytest.approx([0.2, 0.3, 0.3, 0.3])


def test_what_a_checkpoint_asks_of_generate_is_set_aside(tiny_llama):
    """The engine has none of it, and both contenders run under the same settings."""
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    prompt = Prompt("d", "abcdefgh abcd", "efgX abcdefgh abcdef")
    plain = TransformersGenerator(model, tokenizer).greedy(prompt, 12)
    own = model.generation_config
    own.prompt_lookup_num_tokens, own.max_time, own.suppress_tokens = 9, 0.0, [97, 98]
    timing = TransformersGenerator(model, tokenizer).teacher_forced(prompt)
    assert timing.steps == timing.new_tokens == sum(timing.step_tokens) == 20
    assert TransformersGenerator(model, tokenizer).greedy(prompt, 12) == plain
    assert model.generation_config is own


def test_what_is_set_aside_is_json_that_any_reader_takes(tiny_llama):
    own = tiny_llama.model.generation_config
    own.max_time, own.temperature, own.sequence_bias = math.inf, math.nan, [[[5], -math.inf]]
    asked = {"max_time": "Infinity", "temperature": "NaN", "sequence_bias": [[[5], "-Infinity"]]}
    assert set_aside(tiny_llama.model) == asked


def test_greedy_text_is_what_the_largest_logits_spell(tiny_llama):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    ids = tokenizer(PROMPT.text)["input_ids"]
    prompt_tokens = len(ids)
    for _ in range(6):
        logits = model(torch.tensor([ids])).logits[0, -1]
        logits[tokenizer.eos_token_id] = -torch.inf  # the length is fixed
        ids.append(int(logits.argmax()))
    found = TransformersGenerator(model, tokenizer).greedy(PROMPT, 6)
    assert found == tokenizer.decode(ids[prompt_tokens:], skip_special_tokens=True)
