"""One evaluation: a stack of methods against the unmodified model, as one result."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from trimtab.artifact import Artifact
from trimtab.calibration import calibrate, find
from trimtab.config import EvaluateConfig, OnMissing
from trimtab.corpora import CorpusSource
from trimtab.corpus import Corpus, Split, load_corpus
from trimtab.environment import describe_environment, peak_host_bytes, prepare
from trimtab.errors import ArtifactError
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.measure import collect, measure_caches, measure_prompt_cut
from trimtab.evaluation.memory import copy_bandwidth, require_room_for_copy
from trimtab.evaluation.results.cache import engine_section, kv_section
from trimtab.evaluation.results.quality import quality_section
from trimtab.evaluation.results.result import Result
from trimtab.evaluation.results.samples import samples_section
from trimtab.evaluation.results.speed import speed_section
from trimtab.evaluation.results.tokens import tokens_section
from trimtab.evaluation.workload import (
    Workload,
    compression_windows,
    marginal_likelihood_windows,
    out_of_domain_windows,
    prompts,
    quality_windows,
)
from trimtab.method import Method
from trimtab.models.fingerprint import fingerprint
from trimtab.models.loading import LoadedModel, load_model
from trimtab.models.sources import ModelSource
from trimtab.progress import say
from trimtab.registry import build
from trimtab.stack import AppliedStack, Stack

SCHEMA = 3

ABSENT = {
    "gpu": "no CUDA device",
    "driver": "no CUDA device",
    "cuda": "no CUDA device",
    "commit": "not run from a git checkout",
}


def evaluate(config: EvaluateConfig, label: str) -> dict[str, Any]:
    """Measure what `config` describes and return the content of result.json.

    Parameters
    ----------
    label : str
        What tells this job from the others of a sweep.

    Raises
    ------
    TrimtabError
        If the model, the corpus, an artifact or the stack cannot be had or do not fit.
    """
    stack = Stack(build(node, Method) for node in config.methods.values())
    prepare(config.seed, config.threads)
    corpus = load_corpus(build(config.corpus, CorpusSource))
    documents = corpus.documents(Split.test)
    loaded = load_model(build(config.model, ModelSource))
    stack.check(loaded.model)
    artifacts = _artifacts(config, stack, loaded, corpus)
    compression = compression_windows(documents, config.quality)
    work = Workload(
        quality_windows(documents, config.quality),
        prompts(documents, loaded.tokenizer, config.generation),
        compression,
        out_of_domain_windows(config.quality),
        marginal_likelihood_windows(compression, config.quality),
    )
    baseline = Contender("baseline", loaded.model, loaded.tokenizer)
    quality = not loaded.random_weights
    if config.paired:
        require_room_for_copy(loaded.model)
        candidate_model = copy.deepcopy(loaded.model)
    else:
        candidate_model = loaded.model
        collect([baseline], work, config, quality)
    with stack.apply(candidate_model, loaded.tokenizer, artifacts, loaded.fingerprint) as applied:
        say(f"Stack: {', '.join(stack.names) or 'none'}; kernel: {applied.kernel}")
        candidate = Contender("candidate", candidate_model, loaded.tokenizer, applied)
        collect([baseline, candidate] if config.paired else [candidate], work, config, quality)
        measured = applied.measured()
        measure_caches(candidate, candidate, work)
    measure_caches(baseline, candidate, work)
    if candidate.quality.compression:
        measure_prompt_cut(baseline, candidate, work)

    result = Result()
    result.sections |= {
        "schema": SCHEMA,
        "status": "ok",
        "label": label,
        "methods": stack.names,
        "artifacts": {name: artifact.key.digest for name, artifact in artifacts.items()},
        "model": {
            "name": loaded.name,
            "architecture": type(loaded.model).__name__,
            "fingerprint": loaded.fingerprint,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "parameters": baseline.speed.parameters,
        },
        "corpus": {"name": corpus.name, "digest": corpus.digest, "documents": len(documents)},
        "kernel": applied.kernel,
        "device": str(loaded.model.device),
    }
    quality_section(
        result, baseline, candidate, config.quality, known_weights=quality, seed=config.seed
    )
    tokens_section(result, baseline, candidate)
    kv_section(result, baseline, candidate)
    speed_section(
        result,
        baseline,
        candidate,
        paired=config.paired,
        bandwidth=copy_bandwidth(loaded.model.device),
        seed=config.seed,
    )
    engine_section(result, candidate)
    result.add(measured)
    if "sparsity" not in measured:
        result.missing("sparsity", "no method of the stack drops activations")
    _memory_section(result, baseline, candidate, loaded.model.device)
    result.missing("energy", "this version reads no energy counter")
    environment_section(result, config.seed)
    samples_section(result, baseline, candidate, work)
    return {**result.sections, "reasons": result.reasons}


def _memory_section(
    result: Result, baseline: Contender, candidate: Contender, device: torch.device
) -> None:
    result.sections["memory"] = {
        "peak_host_bytes": peak_host_bytes(),
        "parameter_bytes": {one.name: one.speed.parameter_bytes for one in (baseline, candidate)},
    }
    if device.type == "cuda":
        result.sections["memory"]["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    else:
        result.missing("memory.peak_device_bytes", "the model ran on the CPU")


def environment_section(result: Result, seed: int) -> None:
    """Fill `environment`; what the machine does not have is None, with a reason."""
    result.sections["environment"] = environment = describe_environment(seed)
    for name, value in environment.items():
        if value is None:
            result.missing(f"environment.{name}", ABSENT[name])
    for name, value in environment["packages"].items():
        if value is None:
            result.missing(f"environment.packages.{name}", "not installed")


def _artifacts(
    config: EvaluateConfig, stack: Stack, loaded: LoadedModel, corpus: Corpus
) -> dict[str, Artifact]:
    """Return the stack's artifacts, each of the model as the methods before leave it.

    What adapts to a text's activations has to see them in the tokens that will be read.
    """
    found: dict[str, Artifact] = {}
    calibrated = [method for method in stack.methods if method.calibrated]
    adapted, applied = loaded, AppliedStack(loaded.tokenizer, loaded.tokenizer)
    with ExitStack() as undo:
        for method in calibrated:
            if config.on_missing is OnMissing.calibrate:
                artifact, _ = calibrate(adapted, method, corpus, config.artifacts)
            elif adapted is loaded:
                artifact = find(loaded, method, corpus, config.artifacts)
            else:
                artifact = _find_adapted(adapted, method, corpus, config.artifacts, list(found))
            found[method.name] = artifact
            if method is not calibrated[-1]:
                part = method.apply(loaded.model, applied.tokenizer, artifact)
                applied.add(undo.enter_context(part))
                if (changed := fingerprint(loaded.model)) != adapted.fingerprint:
                    adapted = replace(adapted, tokenizer=applied.tokenizer, fingerprint=changed)
    return found


def _find_adapted(
    adapted: LoadedModel, method: Method, corpus: Corpus, root: str, before: list[str]
) -> Artifact:
    """Return an artifact that only an evaluation of the stack can make, where it has been made."""
    if not method.key(adapted.fingerprint, corpus).folder(root, adapted.name).exists():
        raise ArtifactError(
            f"no artifact of {method.name} on top of {', '.join(before)} for {adapted.name} on "
            f"{corpus.name}: it is calibrated on the model that they make: add on_missing=calibrate"
        )
    return find(adapted, method, corpus, root)
