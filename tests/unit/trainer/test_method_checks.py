import pytest

from worldlm.rounds import RoundCallback
from worldlm.trainer import WorldTrainer


class Mine(RoundCallback): ...


def test_a_trainer_takes_federation_callbacks_only() -> None:
    with pytest.raises(ValueError, match=r"^Mine is a RoundCallback.*derive it from FederationCallback$"):
        WorldTrainer(topology="quickstart", callbacks=[Mine()])
