"""Label images with the network of this folder: python predict.py IMAGE [IMAGE ...] [--top 5] [--json]

Needs only requirements.txt (pip install -r requirements.txt). Runs from any folder.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from preprocess import evaluation_pixels, load_rgb  # type: ignore[import-not-found]  # noqa: E402


class Predictor:
    """The exported network, the labels, and the preprocessing that belongs to them."""

    def __init__(self, folder: Path = HERE) -> None:
        self.labels: list[str] = json.loads((folder / "labels.json").read_text("utf-8"))
        facts = json.loads((folder / "preprocessing.json").read_text("utf-8"))
        self.view = {name: facts[name] for name in ("resize", "crop", "interpolation")}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def pixels(self, path: Path) -> Any:
        """One image file -> (R, R, 3) uint8, exactly as in training and testing."""
        with path.open("rb") as file:
            return evaluation_pixels(load_rgb(file), **self.view)

    def probabilities(self, pixels: Any) -> Any:
        """(N, R, R, 3) uint8 -> calibrated probabilities (N, C). Normalisation is inside the graph."""
        return self.session.run(["probabilities"], {"pixels": pixels})[0]

    def predict(self, path: Path, top: int) -> list[dict[str, Any]]:
        """The likeliest labels of one image file, best first."""
        shares = self.probabilities(self.pixels(path)[None])[0]
        order = np.argsort(-shares, kind="stable")[:top]
        return [{"label": self.labels[i], "probability": float(shares[i])} for i in order]


def main(arguments: list[str] | None = None) -> int:
    """0 if every image was labelled, 1 if some could not be read."""
    parser = argparse.ArgumentParser(description="Label images with the network of this folder.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=Path)
    parser.add_argument("--top", type=int, default=5, help="how many labels to print per image (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of lines")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error("--top must be at least 1")

    predictor = Predictor()
    answers: list[dict[str, Any]] = []
    for path in options.images:
        try:
            answers.append({"image": str(path), "predictions": predictor.predict(path, options.top)})
        except Exception as error:  # whatever a broken file provokes in a decoder, the other images are still labelled
            answers.append({"image": str(path), "error": reason(path, error)})
            sys.stderr.write(f"{path}: {answers[-1]['error']}\n")
        else:
            if not options.json:
                ranked = ", ".join(f"{p['label']} {p['probability']:.4f}" for p in answers[-1]["predictions"])
                sys.stdout.write(f"{path}: {ranked}\n")
    if options.json:
        sys.stdout.write(json.dumps(answers, indent=2, ensure_ascii=False) + "\n")
    return 1 if any("error" in answer for answer in answers) else 0


def reason(path: Path, error: Exception) -> str:
    """Why a file could not be labelled, for people."""
    if path.is_dir():
        return "is a folder; give image files"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "may not be read by this user"
    return f"is not an image that can be read ({type(error).__name__}: {error})"


if __name__ == "__main__":
    sys.exit(main())
