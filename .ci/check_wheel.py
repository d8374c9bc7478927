"""The wheel must hold every file of the package, settings and scripts, and its commands must run.

python .ci/check_wheel.py dist/retinanet-*.whl
"""

import configparser
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def main() -> None:
    """Compare the wheel with the source tree and run its commands, exit 1 on a difference."""
    with zipfile.ZipFile(sys.argv[1]) as wheel, tempfile.TemporaryDirectory() as folder:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extractall(folder)
        (info,) = Path(folder).glob("*.dist-info")
        commands = entry_points_of(info)
        for name, (module, function) in commands.items():
            program = f"import sys; sys.argv = [{name!r}, '--help']\n"
            program += f"from {module} import {function}\nsys.exit({function}())"
            # Elsewhere than in the checkout, where scripts/ would be found.
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
            )
            if done.returncode or not done.stdout.strip():
                sys.exit(f"{name} --help fails from {sys.argv[1]}:\n{done.stderr}")
    source = {
        str(path)
        for path in Path("retinanet").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    source |= {f"retinanet/{path}" for path in Path("configs").rglob("*.yaml")}
    source |= {f"retinanet/{path}" for path in Path("scripts").glob("*.py")}
    if packed != source:
        sys.exit(f"{sys.argv[1]} differs from its folders: {sorted(packed ^ source)}")
    print(f"{sys.argv[1]}: {len(packed)} files, {len(commands)} commands")


def entry_points_of(info: Path) -> dict[str, tuple[str, str]]:
    """Command -> module and function."""
    parser = configparser.ConfigParser()
    parser.read(info / "entry_points.txt")
    return {name: tuple(place.split(":")) for name, place in parser["console_scripts"].items()}


if __name__ == "__main__":
    main()
