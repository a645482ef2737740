"""What resuming reads: the saved step, and of the checkpoint before it no weights."""

import os
from pathlib import Path

import pytest

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.data.errors import UserError
from tests.core.training.runs import request, train, weights

pytestmark = pytest.mark.usefixtures("tiny_preset")


def overwrite(folder: Path, *, same_time: bool) -> None:
    """Put zeros in place of a checkpoint's weights; its headers stay."""
    for path in Checkpoint.open(folder).weights.files:
        before, content = path.stat(), path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(content[:header] + bytes(len(content) - header))
        if same_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_resumed_run_reads_no_weights_of_the_checkpoint_it_began_with(
    shards: Path, tmp_path: Path
) -> None:
    # Kills: weights read or drawn to be overwritten at once, a checkpoint read to be told apart.
    base, whole, cut = (tmp_path / name for name in ("base", "whole", "cut"))
    train(request(recipe="pretrain", size="1m", data=[str(shards)]), base)
    asked = request(init=base, data=[str(shards)])
    train(asked, whole)
    train(asked, cut, stop_after=3)
    overwrite(base, same_time=True)
    train(asked, cut)
    mine, theirs = weights(whole), weights(cut)
    assert all(mine[name].equal(theirs[name]) for name in mine)


def test_another_checkpoint_in_the_place_of_the_first_is_refused(
    shards: Path, tmp_path: Path
) -> None:
    # Kills: a recorded digest that is believed of any file.
    base, cut = tmp_path / "base", tmp_path / "cut"
    train(request(recipe="pretrain", size="1m", data=[str(shards)]), base)
    asked = request(init=base, data=[str(shards)])
    train(asked, cut, stop_after=3)
    overwrite(base, same_time=False)
    with pytest.raises(UserError, match="holds another run: init: "):
        train(asked, cut)
