"""The recipe: every option, typed, frozen, documented here and checked before anything loads.

specs.py         what every sampling engine needs and refuses; the rules that decide which replies win
option_types.py  the types of the options, and the base class of the sections
sections.py      the options themselves, section by section, and the rules within each
recipe.py        the Recipe: all sections, and the rules between them
yaml_dialect.py  YAML as a recipe understands it
messages.py      error messages for a recipe
load.py          reading and writing a recipe, and `section.key=value` on the command line
reference.py     the options in plain words, and the page docs/recipe.md, which `python -m sparring.config` prints
"""

from sparring.config.load import (
    builtin_recipes,
    control_batch_size,
    control_lr,
    convert_layout,
    load_recipe,
    recipe_of_run,
    require_layout,
    resolved,
    section_from_options,
    sft_settings,
    to_yaml,
)
from sparring.config.option_types import Column, MetricName, Section, ShapeName, at_iteration
from sparring.config.recipe import ModelSection, Recipe, TrackSection
from sparring.config.reference import in_words, recipe_reference, section_of, walk_fields
from sparring.config.sections import (
    CONTROL_TITLES,
    BenchmarksSection,
    ControlSection,
    DataSection,
    EvaluateSection,
    LauncherSection,
    LoraSection,
    ObjectiveSection,
    OptimSection,
    PairsSection,
    Precision,
    PromptsSection,
    RaySection,
    SamplerSettings,
    SamplingSection,
    ServerSection,
    SftSection,
    StopSection,
    TargetSection,
    TrainSection,
    VllmSection,
    defaults_with_grades,
    require_shardable,
    unused_sections,
)
from sparring.config.specs import ENGINES, EngineSpec
