import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from trimtab.config import GenerationConfig, MeasureConfig, QualityConfig
from trimtab.corpora import Document
from trimtab.errors import MisfitError, TrimtabError
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.compression import Compression, compression_windows
from trimtab.evaluation.metrics.out_of_domain import OutOfDomain, source_windows
from trimtab.evaluation.result import Result
from trimtab.evaluation.workload import prompts, quality_windows


@given(st.text(min_size=400, max_size=1500), st.integers(0, 60))
@settings(max_examples=60)
def test_windows_are_pieces_of_the_text_cut_at_characters(text, context_bytes):
    config = QualityConfig(windows=2, window_bytes=64, context_bytes=context_bytes)
    for window in quality_windows([Document("d", text)], config):
        assert window.context + window.text in text
        assert len((window.context + window.text).encode()) <= 64
        assert len(window.context.encode()) <= context_bytes
        assert window.scored_bytes == len(window.text.encode()) > 0


def test_windows_cover_the_document_without_overlap():
    text = "".join(chr(ord("a") + n % 26) for n in range(64 * 5))
    config = QualityConfig(windows=5, window_bytes=64, context_bytes=16)
    windows = quality_windows([Document("d", text)], config)
    assert "".join(window.context + window.text for window in windows) == text
    assert all(window.scored_bytes == 48 for window in windows)


def test_windows_are_spread_over_the_documents():
    documents = [Document(str(n), f"{n}" * 256) for n in range(8)]
    config = QualityConfig(windows=4, window_bytes=64, context_bytes=0)
    assert [window.document for window in quality_windows(documents, config)] == [
        "0",
        "2",
        "4",
        "6",
    ]


def test_too_little_text_is_an_error_with_both_numbers():
    config = QualityConfig(windows=9, window_bytes=64, context_bytes=0)
    with pytest.raises(TrimtabError, match="quality.windows=9: .* hold only 2"):
        quality_windows([Document("d", "x" * 128)], config)


def test_where_nothing_fits_the_lengths_are_named(tokenizer):
    documents = [Document("d", "x" * 1000)]
    config = QualityConfig(windows=2, window_bytes=10_000, context_bytes=0)
    with pytest.raises(TrimtabError, match=r"^quality.window_bytes=10000: no test document is lon"):
        quality_windows(documents, config)
    lengths = "generation.prompt_bytes=50 generation.new_tokens=10000"
    with pytest.raises(TrimtabError, match=f"^{lengths}: no test document is long enough"):
        prompts(
            documents, tokenizer, GenerationConfig(prompts=2, prompt_bytes=50, new_tokens=10_000)
        )


def test_no_window_is_without_text():
    config = QualityConfig(windows=2, window_bytes=64, context_bytes=60)
    documents = [Document("short", "x" * 40), Document("a", "x" * 64), Document("b", "x" * 64)]
    assert [window.document for window in quality_windows(documents, config)] == ["a", "b"]


def test_prompts_to_be_compressed_have_their_full_size():
    text = "".join(f"{n:05d} ñ" for n in range(400))
    config = QualityConfig(
        compression_windows=4, compression_context_bytes=300, compression_bytes=100
    )
    documents = [Document("short", text[:300]), Document("long", text)]
    windows = compression_windows(documents, config)
    assert [window.document for window in windows] == ["long"] * 4
    for window in windows:
        assert window.context + window.text in text
        assert 297 < len(window.context.encode()) <= 300
        assert 96 < window.scored_bytes <= 103
    config = replace(config, compression_windows=1000)
    assert len(compression_windows(documents, config)) == len(text.encode()) // 400
    assert compression_windows(documents[:1], config) == []


def test_prompts_to_be_compressed_that_are_too_long_name_both_their_settings(tokenizer):
    quality = {"compression_context_bytes": 64, "compression_bytes": 32, "compression_windows": 2}
    job = Job(
        [Document("d", "x" * 400)], tokenizer, LlamaConfig(max_position_embeddings=96),
        MeasureConfig(quality=QualityConfig(**quality)),
        known_weights=True, changes_vocabulary=True, paired=True,
    )  # fmt: skip
    settings = "quality.compression_context_bytes=64 quality.compression_bytes=32: a text has 97 "
    with pytest.raises(MisfitError, match=settings):
        Compression(job)


def test_text_of_another_domain_is_source_of_the_running_python():
    config = QualityConfig(window_bytes=512, context_bytes=64, out_of_domain_windows=5)
    windows = source_windows(config)
    assert len({window.document for window in windows}) == 5
    for window in windows:
        source = (Path(os.__file__).parent / window.document).read_text("utf-8")
        assert window.context + window.text in source
    config = replace(config, out_of_domain_windows=0)
    assert source_windows(config) == []


@pytest.mark.parametrize(
    ("files", "settings", "reason"),
    [
        (2, {"out_of_domain_windows": 0}, "quality.out_of_domain_windows=0"),
        (0, {}, "this Python comes without the source files"),
        (2, {"window_bytes": 10**6}, "quality.window_bytes=1000000: the source files of .* hold"),
    ],
)
def test_why_another_domain_is_not_measured_is_true(tmp_path, monkeypatch, files, settings, reason):
    for number in range(files):
        (tmp_path / f"{number}.py").write_text("x = 1\n" * 1000)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    quality = QualityConfig(**settings)
    metric = OutOfDomain(
        SimpleNamespace(  # type: ignore[arg-type]
            settings=SimpleNamespace(quality=quality, seed=0), require_positions=lambda *_: None
        )
    )
    result = Result()
    metric.summarise(result, None, None)  # type: ignore[arg-type]
    assert re.match(reason, result.reasons["quality.out_of_domain"])


def test_a_continuation_is_what_follows_and_has_the_tokens_asked_for(tokenizer):
    text = "".join(f"{n:05d} ñ" for n in range(400))
    config = GenerationConfig(prompts=2, prompt_bytes=50, new_tokens=10)
    for prompt in prompts([Document("d", text)], tokenizer, config):
        assert prompt.text + prompt.continuation in text
        # One token a byte; the last may bring the rest of its character along.
        assert 10 <= len(prompt.continuation.encode()) <= 11
