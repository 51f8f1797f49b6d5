"""`python -m models BACKBONE FOLDER`: torchvision's weights into a folder; prints the file, or what was in the way."""

import sys
from pathlib import Path

from domain.errors import GraftError
from models.weights import torchvision_file


def main(backbone: str, folder: str) -> int:
    try:
        sys.stdout.write(f"{torchvision_file(backbone, Path(folder))}\n")
    except GraftError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
