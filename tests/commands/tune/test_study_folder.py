"""Study folder: its base config counts only settings that differ from the defaults as set."""

from pathlib import Path

from finetune.commands.tune.study_folder import StudyFolder
from finetune.config.load import build_config, dump_config


def test_base_config_sets_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    config = build_config({"data": {"path": "photos", "channels": 1}, "seed": 3})
    study = StudyFolder(tmp_path)
    study.base_config_path.write_text(dump_config(config))
    stored = study.read_base_config()
    assert stored == config
    # a fraction that counts as set would be refused for data with a split of their own
    assert stored.data.model_fields_set == {"path", "channels"}
