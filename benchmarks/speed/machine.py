"""The machine, as far as it bears on the figures."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPU = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, object]:
    """Processor, caches, memory, system; what cannot be read is None."""
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "vectors": _vectors(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": _caches(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def load() -> float | None:
    """Processes that wanted to run in the last minute: ours, and whoever else's."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _field(path: str, name: str) -> str | None:
    lines = (_read(path) or "").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _vectors() -> str | None:
    flags = (_field("/proc/cpuinfo", "flags") or "").split()
    return next((name for name in ("avx512f", "avx2", "avx", "sse2") if name in flags), None)


def _caches() -> dict[str, str | None]:
    found = sorted(CPU.glob("index*")) if CPU.exists() else []
    return {f"L{_read(each / 'level')} {_read(each / 'type')}": _read(each / "size") for each in found}
