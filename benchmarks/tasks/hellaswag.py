"""What hellaswag.yaml needs of the harness: HellaSwag's rows without the marks that WikiHow left in them."""

from lm_eval.tasks.hellaswag.utils import process_docs

__all__ = ["process_docs"]
