"""The wheel must hold every file of the package and every settings file, and nothing else.

python .ci/check_wheel.py dist/retinanet-*.whl
"""

import sys
import zipfile
from pathlib import Path


def main() -> None:
    """Compare the wheel with the source tree, exit 1 on a difference."""
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = {
        str(path)
        for path in Path("retinanet").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    source |= {f"retinanet/{path}" for path in Path("configs").rglob("*.yaml")}
    if packed != source:
        sys.exit(f"{sys.argv[1]} differs from retinanet/ and configs/: {sorted(packed ^ source)}")
    print(f"{sys.argv[1]}: {len(packed)} files")


if __name__ == "__main__":
    main()
