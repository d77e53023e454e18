"""Which strategy Lightning gets; none of them needs a GPU to be chosen."""

from datetime import timedelta
from typing import Any

from pytorch_lightning.strategies import FSDPStrategy

from finetune.training.strategy import BufferAwareDDPStrategy, choose_strategy

MINUTE = timedelta(minutes=1)


def chosen(name: str, accelerator: str, num_processes: int) -> Any:
    return choose_strategy(
        name, accelerator=accelerator, num_processes=num_processes, timeout=MINUTE
    )


def test_one_process_needs_no_strategy() -> None:
    assert chosen("ddp", "cpu", 1) == "auto"


def test_several_processes_copy_the_network() -> None:
    strategy = chosen("ddp", "cpu", 2)
    assert isinstance(strategy, BufferAwareDDPStrategy)
    assert strategy.process_group_backend == "gloo"
    assert strategy._timeout == MINUTE
    assert chosen("ddp", "cuda", 2).process_group_backend == "nccl"
    # frozen layers are left out of the wrapper; nothing has to be looked for at each step
    assert not strategy._ddp_kwargs.get("find_unused_parameters", False)


def test_shards_are_saved_as_one_file_and_begin_from_rank_0() -> None:
    strategy = chosen("fsdp", "cuda", 2)
    assert isinstance(strategy, FSDPStrategy)
    assert strategy.process_group_backend == "nccl"
    assert strategy._state_dict_type == "full"
    assert strategy.kwargs["sync_module_states"]
    rounded = strategy.mixed_precision_config
    assert rounded is not None
    assert (rounded.param_dtype, rounded.reduce_dtype, rounded.buffer_dtype) == (None, None, None)
    assert strategy.kwargs["use_orig_params"], "or the optimizer's groups were lost"
    assert strategy._timeout == MINUTE
