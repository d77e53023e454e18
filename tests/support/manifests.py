"""Kubernetes manifests, and the schemas that they are held against; none needs a network."""

import re
from collections.abc import Iterator
from typing import Any

import kubeflow.training.models
import kubernetes_validate
import yaml
from kubeflow_trainer_api import models as trainer_models

from tests.support.helpers import ROOT

FOLDER = ROOT / "scripts" / "kubernetes"

OLDEST = "1.31"
"""The Kubernetes that the manifests ask for."""

Tree = dict[str, Any]

_PLAIN: dict[str, type] = {"str": str, "int": int, "bool": bool}


def read(name: str) -> list[Tree]:
    """Return the documents of a manifest."""
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def kind_of(name: str, kind: str) -> Tree:
    """Return the one document of a kind in a manifest."""
    (found,) = (document for document in read(name) if document["kind"] == kind)
    return found


def pod(name: str) -> Tree:
    """Return the one pod template of a manifest."""
    (template,) = (t for document in read(name) for t in pod_templates(document))
    return template


def container(name: str) -> Tree:
    """Return the one container of a manifest, with what a TrainJob adds to its runtime's."""
    (found,) = pod(name)["spec"]["containers"]
    if name == "trainjob.yaml":
        trainer = kind_of(name, "TrainJob")["spec"]["trainer"]
        found |= {"command": trainer["command"], "args": trainer["args"]}
        found["resources"] = trainer["resourcesPerNode"]
    complete: Tree = found
    return complete


def variables(name: str) -> dict[str, str]:
    """Return the environment that a manifest spells out."""
    return {entry["name"]: entry["value"] for entry in container(name)["env"] if "value" in entry}


def validate(document: Tree) -> None:
    """Fail unless the schema of its kind knows every field, and each has its type."""
    group = document["apiVersion"].partition("/")[0]
    if group == "trainer.kubeflow.org":
        model = getattr(trainer_models, f"TrainerV1alpha1{document['kind']}")
        # what the model does not know, it drops
        assert model.from_dict(document).to_dict() == document
    elif group == "kubeflow.org":
        _check(document, f"KubeflowOrgV1{document['kind']}", document["kind"])
    else:
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)
    for template in pod_templates(document):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        pod["metadata"] = document["metadata"]
        kubernetes_validate.validate(pod, OLDEST, strict=True)


def pod_templates(document: Any) -> Iterator[Tree]:
    """Yield the templates of pods at any depth of a document."""
    if isinstance(document, dict):
        template = document.get("template")
        if isinstance(template, dict) and "containers" in template.get("spec", {}):
            yield template
        for value in document.values():
            yield from pod_templates(value)
    elif isinstance(document, list):
        for value in document:
            yield from pod_templates(value)


def _check(value: Any, kind: str, place: str) -> None:
    """Fail unless a value is what Kubeflow's generated models call ``kind``."""
    inner = re.fullmatch(r"(list\[|dict\(str, )(.*)[\])]", kind)
    if inner is not None:
        container_type = list if kind.startswith("list") else dict
        assert isinstance(value, container_type), f"{place}: {value!r} is no {kind}"
        items = enumerate(value) if isinstance(value, list) else value.items()
        for key, item in items:
            _check(item, inner.group(2), f"{place}.{key}")
    elif kind in _PLAIN:
        assert isinstance(value, _PLAIN[kind]), f"{place}: {value!r} is no {kind}"
    elif kind.startswith("KubeflowOrg"):
        _check_model(value, getattr(kubeflow.training.models, kind), place)
    else:
        assert kind in ("V1ObjectMeta", "V1PodTemplateSpec"), f"{place}: nothing checks {kind}"


def _check_model(value: Any, model: Any, place: str) -> None:
    assert isinstance(value, dict), f"{place}: {value!r} has no keys"
    names = {key: name for name, key in model.attribute_map.items()}
    unknown = value.keys() - names.keys()
    assert not unknown, f"{place}: there is no {sorted(unknown)}"
    for key, item in value.items():
        _check(item, model.openapi_types[names[key]], f"{place}.{key}")
    model(**{names[key]: item for key, item in value.items()})  # raises where one is missing
