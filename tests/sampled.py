"""Tests of many like cases, of which every n-th runs by default, to keep the whole run within its time.

The cases differ in kinds of layers, forms or inputs that neighbours and other tests show, too.
`LORA_JAX_SLOW=1` runs all. A test is named by its file and function; the first case always runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_FORMATS = "tests/quantisation/test_formats.py"
_VARIANTS = "tests/experiments/test_sweep_of_variants.py"
EVERY = {
    "tests/costs/test_residuals.py::test_what_our_models_keep": 2,
    "tests/data/test_chat_templates.py::test_wrong_templates_end_in_an_error": 2,
    "tests/decoding/test_beam.py::test_equals_the_slow_reference": 2,
    "tests/decoding/test_streaming.py::test_tokens_are_those_of_sample": 2,
    "tests/experiments/test_command_line.py::test_errors_of_ones_own_config_name_the_line": 2,
    "tests/experiments/test_command_line.py::test_flags": 3,
    "tests/experiments/test_glue.py::test_every_method_trains_is_saved_and_scores_the_same_when_loaded": 4,
    "tests/experiments/test_nlg.py::test_every_method_trains_decodes_and_decodes_the_same_when_loaded": 3,
    "tests/experiments/test_outputs.py::test_scores_are_not_written_over_what_is_scored": 2,
    "tests/experiments/test_sweep.py::test_a_point_with_an_order_of_its_own_is_the_run_alone": 2,
    "tests/experiments/test_sweep_inputs.py::test_bad_input_leaves_no_folder": 2,
    f"{_VARIANTS}::test_a_point_of_a_variant_is_the_run_alone": 4,
    f"{_VARIANTS}::test_a_point_that_starts_from_another_adapter_is_the_run_alone": 2,
    "tests/interop/test_peft.py::test_both_ways": 3,
    "tests/interop/test_servers.py::test_an_adapter_file_is_the_update_of_the_bases_tensors": 2,
    "tests/linen/test_layers.py::test_output_gradients_and_merged_weight_are_those_of_the_nnx_layer": 2,
    "tests/linen/test_models.py::test_method_is_that_of_the_nnx_model": 2,
    "tests/low_rank/test_dora.py::test_merged_weight_is_the_formulas_and_merged_equals_unmerged": 3,
    "tests/low_rank/test_ia3.py::test_merged_equals_unmerged": 3,
    "tests/low_rank/test_ia3.py::test_output_training_and_merged_layer_are_pefts": 2,
    "tests/low_rank/test_loha_lokr.py::test_every_kind_of_layer_computes_the_formula": 3,
    "tests/methods/test_bottleneck.py::test_logits_and_gradients_equal_pytorch": 2,
    "tests/methods/test_bottleneck.py::test_start_is_the_base_model_or_near_it": 3,
    "tests/methods/test_special_tokens.py::test_outputs_loss_and_gradients_equal_pytorch": 2,
    "tests/models/test_attention.py::test_all_forms_agree_with_pytorch": 2,
    "tests/models/test_attention.py::test_models_compute_the_same_by_a_kernel": 2,
    "tests/models/test_deberta.py::test_unroll_and_remat_change_nothing": 3,
    "tests/models/test_llama.py::test_logits_and_all_gradients_equal_pytorch": 2,
    "tests/pool/test_models.py::test_continuations_are_those_of_each_adapter": 4,
    "tests/pool/test_models.py::test_packed_rows_of_decoders": 2,
    "tests/pool/test_layers.py::test_rows_have_their_own_adapters": 4,
    "tests/pool/test_pool.py::test_a_b_that_is_not_finite_reaches_its_own_rows_only": 3,
    f"{_FORMATS}::test_values_of_bitsandbytes_that_are_not_finite_are_found_by_their_scales": 3,
    f"{_FORMATS}::test_values_of_ggufs_blocks_that_are_not_finite_are_found_by_their_scales": 2,
    "tests/quantisation/test_layers.py::"
    "test_outputs_gradients_and_merging_are_those_of_the_unpacked_weights": 3,
    "tests/quantisation/test_layers.py::test_rows_of_a_packed_table_are_those_of_the_unpacked_one": 2,
    "tests/quantisation/test_merging.py::test_what_is_packed_is_the_sum_of_base_and_update": 2,
    "tests/test_nnx.py::test_tabulate_shows_adapted_models_and_leaves_classes_alone": 2,
    "tests/test_warm_start.py::test_a_larger_rank_starts_with_the_same_update_and_trains_whole": 3,
    "tests/training/test_chunked_loss.py::test_values_and_gradients_are_those_of_the_plain_loss": 5,
    "tests/training/test_state_in_runs.py::test_killed_and_resumed_is_the_uninterrupted_run": 2,
    "tests/training/test_trainer.py::test_a_folder_is_of_its_data": 2,
}  # fmt: skip


def left_out(names: Iterable[str]) -> list[int]:
    """Numbers of the tests that do not run by default.

    Args:
      names: of all collected tests, in order, such as `tests/a.py::test_b[case]`.
    """
    seen: Counter[str] = Counter()
    result = []
    for number, name in enumerate(names):
        function = name.partition("[")[0]
        if (every := EVERY.get(function)) is not None:
            if seen[function] % every:
                result.append(number)
            seen[function] += 1
    return result
