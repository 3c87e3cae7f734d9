"""Save a sparse model as a folder of its own, and load it without the original's weights.

The folder has the files of a transformers model: configuration, tokenizer and safetensors. The
tensors are those of the sparse model, and ``trimtab.json`` says which modules they belong to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.artifact import Artifact
from trimtab.environment import package_versions
from trimtab.errors import ArtifactError, MisfitError
from trimtab.files import publishing, sha256_of_file, sha256_of_json, write_json
from trimtab.larosa.apply import sparsified
from trimtab.larosa.modules import SparseNorm
from trimtab.larosa.plan import Plan
from trimtab.larosa.rebuild import install, without_tensors
from trimtab.larosa.selection import Selectors
from trimtab.larosa.settings import LaRoSASettings
from trimtab.method import EXPORTED
from trimtab.models.adapter import adapter_for
from trimtab.models.changes import lock_of
from trimtab.models.fingerprint import fingerprint
from trimtab.models.load_errors import unusable_generation_config
from trimtab.models.refusals import refuse_to_save
from trimtab.models.saving import require_as_config, require_vacant, save_config
from trimtab.models.state import own_modes
from trimtab.progress import waiting

SCHEMA = 1
NAME = LaRoSASettings.place
CONFIG = "config.json"
SHARD_BYTES = 5 * 10**9
REPAIR = "copy the folder again, or export the artifact again"
# Where transformers would look for the weights. It does not make the modules that they belong to,
# and would put some of them to a wrong use.
NOT_FOR_TRANSFORMERS = "load_this_folder_with_trimtab.load_model.safetensors"


def export(
    settings: LaRoSASettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    artifact: Artifact,
    folder: Path,
) -> None:
    """Save `model` as LaRoSA makes it by `artifact`, see `LaRoSA.export`."""
    require_vacant(folder)
    artifact.require_model(fingerprint(model))
    _require_one_vocabulary(model)
    require_as_config(model, free=_of_readers(model))
    plan = Plan.from_json(artifact.parameters["plan"])
    selector = Selectors(plan, settings).selector
    with (
        lock_of(model),
        own_modes(),
        publishing(folder) as temporary,
        sparsified(model, plan, artifact.tensors, selector),
    ):
        _save_own_config(model, temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        tied = _save_tensors(model, temporary)
        files = [CONFIG, *sorted(path.name for path in temporary.glob("*.safetensors"))]
        content = {
            "schema": SCHEMA,
            "method": NAME,
            "artifact": artifact.key.digest,
            "settings": artifact.key.config | artifact.parameters.get("chosen", {}),
            "plan": artifact.parameters["plan"],
            "norms": _describe_norms(model),
            "tied": tied,
            "packages": package_versions(),
            "files_sha256": {name: sha256_of_file(temporary / name) for name in files},
        }
        write_json(temporary / EXPORTED, {**content, "content_sha256": sha256_of_json(content)})


def load_exported(folder: str | Path, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Load a model that `LaRoSA.export` saved: sparse for good, in evaluation mode.

    It computes what the original model does while the artifact is applied to it. Nothing of the
    original model is read.

    Parameters
    ----------
    folder : str or Path
    device : str or torch.device

    Raises
    ------
    ArtifactError
        If there is no such model in the folder, or it is incomplete, damaged, of another schema
        version or of an architecture that the installed transformers builds otherwise.
    """
    folder = Path(folder)
    description = _verified_description(folder)
    plan = Plan.from_json(description["plan"])
    settings = LaRoSASettings(**description["settings"])
    if unusable := unusable_generation_config(folder):
        raise ArtifactError(f"{folder}: {unusable}")
    with waiting(f"Loading {folder}"):
        model = without_tensors(folder)
        tensors: dict[str, Tensor] = {}
        for name in description["files_sha256"]:
            if name != CONFIG:
                tensors |= _read(folder / name, torch.device(device))
        try:
            install(
                model, tensors, description["norms"], description["tied"], Selectors(plan, settings)
            )
        except (KeyError, AttributeError) as error:
            raise ArtifactError(
                f"{folder}: the installed transformers builds {type(model).__name__} otherwise "
                f"than version {description['packages']['transformers']}, which saved it "
                f"({error.args[0]}): install that version, or export the artifact again"
            ) from error
        nn.Module.to(model.eval(), device)
        refuse_to_save(model, f"{folder}: transformers cannot save a sparse model: copy the folder")
        return model


def _of_readers(model: PreTrainedModel) -> list[str]:
    """Return the names of what sparse linear layers have, which they get as the folder has it."""
    adapter = adapter_for(model)
    return [
        f"{adapter.layers}.{index}.{name}.{own}"
        for index in range(len(adapter.decoder_layers(model)))
        for site in adapter.sites
        for name in site.readers
        for own in ("weight", "bias")
    ]


def _require_one_vocabulary(model: PreTrainedModel) -> None:
    """Raise `MisfitError` where a configuration cannot give the embedding's and the head's size."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(head, nn.Linear) and head.out_features != embedding.num_embeddings:
        raise MisfitError(
            f"the model's embedding has {embedding.num_embeddings} rows and its head "
            f"{head.out_features}, as "
            "adaptivocab.mode=input makes them, and the configuration of a Hugging Face folder has "
            "one size for both: export LaRoSA on the unmodified model or on mode=full"
        )


def _save_own_config(model: PreTrainedModel, folder: Path) -> None:
    save_config(model, folder)
    content = json.loads((folder / CONFIG).read_text("utf-8"))
    write_json(folder / CONFIG, {**content, "transformers_weights": NOT_FOR_TRANSFORMERS})


def _save_tensors(model: PreTrainedModel, folder: Path) -> dict[str, str]:
    """Write every tensor once, and return other names of those written by the ones they have."""
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in model.state_dict().items():
        known = first.setdefault((tensor.data_ptr(), tensor.shape), name)
        if known == name:
            state[name] = tensor
        else:
            tied[name] = known
    split = split_torch_state_dict_into_shards(state, max_shard_size=SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        shard = {name: state[name].contiguous().cpu() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    return tied


def _describe_norms(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    return {
        name: {"rms": isinstance(module.norm, nn.RMSNorm), "epsilon": module.norm.eps}
        for name, module in model.named_modules()
        if isinstance(module, SparseNorm)
    }


def _verified_description(folder: Path) -> dict[str, Any]:
    path = folder / EXPORTED
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: there is no {EXPORTED}; expected a folder that an artifact was exported to"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        expected = content.pop("content_sha256")
        actual = sha256_of_json(content)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _damaged(path) from error
    if (content.get("schema"), content.get("method")) != (SCHEMA, NAME):
        raise ArtifactError(
            f"{path}: schema version {content.get('schema')} of {content.get('method')}; this "
            f"version reads {SCHEMA} of {NAME}: export the artifact again"
        )
    if actual != expected:
        raise _damaged(path)
    for name, digest in content["files_sha256"].items():
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name} is missing: {REPAIR}")
        if sha256_of_file(folder / name) != digest:
            raise _damaged(folder / name)
    return dict(content)


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} is damaged, truncated or edited since it was written: {REPAIR}")


def _read(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of a file; on the host in memory of their own, not mapped from it."""
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise _damaged(path) from error
    if device.type == "cpu":
        return {name: tensor.clone() for name, tensor in tensors.items()}
    return tensors
