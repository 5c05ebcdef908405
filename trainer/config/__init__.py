"""Every setting and its default: frozen dataclasses, read from YAML and `key=value`, all problems reported at once."""

from transpooler.trainer.config.load import load_config, save_config
from transpooler.trainer.config.root import Config

__all__ = ["Config", "load_config", "save_config"]
