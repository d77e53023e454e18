"""Digest of a model, by which two models are found to be the same one."""

import hashlib
import json
from pathlib import Path

import torch

from finetune.bundle.bundle import ModelBundle

_BLOCK_SIZE = 1 << 20


def compute_model_digest(bundle: ModelBundle) -> str:
    """Return a digest of the weights and cards of a model and its members."""
    digest = hashlib.blake2b(digest_size=16)
    for weight, member in zip(bundle.weights or (1.0,), bundle.members or (bundle,), strict=True):
        card = json.dumps(member.card.to_json(), sort_keys=True, default=str)
        digest.update(f"{weight!r}\n{card}\n".encode())
        state = member.network.state_dict()
        for name, tensor in sorted(state.items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
        if not state and member.source.exists():  # run by another runtime, from a file
            _add_files(digest, member.source)
    return digest.hexdigest()


def _add_files(digest: "hashlib.blake2b", source: Path) -> None:
    if source.is_dir():
        files = [file for file in source.rglob("*") if file.is_file()]
    else:  # OpenVINO and ONNX keep the weights beside the file, as model.bin and model.onnx.data
        weights = (source.with_suffix(".bin"), source.with_name(f"{source.name}.data"))
        files = [source, *filter(Path.is_file, weights)]
    for file in sorted(files):
        digest.update(f"{file.name}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_SIZE):
                digest.update(block)
