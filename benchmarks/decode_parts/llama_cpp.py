"""llama.cpp, through the package xllamacpp, on the weights of an embedded model."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

from decode_parts.continuation import Continuation, MissingError
from trimtab.models.embedded import PACKAGES, gguf_file

# By the type of the weights: the file's, the tensors', and the KV cache's, named as in xllamacpp.
KINDS = {
    "float32": (LlamaFileType.ALL_F32, GGMLQuantizationType.F32, "GGML_TYPE_F32"),
    "float16": (LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16, "GGML_TYPE_F16"),
    "bfloat16": (LlamaFileType.MOSTLY_BF16, GGMLQuantizationType.BF16, "GGML_TYPE_BF16"),
}
WITH = {"float32": ("float32",), "bfloat16": ("float16", "bfloat16")}  # by the others' dtype
DERIVED = ("GGUF.", "general.file_type", "general.quantization_version")


class LlamaCpp:
    """A server of llama.cpp within this process, on as many threads as PyTorch has.

    Parameters
    ----------
    model : str
        A key of `trimtab.models.embedded.PACKAGES`.
    kind : str
        Type of the weights, a key of `KINDS`. Keys and values are of the same type.
    folder : Path
        Where its file is written; it may be removed once this is made.
    context, new : int
        Tokens of a prompt, and of its continuation.

    Attributes
    ----------
    weight_bytes : int
        Of all tensors, each of which a step reads: the embedding is the head too.
    """

    def __init__(self, model: str, kind: str, folder: Path, context: int, new: int) -> None:
        import xllamacpp

        file_type, tensor_type, cache_type = KINDS[kind]
        path = folder / f"{kind}.gguf"
        with gguf_file(model) as source:
            self.weight_bytes = write_gguf(source, path, file_type, tensor_type)
        params: Any = xllamacpp.CommonParams()
        params.model.path = str(path)
        # The weights are memory of the process, like the others', and not pages of a file.
        params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
        params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, cache_type)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context + new, 1, 0
        params.fit_params = params.warmup = False
        params.cache_ram_mib = params.verbosity = 0
        for threads in (params.cpuparams, params.cpuparams_batch):
            threads.n_threads = torch.get_num_threads()
        self._server, self._new = xllamacpp.Server(params), new

    def __call__(self, ids: list[int]) -> Continuation:
        """Continue a prompt greedily.

        The time is by llama.cpp's own clock, which begins at the first new token as the others' do.
        """
        found = self._server.handle_completions(
            {
                "prompt": ids, "n_predict": self._new, "temperature": 0, "ignore_eos": True,
                "cache_prompt": False,
            }
        )  # fmt: skip
        timings = found["timings"]
        assert (timings["prompt_n"], timings["predicted_n"]) == (len(ids), self._new), timings
        text = found["choices"][0]["text"]
        return Continuation(timings["predicted_ms"], self._new - 1, self._new - 1, text)


def require_available(model: str) -> None:
    """Raise `MissingError` where llama.cpp cannot run a model."""
    if find_spec("xllamacpp") is None:
        raise MissingError("pip install xllamacpp")
    if model not in PACKAGES:
        raise MissingError(f"only {' and '.join(PACKAGES)} have a GGUF file to copy settings from")


def described() -> dict[str, str] | None:
    """Return the package's version and what of the processor it uses; None where there is none."""
    try:
        found = version("xllamacpp")
    except PackageNotFoundError:
        return None
    import xllamacpp

    system: Callable[[], str] = xllamacpp.get_system_info
    return {"xllamacpp": found, "system": system().strip()}


def write_gguf(
    source: Path, target: Path, file_type: LlamaFileType, tensor_type: GGMLQuantizationType
) -> int:
    """Write a GGUF file with its matrices in another type, and return the bytes of its tensors.

    Vectors stay as they are, as llama.cpp's own converter leaves them.
    """
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    writer.add_file_type(file_type)
    for name, field in reader.fields.items():
        if name.startswith(DERIVED) or name == "general.architecture":
            continue
        nested = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=nested)
    written = 0
    for tensor in reader.tensors:
        data = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor_type if data.ndim > 1 else GGMLQuantizationType.F32
        stored = quantize(data, kind)
        writer.add_tensor(tensor.name, stored, raw_dtype=kind)
        written += stored.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written
