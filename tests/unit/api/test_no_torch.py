"""import-linter sees static imports alone: here every route is called in a fresh process, and torch stays out of it."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from starlette.testclient import TestClient
from api.app import create_app
from store.settings import Settings

home = Path(sys.argv[1])
app = create_app(Settings(home=home, min_free_bytes=0))
called = set()
with TestClient(app) as client:
    headers = {"Authorization": "Bearer " + (home / "key").read_text().strip(), "Tus-Resumable": "1.0.0"}
    for path, item in app.openapi()["paths"].items():
        for method in item:
            concrete = path
            for noun, prefix in {"dataset": "ds", "job": "job", "trial": "tr", "source": "src", "key": "key",
                                 "upload": "up"}.items():
                concrete = concrete.replace("{" + noun + "}", prefix + "_0123456789abcdef")
            answer = client.request(method, concrete, headers=headers, params={"backbone": "resnet18"},
                                    json={"dataset_id": "ds_0123456789", "budget": {"trials": 1}, "name": "x"})
            assert answer.status_code != 500, (method, path, answer.text)
            called.add((method, path))
assert len(called) > 35, called
print(sorted(name for name in sys.modules if name.split(".")[0] in {"torch", "torchvision", "optuna", "cv2", "celery"}))
"""


def test_no_route_loads_torch(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRAFT_")}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "home")], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[3], env=environment, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines()[-1] == "[]"
