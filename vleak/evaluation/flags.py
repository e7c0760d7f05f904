"""Health flags that only a look at other cells of the run can raise."""

from __future__ import annotations

from typing import Any

from vleak.attacks import NULL_ATTACKS

NO_BETTER = "no better than the prior"
FAILS_UNDEFENDED = "fails even undefended"
BEATS_UNDEFENDED = "leaks more than undefended"


def mark(cells: list[dict[str, Any]]) -> None:
    """Add the flags that only a look at other cells can raise."""
    scored = [cell for cell in cells if cell["status"] == "ok" and cell["attack"]["name"] not in NULL_ATTACKS]
    plain = {(c["attack"]["name"], c["clip"]): c["scores"] for c in scored if c["defense"]["name"] == "none"}
    for cell in scored:
        own, base = cell["scores"], plain.get((cell["attack"]["name"], cell["clip"]))
        if base is None:
            continue
        failed = base["psnr_gain_db"] <= 0 and not base["identified"]
        flag = None
        if failed:
            flag = NO_BETTER if cell["defense"]["name"] == "none" else FAILS_UNDEFENDED
        elif own["psnr_gain_db"] > base["psnr_gain_db"] + 1:
            flag = BEATS_UNDEFENDED
        if flag and flag not in cell["flags"]:
            cell["flags"] = [*cell["flags"], flag]
