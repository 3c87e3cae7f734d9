"""What cannot be seen of a stack: a scenario's texts are too short, or the head is too large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trimtab.capabilities import SkipsBytes
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.pages import Pages
from trimtab.generation.executor import MOST_ROWS

LEAST_DECODING = 0.25  # share of the time
LARGE_HEAD = 1 / 3  # of the bytes that a decode step of the unmodified model reads


def unseen(
    scenario: str, setting: str, one: Contender, texts: Sequence[tuple[int, int]], decoding: float
) -> Iterator[str]:
    """Yield a sentence for every effect of a candidate's stack that a scenario cannot show.

    Parameters
    ----------
    scenario, setting : str
        Its name, and the section of the settings that make its texts longer.
    one : Contender
    texts : sequence of tuple of int
        Tokens of each prompt, and of what follows it.
    decoding : float
        Share of the unmodified model's time that is not prefill.
    """
    if not one.stack.members:
        return
    longest, news = max(map(sum, texts)), max(new for _, new in texts)
    if one.stack.cache is not None and longest <= (page := Pages.of(one, longest).tokens):
        yield (
            f"scenario {scenario}: no text is longer than a page of the KV cache, {page} tokens "
            f"(the longest has {longest}), so that it cannot save memory; raise "
            f"{setting}.prompt_bytes, or lower vattention.page_group"
        )
    if one.stack.drafter is not None and news < MOST_ROWS:
        yield (
            f"scenario {scenario}: texts of up to {news} tokens are shorter than a draft may be; "
            f"raise {setting}.new_tokens"
        )
    if decoding < LEAST_DECODING:
        yield (
            f"scenario {scenario}: {1 - decoding:.0%} of the unmodified model's time is prefill, "
            f"so that what the stack does for decoding hardly shows; raise {setting}.new_tokens"
        )


def held_back(one: Contender, step_bytes: Mapping[str, int], head_copy: int) -> Iterator[str]:
    """Yield a sentence if the head bounds what skipping the layers' weights can gain.

    Parameters
    ----------
    one : Contender
        The candidate.
    step_bytes : mapping of str to int
        What a decode step of each contender reads.
    head_copy : int
        Bytes of the int8 copy of the head, which a step of the candidate reads; 0 without one.
    """
    if not any(isinstance(member, SkipsBytes) for member in one.stack.members):
        return
    read = head_copy or one.model.get_output_embeddings().weight.nbytes
    share = read / step_bytes["baseline"]
    if share >= LARGE_HEAD:
        yield (
            f"a decode step of the stack reads all of the {'int8 copy of the ' * bool(head_copy)}"
            f"head, as many bytes as {share:.0%} of all that a step of the unmodified model reads: "
            "by the bytes that the two read, a step is at most "
            f"{step_bytes['baseline'] / step_bytes['candidate']:.2f} times as fast"
        )
