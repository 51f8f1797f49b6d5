"""What can be known of the deployment files without an engine: that they agree with the code and with each other."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from store.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
LEGAL = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | {"GRAFT_WORKERS"}  # `graft serve` reads that
OURS = {"migrate", "bucket", "api", "control-worker", "gpu-worker", "gpu-worker-1", "cpu-worker"}
LONG_RUNNING = OURS - {"migrate", "bucket"}
PACKAGES = {"api", "worker", "search", "transfer", "models", "intake", "domain", "store", "graft", "migrations"}


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text("utf-8"))


def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Build stage -> its instructions with those of the stages it stands on, in order, continued lines joined."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            found[name] = list(found.get(parent, []))
        else:
            found[name].append((word, rest.strip()))
    return found


def copied(stage: str) -> list[str]:
    """Sources that a stage copies from the repository."""
    copies = [rest.split() for word, rest in stages()[stage] if word == "COPY" and "--from=" not in rest]
    return [source for words in copies for source in words[:-1]]


def pins(lock: Path) -> dict[str, list[str]]:
    """Requirement line -> its hashes."""
    text = lock.read_text("utf-8").replace("\\\n", " ")
    rows = [line.split("--hash=") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {row[0].strip(): [digest.strip() for digest in row[1:]] for row in rows}


def test_every_setting_used_is_a_setting() -> None:
    pages = [COMPOSE, DOCKERFILE, ROOT / ".env.example", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]
    for page in pages:
        used = set(re.findall(r"\bGRAFT_[A-Z0-9_]+", page.read_text("utf-8")))
        assert {name for name in used if not name.startswith("GRAFT_TEST_")} <= LEGAL, page.name


def test_every_process_gets_the_settings_of_the_distributed_form() -> None:
    for name in OURS:
        environment = services()[name]["environment"]
        assert {"GRAFT_DATABASE_URL", "GRAFT_REDIS_URL", "GRAFT_BLOB_URL"} <= set(environment), name


def test_the_settings_of_compose_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        environment = {k: str(v) for k, v in services()[name]["environment"].items() if k.startswith(PREFIX)}
        with monkeypatch.context() as patch:
            for key in [key for key in os.environ if key.startswith(PREFIX)]:
                patch.delenv(key)
            for key, value in environment.items():
                patch.setenv(key, re.sub(r"\$\{[^}]*\}", "x", value))
            assert not Settings().embedded


@pytest.mark.parametrize("name", sorted(OURS))
def test_commands_name_modules_that_exist(name: str) -> None:
    stage = services()[name]["build"]["target"]
    words = [rest for word, rest in stages()[stage] if word == "CMD"][-1]
    command = services()[name].get("command") or ast.literal_eval(words)
    assert command[0] == "python"
    if command[1] == "-c":
        ast.parse(command[2])
        return
    assert command[1] == "-m"
    module = find_spec(command[2])
    assert module is not None, command[2]
    assert module.submodule_search_locations is None or find_spec(f"{command[2]}.__main__") is not None
    assert command[2].partition(".")[0] in copied(stage)


def test_services_wait_for_the_migrations_and_the_bucket() -> None:
    for name in LONG_RUNNING:
        waits = services()[name]["depends_on"]
        for one_shot in ("migrate", "bucket"):
            assert waits[one_shot]["condition"] == "service_completed_successfully", name
        for server in ("postgres", "redis", "objects"):
            assert waits[server]["condition"] == "service_healthy", name
            assert "healthcheck" in services()[server]


def test_nothing_has_a_default_password() -> None:
    text = COMPOSE.read_text("utf-8")
    for name in re.findall(r"\$\{([A-Z0-9_]+)[^}]*\}", text):
        if name in {"API_BIND", "API_PORT"}:
            continue
        assert set(re.findall(rf"\$\{{{name}([^}}]*)\}}", text)) == {f":?set {name} in .env"}
        assert f"\n{name}=\n" in (ROOT / ".env.example").read_text("utf-8")
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY|BOOTSTRAP_KEY|AUTH", name):
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?[^}]+\}", value), name


def test_only_the_api_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"api": ["${API_BIND:-127.0.0.1}:${API_PORT:-8321}:8321"]}
    assert compose()["networks"]["inner"]["internal"] is True
    for name in ("postgres", "redis", "objects"):
        assert services()[name]["networks"] == ["inner"]


def test_every_image_is_pinned() -> None:
    for name, service in services().items():
        assert re.search(r":\d+\.\d+", service["image"]), name


def test_long_running_services_restart_and_stop_gently() -> None:
    for name in LONG_RUNNING | {"postgres", "redis", "objects"}:
        assert services()[name]["restart"] == "unless-stopped", name
    for name in LONG_RUNNING - {"api"}:
        seconds = int(services()[name]["stop_grace_period"].removesuffix("s"))
        assert seconds > Settings.model_fields["lease_s"].default, name


def test_our_containers_run_without_privileges() -> None:
    for name in OURS:
        service = services()[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["user"] == "10001:10001"
    for stage in ("api", "worker"):
        users = [rest for word, rest in stages()[stage] if word == "USER"]
        assert users == ["graft"]
        assert "--uid 10001" in " ".join(rest for _, rest in stages()[stage])


def test_each_gpu_worker_reserves_its_own_gpu() -> None:
    reserved = [
        device["device_ids"]
        for service in services().values()
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    ]
    assert reserved == [["0"], ["1"]]


def test_profiles_of_the_example_start_a_trial_worker() -> None:
    line = re.search(r"^COMPOSE_PROFILES=(.*)$", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE)
    assert line is not None
    known = {profile for service in services().values() for profile in service.get("profiles", [])}
    assert line[1] in known
    assert known == {"gpu", "gpu-1", "cpu"}


def test_volumes_used_are_declared() -> None:
    used = {volume.partition(":")[0] for service in services().values() for volume in service.get("volumes", [])}
    assert used == set(compose()["volumes"])


def test_the_dockerfile_has_both_targets_and_copies_what_exists() -> None:
    targets = {service["build"]["target"] for service in services().values() if "build" in service}
    assert targets == {"api", "worker"} <= set(stages())
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    for stage in stages():
        for source in copied(stage):
            assert (ROOT / source).exists(), source
            assert source.partition("/")[0] in allowed, source


def test_the_worker_image_holds_every_package() -> None:
    assert PACKAGES - {"api"} <= set(copied("worker"))


def test_the_api_image_holds_what_the_api_imports() -> None:
    """Followed file by file from the packages that run there: our own modules are copied, others are in its lock."""
    inside = PACKAGES & set(copied("api"))
    locked = {line.partition("==")[0].lower() for line in pins(ROOT / "requirements" / "server.lock")}
    distributions = metadata.packages_distributions()
    left = [path for package in ("api", "store", "domain", "migrations") for path in (ROOT / package).rglob("*.py")]
    seen: set[Path] = set()
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path):
            top = name.partition(".")[0]
            if top in PACKAGES:
                assert top in inside, f"{path.relative_to(ROOT)} imports {name}, which the api image leaves out"
                left += files_of(name)
            elif top not in sys.stdlib_module_names:
                owners = {owner.lower().replace("_", "-") for owner in distributions.get(top, [])}
                assert owners & locked, f"{path.relative_to(ROOT)} imports {name}, which server.lock does not hold"


def files_of(name: str) -> list[Path]:
    """The files that importing `name` runs: the packages on the way, and the module if it is one."""
    parts = name.split(".")
    packages = [ROOT.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return [path for path in (*packages, ROOT.joinpath(*parts).with_suffix(".py")) if path.exists()]


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports; `from a import b` counts as `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_api_image_has_a_health_check_and_no_torch() -> None:
    api = stages()["api"]
    assert any(word == "HEALTHCHECK" and "/healthz" in rest for word, rest in api)
    assert not {"transfer", "models", "worker", "search"} & set(copied("api"))
    names = {line.partition("==")[0].lower() for line in pins(ROOT / "requirements" / "server.lock")}
    assert not {name for name in names if name.startswith(("torch", "nvidia", "triton", "optuna"))}


def test_the_worker_image_has_torch_with_cuda() -> None:
    names = {line.partition("==")[0].lower() for line in pins(ROOT / "requirements" / "worker.lock")}
    assert {"torch", "torchvision", "optuna", "onnxruntime", "triton"} <= names
    assert any(name.startswith("nvidia-cudnn") for name in names)


def test_packages_are_installed_with_hashes() -> None:
    for stage, lock in (("api-packages", "server.lock"), ("worker-packages", "worker.lock")):
        (install,) = [rest for word, rest in stages()[stage] if word == "RUN" and "pip install" in rest]
        assert "--require-hashes" in install
        assert lock in install
        assert copied(stage) == [f"requirements/{lock}"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_pin_names_versions_and_hashes_only(lock: Path) -> None:
    text = lock.read_text("utf-8")
    assert "://" not in text
    assert " @ " not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE), "an option of the package index"
    for requirement, hashes in pins(lock).items():
        assert re.match(r"^[a-z0-9][a-z0-9._-]*==[^ ]+", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def test_the_images_hold_the_versions_that_are_tested() -> None:
    tested = set(pins(ROOT / "requirements" / "dev.lock"))
    versions = {requirement.partition(" ;")[0] for requirement in tested}
    for name in ("server.lock", "worker.lock"):
        ours = {requirement.partition(" ;")[0] for requirement in pins(ROOT / "requirements" / name)}
        assert ours <= versions, sorted(ours - versions)


def test_an_engine_reads_the_compose_file() -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("no docker on PATH")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin here")
    filled = dict.fromkeys(re.findall(r"\$\{([A-Z0-9_]+):\?", COMPOSE.read_text("utf-8")), "x")
    call = [docker, "compose", "--file", str(COMPOSE), "--profile", "*", "config", "--quiet"]
    ran = subprocess.run(call, env={**os.environ, **filled}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
