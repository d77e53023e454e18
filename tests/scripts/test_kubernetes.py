"""The manifests are what Kubernetes and Kubeflow take, and what they say of a run agrees."""

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer

from finetune.cli.app import app
from finetune.config.load import build_config, parse_assignments
from finetune.config.schema import Config
from finetune.errors import (
    PREEMPTED_EXIT_CODE,
    ConfigError,
    DataError,
    ModelError,
    RunFolderError,
)
from tests.support.helpers import ROOT
from tests.support.manifests import FOLDER, container, kind_of, pod, read, validate, variables

TRAINING = ("job.yaml", "pytorchjob.yaml", "trainjob.yaml")
FILES = sorted(file.name for file in FOLDER.glob("*.yaml"))

# what the operators tell each pod (training-operator v1.9, trainer v2.2), here the second
TOLD = {
    "job.yaml": {"JOB_COMPLETION_INDEX": "1"},
    "pytorchjob.yaml": {
        "PET_NNODES": "2:2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "finetune-worker-0:23456",
        "PET_MAX_RESTARTS": "3",
    },
    "trainjob.yaml": {
        "JOB_COMPLETION_INDEX": "1",
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "auto",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "finetune-node-0-0.finetune",
        "PET_MASTER_PORT": "29500",
    },
}


