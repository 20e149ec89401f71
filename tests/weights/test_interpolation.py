import copy
import json

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, inject_adapter_in_model
from transformers import CLIPModel

from starft_hf import interpolate, sweep
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.models.adapters import with_adapter
from starft_hf.models.heads import head_from_weights, load_head, save_head
from starft_hf.weights.interpolation import ALPHAS, Sweep
from tests.support.families import family


def result(accuracy=0.5, worst=0.25, **values):
    """A result of two groups."""
    groups = {"left": worst, "right": accuracy}
    return EvaluationResult(accuracy, worst, groups, {"left": 4, "right": 4}, **{"loss": 1.0, "ece": 0.0, **values})


def swept(**measures):
    """A sweep of one dataset with the given values, one for each alpha."""
    count = len(next(iter(measures.values())))
    rows = [{name: values[place] for name, values in measures.items()} for place in range(count)]
    return Sweep(tuple(step / 4 for step in range(count)), tuple({"birds": result(**row)} for row in rows))


def states(*models):
    return [copy.deepcopy(model.state_dict()) for model in models]


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_interpolation_is_linear_and_leaves_both_models_alone(clip):
    other = CLIPModel(clip.config)
    before = states(clip, other)
    merged = interpolate(clip, other, 0.25)
    for name, value in merged.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * before[0][name] + 0.25 * before[1][name])
    for model, state in zip((clip, other), before, strict=True):
        assert_same(model.state_dict(), state)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_models_themselves(clip, alpha):
    other = CLIPModel(clip.config)
    assert_same(interpolate(clip, other, alpha).state_dict(), (other if alpha else clip).state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_rounded_once_at_the_end(clip, dtype):
    torch.manual_seed(3)
    other = CLIPModel(clip.config)
    clip.to(dtype)
    state = other.state_dict()
    for name, value in interpolate(clip, other, 0.3).state_dict().items():
        exact = torch.lerp(clip.state_dict()[name].double(), state[name].double(), 0.3)
        assert value.dtype == dtype
        # Half a unit in the last place; numbers too small for the dtype's exponents have fewer places. A little more,
        # because float32, in which they are mixed, rounds as well.
        torch.testing.assert_close(value.double(), exact, rtol=0.501 * torch.finfo(dtype).eps, atol=1.1 * 2**-25)


def test_other_architectures_and_alphas_are_refused(clip):
    with pytest.raises(ValueError, match="the models differ: '"):
        interpolate(clip, family("clip")[0], 0.5)
    with pytest.raises(ValueError, match="model_b is a OrderedDict; pass a model, such as"):
        interpolate(clip, clip.state_dict(), 0.5)
    for alpha in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"alpha is {alpha}"):
            interpolate(clip, clip, alpha)


ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
ADAPTERS = {
    "LoRA": LoraConfig(r=4, target_modules=ATTENTION),
    # Neither is linear in the adapter's scale.
    "DoRA": LoraConfig(r=4, target_modules=ATTENTION, use_dora=True),
    "LoHa": LoHaConfig(r=4, target_modules=ATTENTION),
    "IA3": IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]),
    "a module beside": LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["visual_projection"]),
}


