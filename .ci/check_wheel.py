"""The wheel must hold every module of the package, and nothing but the package.

python .ci/check_wheel.py dist/retinanet-*.whl
"""

import sys
import zipfile
from pathlib import Path


def main() -> None:
    """Compare the wheel with the source tree, exit 1 on a difference."""
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = {str(path) for path in Path("retinanet").rglob("*.py")}
    if packed != source:
        sys.exit(f"{sys.argv[1]} differs from retinanet/: {sorted(packed ^ source)}")
    print(f"{sys.argv[1]}: {len(packed)} modules")


if __name__ == "__main__":
    main()
