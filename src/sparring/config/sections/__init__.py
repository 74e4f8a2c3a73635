"""The sections of a recipe, a module for each subject: the options, their defaults and the rules between those of a section."""
