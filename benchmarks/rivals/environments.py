"""Virtual environments of the rivals that are libraries: none of them is a dependency of ours."""

import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = {"ray": ("ray[tune]",), "autogluon": ("autogluon.multimodal",)}


def python_of(folder: Path, name: str) -> Path:
    """The interpreter that a rival runs with; ours if it needs no environment of its own."""
    return folder / name / "bin" / "python" if name in PACKAGES else Path(sys.executable)


def make(folder: Path) -> None:
    """Install what is missing: 3 GB and some minutes.

    All train with the same torch, ours: a copy that came along goes, and the environment sees ours behind its own
    packages. AutoGluon's pins would mix builds of torch and torchvision that do not fit each other.
    """
    for name, packages in PACKAGES.items():
        home = folder / name
        python = home / "bin" / "python"
        marker = home / "complete"
        if marker.exists():
            continue
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torch", "torchvision"], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        ours = home / "lib" / version / "site-packages" / "torch_of_graft.pth"
        ours.write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
        marker.touch()
