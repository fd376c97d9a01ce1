"""What each file of the corpus is: which rule it must show, at which layer; or that it is sound, and what is odd."""

import json
import sys
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
HOLDOUT = HERE / "holdout"
"""The second part: invented and written down before the rules were run on it."""
PARTS = {"corpus": HERE, "holdout": HOLDOUT}


def files(part="corpus"):
    """Where the scripts write; not in the repository, which holds the archive."""
    return PARTS[part] / "files"


def archive(part="corpus"):
    return PARTS[part] / "corpus.tar.xz"


FILES = files()


@dataclass(frozen=True)
class Entry:
    """One model: ``rule`` None where it is sound; ``run`` says what it is checked with.

    ``also`` are other rules whose finding at that layer says the same, ``least`` the level it must have at least, and
    ``beyond`` why what the file holds cannot show the fault: such a one counts neither way.
    """

    file: str
    arch: str
    framework: str
    what: str
    rule: str | None = None
    layer: str | None = None
    level: str | None = None
    run: dict = field(default_factory=dict)
    also: list = field(default_factory=list)
    least: str = "note"
    beyond: str | None = None

    @property
    def form(self):
        """The format, as the file's ending tells it."""
        if self.file.startswith("live:"):
            return "live"
        return Path(self.file).name.split(".", 1)[1] if "." in self.file else "savedmodel"


def write(name, entries, part="corpus"):
    """The entries of one script."""
    lines = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    (PARTS[part] / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def pack(part="corpus"):
    """All files in one archive: HDF5 is mostly empty space, which packs well."""

    def plain(about):
        about.mtime = about.uid = about.gid = 0
        about.uname = about.gname = ""
        return about

    with tarfile.open(archive(part), "w:xz", preset=9) as packed:
        for path in sorted(files(part).iterdir()):
            packed.add(path, path.name, filter=plain)


def unpack(folder, part="corpus"):
    """The files of the archive in a folder."""
    with tarfile.open(archive(part)) as packed:
        packed.extractall(folder, filter="data")


def entries(part="corpus"):
    """Every entry."""
    return [Entry(**one) for path in sorted(PARTS[part].glob("*.json")) for one in json.loads(path.read_text())]


if __name__ == "__main__":
    pack(sys.argv[1] if len(sys.argv) > 1 else "corpus")
