"""Choice of the trainer's strategy; needs no GPU."""

from datetime import timedelta
from typing import Any

from pytorch_lightning.strategies import FSDPStrategy

from finetune.training.strategy import BufferAwareDDPStrategy, choose_strategy

MINUTE = timedelta(minutes=1)


def choose(name: str, accelerator: str, num_processes: int) -> Any:
    return choose_strategy(
        name, accelerator=accelerator, num_processes=num_processes, timeout=MINUTE
    )


def test_choose_strategy_single_process_is_auto() -> None:
    assert choose("ddp", "cpu", 1) == "auto"


def test_choose_strategy_ddp_uses_backend_of_accelerator() -> None:
    strategy = choose("ddp", "cpu", 2)
    assert isinstance(strategy, BufferAwareDDPStrategy)
    assert strategy.process_group_backend == "gloo"
    assert strategy._timeout == MINUTE
    assert choose("ddp", "cuda", 2).process_group_backend == "nccl"
    # frozen layers are not part of the wrapper: no step has to search for unused parameters
    assert not strategy._ddp_kwargs.get("find_unused_parameters", False)


def test_choose_strategy_fsdp_saves_full_state_and_syncs_from_rank_0() -> None:
    strategy = choose("fsdp", "cuda", 2)
    assert isinstance(strategy, FSDPStrategy)
    assert strategy.process_group_backend == "nccl"
    assert strategy._state_dict_type == "full"
    assert strategy.kwargs["sync_module_states"]
    precision = strategy.mixed_precision_config
    assert precision is not None
    dtypes = (precision.param_dtype, precision.reduce_dtype, precision.buffer_dtype)
    assert dtypes == (None, None, None)
    assert strategy.kwargs["use_orig_params"], "the optimizer's parameter groups need it"
    assert strategy._timeout == MINUTE
