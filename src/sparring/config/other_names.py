"""The names of our options in other trainers (TRL and the transformers Trainer, axolotl, LLaMA-Factory), for error messages only."""

from __future__ import annotations

from sparring.config.reference import walk_fields

# their name -> our key
SAME: dict[str, str] = {
    # the model
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "base_model": "model.path",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "template": "model.chat_template",
    "chat_template_jinja": "model.chat_template",
    # the rows
    "dataset": "data.path",
    "datasets": "data.path",
    "dataset_name": "data.path",
    "dataset_path": "data.path",
    "dataset_dir": "data.path",
    "train_file": "data.path",
    "dataset_config": "data.name",
    "dataset_config_name": "data.name",
    "dataset_train_split": "data.split",
    "dataset_split": "data.split",
    "max_samples": "data.max_examples",
    "max_train_samples": "data.max_examples",
    "val_size": "data.held_out",
    "val_set_size": "data.held_out",
    "test_split": "data.held_out",
    "max_prompt_length": "data.max_prompt_tokens",
    # training
    "learning_rate": "train.lr",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "train_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "optim": "train.optimizer",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "gradient_clipping": "train.max_grad_norm",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "mixed_precision": "train.precision",
    "save_steps": "train.checkpoint_every",
    "activation_checkpointing": "train.gradient_checkpointing",
    # adapters
    "use_peft": "train.lora",
    "peft_config": "train.lora",
    "adapter": "train.lora",
    "finetuning_type": "train.lora",
    "lora_r": "train.lora.rank",
    "lora_rank": "train.lora.rank",
    "lora_alpha": "train.lora.alpha",
    "lora_dropout": "train.lora.dropout",
    "lora_target": "train.lora.targets",
    "lora_target_modules": "train.lora.targets",
    "lora_target_linear": "train.lora.targets",
    "target_modules": "train.lora.targets",
    "use_rslora": "train.lora.rslora",
    "peft_use_rslora": "train.lora.rslora",
    "use_dora": "train.lora.dora",
    "peft_use_dora": "train.lora.dora",
    "load_in_4bit": "train.lora.quantize",
    "quantization_bit": "train.lora.quantize",
    # replies, objective, the rest
    "num_generations": "sampling.replies_per_prompt",
    "max_completion_length": "sampling.max_new_tokens",
    "vllm_gpu_memory_utilization": "sampling.vllm.gpu_memory_utilization",
    "use_vllm": "sampling.engine",
    "infer_backend": "sampling.engine",
    "loss_type": "objective.loss",
    "pref_loss": "objective.loss",
    "pref_beta": "objective.beta",
    "dpo_beta": "objective.beta",
    "rpo_alpha": "objective.nll_weight",
    "pref_ftx": "objective.nll_weight",
    "output_dir": "run_dir",
    "run_name": "track.name",
    "report_to": "track.trackers",
    "wandb_project": "track.project",
    "wandb_name": "track.name",
    "num_processes": "launcher.processes",
    "nproc_per_node": "launcher.processes",
    "deepspeed": "launcher.strategy",
    "fsdp": "launcher.strategy",
}
# their name -> the equivalent here
INSTEAD: dict[str, str] = {
    "gradient_accumulation_steps": "train.batch_size counts the duels of one step on all devices together",
    "micro_batch_size": "train.batch_size counts the duels of one step; train.micro_batch_tokens says how many tokens are computed at once",
    "max_steps": "an iteration's length is train.epochs",
    "max_length": "data.max_prompt_tokens and data.max_reply_tokens limit a row's two parts",
    "max_seq_length": "data.max_prompt_tokens and data.max_reply_tokens limit a row's two parts",
    "max_seq_len": "data.max_prompt_tokens and data.max_reply_tokens limit a row's two parts",
    "sequence_len": "data.max_prompt_tokens and data.max_reply_tokens limit a row's two parts",
    "cutoff_len": "data.max_prompt_tokens and data.max_reply_tokens limit a row's two parts",
    "packing": "duels are always packed",
    "sample_packing": "duels are always packed",
    "ref_model": "the reference is the opponent: the player of the iteration before",
    "trust_remote_code": "code of a model's repository is never run",
    "flash_attention": "the fastest attention that fits is chosen automatically",
    "attn_implementation": "the fastest attention that fits is chosen automatically",
    "logging_steps": "every step is logged, in metrics.jsonl",
    "eval_steps": "players are measured once after every iteration",
    "eval_strategy": "players are measured once after every iteration",
    "push_to_hub": "`sparring push` does that after the game",
    "resume_from_checkpoint": "the same command resumes where it stopped",
    "load_in_8bit": "a frozen base is kept in 4 bits by `lora: {quantize: 4bit}`",
}


def hint(key: str) -> str | None:
    """The key to use for the dotted `key` if its last part is another trainer's name; None otherwise.

    A key of the same section is preferred: `sft.learning_rate` is sft.lr.
    """
    section, _, name = key.rpartition(".")
    name = name.lower().replace("-", "_")
    if name in INSTEAD:
        return INSTEAD[name]
    ours = SAME.get(name)
    if ours is None:
        return None
    here = f"{section}.{ours.partition('.')[2]}"
    return f"that is {here if here in dict(walk_fields()) else ours} here"
