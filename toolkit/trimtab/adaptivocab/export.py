"""Write an adapted model as an ordinary Hugging Face folder.

    python -m trimtab.adaptivocab.export ARTIFACT OUT [--model FOLDER]

ARTIFACT is a folder that calibrate.py wrote; OUT must not exist. OUT then holds weights,
configuration and tokenizer, which AutoModelForCausalLM and AutoTokenizer load without this
package, and beside them vocabulary_map.json, {new id: [base ids]}, and the base model's own
tokenizer in base_tokenizer/, so that anyone can check that the new tokens stand for the base
tokens of the same text. The base model is read from where it was at calibration, or from FOLDER.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab.adaptivocab.method import AdaptiVocab
from trimtab.adaptivocab.rows.extended import extended
from trimtab.adaptivocab.settings import Mode
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.artifact import Artifact
from trimtab.errors import ArtifactError, ConfigError, TrimtabError
from trimtab.files import publishing, write_json
from trimtab.models.loading import LoadedModel, load_source

MAP, BASE_TOKENIZER = "vocabulary_map.json", "base_tokenizer"


def export(artifact: Artifact, loaded: LoadedModel, target: Path) -> None:
    """Write the model that `artifact` makes of `loaded` as the folder `target`, in one step.

    Raises
    ------
    ArtifactError
        If the artifact is of another method or model, or an ordinary folder cannot hold it.
    ConfigError
        If `target` exists.
    """
    vocabulary = _exportable(artifact)
    if loaded.fingerprint != artifact.key.model_fingerprint:
        raise ArtifactError(
            f"the artifact {artifact.key.digest} was calibrated on another model than "
            f"{loaded.name} ({loaded.fingerprint[:12]}, not "
            f"{artifact.key.model_fingerprint[:12]}): name the right one with --model"
        )
    if target.exists():
        raise ConfigError("OUT", target, "exists already: name a folder that does not")
    assert vocabulary.rows is not None
    assert vocabulary.tokenizer is not None
    merged = vocabulary.merged
    with publishing(target) as temporary:
        with extended(loaded.model, vocabulary.rows, output=True):
            loaded.model.save_pretrained(temporary)
        vocabulary.tokenizer.save_pretrained(temporary)
        _check_tokenizer(temporary, vocabulary.tokenizer)
        loaded.tokenizer.save_pretrained(temporary / BASE_TOKENIZER)
        ids = {
            merged.base_size + number: list(pieces) for number, pieces in enumerate(merged.pieces)
        }
        write_json(temporary / MAP, {str(token): pieces for token, pieces in ids.items()})


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ArtifactError` where others would tokenize otherwise.

    For some families `AutoTokenizer` builds a class of its own whatever the folder says, and that
    class splits texts by a pattern of its own.
    """
    found = AutoTokenizer.from_pretrained(folder)
    ours, theirs = (json.loads(one.backend_tokenizer.to_str()) for one in (tokenizer, found))
    names = [
        name for name in ("normalizer", "pre_tokenizer", "model") if ours[name] != theirs[name]
    ]
    if names:
        raise ArtifactError(
            f"AutoTokenizer reads the tokenizer.json of such a model as {type(found).__name__}, "
            f"which has {' and '.join(names)} of its own: n-grams would be lost. Use the artifact "
            "with this package"
        )


def _exportable(artifact: Artifact) -> Vocabulary:
    """Return the vocabulary of an artifact that an ordinary folder can hold."""
    if artifact.key.method != AdaptiVocab.name:
        raise ArtifactError(
            f"the artifact {artifact.key.digest} is one of {artifact.key.method}: only "
            f"{AdaptiVocab.name} makes a model that other programs can run"
        )
    vocabulary = Vocabulary.from_artifact(artifact)
    if vocabulary.rows is None:
        raise ArtifactError(
            f"the artifact {artifact.key.digest} merges no n-gram (it drafts, or its guard let "
            "none through): calibrate with max_bpb_increase=null or a larger one, and mode=full"
        )
    if artifact.key.config["mode"] == Mode.input:
        raise ArtifactError(
            f"the artifact {artifact.key.digest} has mode=input, where the head is smaller than "
            "the embedding, and a Hugging Face folder has one size for both: calibrate with "
            "mode=full"
        )
    if artifact.statistics["tokenizer_reason"]:
        raise ArtifactError(
            f"the tokenizer of {artifact.key.digest} cannot be written as a tokenizer.json: "
            f"{artifact.statistics['tokenizer_reason']}"
        )
    return vocabulary


def main(arguments: Sequence[str] | None = None) -> None:
    """Enter from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.adaptivocab.export",
        description="Write an adapted model as an ordinary Hugging Face folder.",
    )
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--model", help="folder of the base model, where it moved")
    options = parser.parse_args(arguments)
    try:
        artifact = Artifact.load(options.artifact)
        source = artifact.model["source"]
        if options.model:
            hub = {"kind": "HubModel", "name": options.model, "revision": None, "device_map": None}
            source = {"device": "cpu", "dtype": source["dtype"], **hub}
        _exportable(artifact)
        export(artifact, load_source(source), options.out)
    except TrimtabError as error:
        print(f"export: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    print(options.out)


if __name__ == "__main__":
    main()
