"""Sources of saved models, and the names of their files."""

LOCAL, HUB = "local-dir:", "hf-hub:"
SOURCES = (LOCAL, HUB, "hf_hub:")  # timm accepts the last one as well

LIBRARY_NAME = "minmax_entropy"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
EXAMPLE_NAME = "example.png"
