"""The four places in a decoder layer where linear layers read activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SITE_TITLES = {
    "h1": "attention input",
    "h2": "attention output",
    "h3": "MLP input",
    "h4": "MLP activation",
}


@dataclass(frozen=True)
class Site:
    """Activations that some linear layers of a decoder layer read.

    Parameters
    ----------
    name : str
        ``h1`` to ``h4``, as in LaRoSA (arXiv 2507.01299, section 3).
    readers : tuple of str
        Names, within the decoder layer, of every linear layer that reads the activations.
    norm : str or None
        Name of the norm whose output the activations are, where `readers` alone read it: a
        transform can then be put between the two. None where no norm comes before the readers.
    """

    name: str
    readers: tuple[str, ...]
    norm: str | None = None

    @property
    def title(self) -> str:
        """What people call the site."""
        return SITE_TITLES[self.name]


class Sites(NamedTuple):
    """The sites of a decoder layer, in the order in which a forward pass reaches them.

    Attributes
    ----------
    attention_input : Site
        h1, what queries, keys and values are projected from.
    attention_output : Site
        h2, the mixed values of all heads, which the output projection reads.
    mlp_input : Site
        h3, what the first half of the MLP reads.
    mlp_activation : Site
        h4, what the second half of the MLP reads.
    """

    attention_input: Site
    attention_output: Site
    mlp_input: Site
    mlp_activation: Site

    @classmethod
    def of(
        cls,
        *,
        attention_norm: str,
        projections: tuple[str, ...],
        output: str,
        mlp_norm: str,
        mlp: tuple[str, ...],
        down: str,
    ) -> Sites:
        """Return the sites of a decoder layer from the names of its modules.

        Parameters
        ----------
        attention_norm, mlp_norm : str
            The norms whose outputs nothing but `projections` and `mlp` read.
        projections : tuple of str
            The linear layers that make queries, keys and values.
        output : str
            The output projection of the attention.
        mlp : tuple of str
            The linear layers of the first half of the MLP.
        down : str
            The linear layer of its second half.
        """
        return cls(
            Site("h1", projections, attention_norm),
            Site("h2", (output,)),
            Site("h3", mlp, mlp_norm),
            Site("h4", (down,)),
        )
