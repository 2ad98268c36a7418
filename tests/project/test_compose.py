"""What can be said of docker-compose.yml without an engine: it names what exists, and shares settings."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from outbox.testing.servers import broker_settings, jars
from relay.config import RelayConfig

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = [name for name, service in SERVICES.items() if "build" in service]


def test_the_broker_reads_the_settings_of_the_tests() -> None:
    assert (ROOT / SERVICES["kafka"]["env_file"]) == broker_settings.FILE
    for_one = broker_settings.for_brokers(1, {})
    assert broker_settings.read() == for_one, "the file must hold what one broker needs"
    own = {broker_settings.property_of(name) for name in SERVICES["kafka"]["environment"]}
    assert not own & for_one.keys(), "a setting of the file is replaced in the compose file"


def test_the_broker_is_the_version_that_the_tests_run() -> None:
    pom = ET.parse(jars.POM).getroot()
    version = pom.findtext(".//{*}kafka.version")
    assert SERVICES["kafka"]["image"] == SERVICES["topics"]["image"] == f"apache/kafka:{version}"


def test_two_relays_and_the_three_services_run_the_built_image() -> None:
    assert set(BUILT) == {"relay-orders", "relay-invoices", "order", "invoice", "shipping"}


@pytest.mark.parametrize("name", BUILT)
def test_a_service_runs_a_program_that_exists(name: str) -> None:
    match SERVICES[name]["command"]:
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(f"{module}.__main__") is not None
        case command:
            assert command == ["outbox-relay", "run"]


@pytest.mark.parametrize("name", [name for name in BUILT if name.startswith("relay")])
def test_a_relay_is_given_settings_that_it_knows(name: str) -> None:
    given = {
        variable.removeprefix("OUTBOX_").lower(): value
        for variable, value in SERVICES[name]["environment"].items()
    }
    assert given.keys() <= RelayConfig.model_fields.keys()
    RelayConfig(**given)


def test_each_database_that_is_named_is_created() -> None:
    created = set(re.findall(r"CREATE DATABASE (\w+);", COMPOSE["configs"]["databases"]["content"]))
    named = {
        value.rpartition("/")[2]
        for name in BUILT
        for variable, value in SERVICES[name]["environment"].items()
        if variable.endswith("DATABASE_URL")
    }
    assert named == created


def test_whatever_is_waited_for_is_there_and_can_be_healthy() -> None:
    for name, service in SERVICES.items():
        for other, awaited in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            if awaited["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"


def test_the_image_copies_what_exists_and_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in lines:
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert source in let_in, source
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)


def test_the_compose_file_is_what_docker_understands() -> None:
    """With the plugin at hand Docker itself reads it; this needs no engine."""
    try:
        found = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("docker is not on this machine")
    if found.returncode != 0:
        pytest.skip("docker has no compose plugin on this machine")
    checked = subprocess.run(
        ["docker", "compose", "-f", ROOT / "docker-compose.yml", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert checked.returncode == 0, checked.stderr