def trained_adapter(clip, name):
    """An adapter of `clip`, and its temperature, as if they had been trained."""
    adapted = with_adapter(copy.deepcopy(clip), copy.deepcopy(ADAPTERS[name]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return adapted


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_takes_part_as_the_model_it_is_merged_into(clip, name):
    clip.double()
    adapted, alpha = trained_adapter(clip, name), 0.3
    before = states(clip, adapted)
    merged = copy.deepcopy(adapted).merge_and_unload().state_dict()
    found = interpolate(clip, adapted, alpha)
    assert type(found) is CLIPModel
    for key, value in found.state_dict().items():
        exact = (1 - alpha) * before[0][key] + alpha * merged[key] if value.is_floating_point() else merged[key]
        torch.testing.assert_close(value, exact, rtol=0, atol=1e-12)
    assert not torch.equal(found.logit_scale, clip.logit_scale)
    for state, model in zip(before, (clip, adapted), strict=True):
        assert_same(state, model.state_dict())
    # One copy is overwritten for every alpha, and the first of two models may have the adapter as well.
    mixes = []
    for pair in ((clip, adapted), (adapted, clip)):
        sweep(*pair, lambda model: mixes.append(states(model)[0]) or {"birds": result()}, [0.6, alpha])
    torch.testing.assert_close(mixes[1], states(found)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixes[2], states(interpolate(clip, adapted, 0.4))[0], rtol=0, atol=1e-12)


def test_alpha_is_the_scale_of_a_lora_adapter(clip):
    clip.double()
    adapted = trained_adapter(clip, "LoRA")
    found = interpolate(clip, adapted, 0.3)
    with torch.no_grad():
        for module in adapted.modules():
            if hasattr(module, "scaling"):
                module.scaling["default"] *= 0.3
        adapted.base_model.model.logit_scale.copy_(found.logit_scale)
    torch.testing.assert_close(states(adapted.merge_and_unload())[0], states(found)[0], rtol=0, atol=1e-12)


def test_an_adapter_without_a_peft_model_is_refused(clip):
    layers = inject_adapter_in_model(ADAPTERS["LoRA"], copy.deepcopy(clip))
    with pytest.raises(ValueError, match="layers of a PEFT adapter inside"):
        interpolate(clip, layers, 0.5)


def test_the_same_shapes_under_another_activation_are_another_architecture(clip):
    config = copy.deepcopy(clip.config)
    config.text_config.hidden_act = "gelu"
    with pytest.raises(ValueError, match=r"'text_config.hidden_act' is 'quick_gelu' in the first and 'gelu'"):
        interpolate(clip, CLIPModel(config), 0.5)


def test_token_ids_that_training_has_aligned_are_no_difference(clip):
    config = copy.deepcopy(clip.config)
    config.text_config.eos_token_id = 2
    interpolate(clip, CLIPModel(config), 0.5)


def test_a_sweep_evaluates_every_interpolated_model_in_one_place(clip):
    other = CLIPModel(clip.config).train()
    before = states(clip, other)
    seen = []

    def evaluate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append((id(model), copy.deepcopy(model.state_dict())))
        # What happens to the model in between has no part in the next one.
        model.logit_scale.fill_(-1)
        return {"birds": result(accuracy=len(seen) / 100)}

    found = sweep(clip, other, evaluate)
    assert found.alphas == ALPHAS == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
    assert len({place for place, _ in seen}) == 1
    for alpha, (_, state) in zip(ALPHAS, seen, strict=True):
        assert_same(state, interpolate(clip, other, alpha).state_dict())
    assert found.values("birds", "accuracy") == tuple(step / 100 for step in range(1, 12))
    assert_same(clip.state_dict(), before[0])
    assert_same(other.state_dict(), before[1])
    assert other.training


def test_the_best_alpha_is_chosen_by_any_measure():
    found = swept(worst=[0.2, 0.5, 0.4], accuracy=[0.7, 0.8, 0.9], loss=[0.5, 0.6, 0.4], ece=[0.1, 0.2, 0.3])
    assert found.best("birds") == 0.25
    assert found.best("birds", "accuracy") == 0.5
    assert found.best("birds", "loss") == 0.5
    assert found.best("birds", "ece") == 0.0
    assert found.best("birds", "gap") == 0.25


def test_among_equals_the_lowest_alpha_is_best_in_whatever_order_they_were_tried():
    found = swept(worst=[0.1, 0.6, 0.6], loss=[1.0, 0.5, 0.5])
    backwards = Sweep(found.alphas[::-1], found.results[::-1])
    for each in (found, backwards):
        assert each.best("birds") == each.best("birds", "loss") == 0.25


def test_the_curve_sets_one_dataset_or_measure_against_another():
    inside, outside = [0.9, 0.95], [0.7, 0.6]
    rows = [
        {"id": result(accuracy=a, worst=a / 2), "ood": result(accuracy=b)}
        for a, b in zip(inside, outside, strict=True)
    ]
    found = Sweep((0.0, 1.0), tuple(rows))
    points = found.curve("id", "ood")
    assert [(point.alpha, point.average, point.worst_group) for point in points] == [
        (0.0, 0.9, 0.7),
        (1.0, 0.95, 0.6),
    ]
    groups = found.curve("id", "id", worst_group_measure="worst_group_accuracy")
    assert [point.worst_group for point in groups] == [0.45, 0.475]


def test_a_sweep_is_the_same_after_json():
    found = swept(worst=[0.1, 0.6], accuracy=[0.7, 0.8])
    assert Sweep.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_what_was_not_measured_is_refused():
    found = swept(worst=[0.1, 0.6], loss=[1.0, float("nan")])
    with pytest.raises(ValueError, match=r"unknown dataset 'bird'.*mean 'birds'"):
        found.best("bird")
    with pytest.raises(ValueError, match=r"unknown measure 'acuracy'.*mean 'accuracy'"):
        found.best("birds", "acuracy")
    with pytest.raises(ValueError, match=r"group_adjusted_accuracy of 'birds' is None at alpha 0\.0"):
        found.curve("birds", "birds", worst_group_measure="group_adjusted_accuracy")
    with pytest.raises(ValueError, match=r"loss of 'birds' is nan at alpha 0\.25"):
        found.best("birds", "loss")


def test_a_sweep_that_cannot_work_ends_before_it_begins(clip):
    def evaluate(model):
        pytest.fail("nothing should be evaluated")

    with pytest.raises(ValueError, match="alphas is empty"):
        sweep(clip, clip, evaluate, [])
    with pytest.raises(ValueError, match="alpha is 2"):
        sweep(clip, clip, evaluate, [0, 2])
    with pytest.raises(ValueError, match="the models differ"):
        sweep(clip, family("clip")[0], evaluate)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.5], "returned 0.5"),
        ([{}], "returned {}"),
        ([{"birds": 0.5}], "returned a float for 'birds'"),
        ([{"birds": result()}, {"cars": result()}], r"results of \['cars'\] after those of \['birds'\]"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(clip, returned, message):
    with pytest.raises(ValueError, match=message):
        sweep(clip, clip, lambda model: returned.pop(0))


def test_a_head_is_loaded_as_it_was_saved(tmp_path):
    head = head_from_weights(torch.randn(3, 5))
    save_head(head.state_dict(), ["a", "b", "ç"], tmp_path)
    loaded, names = load_head(tmp_path)
    assert names == ["a", "b", "ç"]
    assert torch.equal(loaded.weight, head.weight)
    assert torch.equal(loaded.bias, torch.zeros(3))
    with pytest.raises(FileNotFoundError, match="cross_entropy"):
        load_head(tmp_path / "elsewhere")
