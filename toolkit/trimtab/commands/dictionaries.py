"""Settings that are given together as a dictionary: each by itself, as labels and reports tell."""

from __future__ import annotations

from dataclasses import replace

from hydra.errors import HydraException

from trimtab.commands.parsing import choices, key_of, parsed
from trimtab.commands.texts import as_typed
from trimtab.errors import TrimtabError
from trimtab.registry import SECTIONS, method_names


def one_by_one(argument: str) -> list[str]:
    """Return the settings of a method or a section, an argument each; any other argument as it is.

    Raises
    ------
    TrimtabError
        If several dictionaries are swept over.
    """
    key = key_of(argument)
    if key is None or (key not in SECTIONS and key.removeprefix("methods.") not in method_names()):
        return [argument]
    place, _, value = argument.partition("=")
    try:
        (override,) = parsed([f"{place}={as_typed(key, value)}"])
    except HydraException:  # a text, see `trimtab.commands.texts`
        return [argument]
    swept = choices(override) if override.is_choice_sweep() else []
    found = parsed([f"{key}={one}" for one in swept]) or [override]
    values: dict[str, list[str]] = {}
    for one in found:
        if not isinstance(settings := one.value(), dict):
            return [argument]
        for name, value in settings.items():
            text = replace(one, _value=value).get_value_element_as_str()
            values.setdefault(str(name), []).append(text)
    each = [f"{place}.{name}={','.join(dict.fromkeys(texts))}" for name, texts in values.items()]
    if len(found) > 1:
        raise TrimtabError(
            f"{argument}: name the values of each setting by itself: {' '.join(each)}"
        )
    return each