def test_all_files_are_read() -> None:
    assert FILES == ["fetch.yaml", "job.yaml", "pytorchjob.yaml", "trainjob.yaml", "volumes.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_is_what_its_schema_says(name: str) -> None:
    for document in read(name):
        validate(document)


@pytest.mark.parametrize(
    ("name", "kind", "place", "value"),
    [
        ("job.yaml", "Service", ("spec", "clusterIp"), "None"),
        ("job.yaml", "Job", ("spec", "completions"), "2"),
        ("job.yaml", "Job", ("spec", "podFailurePolicy", "rules", 0, "action"), None),
        ("job.yaml", "Job", ("spec", "template", "spec", "containers", 0, "commands"), ["true"]),
        ("pytorchjob.yaml", "PyTorchJob", ("spec", "elasticPolicy", "replicas"), 2),
        ("pytorchjob.yaml", "PyTorchJob", ("spec", "elasticPolicy", "maxReplicas"), "2"),
        ("pytorchjob.yaml", "PyTorchJob", ("spec", "pytorchReplicaSpecs"), None),
        (
            "pytorchjob.yaml",
            "PyTorchJob",
            ("spec", "pytorchReplicaSpecs", "Worker", "template", "spec", "volume"),
            [],
        ),
        ("trainjob.yaml", "TrainJob", ("spec", "trainer", "numNode"), 2),
        ("trainjob.yaml", "TrainJob", ("spec", "trainer", "numNodes"), "2"),
        ("trainjob.yaml", "TrainJob", ("spec", "runtimeRef"), None),
        ("trainjob.yaml", "TrainingRuntime", ("spec", "mlPolicy", "torch", "elastic"), True),
        (
            "trainjob.yaml",
            "TrainingRuntime",
            ("spec", "template", "spec", "replicatedJobs", 0, "template", "spec", "backofLimit"),
            6,
        ),
        ("volumes.yaml", "PersistentVolumeClaim", ("spec", "accessModes"), "ReadWriteMany"),
    ],
)
def test_a_broken_manifest_is_found(
    name: str, kind: str, place: tuple[str | int, ...], value: object
) -> None:
    document = next(copy.deepcopy(d) for d in read(name) if d["kind"] == kind)
    validate(document)
    inner: Any = document
    for step in place[:-1]:
        inner = inner[step]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    with pytest.raises((AssertionError, ValueError, kubernetes_validate.ValidationError)):
        validate(document)


@pytest.mark.parametrize("name", [*TRAINING, "fetch.yaml"])
def test_every_mount_has_its_volume_and_every_volume_is_claimed(name: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(name)["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(name)["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    claims = {
        claim["metadata"]["name"]: claim["spec"]["accessModes"] for claim in read("volumes.yaml")
    }
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert claims[volume["persistentVolumeClaim"]["claimName"]] == ["ReadWriteMany"]
    for key in ("HF_HOME", "TORCH_HOME"):
        assert variables(name)[key].startswith(mounts["shared"] + "/")
        assert variables(name)[key] == variables("fetch.yaml")[key]


@pytest.mark.parametrize("name", TRAINING)
def test_readers_have_shared_memory_and_pixels_a_local_disk(name: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(name)["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(name)["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert "emptyDir" in volumes[mounts[variables(name)["FINETUNE_CACHE"]]]


@pytest.mark.parametrize("name", TRAINING)
def test_saving_has_the_time_that_the_scheduler_gives(name: str) -> None:
    stop = int(variables(name)["STOP_SECONDS"])
    assert stop + 10 <= pod(name)["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", TRAINING)
def test_threads_of_all_processes_are_as_many_as_cores(name: str) -> None:
    resources = container(name)["resources"]
    cores, gpus = (
        int(resources["requests"]["cpu"]),
        int(resources["limits"]["nvidia.com/gpu"]),
    )
    assert int(variables(name)["OMP_NUM_THREADS"]) * gpus == cores


@pytest.mark.parametrize(
    "place",
    [
        ("job.yaml", "Job", ()),
        (
            "trainjob.yaml",
            "TrainingRuntime",
            ("template", "spec", "replicatedJobs", 0, "template", "spec"),
        ),
    ],
    ids=["Job", "TrainingRuntime"],
)
def test_only_errors_that_last_fail_the_job(place: tuple[str, str, tuple[Any, ...]]) -> None:
    name, kind, steps = place
    job = kind_of(name, kind)["spec"]
    for step in steps:
        job = job[step]
    final, disrupted, preempted = job["podFailurePolicy"]["rules"]
    for rule in (final, preempted):
        assert rule["onExitCodes"]["containerName"] == container(name)["name"]
        assert rule["onExitCodes"]["operator"] == "In"
    lasting = (ConfigError, DataError, ModelError, RunFolderError)
    assert final["action"] == "FailJob"
    assert final["onExitCodes"]["values"] == [error.exit_code for error in lasting]
    assert disrupted["action"] == preempted["action"] == "Ignore"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert preempted["onExitCodes"]["values"] == [PREEMPTED_EXIT_CODE]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # the policy asks for it


def test_the_pods_of_the_job_find_each_other() -> None:
    service, job = kind_of("job.yaml", "Service"), kind_of("job.yaml", "Job")
    name = service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= pod("job.yaml")["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"
    assert pod("job.yaml")["spec"]["subdomain"] == name
    (port,) = service["spec"]["ports"]
    first = f"{job['metadata']['name']}-0.{name}:{port['port']}"
    assert variables("job.yaml")["RDZV"] == first


def test_the_operators_find_what_they_look_for() -> None:
    assert container("pytorchjob.yaml")["name"] == "pytorch"
    (port,) = container("pytorchjob.yaml")["ports"]
    assert TOLD["pytorchjob.yaml"]["PET_RDZV_ENDPOINT"].endswith(f":{port['containerPort']}")
    assert port["name"] == "pytorchjob-port"
    spec = kind_of("pytorchjob.yaml", "PyTorchJob")["spec"]
    assert spec["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "OnFailure"

    runtime, job = kind_of("trainjob.yaml", "TrainingRuntime"), kind_of("trainjob.yaml", "TrainJob")
    reference = job["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == container("trainjob.yaml")["name"] == "node"
    label = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert node["template"]["metadata"]["labels"] == label


def machines(name: str) -> set[int]:
    """Return the numbers of machines that a manifest names."""
    if name == "job.yaml":
        spec = kind_of(name, "Job")["spec"]
        return {spec["completions"], spec["parallelism"], int(variables(name)["NNODES"])}
    if name == "pytorchjob.yaml":
        spec = kind_of(name, "PyTorchJob")["spec"]
        policy, worker = spec["elasticPolicy"], spec["pytorchReplicaSpecs"]["Worker"]
        return {policy["minReplicas"], policy["maxReplicas"], worker["replicas"]}
    policy = kind_of(name, "TrainingRuntime")["spec"]["mlPolicy"]
    return {policy["numNodes"], kind_of(name, "TrainJob")["spec"]["trainer"]["numNodes"]}


@pytest.mark.parametrize("name", TRAINING)
def test_the_number_of_machines_is_said_the_same_everywhere(name: str) -> None:
    (count,) = machines(name)
    command = (ROOT / container(name)["command"][0].removeprefix("/app/"), *container(name)["args"])
    env = {"PATH": os.environ["PATH"], "PYTHON": "echo", "LOCAL_ADDR": "10.1.2.3", **TOLD[name]}
    ended = subprocess.run(
        list(map(str, command)),
        env=env | variables(name),
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(rf"--nnodes=({count}:)?{count} ", ended.stdout)
    assert "--local-addr=10.1.2.3" in ended.stdout
    host = re.search(r"--rdzv-endpoint=(\S+)", ended.stdout)
    assert host is not None
    assert host[1].startswith("finetune-")
    assert ("is_host=false" in ended.stdout) == (name != "pytorchjob.yaml")  # goes by names
    assert ended.stdout.split().count("resume=auto") == 1


def parsed(verb: str, args: list[str]) -> dict[str, Any]:
    """Return what the command line makes of a verb's words."""
    command = typer.main.get_command(app)
    root = command.make_context("finetune", [verb, *args])
    _, found, rest = command.resolve_command(root, [verb, *args])  # type: ignore[attr-defined]
    return dict(found.make_context(verb, rest, parent=root).params)


def config_of(params: dict[str, Any]) -> Config:
    """Return the config that ``fit`` would have."""
    words = params.pop("words")
    assignments = parse_assignments(word for word in words if "=" in word)
    (data,) = (word for word in words if "=" not in word)
    keys = {"output": "output", "backbone": "model.backbone"}
    given = {name: value for name, value in params.items() if value not in (None, False)}
    assert given.keys() <= keys.keys(), "name the config key of the new option here"
    flags = {keys[name]: (name, value) for name, value in given.items()}
    return build_config({}, assignments=assignments, flags={**flags, "data.path": ("DATA", data)})


@pytest.mark.parametrize("name", TRAINING)
def test_the_words_are_a_run_that_goes_on_by_itself(name: str) -> None:
    config = config_of(parsed("fit", container(name)["args"]))
    mounts = {mount["name"]: mount["mountPath"] for mount in container(name)["volumeMounts"]}
    assert config.data.path == mounts["photos"]
    assert str(config.output).startswith(f"{mounts['shared']}/")
    assert config.model_dump()["resume"] == "auto"


def test_what_is_fetched_is_what_is_trained() -> None:
    found = container("fetch.yaml")
    binary, verb = found["command"]
    assert binary == "finetune"
    backbones = parsed(verb, found["args"])["backbones"]
    for name in TRAINING:
        config = config_of(parsed("fit", container(name)["args"]))
        assert config.model.backbone in backbones


def test_the_image_holds_what_the_manifests_run() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert "\nWORKDIR /app\n" in dockerfile
    copied = [
        word
        for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert all((ROOT / word).exists() for word in copied)
    (user,) = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    image = re.search(r"docker build .*-t (\S+)", dockerfile)
    assert image is not None
    for name in (*TRAINING, "fetch.yaml"):
        context = pod(name)["spec"]["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
        assert container(name)["image"] == image[1]
    for name in TRAINING:
        script = Path(container(name)["command"][0]).relative_to("/app").as_posix()
        assert script in copied
        assert os.access(ROOT / script, os.X_OK)
