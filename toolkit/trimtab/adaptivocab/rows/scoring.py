"""What a model predicts over a text, in base tokens or in n-grams, and what it costs in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab import shards
from trimtab.adaptivocab.rows.extended import NewRows, extended
from trimtab.adaptivocab.rows.passages import Passage, with_start
from trimtab.corpus import encode, start_token
from trimtab.errors import TrimtabError
from trimtab.models.adapter import module_device, positions_of
from trimtab.models.facts import final_softcap
from trimtab.models.state import mend_not_finite


@dataclass(frozen=True)
class HiddenStates:
    """What a model's head reads over a text, and how likely that makes the text's tokens.

    Parameters
    ----------
    nats : Tensor
        Negative log-probability of every token, float64 of shape [tokens].
    hidden : Tensor
        The hidden state that each is predicted from, float32 of shape [tokens, width], on the
        host.
    """

    nats: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class ScoredText:
    """A text, and the base model's hidden states over it."""

    text: str
    states: HiddenStates


def score_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], what: str
) -> list[ScoredText]:
    """Run the base model over texts, with a progress bar that names them."""
    start = start_token(tokenizer)

    def run(text: str) -> dict[str, Tensor]:
        return vars(score(model, torch.tensor(encode(tokenizer, text)), start))

    found = shards.each(texts, run, f"Base model over {what}")
    return [ScoredText(text, HiddenStates(**one)) for text, one in zip(texts, found, strict=True)]


def score(
    model: PreTrainedModel, ids: Tensor, start: int | None, asked: Tensor | None = None
) -> HiddenStates:
    """Run a model over a text, see `predict`.

    Parameters
    ----------
    asked : Tensor, optional
        The tokens whose log-probability is taken, of the shape of `ids`; the text's own where
        None.
    """
    logits, hidden = predict(model, ids, start)
    targets = (ids if asked is None else asked).to(logits.device)
    nats = -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double()
    return HiddenStates(nats.cpu(), hidden.cpu())


@torch.no_grad()
def predict(model: PreTrainedModel, ids: Tensor, start: int | None) -> tuple[Tensor, Tensor]:
    """Return a model's logits for every token of a text, and the hidden states they come from.

    Parameters
    ----------
    ids : Tensor
        int64 of shape [tokens].
    start : int or None
        Token put before the text. Without one the first token is predicted from nothing: zeros.

    Returns
    -------
    logits : Tensor
        float32 of shape [tokens, vocabulary].
    hidden : Tensor
        What the head reads, float32 of shape [tokens, width].

    Raises
    ------
    TrimtabError
        If the hidden states are not finite.
    """
    head = model.get_output_embeddings()
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0]))
    text = with_start(ids, start)[None].to(module_device(model.get_input_embeddings()))
    try:
        found = model(input_ids=text, use_cache=False, **positions_of(model, text))
    finally:
        handle.remove()
    logits, hidden = found.logits[0].float(), seen[0].float()
    if not hidden.isfinite().all():
        raise TrimtabError(
            f"what {type(model).__name__} makes of the text in {model.dtype} is not finite: "
            f"{mend_not_finite(model)}"
        )
    if start is None:
        logits, hidden = (torch.cat([torch.zeros_like(x[:1]), x]) for x in (logits, hidden))
    return logits[:-1], hidden[:-1]


@torch.no_grad()
def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits, float32 of shape [tokens, vocabulary], that hidden states lead to."""
    head = model.get_output_embeddings()
    return capped(head(hidden.to(head.weight)).float(), final_softcap(model.config))


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return logits bent to stay within `softcap` on both sides; unchanged without one."""
    return logits if softcap is None else softcap * (logits / softcap).tanh()


@dataclass(frozen=True)
class ScoredPassages:
    """Passages as the extended model predicts them, beside the base model.

    Attributes
    ----------
    passages : list of Passage
    nats, base_nats : list of Tensor
        For each merged token, float64 of shape [merged tokens]: what it costs, and what its base
        tokens cost the base model together.
    output : bool
        Whether n-grams are predicted too, instead of only read. Where they are only read, the base
        head predicts the first base token of each merged one, and the other base tokens cost what
        they cost the base model.
    """

    passages: list[Passage]
    nats: list[Tensor]
    base_nats: list[Tensor]
    output: bool

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        rows: NewRows,
        passages: Sequence[Passage],
        texts: Sequence[ScoredText],
        start: int | None,
        *,
        output: bool,
    ) -> ScoredPassages:
        """Run the extended model over passages; `texts` are the same ones in base tokens."""

        def run(passage: Passage) -> dict[str, Tensor]:
            asked = passage.merged if output else passage.base[passage.starts]
            return {"nats": score(model, passage.merged, start, asked).nats}

        base = []
        with extended(model, rows, output=output):
            found = shards.each(passages, run, "Extended model over n-grams")
        nats = [one["nats"] for one in found]
        for number, (passage, text) in enumerate(zip(passages, texts, strict=True)):
            single = text.states.nats
            upto = torch.cat([single.new_zeros(1), single.cumsum(0)])
            base.append(upto[passage.ends] - upto[passage.starts])
            if not output:
                nats[number] += upto[passage.ends] - upto[passage.starts + 1]
        return cls(list(passages), nats, base, output)

    @property
    def saving(self) -> float:
        """Share of the base tokens saved."""
        merged = sum(len(passage.merged) for passage in self.passages)
        return 1 - merged / sum(len(passage.base) for passage in self.passages)

    @property
    def bits_per_byte(self) -> float:
        return self._bits_per_byte(self.nats)

    @property
    def base_bits_per_byte(self) -> float:
        return self._bits_per_byte(self.base_nats)

    def _bits_per_byte(self, nats: Sequence[Tensor]) -> float:
        size = sum(passage.size for passage in self.passages)
        return float(sum(part.sum() for part in nats)) / math.log(2) / size
