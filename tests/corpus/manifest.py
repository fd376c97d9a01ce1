"""What each file of the corpus is: which rule it must show, at which layer; or that it is sound, and what is odd."""

import json
import sys
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
FILES = HERE / "files"
"""Where the scripts write; not in the repository, which holds the archive."""
ARCHIVE = HERE / "corpus.tar.xz"


@dataclass(frozen=True)
class Entry:
    """One model: ``rule`` None where it is sound; ``run`` says what it is checked with."""

    file: str
    arch: str
    framework: str
    what: str
    rule: str | None = None
    layer: str | None = None
    level: str | None = None
    run: dict = field(default_factory=dict)


def write(name, entries):
    """The entries of one script."""
    lines = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    (HERE / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def pack():
    """All files in one archive: HDF5 is mostly empty space, which packs well."""
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path in sorted(FILES.iterdir()):
            about = archive.gettarinfo(path, path.name)
            about.mtime = about.uid = about.gid = 0
            about.uname = about.gname = ""
            with path.open("rb") as content:
                archive.addfile(about, content)


def unpack(folder):
    """The files of the archive in a folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")


def entries():
    """Every entry."""
    return [Entry(**one) for path in sorted(HERE.glob("*.json")) for one in json.loads(path.read_text())]


if __name__ == "__main__":
    pack() if sys.argv[1:] == ["pack"] else unpack(FILES)
