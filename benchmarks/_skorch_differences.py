"""Which of skorch's tests a BSDClassifier does not pass by design, and why.

docs/coming_from/skorch.md says what to do instead.
"""

from fnmatch import fnmatchcase

# Reasons, and the tests that they explain: by the end of their ids, with wildcards.
_DIFFERENCES: dict[str, tuple[str, ...]] = {
    "the loss is BSD's: no criterion, get_loss or training step of one's own": (
        "test_criterion_init_with_params",
        "test_criterion_set_params",
        "test_criterion_training_set_correctly",
        "test_criterion_params_passed_to_optimizer_if_any",
        "test_change_get_loss",
        "test_accumulator_that_returns_last_value",
        "test_gradient_accumulation*",
        "test_no_grad_during_validation",
        "test_criteria_trimmed",
        "test_takes_log_with_nllloss",
        "test_scored_net_matches_criterion_value*",
        "test_scored_net_with_reduction_none*",
        "test_score_unknown_reduction_raises*",
        "test_save_load_state_dict_file_with_history_optimizer_criterion",
    ),
    "one module and one optimizer: none of one's own in initialize_*": (
        "test_setattr_custom_criterion",
        "test_custom_optimizer_virtual_params",
        "test_custom_non_default_module_with_check_is_fitted",
        "test_set_params_on_custom_*",
        "test_modules_reinit_when_both_initialized_but_custom_module_changed",
        "test_criteria_reinit_when_both_initialized_but_custom_criterion_changed",
        "test_custom_criterion_attribute_name_predict_works",
        "TestSkorchDoctorComplexArchitecture::*",
        "test_custom_module_is_init_when_default_module_already_is",
        "test_custom_criterion_is_init_when_default_criterion_already_is",
        "test_setting_custom_optimizer_outside_initialize_raises",
        "test_setting_custom_module_without_trailing_underscore_raises",
        "test_moving_custom_modules_to_device",
        "test_custom_modules_and_criteria_training_mode_set_correctly",
        "test_custom_optimizer_performs_updates",
        "test_optimizer_initialized_after_module_moved_to_device",
        "test_predict_nonlinearity_is_identity_with_multiple_criteria",
        "test_custom_modules_are_compiled",
        "TestInputShapeSetter::test_module_name*",
    ),
    "set_params assigns, and fit builds: nothing is rebuilt or announced before": (
        "test_changing_model_reinitializes_optimizer",
        "test_reinitializing_module_optimizer_message[[]kwargs[234]-*",
        "test_reinitializing_module_optimizer_when_initialized_message[[]kwargs[34]-*",
        "test_message_fit_with_initialized_net",
        "test_callback_set_params",
        "test_setting_callback_to_none_and_more_params_later_raises",
        "test_compile_called_after_set_params*",
    ),
    "get_params lists own parameters and not those of the default callbacks": (
        "test_get_params_works",
    ),
    "errors and warnings say the same in other words": (
        "test_net_init_*_unknown_argument*",
        "test_net_init_missing_dunder_*",
        "test_compile_missing_dunder_in_prefix_arguments",
        "test_unknown_set_params_gives_helpful_message",
        "test_fit_with_dataset_*_item*_error",
        "test_predict_with_dataset_*_item*_error",
        "TestInputShapeSetter::test_one_dimensional_x_raises",
        "test_net_use_caching_wrong_value_raises",
    ),
    "iterator_valid__shuffle is an error rather than a warning": (
        "test_net_init_with_iterator_valid_shuffle_true_warns",
    ),
    "no parameters dataset, history, classes, use_caching, torch_load_kwargs or "
    "predict_nonlinearity": (
        "test_net_initialized_with_custom_dataset_args",
        "test_net_initialized_with_partialed_dataset",
        "test_net_initialized_with_initalized_dataset*",
        "test_initializing_net_with_custom_history",
        "test_pass_classes_explicitly_overrides",
        "test_pass_empty_classes_raises*",
        "test_net_overrides_caching*",
        "test_torch_load_kwargs_forwarded_to_torch_load*",
        "test_predict_nonlinearity_*",
        "test_infer_neural_net_classifier_default",
    ),
    "the module returns logits, of which forward returns the first output": (
        "test_fit_lbfgs_optimizer",
        "test_fit_sparse_csr_learns",
        "test_net_learns",
        "test_clone_results_in_uninitialized_net",
        "TestNeuralNet::test_forward",
        "test_multioutput_forward*",
        "test_net_variable_prediction_lengths",
        "test_net_variable_label_lengths",
        "TestSkorchDoctorSimple::test_activation_recs_values",
    ),
    "labels are known before training: no y from a loader alone": (
        "TestNetWithoutY::test_net_?d_custom_loader[[]net_?d_custom_loader[02]]",
        "test_error_when_classes_could_not_be_inferred",
        "test_fit_with_dataset_stratified_without_explicit_y_raises",
    ),
    "one class only is an error": (
        "TestTrainSplitIsUsed::*",
        "TestPassthrougScoring::test_correct_*_pass_through_scores",
        "test_undeclared_param_rejected_by_routing",
    ),
    "parameters of fit go to train_split, and not to the module": (
        "test_fit_params_passed_to_module*",
        "test_*fit_with_extra_params_and_routing",
        "test_data_dict_and_fit_params*",
    ),
    "torch.compile for training only, once it begins": (
        "TestTorchCompile::test_with_compile_*",
        "TestTorchCompile::test_fit_and_predict_with_compile",
    ),
    "repr is scikit-learn's": ("test_repr_*_works",),
    "random_state is the seed, and not torch's global generator": (
        "TestEarlyStopping::test_weights_restore",
    ),
    "callbacks and loaders get datasets that know the rows": ("test_predefined_split",),
    "train_split=False: None says it": (
        "TestSliceDataset::test_fit_with_slds_without_valid_works*",
        "TestSliceDataset::test_grid_search_with_slds_works*",
        "TestSliceDataset::test_grid_search_with_slds_X_and_slds_y*",
    ),
    "a DataFrame is a table: its columns are not passed to forward by name": (
        "TestNetWithPandas::*",
    ),
}


def reason_for(test: str) -> str | None:
    """Return why a test does not pass by design, or None where it should pass.

    Parameters
    ----------
    test : str
        Its id, as pytest writes it.
    """
    for reason, patterns in _DIFFERENCES.items():
        if any(fnmatchcase(test, f"*::{pattern}") for pattern in patterns):
            return reason
    return None
