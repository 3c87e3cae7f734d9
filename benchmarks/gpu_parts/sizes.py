"""How large the measurements are: on a GPU, and on a CPU, where they only have to run."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_linear import COLD_BYTES


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples, bytes, and shapes.

    Parameters
    ----------
    models : tuple of str
        Names of shapes, measured unless others are asked for.
    samples : int
        Of everything that is timed in turn with others.
    read_bytes : int
        What is summed to find the rate at which memory is read.
    cold_bytes : int
        Weights that a product is timed on, at least: more than the caches hold.
    symmetric : tuple of int
        Widths of matrices whose eigenvectors are computed.
    blocks : (int, int)
        How many small matrices at once, and their width.
    attention : (int, int, int)
        Query heads, tokens and width of a head, for the library's attention.
    lengths : int
        How many lengths that attention is called with.
    calls : int
        Repetitions of what takes microseconds.
    sparsities : tuple of float
        Of products.
    step_sparsities : tuple of float
        Of decode steps.
    points : tuple of (int, int)
        Rows and context of decode steps.
    crossings : int
        Steps that begin a new page, at least.
    cache : (int, int, int, int)
        Layers, query heads, KV heads and width of a head of a KV cache that is measured alone.
    page_bytes : int
        Of a page of a cache.
    cache_lengths : tuple of int
        Tokens to which a cache has grown before more are appended.
    """

    models: tuple[str, ...]
    samples: int
    read_bytes: int
    cold_bytes: int
    symmetric: tuple[int, ...]
    blocks: tuple[int, int]
    attention: tuple[int, int, int]
    lengths: int
    calls: int
    sparsities: tuple[float, ...]
    step_sparsities: tuple[float, ...]
    points: tuple[tuple[int, int], ...]
    crossings: int
    cache: tuple[int, int, int, int]
    page_bytes: int
    cache_lengths: tuple[int, ...]


SIZES = {
    "cuda": Sizes(
        models=("llama-1b", "llama2-7b", "llama3-8b"),
        samples=30,
        read_bytes=2**32,
        cold_bytes=COLD_BYTES,
        symmetric=(2048, 4096),
        blocks=(32, 128),
        attention=(32, 2048, 128),
        lengths=20,
        calls=300,
        sparsities=(0.0, 0.25, 0.4, 0.5, 0.6),
        step_sparsities=(0.4, 0.5),
        points=((1, 512), (1, 4096), (8, 512)),
        crossings=20,
        cache=(32, 32, 8, 128),
        page_bytes=2**21,
        cache_lengths=(512, 2000, 8000),
    ),
    "cpu": Sizes(
        models=("tiny-llama",),
        samples=2,
        read_bytes=2**22,
        cold_bytes=1,
        symmetric=(32,),
        blocks=(2, 8),
        attention=(2, 64, 16),
        lengths=2,
        calls=3,
        sparsities=(0.0, 0.4),
        step_sparsities=(0.4,),
        points=((1, 24), (2, 24)),
        crossings=2,
        cache=(2, 4, 2, 16),
        page_bytes=2**12,
        cache_lengths=(30, 60),
    ),
}
