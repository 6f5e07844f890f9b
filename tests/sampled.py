"""Tests of many like cases, of which every n-th runs by default, to keep the whole run within its time.

The cases differ in kinds of layers, forms or inputs that neighbours and other tests show, too.
`LORA_JAX_SLOW=1` runs all. A test is named by its file and function; the first case always runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

EVERY = {
    "tests/costs/test_flops.py::test_depth_and_remat": 3,
    "tests/costs/test_flops.py::test_steps_of_the_models_against_closed_form_and_xla": 3,
    "tests/costs/test_residuals.py::test_what_our_models_keep": 2,
    "tests/costs/test_residuals.py::test_what_they_keep_with_a_kernel_of_attention": 2,
    "tests/data/test_chat_templates.py::"
    "test_templates_by_which_training_and_generation_would_differ_are_refused": 2,
    "tests/data/test_chat_templates.py::test_wrong_templates_end_in_an_error": 4,
    "tests/decoding/test_beam.py::test_equals_the_slow_reference": 4,
    "tests/decoding/test_streaming.py::test_tokens_are_those_of_sample": 4,
    "tests/experiments/test_command_line.py::test_errors_of_ones_own_config_name_the_line": 2,
    "tests/experiments/test_command_line.py::test_flags": 3,
    "tests/experiments/test_decoder_counts.py::test_totals": 3,
    "tests/experiments/test_decoder_counts.py::test_transformers_makes_as_many_values_of_the_same_file": 4,
    "tests/experiments/test_exports.py::test_an_adapter_is_merged_into_the_packed_form": 2,
    "tests/experiments/test_glue.py::test_every_method_trains_is_saved_and_scores_the_same_when_loaded": 4,
    "tests/experiments/test_inputs.py::test_the_adapter_that_starts_a_run_is_one_of_its_inputs": 2,
    "tests/experiments/test_merged_models.py::"
    "test_classifiers_become_folders_for_sequence_classification": 2,
    "tests/experiments/test_nlg.py::test_every_method_trains_decodes_and_decodes_the_same_when_loaded": 3,
    "tests/experiments/test_outputs.py::test_commands_look_at_their_outputs_first": 2,
    "tests/experiments/test_outputs.py::test_scores_are_not_written_over_what_is_scored": 4,
    "tests/experiments/test_sweep.py::test_a_point_with_an_order_of_its_own_is_the_run_alone": 4,
    "tests/experiments/test_sweep.py::test_a_point_with_the_batches_of_all_is_the_run_alone": 2,
    "tests/experiments/test_sweep_configs.py::test_points_are_single_runs_apart_from_the_grid": 3,
    "tests/experiments/test_sweep_inputs.py::test_bad_input_leaves_no_folder": 4,
    "tests/experiments/test_sweep_of_variants.py::test_a_point_of_a_variant_is_the_run_alone": 4,
    "tests/experiments/test_sweep_of_variants.py::"
    "test_a_point_that_starts_from_another_adapter_is_the_run_alone": 2,
    "tests/experiments/test_sweep_points.py::test_no_program_is_empty": 4,
    "tests/experiments/test_tune.py::test_killed_and_resumed_is_the_same": 2,
    "tests/interop/test_diffusion.py::test_there_and_back": 2,
    "tests/interop/test_loralib.py::test_logits_equal_those_of_loralib": 3,
    "tests/interop/test_peft.py::test_adapters_trained_here": 2,
    "tests/interop/test_peft.py::test_both_ways": 5,
    "tests/interop/test_peft_methods.py::test_adapters_trained_here": 3,
    "tests/interop/test_peft_methods.py::test_both_ways": 3,
    "tests/interop/test_peft_methods.py::test_starts_that_peft_takes_off_the_base": 2,
    "tests/interop/test_servers.py::test_an_adapter_file_is_the_update_of_the_bases_tensors": 2,
    "tests/linen/test_layers.py::test_call_is_that_of_the_module": 3,
    "tests/linen/test_layers.py::test_custom_product_or_promotion_acts_once": 3,
    "tests/linen/test_layers.py::test_output_gradients_and_merged_weight_are_those_of_the_nnx_layer": 4,
    "tests/linen/test_models.py::test_method_is_that_of_the_nnx_model": 4,
    "tests/linen/test_models.py::test_other_stacks": 2,
    "tests/low_rank/test_dora.py::test_gradients_and_five_steps_of_adamw_are_pefts": 2,
    "tests/low_rank/test_dora.py::test_merged_weight_is_the_formulas_and_merged_equals_unmerged": 6,
    "tests/low_rank/test_flax_layers.py::test_output_at_step_0_is_the_bases": 2,
    "tests/low_rank/test_ia3.py::test_merged_equals_unmerged": 8,
    "tests/low_rank/test_ia3.py::test_output_training_and_merged_layer_are_pefts": 4,
    "tests/low_rank/test_loha_lokr.py::test_every_kind_of_layer_computes_the_formula": 4,
    "tests/low_rank/test_loha_lokr.py::test_runs_side_by_side_train_as_alone": 2,
    "tests/low_rank/test_loha_lokr.py::test_stacked_layers_equal_separate_ones": 2,
    "tests/low_rank/test_loha_lokr_peft.py::test_gradients_and_five_steps_of_adamw_are_pefts": 3,
    "tests/low_rank/test_loha_lokr_peft.py::"
    "test_leaves_counts_and_sizes_at_the_start_are_pefts_and_change_nothing": 3,
    "tests/low_rank/test_loha_lokr_peft.py::test_output_and_merged_weight_are_pefts": 3,
    "tests/low_rank/test_own_layers.py::test_einsum_of_a_users_own": 2,
    "tests/low_rank/test_products.py::test_custom_product_or_promotion_acts_once": 4,
    "tests/low_rank/test_stacks.py::test_scanned_stack_equals_a_loop_over_single_layers": 2,
    "tests/low_rank/test_variants_of_lora.py::test_nothing_changes_at_the_start_in_any_type": 2,
    "tests/low_rank/test_vera.py::test_merged_weight_is_the_formulas_and_merged_equals_unmerged": 3,
    "tests/methods/test_bfloat16.py::test_loss_gradients_and_decoding_are_near_those_of_float32": 2,
    "tests/methods/test_bottleneck.py::test_cached_decoding_equals_full_passes": 2,
    "tests/methods/test_bottleneck.py::test_logits_and_gradients_equal_pytorch": 2,
    "tests/methods/test_bottleneck.py::test_start_is_the_base_model_or_near_it": 3,
    "tests/methods/test_cut.py::test_a_cut_stack_is_the_uncut_one": 2,
    "tests/methods/test_special_tokens.py::test_outputs_loss_and_gradients_equal_pytorch": 2,
    "tests/models/test_attention.py::test_all_forms_agree_with_pytorch": 2,
    "tests/models/test_attention.py::test_models_compute_the_same_by_a_kernel": 4,
    "tests/models/test_attention.py::test_runs_of_a_sweep": 2,
    "tests/models/test_base_formats.py::test_what_a_file_packs_stays_packed_and_means_the_same": 2,
    "tests/models/test_bitsandbytes_files.py::"
    "test_finite_parts_whose_values_are_not_are_refused_in_both_forms": 3,
    "tests/models/test_bitsandbytes_files.py::test_logits_are_those_of_transformers_with_bitsandbytes": 2,
    "tests/models/test_bitsandbytes_files.py::test_stored_matrices_mean_the_same_packed": 3,
    "tests/models/test_compute_dtype.py::test_logits_and_gradients_are_near_those_of_float32": 2,
    "tests/models/test_compute_dtype.py::test_types_inside_of_a_bfloat16_model": 2,
    "tests/models/test_deberta.py::test_logits_and_all_gradients_equal_pytorch": 2,
    "tests/models/test_deberta.py::test_unroll_and_remat_change_nothing": 3,
    "tests/models/test_diffusion_unet.py::test_predictions_and_gradients_equal_diffusers": 2,
    "tests/models/test_diffusion_vae_clip.py::test_encoding_and_decoding_equal_diffusers": 2,
    "tests/models/test_llama.py::test_a_saved_folder_is_that_of_transformers": 3,
    "tests/models/test_llama.py::test_cached_decoding_equals_full_passes": 2,
    "tests/models/test_llama.py::test_logits_and_all_gradients_equal_pytorch": 3,
    "tests/pool/test_layers.py::test_rows_have_their_own_adapters": 8,
    "tests/pool/test_models.py::test_continuations_are_those_of_each_adapter": 10,
    "tests/pool/test_models.py::test_packed_rows_have_several_tasks": 2,
    "tests/pool/test_models.py::test_packed_rows_of_decoders": 6,
    "tests/pool/test_pool.py::test_a_b_that_is_not_finite_reaches_its_own_rows_only": 3,
    "tests/pool/test_pool.py::test_every_row_has_its_own_adapter": 3,
    "tests/pool/test_pool.py::test_the_form_goes_by_device_and_shape": 2,
    "tests/quantisation/test_against_peft.py::test_five_steps_over_packed_weights_equal_peft": 2,
    "tests/quantisation/test_formats.py::"
    "test_values_of_bitsandbytes_that_are_not_finite_are_found_by_their_scales": 3,
    "tests/quantisation/test_formats.py::"
    "test_values_of_ggufs_blocks_that_are_not_finite_are_found_by_their_scales": 2,
    "tests/quantisation/test_layers.py::"
    "test_outputs_gradients_and_merging_are_those_of_the_unpacked_weights": 3,
    "tests/quantisation/test_layers.py::test_rows_of_a_packed_table_are_those_of_the_unpacked_one": 2,
    "tests/quantisation/test_merging.py::test_what_is_packed_is_the_sum_of_base_and_update": 3,
    "tests/sweeps/test_padding.py::test_the_padded_run_is_the_run_without_padding": 2,
    "tests/sweeps/test_start.py::test_a_loop_over_runs_is_all_at_once": 2,
    "tests/test_conversion.py::test_the_model_stays_the_same_as_lora": 2,
    "tests/test_nnx.py::test_tabulate_shows_adapted_models_and_leaves_classes_alone": 2,
    "tests/test_threefry.py::test_dropout_keeps_its_share_everywhere": 4,
    "tests/test_threefry.py::test_what_is_left_makes_up_for_what_is_dropped": 4,
    "tests/test_warm_start.py::test_a_larger_rank_starts_with_the_same_update_and_trains_whole": 6,
    "tests/training/test_accumulation.py::test_packed_micro_batches_equal_the_unsplit_batch": 2,
    "tests/training/test_chunked_loss.py::test_several_runs_at_once": 2,
    "tests/training/test_chunked_loss.py::test_values_and_gradients_are_those_of_the_plain_loss": 5,
    "tests/training/test_loop.py::test_divergence_is_seen_at_its_step_whatever_is_logged": 3,
    "tests/training/test_loop.py::test_resumed_run_equals_the_whole_one": 2,
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
