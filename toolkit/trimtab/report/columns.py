"""What a report shows of result.json: its columns and its charts, as data.

Those of one metric are in the metric; here are those of methods, and of several metrics.
"""

from __future__ import annotations

from itertools import chain

from trimtab.config import METRICS
from trimtab.evaluation.display import Chart, Column, Series
from trimtab.evaluation.metrics import metrics_of
from trimtab.evaluation.metrics.latency import DECODING_RATE, SPEEDUP, TEXT_RATE
from trimtab.evaluation.metrics.tokens import TOKENS

# Of what methods, and no metric, measured.
METHODS = (
    Column("dropped share", "sparsity.achieved", ".3f",
           "share of the activations that were dropped, each by the bytes of its weights, on the "
           "text that was scored; calibration aims it above the sparsity that was asked for by "
           "what transforms and basis changes read"),
    Column("bytes needed", "sparsity.bytes_fraction", ".3f",
           "weight bytes of the decoder blocks that the activations kept need, transforms counted, "
           "over dense, on the text that was scored: 1 minus the sparsity found there"),
)  # fmt: skip
METRIC_KINDS = metrics_of(METRICS)
MEASURED = (*chain.from_iterable(kind.columns for kind in METRIC_KINDS), *METHODS)
FIRST = "speed.speedup"  # what is in sight without scrolling, the verdict beside it
COLUMNS = tuple(sorted(MEASURED, key=lambda one: one.field != FIRST))

COMPRESSION = (
    Column("prompt tokens", "quality.compression.tokens.baseline", ""),
    Column("compressed", "quality.compression.tokens.candidate", ""),
    Column("bits per byte", "quality.compression.bits_per_byte.baseline", ".4f"),
    Column("compressed", "quality.compression.bits_per_byte.candidate", ".4f"),
    Column("prompt cut", "quality.compression.bits_per_byte.prompt_cut", ".4f"),
    Column("compressed - cut", "quality.compression.bits_per_byte.difference", "+.4f"),
)

# Of the rows of `serving.servers`.
SERVERS = (
    Column("requests", "requests", ""),
    Column("server", "server"),
    Column("requests/s", "requests_per_s", ".2f"),
    Column("tokens/s", "tokens_per_s", ".1f"),
    Column("texts/s", "texts_per_s", ".2f"),
    Column("first token p50, ms", "ttft_p50_ms", ".0f"),
    Column("first token p99, ms", "ttft_p99_ms", ".0f"),
    Column("KV held, MB", "kv_committed_bytes", ".1f", scale=1e-6),
    Column("KV wasted, MB", "kv_wasted_bytes", ".1f", scale=1e-6),
    Column("refused", "refused", ""),
)

KV_HELD = Series(
    "KV cache held for one text, MB", "kv.committed_bytes", ".1f", "less", "kv.dynamic_bytes",
    scale=1e-6, finding="Smallest KV cache for one text: {best}, {value} MB",
)  # fmt: skip
TEXT_TOKENS = Series(
    "tokens per text", "tokens.per_text.candidate", ",.1f", "less", "tokens.per_text.baseline"
)
TIME_SAVED = Series(
    "improvement: time saved per byte of text, %", "derived.time_saved", "+.0f", origin=0, scale=100
)
ROOFLINE = Series(
    "efficiency: memory bandwidth used while decoding, %", "speed.roofline_share.candidate", ".0f",
    beside="speed.roofline_share.baseline", scale=100,
)  # fmt: skip
COST = Series(
    "cost: hours per million bytes of text", "speed.ms_per_byte.candidate", ".3g", "less",
    "speed.ms_per_byte.baseline", scale=1000 / 3600,
)  # fmt: skip
WEIGHTS = Series(
    "weights", "memory.parameter_bytes.candidate", ",.1f", "less",
    "memory.parameter_bytes.baseline", scale=1e-6,
)  # fmt: skip
HEAD_COPY = Series("int8 copy of the head", "engine.head_copy_bytes", ",.1f", "less", scale=1e-6)
ONE_TEXT = Series(
    "KV cache, one text", "kv.committed_bytes", ",.1f", "less", "kv.dynamic_bytes", scale=1e-6
)
ONE_TEXT_IN_ALL = Series(
    "in all, one text", "derived.one_text_bytes.candidate", ",.1f", "less",
    "derived.one_text_bytes.baseline", scale=1e-6,
)  # fmt: skip
SERVED = Series(
    "KV cache, serving", "derived.serving_kv_bytes.candidate", ",.1f", "less",
    "derived.serving_kv_bytes.baseline", scale=1e-6,
)  # fmt: skip
SERVED_IN_ALL = Series(
    "in all, serving", "derived.serving_bytes.candidate", ",.1f", "less",
    "derived.serving_bytes.baseline", scale=1e-6,
)  # fmt: skip

CHARTS = (
    *chain.from_iterable(kind.charts for kind in METRIC_KINDS),
    Chart(
        "all_methods_kv_cache_comparison.png",
        "No stack holds a smaller KV cache for one text than transformers' dynamic cache",
        (
            KV_HELD,
            Series("live: what its tokens take, MB", "kv.live_bytes", ".1f", "less",
                   "kv.dynamic_bytes", scale=1e-6),
            Series("KV cache held while serving, MB", "derived.serving_kv_bytes.candidate", ".1f",
                   "less", "derived.serving_kv_bytes.baseline", scale=1e-6,
                   finding="Smallest KV cache while serving: {best}, {value} MB"),
        ),
    ),
)  # fmt: skip

MEMORY = (WEIGHTS, HEAD_COPY, ONE_TEXT, ONE_TEXT_IN_ALL, SERVED, SERVED_IN_ALL)
BESIDE = (SPEEDUP, TOKENS, TEXT_TOKENS, KV_HELD, TEXT_RATE, DECODING_RATE)
DASHBOARD = "all_methods_comprehensive_dashboard.png"
DASHBOARD_PANELS = (TOKENS, KV_HELD, DECODING_RATE, TIME_SAVED, SPEEDUP, ROOFLINE, COST)
