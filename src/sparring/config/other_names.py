"""The names of our options in other trainers (TRL and the transformers Trainer, axolotl, LLaMA-Factory), for error messages only."""

from __future__ import annotations

from sparring.config.reference import walk_fields

# our key: their names
_NAMES = {
    "model.path": "model_name_or_path model_name base_model",
    "model.revision": "model_revision",
    "model.dtype": "torch_dtype",
    "model.chat_template": "template chat_template_jinja",
    "data.path": "dataset datasets dataset_name dataset_path dataset_dir train_file",
    "data.name": "dataset_config dataset_config_name",
    "data.split": "dataset_train_split dataset_split",
    "data.max_examples": "max_samples max_train_samples",
    "data.held_out": "val_size val_set_size test_split",
    "data.max_prompt_tokens": "max_prompt_length",
    "train.lr": "learning_rate",
    "train.epochs": "num_train_epochs num_epochs",
    "train.batch_size": "train_batch_size per_device_train_batch_size",
    "train.optimizer": "optim",
    "train.schedule": "lr_scheduler lr_scheduler_type",
    "train.warmup": "warmup_ratio warmup_steps",
    "train.max_grad_norm": "gradient_clipping",
    "train.precision": "bf16 fp16 mixed_precision",
    "train.checkpoint_every": "save_steps",
    "train.gradient_checkpointing": "activation_checkpointing",
    "train.lora": "use_peft peft_config adapter finetuning_type",
    "train.lora.rank": "lora_r lora_rank",
    "train.lora.alpha": "lora_alpha",
    "train.lora.dropout": "lora_dropout",
    "train.lora.targets": "lora_target lora_target_modules lora_target_linear target_modules",
    "train.lora.rslora": "use_rslora peft_use_rslora",
    "train.lora.dora": "use_dora peft_use_dora",
    "train.lora.quantize": "load_in_4bit quantization_bit",
    "sampling.replies_per_prompt": "num_generations",
    "sampling.max_new_tokens": "max_completion_length",
    "sampling.vllm.gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "sampling.engine": "use_vllm infer_backend",
    "objective.loss": "loss_type pref_loss",
    "objective.beta": "pref_beta dpo_beta",
    "objective.nll_weight": "rpo_alpha pref_ftx",
    "run_dir": "output_dir",
    "track.name": "run_name wandb_name",
    "track.trackers": "report_to",
    "track.project": "wandb_project",
    "launcher.processes": "num_processes nproc_per_node",
    "launcher.strategy": "deepspeed fsdp",
}
_LENGTHS = "data.max_prompt_tokens and data.max_reply_tokens limit a row's two parts"
# their names: what there is instead
_INSTEAD = {
    "gradient_accumulation_steps": "train.batch_size counts the duels of one step on all devices together",
    "micro_batch_size": "train.batch_size counts the duels of one step; train.micro_batch_tokens says how many tokens are computed at once",
    "max_steps": "an iteration's length is train.epochs",
    "max_length max_seq_length max_seq_len sequence_len cutoff_len": _LENGTHS,
    "packing sample_packing": "duels are always packed",
    "ref_model": "the reference is the opponent: the player of the iteration before",
    "trust_remote_code": "code of a model's repository is never run",
    "flash_attention attn_implementation": "the fastest attention that fits is chosen automatically",
    "logging_steps": "every step is logged, in metrics.jsonl",
    "eval_steps eval_strategy": "players are measured once after every iteration",
    "push_to_hub": "`sparring push` does that after the game",
    "resume_from_checkpoint": "the same command resumes where it stopped",
    "load_in_8bit": "a frozen base is kept in 4 bits by `lora: {quantize: 4bit}`",
}
SAME = {name: key for key, names in _NAMES.items() for name in names.split()}
INSTEAD = {name: what for names, what in _INSTEAD.items() for name in names.split()}


def hint(key: str) -> str | None:
    """The key to use for the dotted `key` if its last part is another trainer's name; None otherwise.

    A key of the same section is preferred: `sft.learning_rate` is sft.lr.
    """
    section, _, name = key.rpartition(".")
    name = name.lower().replace("-", "_")
    if name not in SAME:
        return INSTEAD.get(name)
    ours = SAME[name]
    here = f"{section}.{ours.partition('.')[2]}"
    return f"that is {here if here in dict(walk_fields()) else ours} here"
