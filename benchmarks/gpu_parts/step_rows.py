"""The summary's lines of the part `steps`."""

from __future__ import annotations

from result_tables import with_interval

from gpu_parts.unit import NO_AIM, Options, Result, Row

DENSE, AGAIN = "dense", "dense, again"
MODEL_AIMED, DENSE_SHARE = "llama2-7b, 1 x", 0.8
SPEEDUPS = {"sparse 0.4": 1.3, "sparse 0.5": 1.5}


def step_rows(options: Options, place: str, contender: str, result: Result) -> list[Row]:
    """Return a line for the step that ran in turn with our dense one."""
    found = result["rows"]
    own = found[contender]
    told = [
        f"{with_interval(own['ms'], 3)} ms",
        f"{own['of_read_share']['estimate']:.0%} of the rate of reading",
    ]
    if contender != DENSE:
        told.append(f"{with_interval(own['speedup'], 3)} x {DENSE}")
    told.append(f"{AGAIN} {with_interval(found[AGAIN]['speedup'], 3)}")
    if profile := own["profile"]:
        told.append(f"{profile['kernels']} kernels busy {profile['busy_us'] / 1e3:.3f} ms")
    aim = NO_AIM
    if options.device == "cuda" and place.startswith(MODEL_AIMED):
        if contender == DENSE:
            aim = f"at least {DENSE_SHARE:.0%} of the rate of reading"
        elif contender in SPEEDUPS:
            aim = f"at least {SPEEDUPS[contender]:.2f} x {DENSE}"
    return [Row(f"step, {place}, {contender}", "; ".join(told), aim)]
