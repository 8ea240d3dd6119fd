"""The mean of models and the outer step towards it, compared with numbers computed by hand."""

import pytest
import torch
from torch import Tensor

from worldlm.federation.averaging import outer_step_, weighted_mean
from worldlm.federation.parameters import CHUNK, clone, norm, subtract

START = {"a": torch.tensor([8.0, -4.0]), "b": torch.tensor([[2.0]])}
ONE = {"a": torch.tensor([4.0, 0.0]), "b": torch.tensor([[1.0]])}
TWO = {"a": torch.tensor([8.0, 16.0]), "b": torch.tensor([[5.0]])}


def lists(tensors: dict[str, Tensor]) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def step(start, mean, optimizer=torch.optim.SGD, state=None, **arguments):
    """Take an outer step on a copy; return the parameters and the state."""
    parameters = clone(start)
    return parameters, outer_step_(parameters, mean, optimizer, arguments, state).state


# ---------------------------------------------------------------- the mean


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0, 1.0], {"a": [6.0, 8.0], "b": [[3.0]]}),  # uniform
        ([3 * 2048, 2048], {"a": [5.0, 4.0], "b": [[2.0]]}),  # three times the tokens
        ([0.5, 1.5], {"a": [7.0, 12.0], "b": [[4.0]]}),  # weights of the nodes
        ([0, 512], {"a": [8.0, 16.0], "b": [[5.0]]}),  # nothing trained, nothing said
    ],
)
def test_mean_by_hand(weights, expected) -> None:
    assert lists(weighted_mean([ONE, TWO], weights)) == expected


def test_the_mean_of_one_model_is_a_copy_of_it() -> None:
    mean = weighted_mean([ONE], [7.0])
    assert lists(mean) == lists(ONE)
    assert mean["a"].data_ptr() != ONE["a"].data_ptr()


def test_models_are_summed_in_the_given_order() -> None:
    models = [{"a": torch.tensor([value])} for value in (2.0**26, 4.0, 4.0, -(2.0**26))]
    # in float32 2^24 + 1 is 2^24: a quarter of 4 is lost, twice, when the large one comes first
    assert weighted_mean(models, [1.0] * 4)["a"].item() == 0.0
    late = [models[1], models[2], models[0], models[3]]
    assert weighted_mean(late, [1.0] * 4)["a"].item() == 2.0


def test_the_mean_does_not_modify_the_models() -> None:
    models = [clone(ONE), clone(TWO)]
    weighted_mean(models, [1.0, 3.0])
    assert [lists(model) for model in models] == [lists(ONE), lists(TWO)]


def test_the_mean_of_trainable_tensors_carries_no_graph() -> None:
    models = [{"a": torch.ones(2, requires_grad=True)} for _ in range(2)]
    assert not weighted_mean(models, [1.0, 1.0])["a"].requires_grad


@pytest.mark.parametrize("weights", [[0.0, 0.0], [2.0, -1.0], [-1.0, -1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_invalid_weights_are_rejected(weights) -> None:
    with pytest.raises(ValueError, match="must sum to more than 0, got"):
        weighted_mean([ONE, TWO], weights)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]])
def test_one_weight_per_model(weights) -> None:
    with pytest.raises(ValueError, match="zip"):
        weighted_mean([ONE, TWO], weights)


def test_an_empty_list_of_models_is_rejected() -> None:
    with pytest.raises(ValueError, match="must sum to more than 0"):
        weighted_mean([], [])


def test_one_tensor_of_one_model_is_in_memory_at_a_time(lazy_models) -> None:
    models, most = lazy_models({"a": (5, 2), "b": (3,), "c": (10,)}, 4)
    weights = [1.0, 2.0, 0.5, 4.0]
    result = weighted_mean(models, weights)
    assert most() == 10
    whole = [dict(model) for model in models]
    expected = {name: tensor * (weights[0] / 7.5) for name, tensor in whole[0].items()}
    for model, weight in zip(whole[1:], weights[1:], strict=True):
        for name, tensor in expected.items():
            tensor.add_(model[name], alpha=weight / 7.5)
    assert lists(result) == lists(expected)


# ---------------------------------------------------------------- the outer step


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0]])
def test_sgd_of_one_is_fedavg(weights) -> None:
    mean = weighted_mean([ONE, TWO], weights)
    assert lists(step(START, mean, lr=1.0)[0]) == lists(mean)


def test_half_a_learning_rate_moves_half_way() -> None:
    parameters, _ = step(START, ONE, lr=0.5)
    assert lists(parameters) == {"a": [6.0, -2.0], "b": [[1.5]]}


