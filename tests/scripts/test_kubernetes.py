"""Kubernetes manifests of docs/guides/kubernetes.md: they parse, and agree with the package.

Schemas are not checked here: that takes 20 MB of generated models. The manifests were validated
once, with kubernetes-validate, kubeflow-training and kubeflow-trainer-api, as the page says.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from finetune.cli.app import app
from finetune.errors import (
    PREEMPTED_EXIT_CODE,
    ConfigError,
    DataError,
    ModelError,
    RunFolderError,
)
from tests.support.helpers import ROOT

PAGE = ROOT / "docs" / "guides" / "kubernetes.md"
BLOCKS: dict[str, str] = dict(
    re.findall(
        r"^```(?:yaml|dockerfile)\n# (\S+)\n(.*?)^```$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
TRAINING = ("job.yaml", "pytorchjob.yaml", "trainjob.yaml")
Tree = dict[str, Any]


def parse_documents(name: str) -> list[Tree]:
    return list(yaml.safe_load_all(BLOCKS[name]))


def find_pods(node: Any) -> Iterator[Tree]:
    """Yield the pod specs at any depth of a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from find_pods(child)


def get_pod(name: str) -> Tree:
    """Return the only pod spec of a manifest."""
    (pod,) = (pod for document in parse_documents(name) for pod in find_pods(document))
    return pod


def get_container(name: str) -> Tree:
    """Return the only container of a manifest, with the fields that a TrainJob overrides."""
    (container,) = get_pod(name)["containers"]
    if name == "trainjob.yaml":
        trainer = parse_documents(name)[1]["spec"]["trainer"]
        container |= {"command": trainer["command"], "args": trainer["args"]}
        container["resources"] = trainer["resourcesPerNode"]
    merged: Tree = container
    return merged


def get_variables(name: str) -> dict[str, str]:
    return {e["name"]: e["value"] for e in get_container(name)["env"] if "value" in e}


def parse_command_line(command: str, args: list[str]) -> Tree:
    """Return the parameters that the command line parses from arguments."""
    root = typer.main.get_command(app)
    context = root.make_context("finetune", [command, *args])
    _, subcommand, rest = root.resolve_command(context, [command, *args])  # type: ignore[attr-defined]
    return dict(subcommand.make_context(command, rest, parent=context).params)


def test_page_contains_all_files() -> None:
    assert sorted(BLOCKS) == ["Dockerfile", "fetch.yaml", *TRAINING, "volumes.yaml"]
    for name in BLOCKS.keys() - {"Dockerfile"}:
        for document in parse_documents(name):
            assert {"apiVersion", "kind", "metadata"} <= document.keys()


@pytest.mark.parametrize("name", TRAINING)
def test_manifest_image_command_and_resources(name: str) -> None:
    container = get_container(name)
    image = re.search(r"docker build .*-t (\S+)", PAGE.read_text(encoding="utf-8"))
    assert image is not None
    assert container["image"] == image[1]
    (command,) = container["command"]
    script = Path(command).relative_to("/app")
    assert os.access(ROOT / script, os.X_OK)
    copied = " ".join(re.findall(r"^COPY (.*)$", BLOCKS["Dockerfile"], re.MULTILINE))
    assert str(script) in copied.split()
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    threads = int(get_variables(name)["OMP_NUM_THREADS"])
    assert threads * int(limits["nvidia.com/gpu"]) == int(requests["cpu"])
    assert requests["memory"] == limits["memory"]
    user = re.search(r"^USER (\d+):(\d+)$", BLOCKS["Dockerfile"], re.MULTILINE)
    assert user is not None
    context = get_pod(name)["securityContext"]
    assert [str(context["runAsUser"]), str(context["runAsGroup"])] == list(user.groups())
    stop_seconds = int(get_variables(name)["STOP_SECONDS"])
    assert stop_seconds + 10 <= get_pod(name)["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", TRAINING)
def test_manifest_args_are_a_fit_that_resumes_by_itself(name: str) -> None:
    params = parse_command_line("fit", get_container(name)["args"])
    mounts = {mount["name"]: mount["mountPath"] for mount in get_container(name)["volumeMounts"]}
    assert params["args"] == [mounts["photos"], "resume=auto"]
    assert str(params["output"]).startswith(f"{mounts['shared']}/")
    fetch = get_container("fetch.yaml")
    program, command = fetch["command"]
    assert program == "finetune"
    assert params["backbone"] in parse_command_line(command, fetch["args"])["backbones"]


@pytest.mark.parametrize("name", [*TRAINING, "fetch.yaml"])
def test_manifest_mounts_have_volumes_with_claims(name: str) -> None:
    volumes = {volume["name"]: volume for volume in get_pod(name)["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in get_container(name)["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    claims = {
        claim["metadata"]["name"]: claim["spec"]["accessModes"]
        for claim in parse_documents("volumes.yaml")
    }
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert claims[volume["persistentVolumeClaim"]["claimName"]] == ["ReadWriteMany"]
    for key in ("HF_HOME", "TORCH_HOME"):
        assert get_variables(name)[key].startswith(f"{mounts['shared']}/")
        assert get_variables(name)[key] == get_variables("fetch.yaml")[key]


def test_manifest_failure_policy_uses_the_exit_codes_of_final_errors() -> None:
    job = parse_documents("job.yaml")[1]["spec"]
    runtime = parse_documents("trainjob.yaml")[0]["spec"]["template"]["spec"]
    for spec, name in (
        (job, "job.yaml"),
        (runtime["replicatedJobs"][0]["template"]["spec"], "trainjob.yaml"),
    ):
        final, disrupted, preempted = spec["podFailurePolicy"]["rules"]
        codes = [e.exit_code for e in (ConfigError, DataError, ModelError, RunFolderError)]
        container = get_container(name)["name"]
        assert final["onExitCodes"] == {
            "containerName": container, "operator": "In", "values": codes,
        }  # fmt: skip
        assert preempted["onExitCodes"] == {
            "containerName": container, "operator": "In", "values": [PREEMPTED_EXIT_CODE],
        }  # fmt: skip
        assert [rule["action"] for rule in (final, disrupted, preempted)] == [
            "FailJob", "Ignore", "Ignore",
        ]  # fmt: skip
        assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_manifest_numbers_of_nodes_agree() -> None:
    job = parse_documents("job.yaml")[1]["spec"]
    pytorch = parse_documents("pytorchjob.yaml")[0]["spec"]
    runtime, train = (document["spec"] for document in parse_documents("trainjob.yaml"))
    assert job["completions"] == job["parallelism"] == int(get_variables("job.yaml")["NNODES"])
    policy = pytorch["elasticPolicy"]
    replicas = pytorch["pytorchReplicaSpecs"]["Worker"]["replicas"]
    assert policy["minReplicas"] == policy["maxReplicas"] == replicas
    assert runtime["mlPolicy"]["numNodes"] == train["trainer"]["numNodes"]
    host, _, port = get_variables("job.yaml")["RDZV"].partition(":")
    service = parse_documents("job.yaml")[0]
    assert host == f"finetune-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
