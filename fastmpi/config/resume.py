"""What a resumed run may change."""

# Settings a resumed run may change: they decide where and how fast, or how far, never what.
# The cut into micro-batches is one of them, because a step does not depend on it, and so is that
# into processes: of how much a device takes, only the product over all of them must stay.
FREE_ON_RESUME = frozenset(
    {
        "attention_backend",
        "balance_by",
        "ddp_timeout",
        "disable_tqdm",
        "eval_steps",
        "fsdp",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "dataloader_prefetch_factor",
        "log_completions",
        "logging_steps",
        "max_steps",
        "max_tokens_per_microbatch",
        "memory_budget_gib",
        "num_train_epochs",
        "output_dir",
        "per_device_train_batch_size",
        "profile",
        "report_to",
        "rollout_memory_gib",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "share_prefix",
        "steps_per_generation",
        "trust_remote_code",
        "vllm_enable_sleep_mode",
        "vllm_gpu_memory_utilization",
        "vllm_max_model_length",
        "vllm_server_base_url",
        "vllm_server_timeout",
        "vllm_weights_dir",
    }
)