def slow_momentum(start, means, lr: float, momentum: float, nesterov: bool) -> list[list[float]]:
    """Textbook recursion: v <- momentum v + g;  x <- x - lr (g + momentum v), or x - lr v without Nesterov."""
    x, v, path = list(start), [0.0] * len(start), []
    for mean in means:
        for i in range(len(x)):
            g = x[i] - mean(x)[i]
            v[i] = momentum * v[i] + g
            x[i] -= lr * (g + momentum * v[i] if nesterov else v[i])
        path.append(list(x))
    return path


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("lr", "momentum"), [(0.7, 0.9), (1.0, 0.5)])
def test_momentum_over_rounds_is_the_plain_recursion(nesterov, lr, momentum) -> None:
    targets = [[1.0, 2.0], [0.0, -1.0], [4.0, 0.5], [1.0, 1.0], [-3.0, 2.0]]
    # participants move half way from the start of the round to a target of the round
    means = [lambda x, t=target: [(a + b) / 2 for a, b in zip(x, t, strict=True)] for target in targets]
    expected = slow_momentum([8.0, -4.0], means, lr, momentum, nesterov)

    parameters, state = {"a": torch.tensor([8.0, -4.0], dtype=torch.float64)}, None
    arguments = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
    for target, expected_values in zip(targets, expected, strict=True):
        mean = weighted_mean([parameters, {"a": torch.tensor(target, dtype=torch.float64)}], [1.0, 1.0])
        state = outer_step_(parameters, mean, torch.optim.SGD, arguments, state).state
        torch.testing.assert_close(parameters["a"], torch.tensor(expected_values, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax"])
def test_any_optimizer_continues_from_its_state(optimizer) -> None:
    optimizer_class = getattr(torch.optim, optimizer)
    live = torch.nn.Parameter(START["a"].clone())
    one_object = optimizer_class([live], lr=0.1)
    parameters, state = {"a": START["a"].clone()}, None
    for mean in (ONE["a"], TWO["a"], ONE["a"]):
        live.grad = live.detach() - mean
        one_object.step()
        state = outer_step_(parameters, {"a": mean}, optimizer_class, {"lr": 0.1}, state).state
        assert parameters["a"].tolist() == live.tolist()


def test_adams_first_step_is_the_learning_rate_towards_the_mean() -> None:
    parameters, _ = step(START, ONE, torch.optim.Adam, lr=0.25)
    torch.testing.assert_close(parameters["a"], torch.tensor([7.75, -3.75]))


def test_the_state_survives_a_checkpoint(tmp_path) -> None:
    nesterov = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
    first, state = step(START, ONE, **nesterov)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again, _ = step(first, TWO, state=loaded, **nesterov)
    assert lists(again) == lists(step(first, TWO, state=state, **nesterov)[0])
    assert lists(again) != lists(step(first, TWO, **nesterov)[0])


def test_current_arguments_take_precedence_over_those_of_the_state() -> None:
    _, state = step(START, START, torch.optim.SGD, lr=1.0, momentum=0.5)
    parameters, _ = step(START, ONE, state=state, lr=0.25, momentum=0.5)
    assert lists(parameters) == {"a": [7.0, -3.0], "b": [[1.75]]}


def test_the_step_writes_into_the_parameters_memory() -> None:
    parameters = clone(START)
    memory = parameters["a"]
    outer_step_(parameters, ONE, torch.optim.SGD, {"lr": 1.0})
    assert memory.tolist() == [4.0, 0.0]


def test_the_step_does_not_modify_the_mean() -> None:
    mean = clone(ONE)
    step(START, mean, lr=1.0, momentum=0.9, weight_decay=0.1)
    assert lists(mean) == lists(ONE)


def test_the_step_returns_the_norm_of_the_pseudo_gradient() -> None:
    result = outer_step_(clone(START), ONE, torch.optim.SGD, {"lr": 0.5})
    assert result.norm == pytest.approx(33**0.5, rel=1e-15)  # 4, -4 and 1


def test_every_tensor_steps_as_if_all_stepped_together() -> None:
    shapes = {"small": (3,), "large": (CHUNK + 5, 2), "middle": (7, 11)}  # the memory of gradients is used again
    start, *means = ({name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(3))
    live = [torch.nn.Parameter(tensor.clone()) for tensor in start.values()]
    together = torch.optim.Adam(live, lr=0.1)
    parameters, state = clone(start), None
    for mean in means:
        changes = [parameter.detach() - mean[name] for name, parameter in zip(shapes, live, strict=True)]
        for parameter, change in zip(live, changes, strict=True):
            parameter.grad = change
        together.step()
        state, length = outer_step_(parameters, mean, torch.optim.Adam, {"lr": 0.1}, state)
        assert all(torch.equal(parameters[name], tensor) for name, tensor in zip(shapes, live, strict=True))
        assert length == pytest.approx(norm(dict(enumerate(changes))), rel=1e-12)


def test_only_the_names_of_the_mean_are_stepped() -> None:
    parameters, _ = step(START, {"b": ONE["b"]}, lr=1.0)
    assert lists(parameters) == {"a": [8.0, -4.0], "b": [[1.0]]}


def test_a_models_own_parameters_can_be_stepped() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    outer_step_(dict(layer.named_parameters()), {"weight": torch.ones(1, 2)}, torch.optim.SGD, {"lr": 1.0})
    torch.testing.assert_close(layer.weight, torch.nn.Parameter(torch.ones(1, 2)))
    assert layer.weight.grad is None


def test_no_gradient_means_no_step() -> None:
    parameters, state = step(START, START, lr=0.7, momentum=0.9, nesterov=True)
    assert lists(parameters) == lists(START)
    assert lists(step(parameters, ONE, state=state, lr=1.0)[0]) == lists(ONE)


def test_the_pseudo_gradient_is_before_minus_after() -> None:
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.extend(p.grad.clone() for group in self.param_groups for p in group["params"])

    step(START, ONE, Spy, lr=1.0)
    assert [tensor.tolist() for tensor in seen] == [tensor.tolist() for tensor in subtract(START, ONE).values()]


@pytest.mark.parametrize(
    ("arguments", "error"), [({"lr": -1.0}, ValueError), ({"lr": 1.0, "momentun": 0.9}, TypeError)]
)
def test_invalid_optimizer_arguments_are_rejected_without_a_step(arguments, error) -> None:
    parameters = clone(START)
    with pytest.raises(error):
        outer_step_(parameters, ONE, torch.optim.SGD, arguments)
    assert lists(parameters) == lists(START)


def test_a_mean_with_unknown_names_is_rejected() -> None:
    with pytest.raises(KeyError, match="c"):
        step(START, {"c": ONE["a"]}, lr=1.0)
