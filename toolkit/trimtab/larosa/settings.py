"""The configuration of LaRoSA."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from trimtab.settings import Settings, setting, settings

PLAIN, RESIDUAL, TRANSFORM = "plain", "residual", "transform"


class Count(StrEnum):
    """What the requested sparsity is a share of."""

    bytes = "bytes"
    nominal = "nominal"


class Basis(StrEnum):
    """What makes an axis a principal one."""

    fisher_pca = "fisher_pca"
    output_pca = "output_pca"
    pca = "pca"
    none = "none"


class Transforms(StrEnum):
    """Which sites after a norm get a transform of their own."""

    auto = "auto"
    all = "all"
    none = "none"


class Precision(StrEnum):
    """How the entries of a transform are stored."""

    int8 = "int8"
    model = "model"


class RotationScope(StrEnum):
    """Which layers or sites share a rotation of the residual stream."""

    none = "none"
    model = "model"
    group = "group"
    layer = "layer"
    site = "site"


class Allocation(StrEnum):
    """How sparsity is divided among sites and layers."""

    steepest = "steepest"
    alpha = "alpha"
    uniform = "uniform"
    auto = "auto"


class Selection(StrEnum):
    """How the activations to keep are chosen."""

    threshold = "threshold"
    topk = "topk"
    capped = "capped"
    auto = "auto"


class Prefill(StrEnum):
    """Whether the tokens of a prompt are sparse too."""

    sparse = "sparse"
    dense = "dense"


@settings
class LaRoSASettings(Settings):
    """The configuration of LaRoSA."""

    place: ClassVar[str] = "larosa"

    sparsity: float = setting(
        default=0.4,
        meaning="share of the block weights' bytes that a token does not read",
        at_least=0,
        below=1,
    )
    count: Count = setting(
        default=Count.bytes,
        meaning="bytes counts the reading of transforms and basis changes against the sparsity; "
        "nominal, the papers' convention, does not",
    )
    basis: Basis = setting(
        default=Basis.fisher_pca,
        meaning="what makes an axis a principal one; pca is the paper's, none rotates nothing",
    )
    transforms: Transforms = setting(
        default=Transforms.auto,
        meaning="which sites after a norm get a d x d transform; auto: those where it pays",
    )
    precision: Precision = setting(
        default=Precision.int8,
        meaning="how transforms are stored; the weights absorb the inverse of what is stored, so "
        "that int8 loses nothing",
    )
    residual: RotationScope = setting(
        default=RotationScope.none,
        meaning="which layers share a rotation of the residual stream, absorbed in the weights; "
        "site makes each layer's for its attention alone and gives the MLP a transform",
    )
    group: int = setting(
        default=5, meaning="layers in a group, for residual=group", at_least=1, unit="layers"
    )
    fold_values: bool = setting(
        default=True,
        meaning="rotate the values of every KV head, absorbed in the projections around attention",
    )
    fold_norms: bool = setting(
        default=False,
        meaning="weigh every entry by the norm of the weight row it multiplies (WINA's scores)",
    )
    allocation: Allocation = setting(
        default=Allocation.steepest,
        meaning="how sparsity is divided: steepest takes the step that costs least per byte, site "
        "by site; alpha is the paper's grid; uniform is one share for all; auto: steepest or "
        "uniform, whichever predicts validation text better",
    )
    selection: Selection = setting(
        default=Selection.threshold,
        meaning="what is kept: magnitudes from a calibrated threshold on; capped, the same with a "
        "bound per token; topk, the same count for every token; auto: threshold or topk, whichever "
        "predicts validation text better",
    )
    cap: float = setting(
        default=1.5,
        meaning="for selection=capped: the most entries a token keeps, over the average",
        at_least=1,
    )
    dense_prefix: int = setting(
        default=1, meaning="leading tokens of a text that drop nothing", at_least=0, unit="tokens"
    )
    prefill: Prefill = setting(
        default=Prefill.sparse, meaning="whether the tokens of a prompt are sparse too"
    )
    tokens: int = setting(
        default=16384, meaning="calibration tokens (at least one window)", unit="tokens"
    )
    window: int = setting(
        default=512, meaning="tokens in a calibration window", at_least=2, unit="tokens"
    )
    probe_tokens: int = setting(
        default=4096,
        meaning="calibration tokens used to measure gradients and costs (at least one window)",
        unit="tokens",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.tokens >= self.window, "tokens", "at least one window")
        self.require(self.dense_prefix < self.window, "dense_prefix", "less than larosa.window")
        self.require(self.probe_tokens >= self.window, "probe_tokens", "at least one window")
        if self.basis is Basis.none:
            rotates = self.residual is not RotationScope.none or self.transforms is Transforms.all
            expected = "a basis to rotate to, or residual=none transforms=none"
            self.require(not rotates, "basis", expected)
        self.require(
            self.allocation in (Allocation.steepest, Allocation.auto)
            or self.transforms is not Transforms.auto,
            "transforms",
            "all or none, unless allocation=steepest chooses",
        )
        self.require(
            self.residual is not RotationScope.site or self.transforms is not Transforms.none,
            "transforms",
            "all or auto with residual=site, whose MLPs have a rotation of their own",
        )
        if self.leaves_choice:
            for name in ("tokens", "probe_tokens"):
                expected = "at least two windows, for selection=auto and allocation=auto to compare"
                self.require(getattr(self, name) >= 2 * self.window, name, expected)

    @property
    def counts_transforms(self) -> bool:
        """Whether the sparsity has to make up for what transforms and basis changes read."""
        return self.count is Count.bytes

    @property
    def leaves_choice(self) -> bool:
        """Whether calibration is to choose a setting."""
        return self.selection is Selection.auto or self.allocation is Allocation.auto

    @property
    def uses_gradients(self) -> bool:
        """Whether sites are compared, or bases found, by what they do to the predictions."""
        return self.basis is Basis.fisher_pca or self.allocation is not Allocation.uniform

    def bases(self) -> list[str]:
        """Return the bases allowed at a site after a norm, the ones that cost nothing first."""
        free = PLAIN if self.residual is RotationScope.none else RESIDUAL
        if self.transforms is Transforms.none or self.basis is Basis.none:
            return [free]
        return [TRANSFORM] if self.transforms is Transforms.all else [free, TRANSFORM]
