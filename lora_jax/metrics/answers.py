"""Whether generated answers are right: the share that equals the reference, as text or by its last number."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:\d{1,3}(?:,\d{3})+|\d{1,400})(?:\.\d{1,400})?")
_MARK = "####"  # GSM8K puts it before the answer


def exact_match(text: str, reference: str) -> bool:
    """Whether both texts have the same words; blanks around and between them do not count."""
    return text.split() == reference.split()


def last_number(text: str) -> Decimal | None:
    """The answer in a text, as GSM8K's (Cobbe et al. 2021) have it: the number behind `####`.

    Without such a mark it is the last number of the text; commas between thousands do not count.
    """
    _, mark, behind = text.rpartition(_MARK)
    found = _NUMBER.findall(behind if mark else text)
    if not found:
        return None
    try:
        return Decimal((found[0] if mark else found[-1]).replace(",", ""))
    except InvalidOperation:
        return None


def same_number(text: str, reference: str) -> bool:
    """Whether the answers of both texts are the same number, see `last_number`; 3 and 3.00 are."""
    number = last_number(text)
    return number is not None and number == last_number(reference)


METRICS: Mapping[str, Callable[[str, str], bool]] = {
    "exact_match": exact_match,
    "last_number": same_number,
}
