"""What is done to a model: a basis, a sparsity and a threshold for every site of every layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.larosa.allocation import Choice


@dataclass(frozen=True)
class SitePlan:
    """What is done at one site of one layer.

    Parameters
    ----------
    basis : str
        ``plain``, ``residual`` (the residual stream's) or ``transform`` (the site's own).
    sparsity : float
        Share of the activations to drop.
    threshold : float
        The magnitude below which this share lay during calibration.
    """

    basis: str
    sparsity: float
    threshold: float


@dataclass(frozen=True)
class Plan:
    """What is done to a model, as its artifact keeps it.

    Parameters
    ----------
    rotation_group : int
        How many layers share a rotation of the residual stream; 0 where it is not rotated.
    sites : dict of str to list of SitePlan
        By the site's name, one plan a layer.
    """

    rotation_group: int
    sites: dict[str, list[SitePlan]]

    @classmethod
    def of(cls, choices: Iterable[Choice], rotation_group: int) -> Plan:
        """Return the plan of choices that come layer by layer."""
        sites: dict[str, list[SitePlan]] = {}
        for choice in choices:
            option = choice.option
            sites.setdefault(option.site, []).append(
                SitePlan(option.basis, choice.sparsity, choice.threshold)
            )
        return cls(rotation_group, sites)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Plan:
        """Return the plan that `to_json` described."""
        sites = {name: [SitePlan(**part) for part in row] for name, row in content["sites"].items()}
        return cls(content["rotation_group"], sites)
