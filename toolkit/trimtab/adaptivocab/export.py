"""Write an adapted model as an ordinary Hugging Face folder.

    python -m trimtab.adaptivocab.export ARTIFACT OUT [--model FOLDER]

ARTIFACT is a folder that calibrate.py wrote; OUT must not exist, or be empty. OUT then holds
weights, configuration and tokenizer, which AutoModelForCausalLM and AutoTokenizer load without this
package, and beside them vocabulary_map.json, {new id: [base ids]}, and the base model's own
tokenizer in base_tokenizer/, so that anyone can check that the new tokens stand for the base
tokens of the same text. The base model is loaded from where it was at calibration, or from FOLDER.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from trimtab.adaptivocab.rows.extended import extended
from trimtab.adaptivocab.settings import AdaptiVocabSettings, Mode
from trimtab.adaptivocab.tokenizer.extender import with_settings_of
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.artifact import Artifact
from trimtab.errors import ArtifactError, ConfigError, MisfitError, TrimtabError, on_one_line
from trimtab.files import publishing, write_json
from trimtab.models.changes import lock_of
from trimtab.models.fingerprint import fingerprint
from trimtab.models.loading import load_source
from trimtab.models.saving import require_as_config, require_vacant, savable, save_config
from trimtab.models.view import generating_by
from trimtab.progress import answer, may_go_unread
from trimtab.settings import path_of

MAP, BASE_TOKENIZER = "vocabulary_map.json", "base_tokenizer"


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    artifact: Artifact,
    folder: Path,
) -> None:
    """Write the model that `artifact` makes of `model` as a new folder, in one step.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase or None
        The base tokenizer, saved beside the other where there is one.

    Raises
    ------
    MisfitError
        If the artifact makes no n-gram a token, or an ordinary folder cannot hold what it makes.
    ArtifactError
        If the artifact is of another method, model or tokenizer.
    TrimtabError
        If the folder holds something, or transformers cannot save the model's configuration.
    """
    vocabulary = _exportable(artifact, folder)
    artifact.require_model(fingerprint(model))
    require_as_config(model)
    if tokenizer is not None:
        artifact.require_tokenizer(tokenizer)
    _write(model, tokenizer, vocabulary, folder)


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: Vocabulary,
    folder: Path,
) -> None:
    assert vocabulary.rows is not None
    assert vocabulary.tokenizer is not None
    with lock_of(model), publishing(folder) as temporary:
        with extended(model, vocabulary.rows, output=True):
            _save(ordinary(model), temporary)
        if tokenizer is not None:
            with_settings_of(vocabulary.tokenizer, tokenizer)
        vocabulary.tokenizer.save_pretrained(temporary)
        _check_tokenizer(temporary, vocabulary.tokenizer)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary / BASE_TOKENIZER)
        ngrams = vocabulary.merged.by_id()
        write_json(temporary / MAP, {str(token): list(ngram) for token, ngram in ngrams.items()})


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Save a model as transformers does, also one without a configuration of its generation."""
    save_config(model, folder)  # says in one line what cannot be saved
    own = model.generation_config or GenerationConfig.from_model_config(model.config)
    with savable(model.config):
        generating_by(model, own).save_pretrained(folder)


def ordinary(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model in an architecture whose tokenizer.json `AutoTokenizer` leaves as it is.

    For Qwen2 it builds a class with a pre-tokenizer of its own, whatever the folder says. Such a
    model is a Llama whose attention has biases, that of the output zero. It shares the weights.
    """
    config = model.config
    if not isinstance(config, Qwen2Config) or config.use_sliding_window:
        return model
    described = config.to_dict() | {"attention_bias": True, "mlp_bias": False}
    for name in ("model_type", "architectures"):
        del described[name]
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig.from_dict(described))
    llama.generation_config = model.generation_config
    weights = model.state_dict()
    for name, tensor in llama.state_dict().items():
        if name not in weights:
            weights[name] = torch.zeros(tensor.shape, dtype=model.dtype, device=model.device)
    llama.load_state_dict(weights, assign=True)
    llama.tie_weights()
    return llama


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `MisfitError` where others would tokenize differently.

    For some families `AutoTokenizer` builds a class of its own whatever the folder says, and that
    class splits texts by a pattern of its own.
    """
    found = AutoTokenizer.from_pretrained(folder)
    ours, theirs = (json.loads(one.backend_tokenizer.to_str()) for one in (tokenizer, found))
    names = [
        name for name in ("normalizer", "pre_tokenizer", "model") if ours[name] != theirs[name]
    ]
    if names:
        raise MisfitError(
            f"AutoTokenizer loads the tokenizer.json of such a model as {type(found).__name__}, "
            f"which has {' and '.join(names)} of its own: n-grams would be lost. Use the artifact "
            "with this package"
        )


def _exportable(artifact: Artifact, folder: Path) -> Vocabulary:
    """Return the vocabulary of an artifact that an ordinary folder, yet to be made, can hold."""
    artifact.require_method(AdaptiVocabSettings.place)
    vocabulary = Vocabulary.from_artifact(artifact)
    if vocabulary.rows is None:
        reason = (
            "only drafts" if artifact.key.config["mode"] == Mode.draft
            else "found no n-gram within its quality budget"
        )  # fmt: skip
        raise MisfitError(
            f"the artifact {artifact.key.digest} {reason}, so the model it makes is the unmodified "
            "one: calibrate with mode=full and max_bpb_increase=null or a larger one"
        )
    if artifact.key.config["mode"] == Mode.input:
        raise MisfitError(
            f"the artifact {artifact.key.digest} has mode=input, where the head is smaller than "
            "the embedding, and a Hugging Face folder has one size for both: calibrate with "
            "mode=full"
        )
    if artifact.statistics["tokenizer_reason"]:
        raise MisfitError(
            f"the tokenizer of {artifact.key.digest} cannot be written as a tokenizer.json: "
            f"{artifact.statistics['tokenizer_reason']}"
        )
    require_vacant(folder)
    return vocabulary


def main(arguments: Sequence[str] | None = None) -> None:
    """Enter from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.adaptivocab.export",
        description="Write an adapted model as an ordinary Hugging Face folder.",
    )
    parser.add_argument(
        "artifact", metavar="ARTIFACT", type=path_of, help="folder that calibrate.py printed"
    )
    parser.add_argument(
        "out", metavar="OUT", type=path_of, help="folder to write, which holds nothing yet"
    )
    parser.add_argument("--model", help="folder of the base model, where it moved")
    with may_go_unread():
        _export(parser.parse_args(arguments))


def _export(options: argparse.Namespace) -> None:
    try:
        artifact = Artifact.load(options.artifact)
        vocabulary = _exportable(artifact, options.out)
        source = artifact.model.get("source")
        if options.model:
            hub = {"kind": "HubModel", "name": options.model, "revision": None, "device_map": None}
            source = {"device": "cpu", "dtype": artifact.model["dtype"], **hub}
        if source is None:
            raise ConfigError("--model", None, "is required, as the artifact does not say it")
        loaded = load_source(source)
        if loaded.fingerprint != artifact.key.model_fingerprint:
            raise ArtifactError(
                f"the artifact {artifact.key.digest} was calibrated on another model than "
                f"{loaded.name} ({loaded.fingerprint[:12]}, not "
                f"{artifact.key.model_fingerprint[:12]}): name the right one with --model"
            )
        artifact.require_tokenizer(loaded.tokenizer)
        _write(loaded.model, loaded.tokenizer, vocabulary, options.out)
    except (TrimtabError, OSError) as error:
        print(f"export: error: {on_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    answer(str(options.out))


if __name__ == "__main__":
    main()
